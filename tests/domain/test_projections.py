"""Read models: the slot's view, the gate ledger, the timeline."""

from datetime import UTC, datetime, timedelta

import pytest
from attrs import evolve as changed

from kasmina.domain import events as e
from kasmina.domain.errors import UnknownSlot
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.ports import EMPTY_HEAD, Recorded
from kasmina.domain.projections import Behaviour, SlotView, gate_ledger, slot_view, timeline
from kasmina.domain.schedules import BlendPlan
from kasmina.domain.stages import Blend, Gate, Incubator, SeedInput, Stage
from tests.domain.scenario import (
    ENTERED_AT,
    RUN,
    SEED,
    SLOT,
    cull_scheduled,
    entered,
    epoch,
    paused,
    planned,
    ready,
    seed_after,
    state_after,
    step_of,
)

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


def recorded(*events):
    return [
        Recorded(
            position=100 + sequence,
            run_id=RUN,
            sequence=sequence,
            recorded_at=NOON + timedelta(seconds=sequence),
            event=event,
            digest=bytes(32),
        )
        for sequence, event in enumerate(events, 1)
    ]


def view(*events):
    return slot_view(state_after(*events), SLOT)


class TestSlotView:
    @pytest.mark.parametrize(
        ("stage", "behaviour", "learning", "alpha"),
        [
            (Stage.DORMANT, Behaviour.IDENTITY, False, 0.0),
            (Stage.GERMINATED, Behaviour.IDENTITY, False, 0.0),
            (Stage.TRAINING, Behaviour.INCUBATE, True, 0.0),
            (Stage.BLENDING, Behaviour.BLEND, True, 0.0),
            (Stage.SHADOWING, Behaviour.BLEND, True, 1.0),
            (Stage.PROBATIONARY, Behaviour.BLEND, True, 1.0),
            (Stage.FOSSILIZED, Behaviour.SEED, True, 1.0),
            (Stage.CULLED, Behaviour.IDENTITY, False, 0.0),
            (Stage.EMBARGOED, Behaviour.IDENTITY, False, 0.0),
            (Stage.RESETTING, Behaviour.IDENTITY, False, 0.0),
        ],
    )
    def test_says_how_the_slot_acts_in_each_stage(self, stage, behaviour, learning, alpha):
        found = view(*entered(stage))
        assert (found.stage, found.behaviour, found.learning) == (stage, behaviour, learning)
        assert found.alpha(step_of(ENTERED_AT[stage])) == alpha
        assert found.seed_id == (SEED if stage.holds_seed else None)

    @pytest.mark.parametrize("stage", Stage)
    def test_follows_the_seed_s_alpha_at_every_step(self, stage):
        past = entered(stage)
        if not stage.holds_seed:
            assert view(*past) == SlotView(slot_id=SLOT, stage=stage)
            return
        seed = seed_after(*past)
        for step in range(0, 200, 7):
            assert view(*past).alpha(step) == seed.alpha(step)

    @pytest.mark.parametrize("stage", [stage for stage in Stage if stage.holds_seed])
    def test_hands_on_what_the_seed_was_germinated_with(self, stage):
        plan = IncubationPlan(incubator=Incubator.PROXIMAL, penalty=3.0, share=0.5)
        past = [
            changed(
                event,
                incubation=plan,
                blend=BlendPlan(blend=Blend.MULTIPLY),
                seed_input=SeedInput.DETACHED,
            )
            if isinstance(event, e.SeedGerminated)
            else event
            for event in entered(stage)
        ]
        found = view(*past)
        assert (found.incubation, found.blend) == (plan, Blend.MULTIPLY)
        assert found.seed_input is SeedInput.DETACHED

    @pytest.mark.parametrize(
        ("incubator", "behaviour", "learning"),
        [
            (Incubator.STRAIGHT_THROUGH, Behaviour.INCUBATE, True),
            (Incubator.PROXIMAL, Behaviour.INCUBATE, True),
            (Incubator.REHEARSAL, Behaviour.IDENTITY, True),
            (Incubator.NONE, Behaviour.IDENTITY, False),
        ],
    )
    def test_only_an_incubator_that_taps_the_host_s_gradient_acts_in_training(
        self, incubator, behaviour, learning
    ):
        past = planned(entered(Stage.TRAINING), incubator=incubator)
        assert (view(*past).behaviour, view(*past).learning) == (behaviour, learning)
        resting = view(*past, paused(at=1))
        assert (resting.behaviour, resting.learning) == (behaviour, False)

    @pytest.mark.parametrize("incubator", Incubator)
    @pytest.mark.parametrize("stage", [stage for stage in Stage if stage is not Stage.TRAINING])
    def test_outside_of_training_every_seed_acts_alike(self, stage, incubator):
        found = view(*planned(entered(stage), incubator=incubator))
        expected = view(*entered(stage))
        assert (found.behaviour, found.learning) == (expected.behaviour, expected.learning)

    @pytest.mark.parametrize("blend", Blend)
    @pytest.mark.parametrize("target", [1.0, 0.999, 0.25])
    def test_only_a_whole_linear_blend_leaves_the_fossil_alone_in_the_forward(self, blend, target):
        plan = BlendPlan(blend=blend, target=target)
        found = view(*planned(entered(Stage.FOSSILIZED), blend=plan))
        alone = blend is Blend.LERP and target == 1.0
        assert found.behaviour is (Behaviour.SEED if alone else Behaviour.BLEND)
        assert found.learning
        assert {found.alpha(step) for step in (0, 110, 10**9)} == {target}
        before = view(*planned(entered(Stage.PROBATIONARY), blend=plan))
        assert before.behaviour is Behaviour.BLEND

    @pytest.mark.parametrize("stage", [Stage.TRAINING, Stage.BLENDING, Stage.PROBATIONARY])
    def test_a_paused_seed_acts_as_before_without_learning(self, stage):
        now = ENTERED_AT[stage]
        before = view(*entered(stage))
        after = view(*entered(stage), paused(at=now))
        assert after == changed(before, learning=False, paused_at=step_of(now))
        assert after.alpha(10**6) == before.alpha(step_of(now))

    def test_a_seed_that_is_ramped_out_follows_the_ramp_down(self):
        found = view(*ready(Stage.SHADOWING), cull_scheduled(at=8))
        assert [found.alpha(step) for step in (80, 90, 100, 1000)] == [1.0, 0.5, 0.0, 0.0]

    def test_an_unknown_slot_is_named(self):
        with pytest.raises(UnknownSlot):
            slot_view(state_after(*entered(Stage.DORMANT)), "layer9")


class TestGateLedger:
    def test_has_every_outcome_in_order_with_its_place(self):
        ledger = gate_ledger(recorded(*entered(Stage.FOSSILIZED)))
        assert [line.outcome.gate for line in ledger] == list(Gate)
        assert [line.epoch for line in ledger] == [1, 1, 4, 7, 8, 11]
        first = ledger[0]
        assert (first.sequence, first.recorded_at) == (4, NOON + timedelta(seconds=4))
        assert (first.step, first.slot_id, first.seed_id) == (10, SLOT, SEED)
        assert not any(line.undone for line in ledger)

    def test_marks_what_a_rewind_took_back(self):
        past = entered(Stage.BLENDING)
        back = e.RunRewound(epoch=1, step=10, to=6, head=len(past))
        ledger = gate_ledger(recorded(*past, back))
        assert [(line.outcome.gate, line.undone) for line in ledger] == [
            (Gate.G0, False),
            (Gate.G1, True),
            (Gate.G2, True),
        ]

    def test_unmarks_what_a_second_rewind_returned_to(self):
        past = entered(Stage.BLENDING)
        head = len(past)
        back = e.RunRewound(epoch=1, step=10, to=6, head=head)
        forth = e.RunRewound(epoch=4, step=40, to=head, head=head + 1)
        ledger = gate_ledger(recorded(*past, back, forth))
        assert not any(line.undone for line in ledger)

    def test_of_nothing_is_empty(self):
        assert gate_ledger([]) == []


class TestTimeline:
    def test_tells_what_changed_and_leaves_out_routine(self):
        saved = e.CheckpointSaved(epoch=4, step=40, path="a.pt", sequence=3)
        moments = timeline(recorded(*entered(Stage.BLENDING), saved))
        assert [type(moment.event).__name__ for moment in moments] == [
            "RunOpened",
            "SlotOpened",
            "SeedGerminated",
            "StageChanged",
            "StageChanged",
            "StageChanged",
            "BlendScheduled",
        ]

    def test_names_slot_and_seed_where_there_is_one(self):
        moments = timeline(recorded(*entered(Stage.GERMINATED)))
        assert [(moment.slot_id, moment.seed_id) for moment in moments] == [
            (None, None),
            (SLOT, None),
            (SLOT, SEED),
            (SLOT, SEED),
        ]

    def test_marks_what_a_rewind_took_back_and_keeps_the_rewind(self):
        past = (*entered(Stage.TRAINING), epoch(2, 1.0))
        back = e.RunRewound(epoch=1, step=10, to=6, head=len(past))
        moments = timeline(recorded(*past, back))
        assert [(moment.sequence, moment.undone) for moment in moments] == [
            (1, False),
            (2, False),
            (5, False),
            (6, False),
            (8, True),
            (10, False),
        ]
        assert moments[-1].event == back
        assert (moments[-1].epoch, moments[-1].step) == (1, 10)
        assert moments[-1].recorded_at == NOON + timedelta(seconds=10)


def test_an_empty_run_ends_before_its_first_event():
    assert (EMPTY_HEAD.sequence, EMPTY_HEAD.digest) == (0, bytes(32))
