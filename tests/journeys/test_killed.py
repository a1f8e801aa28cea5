"""A demonstration that is killed again and again loses nothing that it said was recorded."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kasmina import open_store
from kasmina.domain import events as e
from kasmina.infra.engine import Access

QUICK = ("--quick", "--log")
KILLS = 10
LINES = 30  # of the log, at most, between two kills; a quick demonstration has some 250
EPOCH = 0.06  # seconds, about: the kill falls anywhere in what comes after the last line


def demo(database: str, *options: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "kasmina", "demo", *options, "--database", database],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def acknowledged(process: "subprocess.Popen[str]", lines: int | None) -> set[tuple[str, int, str]]:
    """What the process says it has recorded, until it ends or has said so many lines."""
    said = set()
    for line in process.stderr:
        if not line.endswith("\n"):
            break  # cut off by the kill in the middle of saying it
        record = json.loads(line)
        said.add((record["run_id"], record["sequence"], record["type"]))
        if lines is not None and len(said) >= lines:
            break
    return said


def figures(database: str) -> dict[str, list[float]]:
    """Every measured epoch of every run by name, without what a rewind took back."""
    with open_store(database, access=Access.READ) as store:
        return {
            first.event.name: list(
                {
                    record.event.epoch: record.event.metrics
                    for record in store.read(first.run_id)
                    if isinstance(record.event, e.EpochRecorded)
                }.values()
            )
            for first in store.runs()
        }


@pytest.mark.slow
def test_a_demo_killed_at_ten_random_moments_ends_as_if_it_never_was(tmp_path: Path) -> None:
    whole, killed = f"sqlite:///{tmp_path / 'whole.db'}", f"sqlite:///{tmp_path / 'killed.db'}"
    with demo(whole, *QUICK) as undisturbed:
        acknowledged(undisturbed, None)
    assert undisturbed.returncode == 0

    moments = random.Random(4)
    said: set[tuple[str, int, str]] = set()
    for kill in range(KILLS):
        with demo(killed, *QUICK, *(["--resume"] if kill else [])) as process:
            said |= acknowledged(process, moments.randint(1, LINES))
            process.send_signal(signal.SIGKILL)
            said |= acknowledged(process, None)
        assert process.returncode == -signal.SIGKILL
    with demo(killed, *QUICK, "--resume") as last:
        said |= acknowledged(last, None)
    assert last.returncode == 0

    with open_store(killed, access=Access.READ) as store:
        recorded = {
            (run_id, record.sequence, type(record.event).__name__)
            for run_id in store.run_ids()
            for record in store.read(run_id)
        }
        assert said <= recorded
        assert all(store.verify(run_id).sound for run_id in store.run_ids())
        rewound = [kind for _, _, kind in recorded if kind == "RunRewound"]
        assert rewound, "no kill came between a checkpoint and the head"
    assert figures(killed) == figures(whole)
