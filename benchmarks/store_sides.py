"""The three that are compared: by hand, kasmina, and eventsourcing's aggregates."""
# ruff: noqa: INP001, S101 - beside a script; it asserts what it measures

import hashlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import msgspec
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event

from kasmina.domain import commands as c
from kasmina.domain import events as e
from kasmina.domain.evidence import Check, Comparison, GateOutcome, HostDescription, Probe
from kasmina.domain.objective import Objective
from kasmina.domain.policies import GatePolicy
from kasmina.domain.stages import Gate, Topology
from kasmina.history import load
from kasmina.infra.event_store import SqlEventStore
from kasmina.infra.integrity import Scrutiny
from kasmina.service import Draft

BATCH = 1000
RUN = "run"
SLOT = "layer2.conv"

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
DECODE = msgspec.json.Decoder(e.GateEvaluated).decode


def gate_event(number: int) -> e.GateEvaluated:
    """A refusal by G2, 500 bytes when stored, after 300 steps of training."""
    checks = tuple(
        Check.of(name, 0.131 + number % 1000 / 7919, Comparison.AT_LEAST, 0.5)
        for name in ("improvement", "rehearsed_contribution", "gradient_norm", "isolation_leaks")
    )
    outcome = GateOutcome.of(Gate.G2, checks, 0.25)
    return e.GateEvaluated(epoch=3, step=300, slot_id=SLOT, seed_id="s1", outcome=outcome)


def opening(run_id: str) -> list[e.Event]:
    """A run whose one seed is in TRAINING, where G2 may refuse it for ever."""
    draft = Draft(None)
    for command in (
        c.OpenRun(
            step=0,
            run_id=run_id,
            name=run_id,
            objective=Objective.maximize("accuracy"),
            policy=GatePolicy(),
            host=HostDescription(kind="Host", parameters=1_000, digest=""),
            random_seed=0,
        ),
        c.OpenSlot(step=0, slot_id=SLOT, topology=Topology.CNN, width=64),
        c.Germinate(
            step=0,
            slot_id=SLOT,
            seed_id="s1",
            blueprint_id="conv_light",
            probe=Probe(
                input_shape=(1, 64),
                output_shape=(1, 64),
                input_dtype="float32",
                output_dtype="float32",
                trainable_parameters=100,
            ),
            parameters=100,
            init_seed=0,
        ),
        c.Advance(step=0, slot_id=SLOT),
        c.RecordEpoch(step=300, epoch=3, objective=50.0),
    ):
        draft.decide(command)
    return draft.events


EVENTS = [gate_event(step) for step in range(BATCH)]
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

    def append(self, count: int, events: Sequence[e.GateEvaluated] = EVENTS) -> None:
        """Encode, chain, insert."""
        rows = []
        for n, one in enumerate(events[:count], self.sequence + 1):
            payload = ENCODE(one)
            columns = f"run|{n}|{one.slot_id}|{one.seed_id}|GateEvaluated|1|{one.epoch}|0|".encode()
            self.digest = hashlib.sha256(self.digest + columns + payload).digest()
            rows.append((n, one.slot_id, one.seed_id, one.epoch, 0, payload.decode(), self.digest))
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.executemany(INSERT, rows)
        self.connection.execute("COMMIT")
        self.sequence += count

    def make_and_append(self, count: int) -> None:
        """Make the events, and append them."""
        self.append(count, [gate_event(step) for step in range(count)])

    def read(self) -> None:
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
    """The same through the event store, in a run that may hold such events."""

    def __init__(self, store: SqlEventStore) -> None:
        self.store = store
        self.sequence = len(store.append(RUN, opening(RUN), expected=0))

    def append(self, count: int, events: Sequence[e.GateEvaluated] = EVENTS) -> None:
        """One append, one transaction."""
        batch = f"w.{self.sequence}"
        self.store.append(RUN, events[:count], expected=self.sequence, batch=batch)
        self.sequence += count

    def make_and_append(self, count: int) -> None:
        """Make the events, and append them."""
        self.append(count, [gate_event(step) for step in range(count)])

    def read(self) -> None:
        """Every event, typed, with its place and time."""
        assert sum(1 for _ in self.store.read(RUN)) == self.sequence

    def load(self) -> None:
        """The run's state."""
        state = load(self.store, RUN)
        assert state is not None
        assert state.sequence == self.sequence

    def verify(self, scrutiny: Scrutiny) -> None:
        """The whole run."""
        found = self.store.verify(RUN, scrutiny=scrutiny)
        assert (found.sound, found.events) == (True, self.sequence)


class Judged(Aggregate):
    """The peer's own kind of run."""

    @event("Opened")
    def __init__(self) -> None:
        self.last = ""

    @event("GateEvaluated")
    def judge(self, slot_id: str, seed_id: str, epoch: int, payload: str) -> None:  # noqa: ARG002
        """Keep the last decision."""
        self.last = payload


class Peer:
    """eventsourcing's application on a SQLite file."""

    def __init__(self, path: Path) -> None:
        self.application: Application[UUID] = Application(
            env={"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(path)}
        )
        self.run = Judged()
        self.application.save(self.run)

    def trigger_and_save(self, count: int) -> None:
        """Make the events, and save them."""
        for n in range(count):
            self.run.judge(SLOT, "s1", n, PAYLOADS[n])
        self.application.save(self.run)

    def get(self) -> None:
        """The aggregate, from its events."""
        self.application.repository.get(self.run.id)

    def close(self) -> None:
        """Close its database."""
        self.application.close()
