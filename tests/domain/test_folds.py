"""What every fold does, whatever its event: the run goes on by one, its past stays as it was."""

import pytest
from attrs import evolve as changed
from hypothesis import given as each
from hypothesis import strategies as st

from kasmina.domain import events as e
from kasmina.domain.evolve import evolve
from kasmina.domain.stages import Gate, Health, Leak, Stage, Trigger
from tests.domain.scenario import (
    POLICY,
    SEED,
    SLOT,
    blend_scheduled,
    contrasted,
    cull_scheduled,
    entered,
    epoch,
    evidence,
    moved,
    passed,
    paused,
    seed_culled,
    seed_germinated,
    shadowed,
    slot_opened,
    state_after,
    step_of,
)

NOW = 12
AT = {"epoch": NOW, "step": step_of(NOW)}
OF_SEED = {**AT, "slot_id": SLOT, "seed_id": SEED}
BEFORE = state_after(*entered(Stage.TRAINING))

UNHEARD = e.UnknownEvent(**AT, type="SeedRenamed", schema_version=1, payload="{}")
FOLLOWING = [
    e.RunClosed(**AT),
    e.GatePolicyChanged(**AT, policy=POLICY),
    e.CheckpointSaved(**AT, path="run-1.pt", sequence=5),
    UNHEARD,
    epoch(NOW, 60.0, evidence()),
    changed(slot_opened("layer3"), **AT),
    seed_germinated(at=NOW),
    passed(Gate.G2, at=NOW),
    moved(Trigger.CULL, Stage.TRAINING, Stage.CULLED, at=NOW),
    blend_scheduled(at=NOW),
    e.AlphaOverridden(**OF_SEED, alpha=0.5),
    shadowed(at=NOW),
    contrasted(at=NOW, objective_with=60.0, objective_without=50.0),
    e.IsolationViolated(**OF_SEED, leak=Leak.IN_PLACE_WRITE, count=1, subject="relu1"),
    e.HealthChanged(**OF_SEED, health=Health.UNHEALTHY),
    cull_scheduled(at=NOW),
    seed_culled(at=NOW),
    e.SeedFossilized(**OF_SEED, improvement=1.0, contribution=1.0),
    e.SlotRecycled(**OF_SEED),
    paused(at=NOW),
    e.SeedResumed(**OF_SEED),
]
"""An event of every type that does not begin a run or leap in it."""

following = pytest.mark.parametrize("event", FOLLOWING, ids=lambda event: type(event).__name__)


def test_there_is_one_event_here_of_every_type():
    kinds = {kind for kind in vars(e).values() if isinstance(kind, type)}
    events = {kind for kind in kinds if issubclass(kind, e.Event)}
    abstract = {e.Event, e.SlotEvent, e.SeedEvent}
    leaps = {e.RunOpened, e.RunForked, e.RunRewound}
    assert {type(event) for event in FOLLOWING} == events - abstract - leaps


@following
def test_an_event_takes_the_run_one_further_to_its_epoch_and_step(event):
    after = evolve(BEFORE, event)
    assert (after.sequence, after.epoch, after.step) == (BEFORE.sequence + 1, NOW, step_of(NOW))


@following
def test_an_event_leaves_the_state_before_it_as_it_was(event):
    before = repr(BEFORE)
    assert evolve(BEFORE, event) != BEFORE
    assert repr(BEFORE) == before


@following
def test_only_an_epoch_changes_slots_that_it_does_not_name(event):
    crowded = evolve(BEFORE, changed(slot_opened("layer9"), **AT))
    kept = evolve(crowded, event).slot("layer9") is crowded.slot("layer9")
    assert kept is not isinstance(event, e.EpochRecorded)


class TestEventsOfANewerRelease:
    def test_they_are_counted_and_change_nothing_else(self):
        after = evolve(evolve(BEFORE, UNHEARD), UNHEARD)
        place = {"sequence": BEFORE.sequence + 2, **AT}
        assert after == changed(BEFORE, **place, unknown_events=2)

    @each(number=st.integers(0, 100), step=st.integers(0, 1000))
    def test_they_never_take_the_run_back(self, number, step):
        before = evolve(BEFORE, epoch(NOW, 60.0))
        after = evolve(before, changed(UNHEARD, epoch=number, step=step))
        assert (after.epoch, after.step) == (max(NOW, number), max(step_of(NOW), step))

    def test_what_they_leave_out_a_rewind_leaves_out_too(self):
        past = (*entered(Stage.TRAINING), UNHEARD)
        length = len(past)
        back = e.RunRewound(epoch=1, step=10, to=length - 1, head=length)
        assert state_after(*past).unknown_events == 1
        assert state_after(*past, back).unknown_events == 0


def test_what_an_epoch_saw_of_a_paused_seed_is_kept_though_the_epoch_does_not_count():
    before = evolve(BEFORE, paused(at=1))
    after = evolve(before, epoch(2, 60.0, evidence(gradient_norm=0.25, nonfinite_outputs=3)))
    assert after.slot(SLOT).epochs_in_stage == before.slot(SLOT).epochs_in_stage
    assert after.slot(SLOT).objectives == before.slot(SLOT).objectives
    assert (after.slot(SLOT).seed.gradient_norm, after.slot(SLOT).seed.nonfinite) == (0.25, 3)
