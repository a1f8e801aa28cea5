"""The lifecycle of a seed as pure values: standard library, attrs and transitions, nothing else."""
