"""The shell: what it reads is what was decided, and what fails changes nothing."""

from datetime import timedelta

import pytest
from attrs import evolve as changed
from hypothesis import given as each
from hypothesis import strategies as st

from kasmina import history
from kasmina.domain import commands as c
from kasmina.domain import events as e
from kasmina.domain.errors import (
    CheckpointError,
    ConcurrentAppend,
    CorruptHistory,
    InvalidCommand,
    NewerHistory,
    RunIsClosed,
    UnknownRun,
)
from kasmina.domain.evolve import evolve
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.points import AtEpoch, AtEvent, InsideDecision, TensorsNotSaved
from kasmina.domain.policies import G2Policy, GatePolicy, Timeouts
from kasmina.domain.schedules import BlendPlan
from kasmina.domain.stages import Blend, CullCause, Incubator, Stage, Topology
from kasmina.history import (
    beginning,
    lineage,
    load,
    locate,
    origin,
    resume_point,
    saved_tensors,
    state_at,
)
from kasmina.service import Journal, fork
from kasmina.testing import FixedClock, MemoryEventStore, caught, run_opened
from tests.domain.scenario import (
    ACCURACY,
    HOST,
    RUN,
    SLOT,
    advance,
    evidence,
    germinate,
    record_epoch,
)


@pytest.fixture
def store() -> MemoryEventStore:
    return MemoryEventStore()


@pytest.fixture
def journal(store: MemoryEventStore) -> Journal:
    return opened(store)


def opened(store: MemoryEventStore, run_id: str = RUN) -> Journal:
    journal = Journal(store, run_id, writer="w", state=None)
    journal.handle(
        c.OpenRun(
            step=0,
            run_id=run_id,
            name="digits",
            objective=ACCURACY,
            policy=GatePolicy(),
            host=HOST,
            random_seed=0,
        )
    )
    return journal


def record(journal: Journal, *epochs: int) -> None:
    for epoch in epochs:
        journal.handle(c.RecordEpoch(step=10 * epoch, epoch=epoch, objective=float(epoch)))


def test_what_is_loaded_is_the_state_of_the_writer(
    store: MemoryEventStore, journal: Journal
) -> None:
    record(journal, 1, 2)
    assert load(store, RUN) == journal.state
    assert Journal.open(store, RUN, writer="other").state == journal.state
    assert journal.head().sequence == journal.state.sequence == 3


def test_a_searched_ramp_and_a_timed_out_cull_are_loaded_as_they_were_lived(
    store: MemoryEventStore, journal: Journal
) -> None:
    policy = GatePolicy(
        g2=G2Policy(min_epochs=1), timeouts=Timeouts(blending=1), cull_ramp_epochs=2.0
    )
    born = changed(
        germinate(at=1),
        incubation=IncubationPlan(incubator=Incubator.REHEARSAL),
        blend=BlendPlan(blend=Blend.MULTIPLY, search=(0.25, 0.5), epochs=2.0),
    )
    rehearsals = [
        c.RecordCounterfactual(
            step=20,
            slot_id=SLOT,
            alpha=alpha,
            objective_with=2.0 + gain,
            objective_without=2.0,
        )
        for alpha, gain in ((0.25, 1.0), (0.5, 4.0))
    ]
    lived = {}
    for command in (
        c.ChangePolicy(step=0, policy=policy),
        c.OpenSlot(step=0, slot_id=SLOT, topology=Topology.CNN, width=8),
        record_epoch(1, 1.0),
        born,
        advance(at=1),
        record_epoch(2, 2.0, evidence()),
        *rehearsals,
        advance(at=2),
        record_epoch(3, 3.0, evidence()),
        advance(at=3),
        record_epoch(5, 3.0, evidence()),
    ):
        journal.handle(command)
        lived[journal.state.sequence] = journal.state
    for sequence, state in lived.items():
        assert load(store, RUN, until=sequence) == state
    seed = journal.state.slot(SLOT).seed
    assert seed is not None
    assert (seed.target, seed.cull_cause) == (0.5, CullCause.TIMED_OUT)
    assert [seed.alpha(step) for step in (30, 40, 50)] == [0.25, 0.125, 0.0]


def test_commands_given_together_are_recorded_together_or_not_at_all(
    store: MemoryEventStore, journal: Journal
) -> None:
    before = journal.state
    with pytest.raises(RunIsClosed):
        journal.handle(c.CloseRun(step=0), c.RecordEpoch(step=1, epoch=1, objective=None))
    assert journal.state == before
    assert store.head(RUN).sequence == 1


def test_a_writer_whom_another_overtook_is_told_so_when_it_asks_where_it_is(
    store: MemoryEventStore, journal: Journal
) -> None:
    record(Journal.open(store, RUN, writer="other"), 1)
    error = caught(ConcurrentAppend, journal.head)
    assert (error.expected, error.found) == (1, 2)


def test_a_draft_without_events_writes_nothing(store: MemoryEventStore, journal: Journal) -> None:
    assert journal.commit(journal.draft()) == ()
    assert store.head(RUN).sequence == 1


def test_a_run_must_be_opened_first(store: MemoryEventStore) -> None:
    journal = Journal(store, RUN, writer="w", state=None)
    with pytest.raises(InvalidCommand, match="must be OpenRun"):
        journal.handle(c.CloseRun(step=0))
    with pytest.raises(InvalidCommand, match="must be OpenRun"):
        _ = journal.state


def test_an_unknown_run_is_named_with_its_neighbours(
    store: MemoryEventStore, journal: Journal
) -> None:
    assert load(store, "nothing") is None
    with pytest.raises(UnknownRun, match=f"did you mean '{RUN}'"):
        Journal.open(store, RUN + "x", writer="w")


def test_a_commit_whose_acknowledgement_was_lost_can_be_repeated(
    store: MemoryEventStore, journal: Journal
) -> None:
    draft = journal.draft()
    draft.decide(c.RecordEpoch(step=1, epoch=1, objective=1.0))
    store.append(RUN, draft.events, expected=1, batch="w:1")
    journal.commit(draft)
    assert store.head(RUN).sequence == 2
    assert journal.state == load(store, RUN)


def test_another_writer_s_events_are_not_mistaken_for_one_s_own(
    store: MemoryEventStore, journal: Journal
) -> None:
    other = Journal.open(store, RUN, writer="other")
    record(other, 1)
    before = journal.state
    with pytest.raises(ConcurrentAppend) as caught:
        record(journal, 1)
    assert (caught.value.expected, caught.value.found) == (1, 2)
    assert journal.state == before


def test_a_rewind_returns_to_the_state_that_was_and_goes_on_from_there(
    store: MemoryEventStore, journal: Journal
) -> None:
    record(journal, 1, 2)
    there = load(store, RUN, until=2)
    record(journal, 3)
    (recorded,) = journal.rewind(2)
    assert recorded.event == e.RunRewound(epoch=1, step=10, to=2, head=4)
    assert journal.state == evolve(there, recorded.event)
    assert (journal.state.epoch, journal.state.sequence) == (1, 5)
    record(journal, 2)
    assert load(store, RUN) == journal.state
    assert load(store, RUN, until=4).epoch == 3


def test_rewinds_can_lead_into_what_was_taken_back(
    store: MemoryEventStore, journal: Journal
) -> None:
    record(journal, 1, 2, 3)
    journal.rewind(2)
    journal.rewind(3)
    assert journal.state.epoch == 2
    assert load(store, RUN) == journal.state


def test_there_is_nothing_before_the_first_event(journal: Journal) -> None:
    with pytest.raises(InvalidCommand, match="before its first event"):
        journal.rewind(0)


def test_a_fork_goes_on_from_its_parent_s_state(store: MemoryEventStore, journal: Journal) -> None:
    record(journal, 1, 2)
    fork(store, RUN, at=2, run_id="child", name="what-if")
    child = Journal.open(store, "child", writer="w")
    assert (child.state.epoch, child.state.sequence, child.state.name) == (1, 1, "what-if")
    record(child, 2, 3)
    assert load(store, "child") == child.state
    assert load(store, RUN) == journal.state
    (forked, *_) = child.read()
    assert forked.event.parent_digest == next(store.read(RUN, after=1)).digest.hex()


def test_a_fork_needs_an_event_to_fork_from(store: MemoryEventStore, journal: Journal) -> None:
    with pytest.raises(InvalidCommand, match="no event 9"):
        fork(store, journal.run_id, at=9, run_id="child", name="x")


def resumed_at(
    store: MemoryEventStore, run_id: str, *, taken_in: str = RUN, sequence: int, path: str = "p"
) -> int:
    """Where a run goes on from a checkpoint that was taken in this store."""
    digests = [record.digest for record in store.read(taken_in)]
    digest = digests[sequence - 1] if sequence <= len(digests) else bytes(32)
    return resume_point(
        store, run_id, taken_in=taken_in, sequence=sequence, digest=digest, path=path
    )


def save(journal: Journal, path: str = "p") -> int:
    """The sequence of the record of a checkpoint taken now."""
    sequence, step = journal.state.sequence, journal.state.step
    journal.handle(c.SaveCheckpoint(step=step, path=path, sequence=sequence))
    return sequence + 1


def test_a_run_goes_on_from_the_record_of_its_checkpoint(
    store: MemoryEventStore, journal: Journal
) -> None:
    record(journal, 1)
    assert resumed_at(store, RUN, sequence=2) == 2
    assert save(journal) == 3
    assert resumed_at(store, RUN, sequence=2) == 3
    record(journal, 2)
    assert resumed_at(store, RUN, sequence=2) == 3


def test_a_checkpoint_of_another_history_is_refused(
    store: MemoryEventStore, journal: Journal
) -> None:
    record(journal, 1)
    with pytest.raises(CheckpointError, match="another history"):
        resume_point(store, RUN, taken_in=RUN, sequence=2, digest=bytes(32), path="p")
    with pytest.raises(CheckpointError, match="no such event"):
        resumed_at(store, RUN, sequence=7)
    with pytest.raises(CheckpointError, match="'run-1' was not forked from there"):
        resume_point(store, RUN, taken_in="other", sequence=2, digest=bytes(32), path="p")


# --- points --------------------------------------------------------------------------------


def test_a_run_is_shown_as_it_stood_at_any_point(store: MemoryEventStore, journal: Journal) -> None:
    record(journal, 1, 2, 3)
    assert locate(store, RUN, None) == 4
    assert locate(store, RUN, AtEpoch(epoch=2)) == 3
    assert state_at(store, RUN, AtEpoch(epoch=2)) == load(store, RUN, until=3)
    assert state_at(store, RUN, AtEvent(sequence=2)).epoch == 1


def test_a_point_of_an_unknown_run_is_an_error_with_the_nearest(
    store: MemoryEventStore, journal: Journal
) -> None:
    with pytest.raises(UnknownRun, match=f"did you mean '{RUN}'"):
        locate(store, RUN + "x", None)


# --- decisions that must not be cut in two -------------------------------------------------


@pytest.fixture
def ticking() -> MemoryEventStore:
    return MemoryEventStore(FixedClock(step=timedelta(microseconds=1)))


@pytest.fixture
def germinating(ticking: MemoryEventStore) -> Journal:
    """A run whose events 3 to 5 are one germination, and 6 to 7 one advance."""
    journal = opened(ticking)
    journal.handle(c.OpenSlot(step=0, slot_id=SLOT, topology=Topology.CNN, width=8))
    journal.handle(changed(germinate(at=0)))
    journal.handle(advance(at=0))
    return journal


def test_a_run_is_not_rewound_into_the_middle_of_a_decision(
    ticking: MemoryEventStore, germinating: Journal
) -> None:
    before = germinating.state
    for to in (3, 4):
        error = caught(InsideDecision, germinating.rewind, to)
        assert (error.first, error.last) == (3, 5)
    assert caught(InsideDecision, germinating.rewind, 6).last == 7
    assert germinating.state == before
    assert ticking.head(RUN).sequence == 7
    germinating.rewind(5)
    assert germinating.state.slot(SLOT).stage is Stage.GERMINATED


def test_a_run_is_not_forked_in_the_middle_of_a_decision(
    ticking: MemoryEventStore, germinating: Journal
) -> None:
    for at in (3, 4, 6):
        with pytest.raises(InsideDecision):
            fork(ticking, RUN, at=at, run_id="child", name="x")
    assert ticking.head("child").sequence == 0
    for at in (1, 2, 5, 7):
        forked = fork(ticking, RUN, at=at, run_id=f"child-{at}", name="x")
        assert forked.parent_sequence == at


@each(st.lists(st.integers(1, 4), min_size=1, max_size=8))
def test_only_the_ends_of_appends_can_be_forked_from(sizes: list[int]) -> None:
    store = MemoryEventStore(FixedClock(step=timedelta(microseconds=1)))
    store.append(RUN, [run_opened(RUN)], expected=0)
    ends = {1}
    for size in sizes:
        head = store.head(RUN).sequence
        saved = [e.CheckpointSaved(epoch=0, step=0, path="p", sequence=1)] * size
        store.append(RUN, saved, expected=head)
        ends.add(head + size)
    for at in range(1, max(ends) + 1):
        if at in ends:
            fork(store, RUN, at=at, run_id=f"child-{at}", name="x")
        else:
            error = caught(InsideDecision, fork, store, RUN, at=at, run_id="child", name="x")
            assert {error.first - 1, error.last} <= ends


# --- forks ---------------------------------------------------------------------------------


def forked(store: MemoryEventStore, parent: str, *, at: int, run_id: str = "child") -> Journal:
    fork(store, parent, at=at, run_id=run_id, name=run_id)
    return Journal.open(store, run_id, writer=f"writer of {run_id}")


def test_a_fork_begins_under_its_own_policy_in_one_append(
    ticking: MemoryEventStore,
) -> None:
    parent, policy = opened(ticking), GatePolicy(tolerance=9.0)
    record(parent, 1)
    child = Journal(ticking, "child", writer="w", state=None)
    child.commit(child.fork(RUN, at=2, name="what-if", policy=policy))
    assert child.state.policy == policy
    assert load(ticking, "child") == child.state
    assert parent.state.policy == GatePolicy()
    assert [type(r.event) for r in child.read()] == [e.RunForked, e.GatePolicyChanged]
    assert beginning(ticking, "child") == 2


def test_a_draft_of_a_fork_writes_nothing(store: MemoryEventStore, journal: Journal) -> None:
    child = Journal(store, "child", writer="w", state=None)
    child.fork(RUN, at=1, name="what-if")
    assert store.head("child").sequence == 0


def test_a_run_that_has_begun_cannot_become_a_fork(
    store: MemoryEventStore, journal: Journal
) -> None:
    with pytest.raises(InvalidCommand, match="'run-1' has begun"):
        journal.fork(RUN, at=1, name="x")


def test_a_lineage_leads_from_the_first_run_to_the_point(
    store: MemoryEventStore, journal: Journal
) -> None:
    record(journal, 1, 2)
    record(forked(store, RUN, at=2), 2)
    forked(store, "child", at=2, run_id="grandchild")
    limits = [(s.run_id, s.until) for s in lineage(store, "grandchild", until=1)]
    assert limits == [(RUN, 2), ("child", 2), ("grandchild", 1)]
    assert origin(store, RUN) is None
    assert origin(store, "nothing") is None


def test_a_run_that_was_forked_from_itself_is_no_history(store: MemoryEventStore) -> None:
    loop = e.RunForked(
        epoch=0,
        step=0,
        run_id="a",
        name="a",
        parent_run_id="a",
        parent_sequence=1,
        parent_digest="00",
    )
    store.append("a", [loop], expected=0)
    with pytest.raises(CorruptHistory, match="forked from itself"):
        lineage(store, "a", until=1)


def test_the_tensors_of_a_point_are_those_of_the_checkpoint_that_was_taken_there(
    store: MemoryEventStore, journal: Journal
) -> None:
    assert saved_tensors(store, RUN, at=1) is None
    record(journal, 1)
    saved = save(journal)
    journal.handle(c.ChangePolicy(step=10, policy=GatePolicy(tolerance=9.0)))
    found = saved_tensors(store, RUN, at=saved + 1)
    assert found is not None
    assert found.path == "p"
    record(journal, 2)
    error = caught(TensorsNotSaved, saved_tensors, store, RUN, at=saved + 2)
    assert (error.sequence, error.nearest) == (saved + 2, saved)
    error = caught(TensorsNotSaved, saved_tensors, store, RUN, at=2)
    assert (error.sequence, error.nearest) == (2, 1)


def test_a_fork_begins_with_its_parent_s_tensors_and_so_does_a_fork_of_it(
    store: MemoryEventStore, journal: Journal
) -> None:
    record(journal, 1)
    saved = save(journal)
    record(journal, 2)
    child = forked(store, RUN, at=saved)
    forked(store, "child", at=1, run_id="grandchild")
    found = [saved_tensors(store, run_id, at=1) for run_id in ("child", "grandchild")]
    assert [saved and saved.path for saved in found] == ["p", "p"]
    for run_id in ("child", "grandchild"):
        assert resumed_at(store, run_id, sequence=2) == 1
    record(child, 2)
    save(child, "q")
    forked(store, "child", at=3, run_id="late")
    found = [saved_tensors(store, run_id, at=1) for run_id in ("late", "child")]
    assert [saved and saved.path for saved in found] == ["q", "p"]
    assert resumed_at(store, "late", taken_in="child", sequence=2) == 1


def test_a_fork_does_not_go_on_from_another_point_of_its_parent(
    store: MemoryEventStore, journal: Journal
) -> None:
    record(journal, 1)
    save(journal)
    record(journal, 2)
    forked(store, RUN, at=4)
    with pytest.raises(CheckpointError, match="forked from another point"):
        resumed_at(store, "child", sequence=2)
    assert caught(TensorsNotSaved, saved_tensors, store, "child", at=1).run_id == RUN


def test_a_fork_goes_on_from_a_checkpoint_that_was_never_recorded(
    store: MemoryEventStore, journal: Journal
) -> None:
    record(journal, 1)
    forked(store, RUN, at=2)
    assert resumed_at(store, "child", sequence=2) == 1


class TestManyRunsInOneTransaction:
    @pytest.fixture
    def journals(self, store):
        return [opened(store, f"digits-{n}") for n in (1, 2, 3)]

    def test_all_are_recorded(self, store, journals):
        drafts = [(journal, journal.draft()) for journal in journals]
        for _, draft in drafts[:2]:
            draft.decide(record_epoch(1, 50.0))
        recorded = Journal.commit_all(drafts)
        assert [len(each) for each in recorded] == [1, 1, 0]
        assert [journal.state.epoch for journal in journals] == [1, 1, 0]
        for journal in journals:
            assert journal.state == load(store, journal.run_id)
            assert journal.head() == store.head(journal.run_id)

    def test_or_none(self, store, journals):
        other = Journal.open(store, "digits-2", writer="other")
        other.handle(record_epoch(1, 50.0))
        before = [journal.state for journal in journals]
        drafts = [(journal, journal.draft()) for journal in journals]
        for _, draft in drafts:
            draft.decide(record_epoch(1, 50.0))
        assert caught(ConcurrentAppend, Journal.commit_all, drafts).run_id == "digits-2"
        assert [journal.state for journal in journals] == before
        assert store.head("digits-1").sequence == journals[0].state.sequence

    def test_not_where_they_lie_in_different_stores(self, journals):
        elsewhere = opened(MemoryEventStore())
        drafts = [(journal, journal.draft()) for journal in (journals[0], elsewhere)]
        for _, draft in drafts:
            draft.decide(record_epoch(1, 50.0))
        assert "different stores" in str(caught(InvalidCommand, Journal.commit_all, drafts))


class TestARunOfANewerRelease:
    @pytest.fixture
    def newer(self, store, journal):
        row = store.rows(RUN)[-1]
        columns = row.columns._replace(
            sequence=row.columns.sequence + 1,
            type=b"RunPraised",
            payload=b'{"epoch":0,"step":0,"words":"well done"}',
        )
        store._runs[RUN].append(row._replace(columns=columns))
        return store

    def test_can_be_read(self, newer):
        assert load(newer, RUN).unknown_events == 1

    def test_is_not_gone_on_with(self, newer):
        error = caught(NewerHistory, Journal.open, newer, RUN, writer="w")
        assert (error.run_id, error.unknown) == (RUN, 1)
        caught(NewerHistory, fork, newer, RUN, at=newer.head(RUN).sequence, run_id="f", name="f")


class TestAForkedRun:
    def test_without_its_parent_says_what_is_missing(self, store, journal):
        fork(store, RUN, at=journal.state.sequence, run_id="branch", name="branch")
        alone = MemoryEventStore()
        alone.append("branch", [r.event for r in store.read("branch")], expected=0)
        assert "copy it here" in caught(CorruptHistory, load, alone, "branch").problem

    @pytest.mark.parametrize("parents", [("a",), ("b", "a")])
    def test_from_itself_is_corrupt(self, store, parents):
        for run_id, parent in zip(parents[::-1], parents, strict=True):
            forged = e.RunForked(
                epoch=0,
                step=0,
                run_id=run_id,
                name="x",
                parent_run_id=parent,
                parent_sequence=1,
                parent_digest="",
            )
            store.append(run_id, [forged], expected=0)
        assert "forked from itself" in caught(CorruptHistory, load, store, parents[-1]).problem


def test_the_state_of_a_run_that_is_not_there_is_an_unknown_run(store):
    assert caught(UnknownRun, history._known, store, "nobody", 1).name == "nobody"
