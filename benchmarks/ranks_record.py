"""What an epoch adds to the log, by slots; and what a resume pays for reading it, by epochs."""
# ruff: noqa: INP001 - beside a script

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from kasmina import G2Policy, GatePolicy, Objective, Run, Topology, graft, open_run
from kasmina.domain.events import Event
from kasmina.infra.engine import Access, Durability
from kasmina.infra.event_store import open_store

SLOTS = (1, 4, 16)
WIDTH = 4
PATIENT = GatePolicy(g2=G2Policy(min_improvement=1000.0))


class Log(NamedTuple):
    """A recorded run, by the place of its database and its identifier."""

    folder: Path
    run_id: str

    @property
    def url(self) -> str:
        """Of the database."""
        return f"sqlite:///{self.folder / 'runs.db'}"

    def epoch(self, number: int) -> list[Event]:
        """The events of one epoch."""
        with open_store(self.url, access=Access.READ) as store:
            events = (record.event for record in store.read(self.run_id))
            return [event for event in events if event.epoch == number]


class Stopped(Exception):
    """A training that is left as a kill leaves it: open."""


def load(folder: Path, *, epochs: Sequence[int]) -> list[str]:
    """The two sections of the report."""
    kept = [
        "| slots | seeds in TRAINING | events | payload, bytes | file, bytes | transactions |",
        "|---|---|---|---|---|---|",
    ]
    read = ["| slots | epochs | events | resume, ms |", "|---|---|---|---|"]
    log = begun(folder / "empty", SLOTS[-1], seeds=0)
    train(log, SLOTS[-1], until=epochs[1])
    kept.append(of_an_epoch(log, SLOTS[-1], seeds=0, epoch=epochs[1]))
    for slots in SLOTS:
        log = begun(folder / f"slots-{slots}", slots, seeds=slots)
        for count in epochs:
            train(log, slots, until=count)
            took = statistics.median(resume(log, slots) for _ in range(3))
            read.append(f"| {slots} | {count:,} | {size(log)[0]:,} | {took * 1e3:,.0f} |")
        kept.append(of_an_epoch(log, slots, seeds=slots, epoch=epochs[-1]))
    counted = (
        "What an epoch adds, counted in the log of a real training on one process that saves a "
        "checkpoint each epoch. The gate of each seed is asked at each epoch's end, and refuses."
    )
    timed = (
        "The whole of `open_run(..., resume=)` on SQLite: the log is read, the seeds are grown and "
        "the checkpoint is restored. Medians of three."
    )
    return ["## Slots", counted, "\n".join(kept), "## Epochs", timed, "\n".join(read)]


def of_an_epoch(log: Log, slots: int, *, seeds: int, epoch: int) -> str:
    """A line of the table: what the ``epoch``-th added."""
    events, file = size(log)
    with open_store(log.url, access=Access.READ) as store:
        rows = [row.columns for row in store.rows(log.run_id) if row.columns.epoch == epoch]
    payload = sum(len(row.payload) for row in rows)
    transactions = sum(row.batch is not None for row in rows)  # the first event of each names it
    share = file * len(rows) / events
    return f"| {slots} | {seeds} | {len(rows)} | {payload:,} | {share:,.0f} | {transactions} |"


def size(log: Log) -> tuple[int, int]:
    """How many events there are, and the bytes of the file that holds them."""
    with open_store(log.url, access=Access.READ) as store:
        events = store.head(log.run_id).sequence
    return events, (log.folder / "runs.db").stat().st_size


class Training:
    """A host of convolutions with a slot after each."""

    def __init__(self, slots: int) -> None:
        torch.manual_seed(0)
        layers = {str(n): nn.Conv2d(WIDTH, WIDTH, 1) for n in range(slots)}
        self.host = nn.Sequential()
        for name, layer in layers.items():
            self.host.add_module(name, layer)
        self.slots = graft(self.host, dict.fromkeys(layers, Topology.CNN))
        self.optimizer = torch.optim.SGD(self.slots.host_parameters(), lr=0.01)
        self.images = torch.randn(2, WIDTH, 2, 2)

    def opened(self, url: str, run_id: str | None) -> Run:
        """A new run, or the one that goes on."""
        return open_run(
            url,
            name="load",
            slots=self.slots,
            optimizer=self.optimizer,
            objective=Objective.maximize("accuracy"),
            policy=PATIENT,
            resume=run_id,
            durability=Durability.RELAXED,
        )

    def epoch(self, run: Run) -> None:
        """One step, and its end."""
        self.optimizer.zero_grad()
        self.host(self.images).square().mean().backward()
        self.optimizer.step()
        run.step()
        run.end_epoch(self.evaluate)

    def evaluate(self) -> Mapping[str, float]:
        """A figure between 0 and 100."""
        with torch.no_grad():
            return {"accuracy": 100 * self.host(self.images).sigmoid().mean().item()}


def begun(folder: Path, slots: int, *, seeds: int) -> Log:
    """A run whose first ``seeds`` slots have one each."""
    folder.mkdir()
    training = Training(slots)
    with suppress(Stopped), training.opened(Log(folder, "").url, None) as run:
        log = Log(folder, run.run_id)
        for slot_id in list(run.state.slots)[:seeds]:
            run.germinate(slot_id, "norm")
        run.checkpoint(folder / "run.pt")
        raise Stopped
    return log


def train(log: Log, slots: int, *, until: int) -> None:
    """Go on with the run until that epoch has ended."""
    training = Training(slots)
    with suppress(Stopped), training.opened(log.url, log.run_id) as run:
        while run.state.epoch < until:
            training.epoch(run)
            run.checkpoint(log.folder / "run.pt")
        raise Stopped


def resume(log: Log, slots: int) -> float:
    """Seconds that it takes to open the run again."""
    training = Training(slots)
    start = time.perf_counter()
    with suppress(Stopped), training.opened(log.url, log.run_id):
        took = time.perf_counter() - start
        raise Stopped
    return took
