"""What a checkpoint is made of: the file, its contents, and how they are taken on."""
