"""What the loops that are timed have in common, and the loop of one's own."""
# ruff: noqa: INP001 - beside a script, which imports it

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kasmina import G2Policy, GatePolicy, Objective, Slots, Topology, graft, open_run
from kasmina.adapters.torch.hosts import ConvHost

STEPS, EPOCHS, BATCH = 20, 6, 64
RATE = 1e-3
# No seed gets that far: it stays in TRAINING.
PATIENT = GatePolicy(g2=G2Policy(min_improvement=1e6))


class Arm(Enum):
    """Under what a loop trains."""

    ALONE = "alone"
    AGAIN = "alone, again"
    EMPTY = "a run, no seed"
    SEEDED = "a run, a seed in TRAINING"

    @property
    def grows(self) -> bool:
        """Whether there is a run."""
        return self in (Arm.EMPTY, Arm.SEEDED)


class Span(NamedTuple):
    """CPU seconds of a step, and of what an epoch does after its last one."""

    step: float
    end: float


class Stopwatch:
    """Takes the epochs' times: as one begins, and after its last step."""

    def __init__(self) -> None:
        self._marks: list[float] = []

    def mark(self) -> None:
        """Now."""
        self._marks.append(time.process_time())

    def spans(self) -> list[Span]:
        """The epochs but the first, whose marks are two each, and one at the end of all."""
        begun, stepped = self._marks[::2], self._marks[1::2]
        ended = begun[1:]
        found = [
            Span((s - b) / STEPS, e - s) for b, s, e in zip(begun, stepped, ended, strict=False)
        ]
        return found[1:]


def images() -> tuple[Tensor, Tensor]:
    """Random images and labels of an epoch."""
    draws = torch.Generator().manual_seed(1)
    count = STEPS * BATCH
    return (
        torch.randn(count, 1, 8, 8, generator=draws),
        torch.randint(0, 10, (count,), generator=draws),
    )


def host() -> nn.Module:
    """A small host, on which every microsecond shows."""
    torch.manual_seed(0)
    return ConvHost(inputs=1, channels=(16, 32))


def first_stage(model: nn.Module) -> dict[str, Topology]:
    """Where to graft a ``ConvHost``."""
    points = model.injection_points()  # type: ignore[operator]  # a ConvHost
    return {next(iter(points.values())).path: Topology.CNN}


def plain(arm: Arm, folder: Path) -> list[Span]:
    """Train by hand."""
    model, (x, y), watch = host(), images(), Stopwatch()
    slots = graft(model, first_stage(model)) if arm.grows else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)

    def evaluate() -> Mapping[str, float]:
        model.eval()
        with torch.no_grad():
            right = (model(x[:256]).argmax(1) == y[:256]).float().mean().item()
        model.train()
        return {"val_accuracy": 100 * right}

    def steps() -> Iterator[None]:
        for images_, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(images_), labels).backward()
            optimizer.step()
            yield

    with ExitStack() as stack:
        run = stack.enter_context(_opened(slots, optimizer, folder)) if slots is not None else None
        if run is not None and arm is Arm.SEEDED:
            run.germinate(next(iter(run.slots)), "conv_light")
        for _ in range(EPOCHS):
            watch.mark()
            for _ in steps():
                if run is not None:
                    run.step()
            watch.mark()
            if run is None:
                evaluate()
            else:
                run.end_epoch(evaluate)
        watch.mark()
    return watch.spans()


def _opened(slots: Slots, optimizer: torch.optim.Optimizer, folder: Path):  # noqa: ANN202
    return open_run(
        f"sqlite:///{folder / 'runs.db'}",
        name="benchmark",
        slots=slots,
        optimizer=optimizer,
        objective=Objective.maximize("val_accuracy", unit="percent"),
        policy=PATIENT,
    )
