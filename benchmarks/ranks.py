"""How the log's load grows: with ranks, slots and epochs, and with trainings that share a database.

    python benchmarks/ranks.py            # prints the tables
    python benchmarks/ranks.py --write    # and keeps them in benchmarks/results/ranks.md
    python benchmarks/ranks.py --quick    # fewer repetitions

All processes are on this machine: ranks meet through gloo on loopback, and PostgreSQL is a server
of the run's own, left out where none is installed. Where there are more processes than cores, times
on the wall hold their waiting for a core as well; the processor's time of rank 0 does not. Events
and bytes are counted, and are the same in every run.
"""
# ruff: noqa: INP001, T201 - a script: its output is the terminal

import argparse
import os
import platform
import tempfile
from pathlib import Path

import torch
from ranks_exchange import exchanges
from ranks_record import load
from ranks_writers import writers

RESULTS = Path(__file__).parent / "results" / "ranks.md"


def main() -> None:
    """Measure, print, and keep the tables where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--write", action="store_true", help="keep the tables in results/ranks.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    where = (
        f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}, "
        f"gloo on loopback."
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sections = [
            "# How the log's load grows",
            where,
            *exchanges(folder, times=50 if options.quick else 300),
            *load(folder, epochs=(10, 100) if options.quick else (10, 100, 1000)),
            *writers(folder, seconds=2 if options.quick else 8),
        ]
    text = "\n\n".join(sections) + "\n"
    print(text)
    if options.write:
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
