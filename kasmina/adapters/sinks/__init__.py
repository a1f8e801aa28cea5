"""Where else the log is shown: each receiver is followed up by a reader of the log of its own."""
