"""Many processes that train one host, as one run: one log, one decision, the same seeds."""
