"""The incubators by name, against each other and against growing without one.

    python benchmarks/incubators.py            # the main comparison, in a quarter of an hour
    python benchmarks/incubators.py --sweep    # rates, warm-up, penalties, shares: likewise
    python benchmarks/incubators.py --far      # how far seeds go if they are never exposed
    python benchmarks/incubators.py --quick    # one random seed and the smallest host, for a look
    python benchmarks/incubators.py --tables   # results/incubators.md from the raw figures

With ``--write`` the raw figures are kept in ``results/``, beside those of other runs, and the
tables made anew. One thread, CPU. What is compared is paired: arms with the same random
seed part from one trained host, see the same batches, and are grown at the same moment.
"""
# ruff: noqa: INP001, T201 - a script: its output is the terminal

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from attrs import asdict, evolve
from incubators_arms import Arm, Kind, Training, Way, followed, trained
from incubators_figures import FAR, GROWN, RESULTS, document
from incubators_tasks import TASKS, Task

from kasmina import IncubationPlan, Incubator

TABLES = RESULTS / "incubators.md"

RATE = 1.0
WARMUP = 50
MARKS = (10, 20, 40, 80)
"""Epochs of incubation after which seeds that are never exposed are looked at."""

SEEDS = {"mnist1d": 10, "digits": 10, "text": 5}
FEWER = {"mnist1d": 5, "digits": 5}
"""Random seeds, by task: of the main comparison, and of what is beside it."""


# --- the arms ---


def _plan(incubator: Incubator, **settings: float) -> IncubationPlan:
    return IncubationPlan(incubator=incubator, warmup_steps=WARMUP, **settings)


def _grafted(kind: Kind, plan: IncubationPlan, **settings: object) -> Arm:
    return Arm(**{"way": Way.GRAFT, "kind": kind, "plan": plan, "rate": RATE, **settings})


THROUGH = _plan(Incubator.STRAIGHT_THROUGH)
NEAR = {penalty: _plan(Incubator.PROXIMAL, penalty=penalty) for penalty in (1, 3, 10, 30)}
REHEARSED = {share: _plan(Incubator.REHEARSAL, share=share) for share in (0.25, 1)}
UNPREPARED = _plan(Incubator.NONE)


def compared(task: str) -> Iterator[Arm]:
    """The arms of the main comparison, the host alone first."""
    learned = (THROUGH, NEAR[10], REHEARSED[0.25])
    yield Arm(way=Way.ALONE)
    if task != "text":  # a residual stream, of which an in-line layer would cut off a half
        for way in (Way.SCRATCH, Way.NAIVE, Way.ZERO):
            yield Arm(way=way, kind=Kind.INLINE)
        for plan in (UNPREPARED, *learned):
            yield _grafted(Kind.INLINE, plan)
        for plan in learned:
            yield _grafted(Kind.INLINE, plan, ramp=0.0)
    yield Arm(way=Way.ZERO, kind=Kind.RESIDUAL)
    for plan in learned:
        yield _grafted(Kind.RESIDUAL, plan)
    yield _grafted(Kind.RESIDUAL, THROUGH, ramp=0.0)


def swept() -> Iterator[Arm]:
    """Settings around those of the main comparison, in-line alone; and their control."""
    yield Arm(way=Way.ALONE)
    for plan in (NEAR[10], REHEARSED[0.25]):
        for rate in (0.1, 0.3, 1.0):
            yield _grafted(Kind.INLINE, plan, rate=rate)
        yield _grafted(Kind.INLINE, evolve(plan, warmup_steps=0))
    for rate in (0.1, 0.3):
        yield _grafted(Kind.INLINE, THROUGH, rate=rate)
    for plan in (UNPREPARED, evolve(UNPREPARED, warmup_steps=0)):
        yield _grafted(Kind.INLINE, plan)
        yield _grafted(Kind.INLINE, plan, ramp=0.0)
    for penalty in (1, 3, 30):
        yield _grafted(Kind.INLINE, NEAR[penalty], ramp=0.0)
    yield _grafted(Kind.INLINE, REHEARSED[1])
    for plan in (THROUGH, NEAR[1]):
        yield _grafted(Kind.INLINE, plan, search=(0.1, 0.25, 0.5, 1.0))


def unexposed() -> Iterator[Arm]:
    """What is incubated for longer."""
    for plan in (THROUGH, NEAR[1], NEAR[10], REHEARSED[0.25]):
        yield _grafted(Kind.INLINE, plan)
    yield _grafted(Kind.INLINE, THROUGH, rate=0.1)
    yield _grafted(Kind.INLINE, REHEARSED[0.25], rate=0.3)


# --- measuring ---


def grow(before: Training, arms: Iterator[Arm]) -> None:
    """Take the figures of every arm from the same trained host."""
    with tempfile.TemporaryDirectory() as folder:
        for arm in arms:
            GROWN.add(_what(before, arm), asdict(trained(arm, before, Path(folder))))


def grow_compared(before: Training) -> None:
    """The main comparison."""
    grow(before, compared(before.task.name))


def grow_swept(before: Training) -> None:
    """The settings around it."""
    grow(before, swept())


def incubate(before: Training) -> None:
    """Take the figures of seeds that are never exposed."""
    with tempfile.TemporaryDirectory() as folder:
        for arm in unexposed():
            for found in followed(arm, before, Path(folder), MARKS):
                about = {"arm": str(arm).removesuffix(", ramp"), "epochs": found["epochs"]}
                FAR.add(_what(before, arm) | about, found)


def _what(before: Training, arm: Arm) -> dict[str, object]:
    return {
        "task": before.task.name,
        "blueprint": "" if arm.kind is None else arm.kind.value,
        "arm": arm,
        "rate": f"{arm.rate:g}",
        "warmup": 0 if arm.plan is None else arm.plan.warmup_steps,
        "seed": before.seed,
    }


def trials(seeds: Mapping[str, int]) -> Iterator[tuple[Task, int]]:
    """The tasks, and the random seeds with which to try them."""
    tasks = {name: TASKS[name]() for name in seeds}
    for seed in range(max(seeds.values(), default=0)):
        for name, task in tasks.items():
            if seed < seeds[name]:
                yield task, seed


def main() -> None:
    """Measure, print, and keep what was measured where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--sweep", action="store_true", help="settings around the default")
    kinds.add_argument("--far", action="store_true", help="seeds that are never exposed")
    kinds.add_argument("--quick", action="store_true", help="one random seed, one host")
    kinds.add_argument("--tables", action="store_true", help="measure nothing")
    parser.add_argument("--write", action="store_true", help="keep figures and tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for raw in (GROWN, FAR) if options.write or options.tables else ():
        raw.read()
    work: Callable[[Training], None] = grow_compared
    seeds: Mapping[str, int] = SEEDS
    if options.sweep or options.far:
        work, seeds = grow_swept if options.sweep else incubate, FEWER
    elif options.quick or options.tables:
        seeds = {"digits": 1} if options.quick else {}
    for task, seed in trials(seeds):
        before = Training.begun(task, seed)
        before.train(task.before)
        work(before)
        if options.write:
            GROWN.write()
            FAR.write()
    print(document())
    if options.write:
        TABLES.write_text(document(), encoding="utf-8")


if __name__ == "__main__":
    main()
