"""The event store on SQL, and what it stands on: codec, chain of digests, migrations, logging."""
