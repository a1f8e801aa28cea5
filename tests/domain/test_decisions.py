"""``decide`` and ``evolve`` are tied to the machine at every stage, by every trigger."""

import pytest

from kasmina.domain import commands as c
from kasmina.domain import events as e
from kasmina.domain.errors import EmbargoActive, IllegalTransition, SlotOccupied
from kasmina.domain.evidence import Comparison
from kasmina.domain.machine import edge, forward, legal_triggers
from kasmina.domain.policies import GatePolicy, MetricCheck
from kasmina.domain.progress import advanceable
from kasmina.domain.stages import CullCause, Gate, Stage, Trigger
from kasmina.testing import given
from tests.domain.scenario import (
    ACCURACY,
    LOSS,
    READY_AT,
    SLOT,
    advance,
    cull,
    entered,
    germinate,
    ready,
    seed_culled,
    slot_after,
    state_after,
)

GATED = {
    Stage.DORMANT: Gate.G0,
    Stage.GERMINATED: Gate.G1,
    Stage.TRAINING: Gate.G2,
    Stage.BLENDING: Gate.G3,
    Stage.SHADOWING: Gate.G4,
    Stage.PROBATIONARY: Gate.G5,
}
OPEN = GatePolicy()
SHUT = GatePolicy(
    embargo_epochs=6,
    extra_checks=tuple(
        MetricCheck(
            gate=gate, metric="never measured", comparison=Comparison.AT_LEAST, required=0.0
        )
        for gate in Gate
    ),
)


def pulling(trigger, stage):
    """The command that pulls ``trigger``, as far as one can be given in ``stage``."""
    now = READY_AT[stage]
    match trigger:
        case Trigger.GERMINATE:
            return germinate(at=now, seed_id="seed-2")
        case Trigger.CULL:
            return cull(at=now)
        case _:
            return advance(at=now)


def stage_changes(events):
    return [event for event in events if isinstance(event, e.StageChanged)]


@pytest.mark.parametrize("objective", [ACCURACY, LOSS], ids=["maximised", "minimised"])
@pytest.mark.parametrize("policy", [OPEN, SHUT], ids=["open", "shut"])
@pytest.mark.parametrize("trigger", Trigger)
@pytest.mark.parametrize("stage", Stage)
def test_a_decision_is_the_machine_s_move_or_a_recorded_refusal_or_an_error(
    stage, trigger, policy, objective
):
    past = given(*ready(stage, objective))
    done = past.when(pulling(trigger, stage), policy)
    pulled = trigger if trigger in {Trigger.GERMINATE, Trigger.CULL} else forward(stage)

    if pulled not in legal_triggers(stage):
        error = done.error
        assert isinstance(error, IllegalTransition)
        assert (error.stage, error.trigger) == (stage, pulled)
        assert error.legal == legal_triggers(stage)
        assert stage.value in str(error)
        assert all(legal.value in str(error) for legal in error.legal)
        assert ("advance" if pulled is None else pulled.value) in str(error)
        return
    if policy is SHUT and pulled is Trigger.RESET:
        assert isinstance(done.error, EmbargoActive)
        return

    way = edge(stage, pulled)
    outcomes = [event.outcome for event in done.events if isinstance(event, e.GateEvaluated)]
    assert [outcome.gate for outcome in outcomes] == ([] if way.gate is None else [way.gate])
    changes = stage_changes(done.events)
    if policy is SHUT and way.gate is not None:
        assert [outcome.passed for outcome in outcomes] == [False]
        assert changes == []
        assert done.slot.stage is stage
        return
    assert all(outcome.passed for outcome in outcomes)
    assert [(change.trigger, change.source, change.target) for change in changes] == [
        (pulled, stage, way.target)
    ]
    assert done.slot.stage is way.target
    assert done.slot.epochs_in_stage == 0
    assert done.slot.objectives == ()


@pytest.mark.parametrize("stage", GATED)
def test_a_refusal_is_recorded_and_changes_nothing_but_the_outcomes(stage):
    past = given(*ready(stage))
    command = pulling(Trigger.GERMINATE if stage is Stage.DORMANT else Trigger.RECYCLE, stage)
    refused = past.when(command, SHUT).then_only(e.GateEvaluated)
    assert [check.name for check in refused.outcome.failures] == ["never measured"]
    before, after = slot_after(*past.events), refused.slot
    gate = GATED[stage]
    assert after.outcomes == {**before.outcomes, gate: refused.outcome}
    assert given(*past.events, *refused.events).when(command, SHUT).events == refused.events
    with_outcomes_of_before = [
        getattr(after, name) == getattr(before, name)
        for name in ("stage", "seed", "epochs_in_stage", "stage_baseline", "objectives")
    ]
    assert all(with_outcomes_of_before)


@pytest.mark.parametrize("stage", Stage)
def test_advanceable_says_beforehand_whether_advance_makes_sense(stage):
    for past in (entered(stage), ready(stage)):
        state = state_after(*past)
        done = given(*past).when(c.Advance(step=state.step, slot_id=SLOT))
        wise = advanceable(state.slot(SLOT), state.policy, state.step)
        assert wise is (done.error is None)


class TestEventsOfATransition:
    def test_germination_records_gate_seed_and_stage(self):
        past = given(*ready(Stage.DORMANT))
        done = past.when(germinate(at=0)).then_only(
            e.GateEvaluated, e.SeedGerminated, e.StageChanged
        )
        assert done.slot.seed.blueprint_id == "conv_light"
        assert done.slot.germinations == 1

    def test_blending_records_the_ramp_it_starts(self):
        done = given(*ready(Stage.TRAINING)).when(advance(at=4))
        done.then_only(e.GateEvaluated, e.StageChanged, e.BlendScheduled)
        schedule = done.events[-1].schedule
        # Three epochs, of the ten steps that an epoch of this run has had on average.
        assert (schedule.start_step, schedule.end_step) == (40, 70)

    def test_fossilization_records_what_the_seed_was_worth(self):
        done = given(*ready(Stage.PROBATIONARY)).when(advance(at=11))
        done.then_only(e.GateEvaluated, e.SeedFossilized, e.StageChanged)
        fossil = done.events[1]
        assert (fossil.improvement, fossil.contribution) == (10.0, 1.0)

    def test_a_cull_records_reason_and_cause(self):
        done = given(*ready(Stage.TRAINING)).when(cull(at=4))
        done.then_only(e.SeedCulled, e.StageChanged)
        assert done.events[0] == seed_culled(at=4, cause=CullCause.REQUESTED)

    def test_recycling_records_who_left_the_slot(self):
        done = given(*ready(Stage.RESETTING)).when(advance(at=9))
        done.then_only(e.StageChanged, e.SlotRecycled)
        assert done.events[-1].seed_id == "seed-1"
        assert done.slot.seed is None

    @pytest.mark.parametrize("stage", [stage for stage in Stage if stage is not Stage.DORMANT])
    def test_an_occupied_slot_takes_no_second_seed(self, stage):
        past = given(*ready(stage))
        past.when(germinate(at=READY_AT[stage], seed_id="seed-2")).raises(
            SlotOccupied, saying=f"slot 'layer2' is {stage.value}: it cannot germinate"
        )

    def test_culling_a_fossil_says_that_nothing_is_left_to_do(self):
        error = (
            given(*ready(Stage.FOSSILIZED))
            .when(cull(at=11))
            .raises(IllegalTransition, saying="nothing, the stage is terminal")
        )
        assert error.legal == ()

    def test_advancing_an_empty_slot_says_what_may_be_done_instead(self):
        given(*ready(Stage.DORMANT)).when(advance(at=0)).raises(
            IllegalTransition, saying="it cannot advance; legal from here: germinate"
        )
