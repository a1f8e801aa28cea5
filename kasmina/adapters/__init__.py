"""How the world outside reaches the domain: torch, the command line."""
