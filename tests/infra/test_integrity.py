"""One altered bit, and one event removed, inserted or moved, is named by its sequence."""

import hashlib
import sqlite3
import struct
from contextlib import closing

import pytest
from attrs import evolve as changed
from hypothesis import given
from hypothesis import strategies as st

from kasmina.domain import events as e
from kasmina.domain.errors import UnreadableEvent
from kasmina.domain.ports import EMPTY_HEAD, Head
from kasmina.domain.stages import Trigger
from kasmina.infra import codec, integrity
from kasmina.infra.chain import Place, walk
from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store
from kasmina.infra.integrity import (
    Columns,
    Flaw,
    Problem,
    Row,
    Scrutiny,
    Seal,
    chain,
    link,
    verify,
)
from kasmina.testing import MemoryEventStore, caught, epochs, run_opened
from tests.domain.scenario import RUN, SEED, SLOT, germinated, opened, slot_opened
from tests.infra.histories import FORKED, LONG, Shelf, linked, tell

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
    store.append(RUN, [opened(), slot_opened(), *germinated(at=0)], expected=0, batch="w.1")
    seed = {"epoch": 0, "step": 0, "slot_id": SLOT, "seed_id": SEED}
    paused = [e.SeedPaused(**seed), e.SeedResumed(**seed)]
    store.append(RUN, [*paused, *epochs(2)], expected=5)
    store.append(RUN, epochs(3, first=3), expected=9, batch="w.2")
    return store.rows(RUN)


HISTORY = history()


def checked(rows, **options):
    return verify(RUN, Shelf({RUN: rows}), **options)


def first(rows, **options):
    return checked(rows, **options).problems[0]


class TestTheChain:
    @given(row=COLUMNS, other=COLUMNS)
    def test_different_columns_have_different_digests(self, row, other):
        same = chain(bytes(32), row) == chain(bytes(32), other)
        assert same == (row == other)

    @given(row=COLUMNS, previous=st.binary(min_size=32, max_size=32))
    def test_a_digest_depends_on_the_one_before(self, row, previous):
        assert (chain(previous, row) == chain(bytes(32), row)) == (previous == bytes(32))

    def test_text_cannot_slip_from_one_column_to_the_next(self):
        row = HISTORY[3].columns
        moved = row._replace(slot_id=b"layer2s", seed_id=b"eed-1")
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


class TestWalking:
    def test_rows_that_follow_are_walked_over_without_a_stop(self):
        rows = [row for page in Shelf(ROWS).pages(LONG) for row in page]
        seen = []
        place, misfit = walk(LONG.encode(), iter(rows), Place(), seen.append)
        assert (misfit, seen) == (None, rows)
        assert place == Place(199, ROWS[LONG][-1].digest, 199, 198)

    def test_the_walk_ends_before_the_row_that_does_not_follow(self):
        rows = [row for page in Shelf(ROWS).pages(LONG) for row in page]
        place, misfit = walk(LONG.encode(), iter(rows[:6] + rows[7:]), Place())
        assert misfit == rows[7]
        assert walk(LONG.encode(), iter(rows[6:]), place)[1] is None


class TestVerifying:
    def test_an_untouched_run_is_sound(self):
        found = checked(HISTORY)
        assert found.sound
        assert found.events == 12
        assert found.head == Head(sequence=12, digest=HISTORY[-1].digest)

    def test_an_empty_run_is_sound(self):
        assert verify("nobody", Shelf()).head == EMPTY_HEAD

    @given(data=st.data(), at=st.integers(0, 11))
    def test_any_altered_column_is_found_where_it_is(self, data, at):
        row = HISTORY[at]
        name = data.draw(
            st.sampled_from([n for n in Columns._fields if n not in {"run_id", "sequence"}])
        )
        old = row.columns._asdict()[name]
        new = data.draw(COLUMNS)._asdict()[name]
        rows = [*HISTORY]
        rows[at] = row._replace(columns=row.columns._replace(**{name: new}))
        problems = checked(rows, scrutiny=Scrutiny.CHAIN).problems
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
        found = [(problem.sequence, problem.flaw) for problem in checked(rows).problems]
        if at + count < 12:
            assert found[0] == (at + 1, Flaw.MISSING)
        else:  # a cut tail takes a seal, unless it ends within a decision
            assert found == ([(5, Flaw.UNFINISHED)] if at == 4 else [])

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
        found = checked([*HISTORY[:at], new, *moved])
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
        assert checked(rows).problems == (Problem(sequence=5, flaw=Flaw.MISPLACED),)

    @pytest.mark.parametrize("position", [6, 99])
    def test_an_event_moved_behind_others_is_found_itself_and_not_those(self, position):
        rows = [*HISTORY]
        rows[4] = rows[4]._replace(position=position)
        if position == 6:
            rows[5] = rows[5]._replace(position=5)
        assert checked(rows).problems == (Problem(sequence=5, flaw=Flaw.MISPLACED),)

    def test_events_all_moved_to_the_front_are_each_found(self):
        rows = [*HISTORY]
        rows[5], rows[6] = rows[5]._replace(position=-2), rows[6]._replace(position=-1)
        misplaced = [Problem(sequence=n, flaw=Flaw.MISPLACED) for n in (6, 7)]
        assert checked(rows).problems == tuple(misplaced)

    @pytest.mark.parametrize("sequence", [0, -3])
    def test_an_event_before_the_first_is_found(self, sequence):
        columns = HISTORY[3].columns._replace(sequence=sequence)
        rows = [HISTORY[3]._replace(position=99, columns=columns), *HISTORY]
        assert checked(rows).problems == (Problem(sequence=sequence, flaw=Flaw.MISNUMBERED),)

    def test_a_gap_is_found_though_the_chain_goes_on_over_it(self):
        rows, digest = [*HISTORY[:5]], HISTORY[4].digest
        for row in HISTORY[6:]:
            digest = chain(digest, row.columns)
            rows.append(row._replace(digest=digest))
        assert checked(rows).problems == (Problem(sequence=6, flaw=Flaw.MISSING),)

    def test_a_second_event_of_one_sequence_is_found(self):
        rows = [*HISTORY[:4], HISTORY[3]._replace(position=99), *HISTORY[4:]]
        found = [(problem.sequence, problem.flaw) for problem in checked(rows).problems]
        assert found == [(4, Flaw.REPEATED), (4, Flaw.MISPLACED)]

    def test_a_history_rewritten_with_its_digests_still_has_to_make_sense(self):
        def rewritten(**changes):
            wrong = codec.encode(opened())._replace(**changes)
            return link(RUN, [wrong], after=EMPTY_HEAD, at=0, batch=None)

        def found(**changes):
            return checked([row._replace(position=1) for row in rewritten(**changes)])

        def flaw(**changes):
            return found(**changes).problems[0].flaw

        assert found().sound
        assert flaw(epoch=5) is Flaw.CONTRADICTORY
        assert flaw(slot_id=b"a") is Flaw.CONTRADICTORY
        assert (
            flaw(payload=codec.encode(changed(opened(), run_id="other")).payload)
            is Flaw.CONTRADICTORY
        )
        assert flaw(payload=b"{}") is Flaw.UNREADABLE
        assert flaw(type=b"\xff") is Flaw.UNREADABLE
        assert flaw(schema_version=0) is Flaw.UNREADABLE

    def test_what_only_a_newer_release_can_read_is_sound_and_unjudged(self):
        encoded = [codec.encode(event) for event in (opened(), slot_opened(), *epochs(3))]
        encoded[2] = encoded[2]._replace(type=b"EpochPromised")
        linked = link(RUN, encoded, after=EMPTY_HEAD, at=0, batch=None)
        rows = [row._replace(position=n) for n, row in enumerate(linked, 1)]
        assert (checked(rows).sound, checked(rows).unjudged) == (True, 3)

    def test_a_row_of_the_wrong_types_ends_the_walk(self):
        for change in ({"sequence": "2"}, {"epoch": None}, {"payload": "text"}):
            rows = [*HISTORY]
            rows[1] = rows[1]._replace(columns=rows[1].columns._replace(**change))
            found = checked(rows)
            assert found.events == 1
            assert (found.problems[0].sequence, found.problems[0].flaw) == (2, Flaw.UNREADABLE)

    def test_a_file_full_of_problems_does_not_fill_the_memory(self):
        rows = [row._replace(digest=b"") for row in HISTORY for _ in range(100)]
        assert len(checked(rows).problems) == integrity.PROBLEMS_KEPT

    def test_a_problem_is_told_in_one_line(self):
        gap = first([HISTORY[0], *HISTORY[5:]])
        assert gap.message == "sequence 2: there is no event of this sequence (up to 5)"
        assert first(HISTORY[1:]).message == "sequence 1: there is no event of this sequence"


class TestSeals:
    SEAL = checked(HISTORY).seal

    def test_a_seal_says_what_the_run_was(self):
        assert Seal(run_id=RUN, length=12, digest=HISTORY[-1].digest) == self.SEAL

    def test_a_run_that_went_on_still_agrees_with_its_seal(self):
        early = checked(HISTORY[:7]).seal
        assert checked(HISTORY, seal=early).sound

    @pytest.mark.parametrize("left", [1, 4, 11])
    def test_a_cut_tail_is_found(self, left):
        problem = first(HISTORY[:left], seal=self.SEAL)
        assert (problem.sequence, problem.flaw) == (left + 1, Flaw.CUT)

    def test_a_rewritten_tail_is_found_whatever_its_digests(self):
        store = MemoryEventStore()
        store.append(RUN, [opened(), slot_opened(), *epochs(12)], expected=0)
        found = checked(store.rows(RUN), seal=self.SEAL)
        assert found.problems == (Problem(sequence=12, flaw=Flaw.UNSEALED),)

    def test_a_broken_seal_is_told_once_and_behind_however_many_problems(self):
        again = [HISTORY[-1]._replace(digest=b"", position=99 + n) for n in range(300)]
        found = checked([*HISTORY[:-1], *again], seal=self.SEAL)
        unsealed = [p.sequence for p in found.problems if p.flaw is Flaw.UNSEALED]
        assert unsealed == [12]
        cut = checked([row._replace(digest=b"") for row in HISTORY[:6] * 50], seal=self.SEAL)
        assert len(cut.problems) == integrity.PROBLEMS_KEPT + 1
        assert cut.problems[-1] == Problem(sequence=7, flaw=Flaw.CUT)

    def test_a_run_that_is_gone_is_not_a_cut_one(self):
        assert first([], seal=self.SEAL) == Problem(sequence=1, flaw=Flaw.ABSENT)


def told():
    """The long run and its fork, by their ids: rows, and the events in them."""
    store = Shelf()
    tell(store)
    runs = {run_id: store.rows(run_id) for run_id in (LONG, FORKED)}
    return runs, {run_id: [r.event for r in store.read(run_id)] for run_id in runs}


ROWS, EVENTS = told()


def last(kind, **values):
    """The last sequence of the long run that holds such an event."""
    return max(
        sequence
        for sequence, event in enumerate(EVENTS[LONG], 1)
        if type(event) is kind
        and all(getattr(event, name) == value for name, value in values.items())
    )


def forged(sequence, *events, run_id=LONG):
    """The first problem where these events are in the place of one, and every digest is new."""
    rewritten = [*EVENTS[run_id][: sequence - 1], *events, *EVENTS[run_id][sequence:]]
    (problem, *_) = verify(run_id, Shelf(ROWS | {run_id: linked(run_id, rewritten)})).problems
    return problem.sequence, problem.flaw


def flipped(event):
    outcome = event.outcome
    return changed(event, outcome=changed(outcome, passed=not outcome.passed))


class TestHistories:
    """What a tamperer who computes every digest anew must still get right."""

    @pytest.mark.parametrize("run_id", [LONG, FORKED])
    def test_a_long_history_with_every_type_of_event_is_sound(self, run_id):
        found = verify(run_id, Shelf(ROWS))
        assert (found.problems, found.unjudged) == ((), 0)
        assert len(ROWS[LONG]) == 199
        seen = {type(event) for events in EVENTS.values() for event in events}
        assert seen == {cls for cls, _ in codec.TYPES.values()}

    def test_every_outcome_follows_from_its_checks(self):
        for sequence, event in enumerate(EVENTS[LONG], 1):
            if isinstance(event, e.GateEvaluated):
                assert forged(sequence, flipped(event)) == (sequence, Flaw.UNJUSTIFIED)

    def test_every_gate_that_was_passed_is_missed_where_it_is_left_out(self):
        for sequence, event in enumerate(EVENTS[LONG], 1):
            if isinstance(event, e.GateEvaluated) and event.outcome.passed:
                assert forged(sequence) == (sequence, Flaw.ILLEGAL)

    def test_no_move_can_be_left_out_or_made_twice(self):
        for sequence, event in enumerate(EVENTS[LONG], 1):
            if isinstance(event, e.StageChanged):
                assert forged(sequence)[1] is Flaw.ILLEGAL
                assert forged(sequence, event, event) == (sequence + 1, Flaw.ILLEGAL)

    def test_a_cull_without_a_reason_is_illegal(self):
        sequence = last(e.SeedCulled)
        wordless = changed(EVENTS[LONG][sequence - 1], reason="")
        assert forged(sequence, wordless) == (sequence, Flaw.ILLEGAL)

    def test_an_embargo_that_was_cut_short_is_illegal(self):
        sequence = last(e.StageChanged, trigger=Trigger.RESET)
        assert isinstance(EVENTS[LONG][sequence - 2], e.EpochRecorded)
        assert forged(sequence - 1) == (sequence - 1, Flaw.ILLEGAL)

    def test_a_rewind_names_the_head_and_leads_back(self):
        sequence = last(e.RunRewound)
        back = EVENTS[LONG][sequence - 1]
        for wrong in (changed(back, head=back.head - 1), changed(back, to=back.head + 1)):
            assert forged(sequence, wrong) == (sequence, Flaw.ILLEGAL)

    def test_nothing_but_a_rewind_follows_the_end(self):
        closed = EVENTS[LONG][-1]
        assert forged(len(EVENTS[LONG]), closed, closed) == (200, Flaw.ILLEGAL)

    def test_what_is_broken_already_is_not_judged_any_further(self):
        rows = [*ROWS[LONG]]
        del rows[20]
        found = verify(LONG, Shelf({LONG: rows}))
        assert {problem.flaw for problem in found.problems} == {Flaw.MISSING}

    def test_an_altered_event_is_judged_all_the_same(self):
        sequence = 1 + next(
            n for n, e_ in enumerate(EVENTS[LONG]) if isinstance(e_, e.GateEvaluated)
        )
        rows = [*ROWS[LONG]]
        payload = codec.encode(flipped(EVENTS[LONG][sequence - 1])).payload
        row = rows[sequence - 1]
        rows[sequence - 1] = row._replace(columns=row.columns._replace(payload=payload))
        found = [(p.sequence, p.flaw) for p in verify(LONG, Shelf({LONG: rows})).problems]
        assert found == [(sequence, Flaw.ALTERED), (sequence, Flaw.UNJUSTIFIED)]


class TestForks:
    FORK = EVENTS[FORKED][0]

    def forked(self, rows=ROWS, **changes):
        events = [changed(self.FORK, **changes), *EVENTS[FORKED][1:]]
        return verify(FORKED, Shelf(rows | {FORKED: linked(FORKED, events)}))

    def test_a_fork_is_a_seal_of_its_parent(self):
        at = self.FORK.parent_sequence
        disowned = (Problem(sequence=1, flaw=Flaw.DISOWNED),)
        assert self.forked().sound
        assert self.forked(parent_digest="ab" * 32).problems == disowned
        assert self.forked(parent_digest="no digest").problems == disowned
        assert self.forked(parent_sequence=at - 1).problems == disowned
        assert self.forked(parent_sequence=0).problems == disowned
        assert self.forked(parent_sequence=2**70).problems == disowned
        assert self.forked({LONG: ROWS[LONG][: at - 1]}).problems == disowned
        rewritten = linked(LONG, [changed(EVENTS[LONG][0], random_seed=8), *EVENTS[LONG][1:]])
        assert self.forked({LONG: rewritten}).problems == disowned
        assert self.forked({LONG: ROWS[LONG][:at]}).sound

    def test_a_fork_whose_parent_is_elsewhere_is_sound_and_unjudged(self):
        found = self.forked({})
        assert (found.problems, found.unjudged) == ((), len(EVENTS[FORKED]))

    def test_a_fork_is_not_judged_by_a_parent_that_is_broken(self):
        rows = [*ROWS[LONG]]
        del rows[20]
        found = self.forked({LONG: rows})
        assert (found.problems, found.unjudged) == ((), len(EVENTS[FORKED]))

    def test_a_fork_is_not_judged_by_a_parent_that_cannot_be_folded(self):
        rows = linked(LONG, EVENTS[LONG][1:])
        at = {"parent_sequence": 50, "parent_digest": rows[49].digest.hex()}
        found = self.forked({LONG: rows}, **at)
        assert (found.problems, found.unjudged) == ((), len(EVENTS[FORKED]))

    def test_forks_of_forks_without_end_are_no_trap(self):
        runs = {"run-0": linked("run-0", [changed(EVENTS[LONG][0], run_id="run-0")])}
        for number in range(1, 600):
            parent, run_id = f"run-{number - 1}", f"run-{number}"
            at = {"parent_sequence": 1, "parent_digest": runs[parent][0].digest.hex()}
            fork = changed(self.FORK, run_id=run_id, parent_run_id=parent, **at)
            runs[run_id] = linked(run_id, [fork])
        assert verify("run-3", Shelf(runs)).unjudged == 0
        assert verify("run-599", Shelf(runs)).sound

    def test_runs_that_claim_to_be_each_others_parents_are_no_trap(self):
        fork = changed(self.FORK, run_id="a", parent_run_id="b", parent_sequence=1)
        first_run = linked("a", [changed(fork, parent_digest="")])
        digest = first_run[0].digest.hex()
        second = linked("b", [changed(fork, run_id="b", parent_run_id="a", parent_digest=digest)])
        shelf = Shelf({"a": first_run, "b": second})
        assert verify("a", shelf).problems == (Problem(sequence=1, flaw=Flaw.DISOWNED),)
        assert verify("b", shelf).unjudged == 1
        own = Shelf({"a": linked("a", [changed(fork, parent_run_id="a")])})
        assert verify("a", own).problems == (Problem(sequence=1, flaw=Flaw.DISOWNED),)


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
