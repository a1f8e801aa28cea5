"""``python -m kasmina`` is ``kasmina``."""

from kasmina.adapters.cli.app import main

main()
