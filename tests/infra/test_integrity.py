"""One altered bit, and one event removed, inserted or moved, is named by its sequence."""

import hashlib
import sqlite3
import struct
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasmina.domain import events as e
from kasmina.domain.errors import UnreadableEvent
from kasmina.domain.ports import EMPTY_HEAD, Head
from kasmina.domain.stages import Topology
from kasmina.infra import codec, integrity
from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store
from kasmina.infra.integrity import Columns, Flaw, Row, Scrutiny, Seal, chain, link, verify
from kasmina.testing import MemoryEventStore, caught, epochs, run_opened

TEXT = st.binary(max_size=6)
MAYBE = st.none() | TEXT
NUMBER = st.integers(min_value=0, max_value=2**63 - 1)
COLUMNS = st.builds(
    Columns,
    run_id=TEXT,
    sequence=NUMBER,
    slot_id=MAYBE,
    seed_id=MAYBE,
    type=TEXT,
    schema_version=NUMBER,
    epoch=NUMBER,
    recorded_at=st.integers(min_value=-(2**63), max_value=2**63 - 1),
    payload=TEXT,
    batch=MAYBE,
)


def history():
    """Twelve stored events, with seeds, slots and batches among them."""
    store = MemoryEventStore()
    store.append("digits-1", [run_opened()], expected=0, batch="w.1")
    slot = {"epoch": 0, "step": 0, "slot_id": "a"}
    seed = slot | {"seed_id": "s1"}
    happened = [
        e.SlotOpened(**slot, topology=Topology.CNN, width=8),
        e.SeedPaused(**seed),
        e.SeedResumed(**seed),
        *epochs(4),
    ]
    store.append("digits-1", happened, expected=1)
    store.append("digits-1", epochs(4, first=5), expected=8, batch="w.2")
    return store.rows("digits-1")


HISTORY = history()


def first(rows, **options):
    return verify("digits-1", rows, **options).problems[0]


class TestTheChain:
    @given(row=COLUMNS, other=COLUMNS)
    def test_different_columns_have_different_digests(self, row, other):
        same = chain(bytes(32), row) == chain(bytes(32), other)
        assert same == (row == other)

    @given(row=COLUMNS, previous=st.binary(min_size=32, max_size=32))
    def test_a_digest_depends_on_the_one_before(self, row, previous):
        assert (chain(previous, row) == chain(bytes(32), row)) == (previous == bytes(32))

    def test_text_cannot_slip_from_one_column_to_the_next(self):
        row = HISTORY[2].columns
        moved = row._replace(slot_id=b"as", seed_id=b"1")
        assert b"".join((row.slot_id, row.seed_id)) == b"".join((moved.slot_id, moved.seed_id))
        assert chain(bytes(32), row) != chain(bytes(32), moved)

    def test_nothing_is_not_an_empty_text(self):
        row = HISTORY[0].columns
        assert chain(bytes(32), row) != chain(bytes(32), row._replace(slot_id=b""))

    def test_anybody_can_compute_a_digest_without_this_code(self):
        row = Columns("läuf".encode(), 1, None, b"s1", b"SeedPaused", 1, 2, 3, b"{}", None)
        integers = (1, 1, 2, 3)  # sequence, schema_version, epoch, recorded_at
        lengths = (5, -1, 2, 10, 2, -1)  # run, slot, seed, type, payload, batch
        framed = struct.pack(">10q", *integers, *lengths) + "läufs1SeedPaused{}".encode()
        assert chain(bytes(32), row) == hashlib.sha256(bytes(32) + framed).digest()


class TestVerifying:
    def test_an_untouched_run_is_sound(self):
        found = verify("digits-1", HISTORY)
        assert found.sound
        assert found.events == 12
        assert found.head == Head(sequence=12, digest=HISTORY[-1].digest)

    def test_an_empty_run_is_sound(self):
        assert verify("nobody", []).head == EMPTY_HEAD

    @given(data=st.data(), at=st.integers(0, 11))
    def test_any_altered_column_is_found_where_it_is(self, data, at):
        row = HISTORY[at]
        name = data.draw(st.sampled_from([n for n in Columns._fields if n != "sequence"]))
        old = row.columns._asdict()[name]
        new = data.draw(COLUMNS)._asdict()[name]
        rows = [*HISTORY]
        rows[at] = row._replace(columns=row.columns._replace(**{name: new}))
        problems = verify("digits-1", rows, scrutiny=Scrutiny.CHAIN).problems
        assert [p.sequence for p in problems] == ([] if new == old else [at + 1])

    @given(at=st.integers(0, 11), bit=st.integers(0, 255))
    def test_any_altered_digest_is_found_where_it_is(self, at, bit):
        row = HISTORY[at]
        flipped = int.from_bytes(row.digest) ^ (1 << bit)
        rows = [*HISTORY]
        rows[at] = row._replace(digest=flipped.to_bytes(32))
        assert first(rows).sequence == at + 1

    @given(at=st.integers(0, 10), count=st.integers(1, 11))
    def test_removed_events_are_missed(self, at, count):
        rows = HISTORY[:at] + HISTORY[at + count :]
        if at + count < 12:
            assert (first(rows).sequence, first(rows).flaw) == (at + 1, Flaw.MISSING)
        else:
            assert verify("digits-1", rows).sound  # a cut tail takes a seal

    @given(at=st.integers(0, 11), source=st.integers(0, 11))
    def test_inserted_events_are_found(self, at, source):
        new = HISTORY[source]._replace(position=HISTORY[at].position)
        moved = [
            row._replace(
                position=row.position + 1,
                columns=row.columns._replace(sequence=row.columns.sequence + 1),
            )
            for row in HISTORY[at:]
        ]
        new = new._replace(columns=new.columns._replace(sequence=at + 1))
        found = verify("digits-1", [*HISTORY[:at], new, *moved])
        assert not found.sound
        # An event's own copy in its own place is the event: then the next one is the intruder.
        assert found.problems[0].sequence == at + (2 if source == at else 1)

    @given(places=st.lists(st.integers(0, 11), min_size=2, max_size=2, unique=True))
    def test_reordered_events_are_found(self, places):
        low, high = sorted(places)
        rows = [*HISTORY]
        for here, there in ((low, high), (high, low)):
            columns = HISTORY[there].columns._replace(sequence=here + 1)
            rows[here] = Row(HISTORY[here].position, columns, HISTORY[there].digest)
        assert first(rows).sequence == low + 1

    def test_an_event_moved_in_the_store_alone_is_found(self):
        rows = [*HISTORY]
        rows[4] = rows[4]._replace(position=2)
        assert first(rows) == integrity.Problem(sequence=5, flaw=Flaw.MISPLACED)

    def test_a_second_event_of_one_sequence_is_found(self):
        rows = [*HISTORY[:4], HISTORY[3]._replace(position=99), *HISTORY[4:]]
        assert first(rows).flaw is Flaw.REPEATED
        assert first(rows).sequence == 4

    def test_a_history_rewritten_with_its_digests_still_has_to_make_sense(self):
        def rewritten(**changes):
            wrong = codec.encode(run_opened())._replace(**changes)
            return link("digits-1", [wrong], after=EMPTY_HEAD, at=0, batch=None)

        def flaw(**changes):
            rows = [row._replace(position=1) for row in rewritten(**changes)]
            return first(rows).flaw

        assert flaw(epoch=5) is Flaw.CONTRADICTORY
        assert flaw(slot_id=b"a") is Flaw.CONTRADICTORY
        assert flaw(payload=codec.encode(run_opened("other")).payload) is Flaw.CONTRADICTORY
        assert flaw(payload=b"{}") is Flaw.UNREADABLE
        assert flaw(type=b"RunPromoted") is Flaw.UNREADABLE
        assert flaw(type=b"\xff") is Flaw.UNREADABLE
        assert flaw(schema_version=2) is Flaw.UNREADABLE

    def test_a_row_of_the_wrong_types_ends_the_walk(self):
        for change in ({"sequence": "2"}, {"epoch": None}, {"payload": "text"}):
            rows = [*HISTORY]
            rows[1] = rows[1]._replace(columns=rows[1].columns._replace(**change))
            found = verify("digits-1", rows)
            assert found.events == 1
            assert (found.problems[0].sequence, found.problems[0].flaw) == (2, Flaw.UNREADABLE)

    def test_a_file_full_of_problems_does_not_fill_the_memory(self):
        rows = [row._replace(digest=b"") for row in HISTORY for _ in range(100)]
        assert len(verify("digits-1", rows).problems) == integrity.PROBLEMS_KEPT

    def test_a_problem_is_told_in_one_line(self):
        gap = first([HISTORY[0], *HISTORY[5:]])
        assert gap.message == "sequence 2: there is no event of this sequence (up to 5)"
        assert first(HISTORY[1:]).message == "sequence 1: there is no event of this sequence"


class TestSeals:
    SEAL = verify("digits-1", HISTORY).seal

    def test_a_seal_says_what_the_run_was(self):
        assert Seal(run_id="digits-1", length=12, digest=HISTORY[-1].digest) == self.SEAL

    def test_a_run_that_went_on_still_agrees_with_its_seal(self):
        early = verify("digits-1", HISTORY[:7]).seal
        assert verify("digits-1", HISTORY, seal=early).sound

    @pytest.mark.parametrize("left", [0, 1, 11])
    def test_a_cut_tail_is_found(self, left):
        problem = first(HISTORY[:left], seal=self.SEAL)
        assert (problem.sequence, problem.flaw) == (left + 1, Flaw.CUT)

    def test_a_rewritten_tail_is_found_whatever_its_digests(self):
        store = MemoryEventStore()
        store.append("digits-1", epochs(12), expected=0)
        problem = first(store.rows("digits-1"), seal=self.SEAL)
        assert (problem.sequence, problem.flaw) == (12, Flaw.UNSEALED)


TAMPERINGS = {
    "an edited payload": (4, "UPDATE events SET payload = replace(payload, '53', '99')"),
    "an edited type": (3, "UPDATE events SET type = 'RunClosed' WHERE sequence = 3"),
    "an edited time": (2, "UPDATE events SET recorded_at = recorded_at + 1 WHERE sequence = 2"),
    "an edited epoch": (5, "UPDATE events SET epoch = 0 WHERE sequence = 5"),
    "an edited slot": (6, "UPDATE events SET slot_id = 'b' WHERE sequence = 6"),
    "an edited batch": (2, "UPDATE events SET batch = NULL WHERE sequence = 2"),
    "an edited digest": (1, "UPDATE events SET digest = zeroblob(32) WHERE sequence = 1"),
    "a removed event": (3, "DELETE FROM events WHERE sequence = 3"),
    "an event moved in the store": (6, "UPDATE events SET position = -1 WHERE sequence = 6"),
    "two events exchanged": (
        3,
        """
        UPDATE events SET sequence = -1 WHERE sequence = 3;
        UPDATE events SET sequence = 3 WHERE sequence = 4;
        UPDATE events SET sequence = 4 WHERE sequence = -1;
        """,
    ),
    "an event added": (
        7,
        """
        INSERT INTO events SELECT 99, run_id, 7, slot_id, seed_id, type, schema_version, epoch,
        recorded_at, payload, batch, digest FROM events WHERE sequence = 6
        """,
    ),
    "a payload that is no text": (
        4,
        "UPDATE events SET payload = CAST(x'ff' AS TEXT) WHERE sequence = 4",
    ),
    "a type that is no text": (
        4,
        "UPDATE events SET type = CAST(x'ff' AS TEXT) WHERE sequence = 4",
    ),
}


class TestTamperingWithADatabase:
    @pytest.fixture
    def tamper(self, recorded, path):
        """Change the file behind the store's back, with the triggers dropped."""

        def script(statements):
            with closing(sqlite3.connect(path)) as connection:
                connection.executescript(
                    "DROP TRIGGER events_refuse_update; DROP TRIGGER events_refuse_delete;"
                    + statements
                )

        return script

    @pytest.mark.parametrize(("sequence", "script"), TAMPERINGS.values(), ids=TAMPERINGS)
    def test_is_found_where_it_was_done(self, recorded, tamper, sequence, script):
        tamper(script)
        with open_store(recorded, access=Access.READ) as store:
            found = store.verify("digits-1")
            assert found.problems[0].sequence == sequence

    def test_cutting_the_tail_takes_a_seal(self, recorded, tamper):
        with open_store(recorded, access=Access.READ) as store:
            seal = store.verify("digits-1").seal
        tamper("DELETE FROM events WHERE sequence > 4")
        with open_store(recorded, access=Access.READ) as store:
            assert store.verify("digits-1").sound
            problem = store.verify("digits-1", seal=seal).problems[0]
        assert (problem.sequence, problem.flaw) == (5, Flaw.CUT)

    def test_what_cannot_be_read_is_named_by_run_and_sequence(self, recorded, tamper):
        tamper("UPDATE events SET payload = '{}', type = CAST(x'ff' AS TEXT) WHERE sequence = 4")
        with open_store(recorded, access=Access.READ) as store:
            error = caught(UnreadableEvent, list, store.read("digits-1"))
            assert "(run 'digits-1', sequence 4)" in error.problem
            assert [r.sequence for r in store.read("digits-1", until=3)] == [1, 2, 3]


def test_a_run_without_its_first_event_is_still_listed_for_verification(tmp_path):
    path = tmp_path / "kasmina.db"
    with open_store(f"sqlite:///{path}") as store:
        for run_id in ("b", "a"):
            store.append(run_id, [run_opened(run_id), *epochs(2)], expected=0)
        with sqlite3.connect(path) as direct:
            direct.executescript(
                "DROP TRIGGER events_refuse_delete;"
                "DELETE FROM events WHERE run_id = 'a' AND sequence = 1"
            )
        assert [record.run_id for record in store.runs()] == ["b"]
        assert store.run_ids() == ("a", "b")
        assert store.verify("a").problems[0].sequence == 1
