"""The event store against the same work by hand, and against `eventsourcing`, in one run.

    python benchmarks/store.py            # prints the tables
    python benchmarks/store.py --write    # and keeps them in benchmarks/results/store.md
    python benchmarks/store.py --fleet    # also builds 10,000 runs with 5,000,000 events (4 GB)

Each round does every line once, so that a busy moment of the machine hits all of them. A rate is
the median over the rounds, a ratio the median of the rounds' own ratios. "By hand" has the same
columns, the same UNIQUE, WAL and durability, no triggers and no port to satisfy; it encodes each
event with msgspec and chains SHA-256 over what it stores, and it reads into the same classes.
The peer saves and reads the same figures as the events of an aggregate of its own, on the same
file system. PostgreSQL is a server of the run's own on loopback; without one its line is left out.
"""
# ruff: noqa: INP001, T201 - a script: its output is the terminal

import argparse
import os
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from store_fleet import fleet, group_commit
from store_memory import memory
from store_postgres import postgres
from store_sides import BATCH, PAYLOADS, ByHand, Kasmina, Peer

from kasmina.infra.event_store import open_store
from kasmina.infra.integrity import Scrutiny

SINGLES = 200
READ = 20_000
LARGEST = 730
RESULTS = Path(__file__).parent / "results" / "store.md"


class Line(NamedTuple):
    """A kind of work: by hand (the limit), by kasmina, by the peer; and what is to be reached."""

    name: str
    limit: Callable[[], object]
    ours: Callable[[], object]
    events: int
    wanted: float | None = None
    peer: Callable[[], object] | None = None
    wanted_of_peer: float | None = None


def repeated(act: Callable[[int], object], times: int) -> Callable[[], None]:
    """One event in its own transaction, again and again."""

    def run() -> None:
        for _ in range(times):
            act(1)

    return run


@contextmanager
def lines(folder: Path) -> Iterator[list[Line]]:
    """Everything that is compared; reading works on ``READ`` events."""
    with ExitStack() as stack:
        hand, full = (ByHand(folder / name) for name in ("hand.db", "full.db"))
        writing, reading = (
            Kasmina(stack.enter_context(open_store(f"sqlite:///{folder / name}")))
            for name in ("write.db", "read.db")
        )
        saving, getting = (Peer(folder / name) for name in ("save.db", "get.db"))
        stack.callback(saving.close)
        stack.callback(getting.close)
        for _ in range(READ // BATCH):
            full.append(BATCH)
            reading.append(BATCH)
            getting.trigger_and_save(BATCH)
        yield [
            Line(
                "batch append, 1,000 a transaction",
                lambda: hand.append(BATCH),
                lambda: writing.append(BATCH),
                BATCH,
                0.7,
            ),
            Line(
                "the same, the events made as well",
                lambda: hand.make_and_append(BATCH),
                lambda: writing.make_and_append(BATCH),
                BATCH,
                None,
                lambda: saving.trigger_and_save(BATCH),
                2.5,
            ),
            Line(
                "one durable append",
                repeated(hand.append, SINGLES),
                repeated(writing.append, SINGLES),
                SINGLES,
                0.6,
                repeated(saving.trigger_and_save, SINGLES),
                1.5,
            ),
            Line("read to typed events", full.read, reading.read, READ, None),
            Line("replay to typed state", full.read, reading.load, READ, 0.7, getting.get, 6.0),
            Line(
                "verify the chain",
                full.verify,
                lambda: reading.verify(Scrutiny.CHAIN),
                READ,
                0.8,
            ),
            Line(
                "verify chain, payloads and history",
                full.verify,
                lambda: reading.verify(Scrutiny.HISTORY),
                READ,
            ),
        ]


def timed(act: Callable[[], object]) -> float:
    """Seconds that ``act`` takes."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def once(line: Line, *, first: int) -> tuple[float, float, float]:
    """Seconds by hand, by kasmina and by the peer (0 without one), which go first in turns."""
    works = [line.limit, line.ours, line.peer or (lambda: None)]
    order = [(first + n) % 3 for n in range(3)]
    took = {n: timed(works[n]) for n in order}
    return took[0], took[1], took[2]


def ratio(value: float, wanted: float | None) -> str:
    """A ratio beside what it should reach."""
    if wanted is None:
        return f"{value:.2f}"
    return f"{value:.2f} (≥ {wanted:g}{'' if round(value, 2) >= wanted else ', MISSED'})"


def table(compared: Sequence[Line], times: Sequence[Sequence[tuple[float, float, float]]]) -> str:
    """The comparison, as Markdown."""
    rows = [
        "| what | by hand, events/s | kasmina | of the limit | eventsourcing | times the peer |",
        "|---|---|---|---|---|---|",
    ]
    for line, rounds in zip(compared, zip(*times, strict=True), strict=True):
        hand, ours, _ = (
            line.events / statistics.median(side) for side in zip(*rounds, strict=True)
        )
        of_limit = statistics.median(limit / mine for limit, mine, _ in rounds)
        peer = times_peer = "–"
        if line.peer is not None:
            peer = f"{line.events / statistics.median(r[2] for r in rounds):,.0f}"
            of_peer = statistics.median(theirs / mine for _, mine, theirs in rounds)
            times_peer = ratio(of_peer, line.wanted_of_peer)
        rows.append(
            f"| {line.name} | {hand:,.0f} | {ours:,.0f} | {ratio(of_limit, line.wanted)} | "
            f"{peer} | {times_peer} |"
        )
    return "\n".join(rows)


def size(folder: Path) -> str:
    """Bytes that an event takes in the file."""
    count = 20_000
    with open_store(f"sqlite:///{folder / 'size.db'}") as store:
        stored = Kasmina(store)
        for _ in range(count // BATCH):
            stored.append(BATCH)
    path = folder / "size.db"
    with sqlite3.connect(path) as connection:
        (payload,) = connection.execute("SELECT avg(length(payload)) FROM events").fetchone()
    each = path.stat().st_size / count
    verdict = "" if each <= LARGEST else ", MISSED"
    what = f"bytes per event, payload of {payload:.0f} bytes, digest included"
    return f"| {what} | {each:.0f} | ≤ {LARGEST}{verdict} |"


def measure(rounds: int, *, build_fleet: bool) -> str:
    """Every table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with lines(folder) as compared:
            for line in compared:  # once for nothing: caches, statements, pages
                once(line, first=0)
            times = [[once(line, first=n % 3) for line in compared] for n in range(rounds)]
        others = [
            "| what | figure | wanted |",
            "|---|---|---|",
            *group_commit(folder),
            size(folder),
            *memory(folder),
            *postgres(rounds),
            *(fleet(folder) if build_fleet else ()),
        ]
    return "\n\n".join((table(compared, times), "\n".join(others)))


def main() -> None:
    """Measure, print, and keep the tables where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="keep the tables in results/store.md")
    parser.add_argument("--fleet", action="store_true", help="build the large database as well")
    options = parser.parse_args()
    mean = statistics.mean(map(len, PAYLOADS))
    where = (
        f"{os.cpu_count()} cores, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}; gate events with payloads of {mean:.0f} bytes; "
        f"medians of {options.rounds} rounds"
    )
    tables = measure(options.rounds, build_fleet=options.fleet)
    text = f"# The event store against its limits and its peer\n\n{where}.\n\n{tables}\n"
    print(text)
    if options.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
