"""The shell: what it reads is what was decided, and what fails changes nothing."""

import pytest
from attrs import evolve as changed

from kasmina.domain import commands as c
from kasmina.domain import events as e
from kasmina.domain.errors import (
    CheckpointError,
    ConcurrentAppend,
    InvalidCommand,
    RunIsClosed,
    UnknownRun,
)
from kasmina.domain.evolve import evolve
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.policies import G2Policy, GatePolicy, Timeouts
from kasmina.domain.schedules import BlendPlan
from kasmina.domain.stages import Blend, CullCause, Incubator, Topology
from kasmina.service import Journal, fork, load, resume_point
from kasmina.testing import MemoryEventStore, caught
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
    opened = Journal(store, RUN, writer="w", state=None)
    opened.handle(
        c.OpenRun(
            step=0,
            run_id=RUN,
            name="digits",
            objective=ACCURACY,
            policy=GatePolicy(),
            host=HOST,
            random_seed=0,
        )
    )
    return opened


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


def test_a_run_goes_on_from_the_record_of_its_checkpoint(journal: Journal) -> None:
    record(journal, 1)
    head = journal.head()
    assert resume_point(journal, sequence=2, digest=head.digest, path="p") == 2
    journal.handle(c.SaveCheckpoint(step=10, path="p", sequence=2))
    assert resume_point(journal, sequence=2, digest=head.digest, path="p") == 3
    record(journal, 2)
    assert resume_point(journal, sequence=2, digest=head.digest, path="p") == 3


def test_a_checkpoint_of_another_history_is_refused(journal: Journal) -> None:
    record(journal, 1)
    with pytest.raises(CheckpointError, match="another history"):
        resume_point(journal, sequence=2, digest=bytes(32), path="p")
    with pytest.raises(CheckpointError, match="no such event"):
        resume_point(journal, sequence=7, digest=bytes(32), path="p")
