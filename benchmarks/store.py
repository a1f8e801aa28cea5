"""The event store against the same work by hand on raw sqlite3, in one run, interleaved.

    python benchmarks/store.py            # prints the table
    python benchmarks/store.py --write    # and keeps it in benchmarks/results/store.md

Each round does every line once, so that a busy moment of the machine hits all of them. A rate is
the median over the rounds, a ratio the median of the rounds' own ratios. "By hand" has the same
columns, the same UNIQUE, WAL and durability, no triggers and no port to satisfy; where it says so,
it also encodes each event with msgspec and chains SHA-256 over what it stores.
"""
# ruff: noqa: INP001, S101, T201 - a script: it asserts what it measures, its output is the terminal

import argparse
import hashlib
import os
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from kasmina.domain.events import GateEvaluated
from kasmina.domain.evidence import Check, Comparison, GateOutcome
from kasmina.domain.stages import Gate
from kasmina.infra.event_store import SqlEventStore, open_store
from kasmina.infra.integrity import Scrutiny

BATCH = 1000
SINGLES = 200
RESULTS = Path(__file__).parent / "results" / "store.md"

TABLE = """
CREATE TABLE events (
    position INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT, sequence INTEGER, slot_id TEXT,
    seed_id TEXT, type TEXT, schema_version INTEGER, epoch INTEGER, recorded_at INTEGER,
    payload TEXT, batch TEXT, digest BLOB, UNIQUE (run_id, sequence)
) STRICT
"""
INSERT = "INSERT INTO events VALUES (NULL, 'run', ?, ?, ?, 'GateEvaluated', 1, ?, ?, ?, NULL, ?)"
SELECT = "SELECT sequence, slot_id, seed_id, epoch, recorded_at, CAST(payload AS BLOB), digest "
SELECT += "FROM events WHERE run_id = 'run' ORDER BY sequence"

ENCODE = msgspec.json.Encoder(order="sorted").encode
DECODE = msgspec.json.Decoder(GateEvaluated).decode


class Line(NamedTuple):
    """A kind of work: by hand (the limit), by kasmina, and how many events each time."""

    name: str
    limit: Callable[[], None]
    ours: Callable[[], None]
    events: int


def event(step: int) -> GateEvaluated:
    """A gate's decision, about 500 bytes when stored."""
    checks = tuple(
        Check.of(name, 0.731 + step, Comparison.AT_LEAST, 0.5)
        for name in ("improvement", "rehearsal", "gradient_norm", "isolation_violations")
    )
    outcome = GateOutcome.of(Gate.G2, checks, 0.25)
    return GateEvaluated(epoch=step, step=step, slot_id="layer2", seed_id="s1", outcome=outcome)


EVENTS = [event(step) for step in range(BATCH)]
PAYLOADS = [ENCODE(one).decode() for one in EVENTS]


class ByHand:
    """Raw sqlite3, doing the same and nothing else."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")
        self.connection.execute(TABLE)
        self.sequence = 0
        self.digest = bytes(32)

    def append(self, count: int) -> None:
        """Insert payloads that are ready, without a digest worth the name."""
        rows = [
            (self.sequence + n, "layer2", "s1", n, 0, PAYLOADS[n - 1], self.digest)
            for n in range(1, count + 1)
        ]
        self._write(rows)

    def encode_and_append(self, count: int) -> None:
        """Encode, chain, insert."""
        rows = []
        for n, one in enumerate(EVENTS[:count], self.sequence + 1):
            payload = ENCODE(one)
            columns = f"run|{n}|{one.slot_id}|{one.seed_id}|GateEvaluated|1|{one.epoch}|0|".encode()
            self.digest = hashlib.sha256(self.digest + columns + payload).digest()
            rows.append((n, one.slot_id, one.seed_id, one.epoch, 0, payload.decode(), self.digest))
        self._write(rows)

    def _write(self, rows: Sequence[tuple[object, ...]]) -> None:
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.executemany(INSERT, rows)
        self.connection.execute("COMMIT")
        self.sequence += len(rows)

    def replay(self) -> None:
        """Scan, and decode to typed events."""
        for row in self.connection.execute(SELECT):
            DECODE(row[5])

    def verify(self) -> None:
        """Scan, and chain SHA-256 over the columns."""
        digest = bytes(32)
        for sequence, slot, seed, epoch, at, payload, stored in self.connection.execute(SELECT):
            columns = f"run|{sequence}|{slot}|{seed}|GateEvaluated|1|{epoch}|{at}|".encode()
            digest = hashlib.sha256(digest + columns + payload).digest()
            assert digest == stored


class Kasmina:
    """The same through the event store."""

    def __init__(self, store: SqlEventStore) -> None:
        self.store = store
        self.sequence = 0

    def append(self, count: int) -> None:
        """One append, one transaction."""
        batch = f"w.{self.sequence}"
        self.store.append("run", EVENTS[:count], expected=self.sequence, batch=batch)
        self.sequence += count

    def replay(self) -> None:
        """Every event, typed, with its place and time."""
        assert sum(1 for _ in self.store.read("run")) == self.sequence

    def verify(self, scrutiny: Scrutiny) -> None:
        """The whole chain."""
        assert self.store.verify("run", scrutiny=scrutiny).sound


def repeated(act: Callable[[int], None], times: int) -> Callable[[], None]:
    """One event in its own transaction, again and again."""

    def run() -> None:
        for _ in range(times):
            act(1)

    return run


@contextmanager
def lines(folder: Path) -> Iterator[list[Line]]:
    """Everything that is compared; reading works on 20,000 events."""
    plain, hand, full = (ByHand(folder / name) for name in ("plain.db", "hand.db", "full.db"))
    with (
        open_store(f"sqlite:///{folder / 'write.db'}") as writing,
        open_store(f"sqlite:///{folder / 'read.db'}") as reading,
    ):
        ours, stored = Kasmina(writing), Kasmina(reading)
        for _ in range(20):
            full.encode_and_append(BATCH)
            stored.append(BATCH)
        count = full.sequence
        batch, single = f"append, {BATCH:,} a transaction", "append, one durable transaction each"
        by_chain = lambda: stored.verify(Scrutiny.CHAIN)  # noqa: E731
        by_payload = lambda: stored.verify(Scrutiny.PAYLOADS)  # noqa: E731
        yield [
            Line(batch, lambda: plain.append(BATCH), lambda: ours.append(BATCH), BATCH),
            Line(
                f"{batch}; by hand encodes and chains too",
                lambda: hand.encode_and_append(BATCH),
                lambda: ours.append(BATCH),
                BATCH,
            ),
            Line(single, repeated(plain.append, SINGLES), repeated(ours.append, SINGLES), SINGLES),
            Line(
                f"{single}; by hand encodes and chains too",
                repeated(hand.encode_and_append, SINGLES),
                repeated(ours.append, SINGLES),
                SINGLES,
            ),
            Line("replay to typed events", full.replay, stored.replay, count),
            Line("verify the chain", full.verify, by_chain, count),
            Line("verify the chain and every payload", full.verify, by_payload, count),
        ]


def timed(act: Callable[[], None]) -> float:
    """Seconds that ``act`` takes."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def pair(line: Line, *, first: int) -> tuple[float, float]:
    """Seconds by hand and by kasmina, which go first in turns."""
    if first:
        ours = timed(line.ours)
        return timed(line.limit), ours
    return timed(line.limit), timed(line.ours)


def measure(rounds: int) -> str:
    """The table, as Markdown."""
    table = ["| what | by hand, events/s | kasmina, events/s | ratio |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder, lines(Path(folder)) as compared:
        for line in compared:  # once for nothing: caches, statements, pages
            line.limit()
            line.ours()
        times = [[pair(line, first=n % 2) for line in compared] for n in range(rounds)]
    for line, pairs in zip(compared, zip(*times, strict=True), strict=True):
        limit, ours = (line.events / statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(hand / kasmina for hand, kasmina in pairs)
        table.append(f"| {line.name} | {limit:,.0f} | {ours:,.0f} | {ratio:.2f} |")
    return "\n".join(table)


def main() -> None:
    """Measure, print, and keep the table where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="keep the table in results/store.md")
    options = parser.parse_args()
    size = statistics.mean(map(len, PAYLOADS))
    where = (
        f"{os.cpu_count()} cores, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}; gate events with payloads of {size:.0f} bytes; "
        f"medians of {options.rounds} rounds; ratio: kasmina's speed over that by hand"
    )
    text = f"# The event store against raw sqlite3\n\n{where}.\n\n{measure(options.rounds)}\n"
    print(text)
    if options.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
