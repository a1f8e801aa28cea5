"""Runs out of a database and in again: JSON lines that can be verified, tables for analysis."""
