"""Seeds in PyTorch models: slots that know how to act, never whether they should."""
