"""Trainings that append to one PostgreSQL at the same time: their rate, and the longest wait."""
# ruff: noqa: INP001 - beside a script

import multiprocessing
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple

import psycopg
from ranks_record import begun, train

from kasmina.domain.events import Event
from kasmina.infra.event_store import open_store

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.postgres import DURABLE, Server, binaries

WRITERS = (1, 2, 4, 8)
SLOTS = 4
EPOCH = 8
_CONTEXT = multiprocessing.get_context("spawn")
_CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'kasmina'"
_DURABLE = "SHOW fsync"
_BYTES = "SELECT pg_total_relation_size('events') / count(*) FROM events"


class Written(NamedTuple):
    """What one training appended: how many events, and how long each append took, in seconds."""

    events: int
    waits: Sequence[float]


class Signals(NamedTuple):
    """How the processes start together, tell what they did, and end together."""

    start: Barrier
    stop: Barrier
    answers: "Queue[Written]"


def writers(folder: Path, *, seconds: float) -> list[str]:
    """The section of the report; none where no server is installed."""
    if binaries() is None:
        return []
    log = begun(folder / "epoch", SLOTS, seeds=SLOTS)
    train(log, SLOTS, until=EPOCH)
    events = log.epoch(EPOCH)
    rows = [
        "| trainings | events/s | epochs/s | append, ms | longest, ms | connections | event, B |",
        "|---|---|---|---|---|---|---|",
    ]
    server = Server(DURABLE)
    try:
        with psycopg.connect(server.dsn("postgres")) as connection:
            ((fsync,),) = connection.execute(_DURABLE).fetchall()
        rows += [together(server, count, events, seconds) for count in WRITERS]
    finally:
        server.close()
    told = (
        f"Each is a process that appends, as fast as it can for {seconds:g} s, the {len(events)} "
        f"events of an epoch of {SLOTS} slots in two transactions (fsync {fsync}). The server is "
        f"on the same cores. Connections are those open at the end; an event's bytes are those of "
        f"the table and its indexes."
    )
    return ["## Trainings that share a PostgreSQL", told, "\n".join(rows)]


def together(server: Server, count: int, events: Sequence[Event], seconds: float) -> str:
    """A line of the table."""
    url = server.database()
    open_store(url).close()
    signals = Signals(_CONTEXT.Barrier(count), _CONTEXT.Barrier(count + 1), _CONTEXT.Queue())
    work = partial(write, url, events, seconds=seconds, signals=signals)
    processes = [_CONTEXT.Process(target=work, args=(f"run-{n}",)) for n in range(count)]
    for process in processes:
        process.start()
    found = [signals.answers.get() for _ in processes]
    with psycopg.connect(server.dsn(url.rsplit("/", 1)[1])) as connection:
        ((connections,),) = connection.execute(_CONNECTIONS).fetchall()
        ((size,),) = connection.execute(_BYTES).fetchall()
    signals.stop.wait()
    for process in processes:
        process.join()
    waits = [wait for each in found for wait in each.waits]
    rate, median = sum(each.events for each in found) / seconds, statistics.median(waits)
    return (
        f"| {count} | {rate:,.0f} | {rate / len(events):,.0f} | {median * 1e3:.1f} "
        f"| {max(waits) * 1e3:.0f} | {connections} | {size} |"
    )


def write(
    url: str, events: Sequence[Event], run_id: str, *, seconds: float, signals: Signals
) -> None:
    """One training: an epoch's figures and decisions, then its checkpoint, again and again."""
    halves = (events[:-1], events[-1:])
    waits, written = [], 0
    with open_store(url) as store:
        store.head(run_id)  # a resume reads; so both connections are open
        signals.start.wait()
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            for half in halves:
                began = time.perf_counter()
                store.append(run_id, half, expected=written)
                waits.append(time.perf_counter() - began)
                written += len(half)
        signals.answers.put(Written(written, waits))
        signals.stop.wait()
