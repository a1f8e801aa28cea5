"""A thousand random tamperings with a SQLite file: each is found, and where it was done.

What to expect is worked out from the rows before and after, by other rules than those of
``integrity``: the first sequence at which a run holds other rows than it did, or the first event
whose place in the store is not between those of its neighbours.
"""

import random
import shutil
import sqlite3
from bisect import bisect_left
from collections import Counter, defaultdict
from contextlib import closing

import pytest

from kasmina.domain.ports import EMPTY_HEAD
from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store
from kasmina.infra.integrity import Columns, Scrutiny, chain
from kasmina.testing import FixedClock
from tests.infra.histories import FORKED, LONG, tell

NAMES = ("position", *Columns._fields, "digest")
TEXTS = ("run_id", "slot_id", "seed_id", "type", "payload", "batch")
NUMBERS = ("position", "sequence", "schema_version", "epoch", "recorded_at")
PLACE = {name: number for number, name in enumerate(NAMES)}
POSITION, RUN, SEQUENCE, DIGEST = (PLACE[n] for n in ("position", "run_id", "sequence", "digest"))

# Without UNIQUE, NOT NULL, STRICT and triggers nothing stands in a tamperer's way.
LOOSE = f"""
    PRAGMA legacy_alter_table = ON;
    DROP TRIGGER events_refuse_update;
    DROP TRIGGER events_refuse_delete;
    ALTER TABLE events RENAME TO before;
    CREATE TABLE events ({", ".join(NAMES)});
    INSERT INTO events SELECT {", ".join(NAMES)} FROM before ORDER BY position;
    DROP TABLE before;
    CREATE INDEX events_of_runs ON events (run_id, sequence);
"""
READ = ", ".join(f"CAST({n} AS BLOB)" if n in TEXTS else n for n in NAMES)
WRITE = ", ".join("CAST(? AS TEXT)" if n in TEXTS else "?" for n in NAMES)


class Victim:
    """A database with the two runs, in the hands of somebody who may write to its file."""

    def __init__(self, path):
        self._direct = sqlite3.connect(path, isolation_level=None)
        self._direct.executescript(LOOSE)
        self.rows = self._direct.execute(f"SELECT {READ} FROM events ORDER BY position").fetchall()
        self._store = open_store(f"sqlite:///{path}", access=Access.READ)
        self.seals = {run_id: self._verify(run_id).seal for run_id in (LONG, FORKED)}
        self.fork = next(self._store.read(FORKED)).event

    def put(self, rows):
        self._direct.execute("BEGIN")
        self._direct.execute("DELETE FROM events")
        self._direct.executemany(f"INSERT INTO events VALUES ({WRITE})", rows)
        self._direct.execute("COMMIT")

    def first_problem(self, run_id):
        problems = self._verify(run_id, seal=self.seals[run_id]).problems
        return problems[0].sequence if problems else None

    def _verify(self, run_id, seal=None):
        return self._store.verify(run_id, seal=seal, scrutiny=Scrutiny.HISTORY)

    def close(self):
        self._store.close()
        self._direct.close()


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tampering")
    with open_store(f"sqlite:///{folder / 'runs.db'}", clock=FixedClock()) as store:
        tell(store)
    shutil.copy(folder / "runs.db", folder / "copy.db")
    with closing(Victim(folder / "copy.db")) as victim:
        yield victim


# --- tamperings: rows in, rows out -----------------------------------------------------------


def edited(rows, index, **columns):
    row = list(rows[index])
    for name, value in columns.items():
        row[PLACE[name]] = value
    return [*rows[:index], tuple(row), *rows[index + 1 :]]


def any_of(rng, rows, run_id=None):
    """The index of any row, or of any of a run."""
    mine = [n for n, row in enumerate(rows) if run_id is None or row[RUN] == run_id.encode()]
    return rng.choice(mine)


def flip_a_bit(rng, rows):
    index = any_of(rng, rows)
    name = rng.choice([n for n in NAMES if rows[index][PLACE[n]] is not None])
    return edited(rows, index, **{name: flipped(rng, rows[index][PLACE[name]])})


def flipped(rng, value):
    if isinstance(value, int):
        bit = 1 << rng.randrange(64)
        return int.from_bytes(((value % 2**64) ^ bit).to_bytes(8), signed=True)
    bit = rng.randrange(8 * len(value))
    return bytes(byte ^ (1 << bit % 8) if n == bit // 8 else byte for n, byte in enumerate(value))


def remove(rng, rows):
    index = any_of(rng, rows)
    return rows[:index] + rows[index + rng.choice([1, 1, 2, 7]) :]


def cut_a_tail(rng, rows):
    run_id = rng.choice([LONG, FORKED]).encode()
    keep = rng.randrange(sum(row[RUN] == run_id for row in rows))
    return [row for row in rows if row[RUN] != run_id or row[SEQUENCE] <= keep]


def unused(rng, rows):
    """A position that no row has."""
    last = max(row[POSITION] for row in rows)
    return rng.choice([last + 1, last + 1000, 0, -5])


def insert_a_copy(rng, rows):
    index = any_of(rng, rows)
    copy = edited([rows[index]], 0, position=unused(rng, rows))
    return rows + copy


def insert_between(rng, rows):
    """A copy of any event, and the sequences behind it one higher."""
    target, source = rows[any_of(rng, rows)], rows[any_of(rng, rows)]
    behind = [
        edited([row], 0, sequence=row[SEQUENCE] + 1)[0]
        if row[RUN] == target[RUN] and row[SEQUENCE] >= target[SEQUENCE]
        else row
        for row in rows
    ]
    columns = {"position": unused(rng, rows), "sequence": target[SEQUENCE], "run_id": target[RUN]}
    return behind + edited([source], 0, **columns)


def exchange(*names):
    """Two events of a run exchange what is in these columns."""

    def act(rng, rows):
        run_id = rng.choice([LONG, FORKED])
        one, other = any_of(rng, rows, run_id), any_of(rng, rows, run_id)
        here, there = ({n: rows[i][PLACE[n]] for n in names} for i in (one, other))
        return edited(edited(rows, one, **there), other, **here)

    return act


def change_a_column(rng, rows):
    """Something that might have stood there: the same column of another event, or none."""
    index, other = any_of(rng, rows), any_of(rng, rows)
    name = rng.choice(["type", "recorded_at", "epoch", "slot_id", "seed_id", "batch", "payload"])
    value = rows[other][PLACE[name]]
    if name == "recorded_at":
        value += rng.choice([-1, 1, 3_600_000_000])
    return edited(rows, index, **{name: value})


def move_to_the_other_run(rng, rows):
    index = any_of(rng, rows)
    other = (FORKED if rows[index][RUN] == LONG.encode() else LONG).encode()
    sequences = [row[SEQUENCE] for row in rows if row[RUN] == other]
    sequence = rng.choice([rows[index][SEQUENCE], max(sequences) + 1, rng.choice(sequences)])
    return edited(rows, index, run_id=other, sequence=sequence)


def chain_anew(rng, rows):
    """Another time, and every digest from there on as it then must be."""
    run_id = rng.choice([LONG, FORKED])
    index = any_of(rng, rows, run_id)
    start = rows[index][SEQUENCE]
    rows = edited(rows, index, recorded_at=rows[index][PLACE["recorded_at"]] + 1)
    digest = EMPTY_HEAD.digest
    mine = sorted((row[SEQUENCE], n) for n, row in enumerate(rows) if row[RUN] == run_id.encode())
    for sequence, n in mine:
        if sequence >= start:
            rows = edited(rows, n, digest=chain(digest, Columns(*rows[n][1:-1])))
        digest = rows[n][DIGEST]
    return rows


TAMPERINGS = {
    "flip a bit": flip_a_bit,
    "remove": remove,
    "cut a tail": cut_a_tail,
    "insert a copy": insert_a_copy,
    "insert between": insert_between,
    "exchange sequences": exchange("sequence"),
    "exchange positions": exchange("position"),
    "exchange payloads": exchange("type", "payload"),
    "exchange all but places": exchange(*(n for n in NAMES if n not in {"position", "sequence"})),
    "change a column": change_a_column,
    "move to the other run": move_to_the_other_run,
    "chain anew": chain_anew,
}


# --- what must be found ----------------------------------------------------------------------


def by_run(rows):
    runs = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row[SEQUENCE], row[POSITION])):
        runs[row[RUN].decode(errors="replace")].append(row)
    return runs


def first_difference(before, after):
    """The first sequence at which a run holds other rows, wherever in the store they are."""
    contents = [Counter((row[SEQUENCE], row[1:]) for row in rows) for rows in (before, after)]
    different = (contents[0] - contents[1]) + (contents[1] - contents[0])
    return min((sequence for sequence, _ in different), default=None)


def first_gap(rows):
    """The first sequence that is not there though a later one is."""
    there = {row[SEQUENCE] for row in rows}
    gaps = (sequence for sequence in range(1, len(there) + 1) if sequence not in there)
    first = next(gaps, None)
    return first if first is not None and first < max(there) else None


def first_out_of_order(rows):
    """The first event that a longest stretch of events in order can do without."""
    positions = [row[POSITION] for row in rows]
    longest = length_in_order(positions)
    if longest == len(positions):
        return None
    return next(
        row[SEQUENCE]
        for n, row in enumerate(rows)
        if length_in_order(positions[:n] + positions[n + 1 :]) == longest
    )


def length_in_order(positions):
    """The length of the longest increasing subsequence, of positions above 0."""
    ends = []
    for position in positions:
        if position > 0:
            at = bisect_left(ends, position)
            ends[at : at + 1] = [position]
    return len(ends)


def is_disowned(rows, fork):
    """Whether the long run is no longer the one that the other was forked from."""
    at, digest = fork.parent_sequence, bytes.fromhex(fork.parent_digest)
    cut = max((row[SEQUENCE] for row in rows), default=at) < at
    return cut or any(row[SEQUENCE] == at and row[DIGEST] != digest for row in rows)


def expected(victim, after, *, anew):
    """The first bad sequence of each run; of a chain that was made anew, where its seal is."""
    was, now = by_run(victim.rows), by_run(after)
    found = {}
    for run_id, seal in victim.seals.items():
        differs = first_difference(was[run_id], now[run_id])
        bad = [
            seal.length if anew and differs is not None else differs,
            first_gap(now[run_id]),
            first_out_of_order(now[run_id]),
            1 if run_id == FORKED and is_disowned(now[LONG], victim.fork) else None,
        ]
        found[run_id] = min((sequence for sequence in bad if sequence is not None), default=None)
    return found


def hunt(victim, *, seed, count):
    """Tamper so often, and be told each time where."""
    rng = random.Random(seed)
    found = Counter()
    while found.total() < count:
        name = rng.choice(list(TAMPERINGS))
        after = TAMPERINGS[name](rng, victim.rows)
        wanted = expected(victim, after, anew=name == "chain anew")
        if not any(wanted.values()):
            continue  # nothing was changed, or nothing but positions and not the order
        victim.put(after)
        said = {run_id: victim.first_problem(run_id) for run_id in victim.seals}
        assert said == wanted, f"seed {seed}, number {found.total() + 1}: {name}"
        found[name] += 1
    assert found.keys() == TAMPERINGS.keys()


def test_tampering_is_found_where_it_was_done(victim):
    hunt(victim, seed=1, count=100)


@pytest.mark.slow
def test_a_thousand_tamperings_are_each_found_where_they_were_done(victim):
    hunt(victim, seed=20260101, count=1000)


def test_what_was_put_back_is_sound(victim):
    victim.put(victim.rows)
    assert victim.rows
    assert [victim.first_problem(run_id) for run_id in victim.seals] == [None, None]
