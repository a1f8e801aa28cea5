"""kasmina inside training frameworks: their hooks turned into calls on a run."""
