"""What ranks wait for each other: one exchange, and the end of an epoch."""
# ruff: noqa: INP001 - beside a script

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from kasmina import G2Policy, GatePolicy, IncubationPlan, Incubator
from kasmina.adapters.torch.distributed.ranks import RankPlan, join

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.distributed.launch import launch, values
from tests.distributed.loop import Training

RANKS = (2, 4, 8)
PATIENT = GatePolicy(g2=G2Policy(min_improvement=1000.0))


class Spent(NamedTuple):
    """Seconds by the wall, of the calling thread, and of all threads, gloo's among them."""

    wall: float
    thread: float
    process: float


def exchanges(folder: Path, *, times: int) -> list[str]:
    """The section of the report."""
    rows = [
        "| ranks | exchange, ms | rank 0's thread, ms | rank 0's process, ms | epoch's end, ms |",
        "|---|---|---|---|---|",
    ]
    for size in RANKS:
        place = folder / f"ranks-{size}"
        place.mkdir()
        one, end = values(launch(measured, place, times, size=size))[0]
        figures = (*one, end.wall)
        rows.append(f"| {size} | " + " | ".join(f"{each * 1e3:.2f}" for each in figures) + " |")
    told = (
        f"Medians on rank 0, of {times} exchanges and of {times // 5} epochs with one seed in "
        f"TRAINING. Such an epoch's end has four exchanges, two evaluations and a durable append."
    )
    return ["## Ranks", told, "\n".join(rows)]


def measured(rank: int, folder: Path, times: int) -> tuple[Spent, Spent]:
    """One rank's part: exchanges alone, then ends of epochs."""
    ranks = join(RankPlan())
    assert ranks is not None  # noqa: S101
    trials = [
        spent(lambda: ranks.together("a trial", lambda: rank, len)) for _ in range(times + 10)
    ]
    ranks.close()
    training = Training.fresh(wrapper={})
    with training.open(folder, policy=PATIENT) as run:
        plan = IncubationPlan(incubator=Incubator.STRAIGHT_THROUGH)
        run.germinate("1", "conv_light", incubation=plan)

        def end() -> None:
            run.end_epoch(training.evaluate)

        ends = []
        for _ in range(times // 5):
            training.backward(training.images[:8], training.labels[:8])
            training.optimizer.step()
            run.step()
            ends.append(spent(end))
    return medians(trials[10:]), medians(ends)


def spent(act: Callable[[], object]) -> Spent:
    """What ``act`` takes."""
    clocks = (time.perf_counter, time.thread_time, time.process_time)
    start = [clock() for clock in clocks]
    act()
    return Spent(*(clock() - began for clock, began in zip(clocks, start, strict=True)))


def medians(taken: Sequence[Spent]) -> Spent:
    """Of each clock."""
    return Spent(*(statistics.median(clock) for clock in zip(*taken, strict=True)))
