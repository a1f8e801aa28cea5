"""Forty epochs with five kills come to the bits, and the record, of forty epochs without one."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kasmina import Stage, open_store
from kasmina.adapters.torch.optimizer import SEED_KEY
from kasmina.domain import events as e
from kasmina.domain.errors import CheckpointError
from kasmina.domain.evolve import surviving
from kasmina.infra.engine import Access
from tests.journeys.loop import Loop

ROOT = Path(__file__).parents[2]
EPOCHS, STEPS, KILLS = 40, 160, 5


def start(folder: Path, epochs: int = EPOCHS) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.journeys.killable", str(epochs)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def train(folder: Path, *, kill_after: int | None = None) -> int:
    """Let it train, to the end or until it has said so many steps; returns how many it said."""
    said = 0
    with start(folder) as process:
        for _ in process.stdout:
            said += 1
            if said == kill_after:
                process.send_signal(signal.SIGKILL)
                break
        process.stdout.read()
        process.wait(timeout=120)
    assert process.returncode == (0 if kill_after is None else -signal.SIGKILL)
    return said


def folded(folder: Path) -> list[str]:
    """The events that still count, with what names this run and its seeds replaced."""
    with open_store(f"sqlite:///{folder / 'runs.db'}", access=Access.READ) as store:
        (run_id,) = store.run_ids()
        assert store.verify(run_id).sound
        history = list(store.read(run_id))
    rewinds = [
        (each.sequence, each.event.to) for each in history if isinstance(each.event, e.RunRewound)
    ]
    kept = [
        each.event
        for after, until in surviving(rewinds, head=history[-1].sequence)
        for each in history[after:until]
        if not isinstance(each.event, e.RunRewound)
    ]
    names = {run_id: "the run"}
    for event in kept:
        if isinstance(event, e.SeedGerminated):
            names[event.seed_id] = f"seed {len(names)}"
    texts = [
        repr(event) for event in kept if not isinstance(event, e.CheckpointSaved)
    ]  # a checkpoint knows its place in the whole log, rewinds and all
    return [re.sub("|".join(names), lambda found: names[found[0]], text) for text in texts]


def rewound(folder: Path) -> int:
    with open_store(f"sqlite:///{folder / 'runs.db'}", access=Access.READ) as store:
        (run_id,) = store.run_ids()
        return sum(isinstance(each.event, e.RunRewound) for each in store.read(run_id))


def differing(one: Path, other: Path) -> list[str]:
    """The names of tensors and numbers that are not the same to the bit, but random names."""
    left, right = (torch.load(each / "end.pt", weights_only=True) for each in (one, other))
    assert left.keys() == right.keys()
    return [
        name
        for name, value in left.items()
        if not name.endswith(SEED_KEY)
        and not (
            torch.equal(value, right[name])
            if isinstance(value, torch.Tensor)
            else value == right[name]
        )
    ]


@pytest.mark.slow
def test_a_training_killed_five_times_is_one_that_was_never_killed(tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir()
    killed.mkdir()
    assert train(straight) == STEPS

    moments = random.Random(11)
    for _ in range(KILLS):
        # Counted anew by each process: at least three epochs, so that all get further.
        train(killed, kill_after=moments.randint(13, 30))
    last = train(killed)
    assert 0 < last < STEPS
    assert rewound(killed), "no kill came between a checkpoint and the head"

    assert differing(straight, killed) == []
    history = folded(straight)
    assert folded(killed) == history
    text = "\n".join(history)
    missing = [stage for stage in Stage if f"target={stage!r}" not in text]
    assert missing == [], "the training shows no such stage, and so nothing about it"


def test_a_run_goes_on_from_a_copied_database_and_a_moved_checkpoint(tmp_path: Path) -> None:
    """Positions are digests of the log, wherever it lies."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    loop = Loop.fresh()
    with loop.open(here / "runs.db") as run:
        run.germinate("2", "conv_light")
        for _ in range(2):
            loop.epoch(run)
        run.checkpoint(here / "run.pt")
        loop.epoch(run)
    shutil.copy(here / "runs.db", there / "copied.db")
    shutil.move(here / "run.pt", there / "moved.pt")

    again = Loop.fresh()
    with pytest.raises(CheckpointError, match=r"here/run.pt: is missing; give the path of another"):
        again.open(there / "copied.db", resume=run.run_id)
    with again.open(
        there / "copied.db", resume=run.run_id, checkpoint=there / "moved.pt"
    ) as resumed:
        assert resumed.state.epoch == 2
        again.epoch(resumed)
    assert all(
        torch.equal(value, again.host.state_dict()[name])
        for name, value in loop.host.state_dict().items()
    )


def test_a_checkpoint_of_another_log_of_that_name_is_refused(tmp_path: Path) -> None:
    """Not the name of the run but what happened in it says where a checkpoint belongs."""
    loops = []
    for name, rate in (("one", 1e-2), ("other", 1e-3)):
        loop = Loop.fresh()
        loop.optimizer.param_groups[0]["lr"] = rate
        run = loop.open(tmp_path / f"{name}.db", identifiers=Twins())
        loop.epoch(run)
        run.checkpoint(tmp_path / f"{name}.pt")
        run.close()
        loops.append(run)
    assert loops[0].run_id == loops[1].run_id
    with pytest.raises(CheckpointError):
        Loop.fresh().open(
            tmp_path / "one.db", resume=loops[0].run_id, checkpoint=tmp_path / "other.pt"
        )


class Twins:
    """Names every run alike."""

    def run_id(self, name: str) -> str:
        return "the-run"

    def seed_id(self) -> str:
        return "the-seed"

    def batch(self) -> str:
        return "the-writer"
