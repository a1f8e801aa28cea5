"""Fleets: what the caller of a group commit waits, and a database of ten thousand runs."""
# ruff: noqa: INP001, S603 - beside a script, whose own commands it runs

import statistics
import subprocess
import sys
import time
from itertools import cycle, islice
from pathlib import Path

from store_sides import EVENTS, opening

from kasmina.domain import events as e
from kasmina.domain.ports import Append
from kasmina.infra.engine import Durability
from kasmina.infra.event_store import SqlEventStore, open_store
from kasmina.infra.group import GroupCommit, Pending

OFFERED = 2_000
SECONDS = 3
LONGEST = 20
FLAT_OUT = 50_000
SLOWEST = 25_000
RUNS = 10_000
EVENTS_EACH = 500
COMMANDS = (
    ("list the latest runs", ("runs",)),
    ("list an earlier page", ("runs", "--before", "run-05000")),
    ("show a run by the beginning of its id", ("replay", "run-07777")),
    ("show the latest run", ("replay", "latest")),
    ("audit a run", ("audit", "run-01234")),
    ("ask what if of a run", ("audit", "run-01234", "--what-if", "G2.min_improvement=1.0")),
    ("verify a run", ("verify", "run-04321")),
)
INTERACTIVE = 1.0


def group_commit(folder: Path) -> list[str]:
    """Waiting at a steady offer, and the rate flat out; durable, one event an append."""
    with open_store(f"sqlite:///{folder / 'offered.db'}") as store, GroupCommit(store) as group:
        waits, pending = _offered(group)
        durable = _durable(group)
        for each in pending:
            each.result()
    with open_store(f"sqlite:///{folder / 'flat.db'}") as store, GroupCommit(store) as group:
        start = time.perf_counter()
        for n in range(FLAT_OUT):
            group.submit(_append(n))
        group.flush()
        rate = FLAT_OUT / (time.perf_counter() - start)
    wait = statistics.median(waits) * 1e6
    late = statistics.quantiles(waits, n=100)[98] * 1e6
    waiting = f"group commit, the caller waits at {OFFERED:,} events/s (median; 99 %)"
    missed, slow = (", MISSED" if bad else "" for bad in (wait > LONGEST, rate < SLOWEST))
    return [
        f"| {waiting} | {wait:.1f} µs; {late:.0f} µs | ≤ {LONGEST} µs{missed} |",
        f"| group commit, durable after (median) | {durable * 1e3:.2f} ms | – |",
        f"| group commit, flat out | {rate:,.0f}/s | ≥ {SLOWEST:,}/s{slow} |",
    ]


def _append(n: int) -> Append:
    """The ``n``-th append: to 100 runs in turns."""
    return Append(run_id=f"run-{n % 100}", events=(EVENTS[n % 1000],), expected=n // 100)


def _offered(group: GroupCommit) -> tuple[list[float], list[Pending]]:
    waits, pending = [], []
    start = time.perf_counter()
    for n in range(OFFERED * SECONDS):
        time.sleep(max(0.0, start + n / OFFERED - time.perf_counter()))
        began = time.perf_counter()
        pending.append(group.submit(_append(n)))
        waits.append(time.perf_counter() - began)
    return waits, pending


def _durable(group: GroupCommit) -> float:
    took = []
    for n in range(200):
        began = time.perf_counter()
        group.append("alone", (EVENTS[n],), expected=n)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def fleet(folder: Path) -> list[str]:
    """Seconds that commands take, from start to end, on a database of 10,000 runs."""
    url = f"sqlite:///{folder / 'fleet.db'}"
    with open_store(url, durability=Durability.RELAXED) as store:
        began = time.perf_counter()
        _build(store)
        took = time.perf_counter() - began
    total = RUNS * EVENTS_EACH
    built = f"{RUNS:,} runs, {total:,} events, appended 20 runs a transaction"
    rows = [f"| {built} | {total / took:,.0f}/s | – |"]
    for name, arguments in COMMANDS:
        seconds = statistics.median(_command(arguments, url) for _ in range(3))
        verdict = "" if seconds <= INTERACTIVE else ", MISSED"
        rows.append(
            f"| there, {name}: `kasmina {' '.join(arguments)}` | {seconds:.2f} s | "
            f"≤ {INTERACTIVE:.0f} s{verdict} |"
        )
    return rows


def _build(store: SqlEventStore) -> None:
    for first in range(0, RUNS, 20):
        names = [f"run-{n:05}" for n in range(first, first + 20)]
        store.append_all([Append(run_id=name, events=_life(name), expected=0) for name in names])


def _life(run_id: str) -> list[e.Event]:
    opened = opening(run_id)
    return [*opened, *islice(cycle(EVENTS), EVENTS_EACH - len(opened))]


def _command(arguments: tuple[str, ...], url: str) -> float:
    command = [sys.executable, "-m", "kasmina", *arguments, "--database", url]
    began = time.perf_counter()
    subprocess.run(command, check=False, capture_output=True)
    return time.perf_counter() - began
