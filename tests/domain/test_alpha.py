"""The course of alpha by command: schedule, override, pause, resume, ramp down."""

import pytest
from attrs import evolve as changed
from hypothesis import given as each
from hypothesis import settings
from hypothesis import strategies as st

from kasmina.domain import commands as c
from kasmina.domain import events as e
from kasmina.domain.errors import CullPending, InvalidCommand, SeedIsPaused, WrongStage
from kasmina.domain.policies import GatePolicy
from kasmina.domain.progress import advanceable
from kasmina.domain.schedules import AlphaSchedule, BlendPlan, Curve
from kasmina.domain.stages import CullCause, Stage, Trigger
from kasmina.testing import given
from tests.domain.scenario import (
    ENTERED_AT,
    READY_AT,
    SLOT,
    advance,
    cull,
    cull_scheduled,
    entered,
    epoch,
    evidence,
    moved,
    paused,
    planned,
    ready,
    seed_after,
    seed_culled,
    slot_after,
    state_after,
    step_of,
)

CULLABLE = [
    Stage.GERMINATED,
    Stage.TRAINING,
    Stage.BLENDING,
    Stage.SHADOWING,
    Stage.PROBATIONARY,
]
EXPOSED = [Stage.BLENDING, Stage.SHADOWING, Stage.PROBATIONARY]
RAMP = AlphaSchedule(curve=Curve.LINEAR, start_step=50, steps=100)


def seed_of(done):
    seed = done.slot.seed
    assert seed is not None
    return seed


def schedule_alpha(*, at, schedule=RAMP):
    return c.ScheduleAlpha(step=step_of(at), slot_id=SLOT, schedule=schedule)


def override(alpha, *, at):
    return c.OverrideAlpha(step=step_of(at), slot_id=SLOT, alpha=alpha)


def pause(*, at):
    return c.PauseSeed(step=step_of(at), slot_id=SLOT)


def resume(*, at):
    return c.ResumeSeed(step=step_of(at), slot_id=SLOT)


@pytest.mark.parametrize(
    ("stage", "alpha"),
    [
        (Stage.GERMINATED, 0.0),
        (Stage.TRAINING, 0.0),
        (Stage.BLENDING, 0.0),
        (Stage.SHADOWING, 1.0),
        (Stage.PROBATIONARY, 1.0),
        (Stage.FOSSILIZED, 1.0),
        (Stage.CULLED, 0.0),
        (Stage.EMBARGOED, 0.0),
        (Stage.RESETTING, 0.0),
    ],
)
def test_a_stage_begins_with_its_alpha(stage, alpha):
    assert seed_after(*entered(stage)).alpha(step_of(ENTERED_AT[stage])) == alpha


def test_a_blend_ramps_from_nothing_to_everything():
    seed = seed_after(*entered(Stage.BLENDING))
    assert [seed.alpha(step) for step in (40, 55, 70)] == [0.0, 0.5, 1.0]


def test_a_blend_follows_the_plan_the_seed_was_germinated_with():
    plan = BlendPlan(epochs=2.5, curve=Curve.LINEAR, temperature=4.0)
    past = [
        changed(event, blend=plan) if isinstance(event, e.SeedGerminated) else event
        for event in ready(Stage.TRAINING)
    ]
    schedule = given(*past).when(advance(at=4)).slot.seed.schedule
    assert schedule == AlphaSchedule(curve=Curve.LINEAR, start_step=40, steps=25, temperature=4.0)


@pytest.mark.parametrize("stage", CULLABLE)
def test_a_culled_seed_is_out_of_the_forward_at_once_and_for_good(stage):
    done = given(*ready(stage)).when(cull(at=READY_AT[stage]))
    assert {seed_of(done).alpha(step) for step in (0, step_of(READY_AT[stage]), 10**9)} == {0.0}


def test_a_fossil_is_at_full_alpha_whatever_the_past_left_behind():
    move = moved(Trigger.FOSSILIZE, Stage.BLENDING, Stage.FOSSILIZED, at=5)
    assert seed_after(*entered(Stage.BLENDING), move).alpha(51) == 1.0


class TestScheduleAndOverride:
    def test_a_schedule_replaces_the_ramp(self):
        done = given(*entered(Stage.BLENDING)).when(schedule_alpha(at=5))
        done.then_only(e.BlendScheduled)
        assert seed_of(done).schedule == RAMP

    @pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
    def test_an_override_holds_until_a_schedule_replaces_it(self, alpha):
        done = given(*entered(Stage.BLENDING)).when(override(alpha, at=5))
        done.then_only(e.AlphaOverridden)
        assert {seed_of(done).alpha(step) for step in (0, 50, 10**9)} == {alpha}
        after = given(*done.past, *done.events).when(schedule_alpha(at=6))
        assert seed_of(after).schedule == RAMP

    @pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
    def test_an_override_keeps_the_target(self, alpha):
        past = planned(entered(Stage.BLENDING), blend=BlendPlan(target=0.6))
        done = given(*past).when(override(alpha, at=5))
        assert seed_of(done).target == 0.6

    @pytest.mark.parametrize(("end", "target"), [(0.3, 0.3), (0.9, 0.9), (1.0, 1.0), (0.0, 0.6)])
    def test_a_schedule_moves_the_target_to_its_end_unless_that_is_nothing(self, end, target):
        past = planned(entered(Stage.BLENDING), blend=BlendPlan(target=0.6))
        done = given(*past).when(schedule_alpha(at=5, schedule=changed(RAMP, end=end)))
        assert seed_of(done).target == target
        assert seed_of(done).alpha(10**9) == end

    def test_a_seed_goes_on_to_the_target_that_a_schedule_set(self):
        short = AlphaSchedule(start_step=50, steps=10, end=0.3)
        done = given(*entered(Stage.BLENDING)).when(schedule_alpha(at=5, schedule=short))
        lived = [epoch(number, 54.0, evidence()) for number in (6, 7, 8)]
        shadowing = given(*done.after.events, *lived).when(advance(at=8))
        assert shadowing.slot.stage is Stage.SHADOWING
        assert seed_of(shadowing).alpha(80) == 0.3

    def test_shadowing_is_at_full_alpha_whatever_the_override_was(self):
        past = entered(Stage.BLENDING)
        lived = [epoch(number, 54.0, evidence()) for number in (5, 6, 7)]
        held = given(*past, *lived).when(override(0.96, at=7))
        done = given(*held.past, *held.events).when(advance(at=7))
        assert done.slot.stage is Stage.SHADOWING
        assert seed_of(done).alpha(70) == 1.0

    @pytest.mark.parametrize("command", [schedule_alpha, lambda at: override(0.5, at=at)])
    @pytest.mark.parametrize("stage", [stage for stage in Stage if stage is not Stage.BLENDING])
    def test_they_are_for_blending_alone(self, command, stage):
        past = given(*entered(stage))
        error = past.when(command(at=ENTERED_AT[stage])).raises(
            WrongStage, saying=f"slot 'layer2' is {stage.value}"
        )
        assert error.allowed == (Stage.BLENDING,)

    @pytest.mark.parametrize("command", [schedule_alpha, lambda at: override(0.5, at=at)])
    def test_they_wait_for_a_paused_seed(self, command):
        past = (*entered(Stage.BLENDING), paused(at=4))
        given(*past).when(command(at=5)).raises(SeedIsPaused, saying="resume it first")

    @pytest.mark.parametrize("command", [schedule_alpha, lambda at: override(0.5, at=at)])
    def test_they_do_not_stop_a_cull(self, command):
        past = (*entered(Stage.BLENDING), cull_scheduled(at=4))
        error = given(*past).when(command(at=5)).raises(CullPending)
        assert (error.step, error.end_step) == (50, 60)


class TestPause:
    @pytest.mark.parametrize("stage", CULLABLE)
    def test_a_seed_can_be_paused_and_resumed_wherever_it_can_be_culled(self, stage):
        now = READY_AT[stage]
        first = given(*ready(stage)).when(pause(at=now)).then_only(e.SeedPaused)
        assert seed_of(first).paused_at == step_of(now)
        second = given(*first.past, *first.events).when(resume(at=now + 1))
        second.then_only(e.SeedResumed)
        assert seed_of(second).paused_at is None
        assert second.slot.stage is stage

    @pytest.mark.parametrize("stage", [stage for stage in Stage if stage not in CULLABLE])
    @pytest.mark.parametrize("command", [pause, resume])
    def test_elsewhere_there_is_nothing_to_pause(self, stage, command):
        error = given(*entered(stage)).when(command(at=ENTERED_AT[stage])).raises(WrongStage)
        assert list(error.allowed) == CULLABLE

    def test_pausing_twice_or_resuming_what_runs_is_a_mistake(self):
        past = entered(Stage.TRAINING)
        given(*past).when(resume(at=1)).raises(InvalidCommand, saying="is not paused")
        past = (*past, paused(at=1))
        given(*past).when(pause(at=2)).raises(InvalidCommand, saying="is paused already")

    def test_a_paused_seed_does_not_advance(self):
        past = (*ready(Stage.TRAINING), paused(at=4))
        given(*past).when(advance(at=4)).raises(SeedIsPaused)
        assert advanceable(slot_after(*ready(Stage.TRAINING)), GatePolicy(), 40)
        assert not advanceable(slot_after(*past), GatePolicy(), 40)

    def test_epochs_do_not_count_for_a_paused_seed(self):
        past = (*ready(Stage.TRAINING), paused(at=4))
        lived = (*past, *(epoch(number, 60.0, evidence()) for number in range(5, 40)))
        before, after = slot_after(*past), slot_after(*lived)
        assert (after.epochs_in_stage, after.objectives) == (
            before.epochs_in_stage,
            before.objectives,
        )

    @settings(max_examples=50)
    @each(st.integers(0, 50), st.integers(0, 500), st.integers(0, 100))
    def test_a_resumed_ramp_is_shifted_by_the_pause_and_by_nothing_else(
        self, run_for, rest_for, then
    ):
        undisturbed = entered(Stage.BLENDING)
        alphas = seed_after(*undisturbed)
        stop, go = 40 + run_for, 40 + run_for + rest_for
        stopped = given(*undisturbed).when(c.PauseSeed(step=stop, slot_id=SLOT))
        frozen = seed_of(stopped)
        assert frozen.alpha(stop) == frozen.alpha(go) == frozen.alpha(10**9) == alphas.alpha(stop)
        gone_on = given(*stopped.past, *stopped.events).when(c.ResumeSeed(step=go, slot_id=SLOT))
        assert seed_of(gone_on).alpha(go + then) == alphas.alpha(stop + then)

    def test_a_paused_seed_can_be_culled_at_once_but_not_ramped(self):
        past = (*ready(Stage.BLENDING), paused(at=7))
        given(*past).when(cull(at=7, ramp_steps=10)).raises(SeedIsPaused)
        done = given(*past).when(cull(at=7))
        assert done.slot.stage is Stage.CULLED
        assert seed_of(done).paused_at is None


class TestCullOverARamp:
    @pytest.mark.parametrize("stage", EXPOSED)
    def test_alpha_ramps_down_from_where_it_is_before_the_seed_is_culled(self, stage):
        now = READY_AT[stage]
        past = ready(stage)
        alpha = seed_after(*past).alpha(step_of(now))
        scheduled = given(*past).when(cull(at=now, ramp_steps=20)).then_only(e.CullScheduled)
        seed = seed_of(scheduled)
        assert scheduled.slot.stage is stage
        assert seed.cull_reason == "too slow"
        begin = step_of(now)
        assert [seed.alpha(begin + step) for step in (0, 20, 30)] == [alpha, 0.0, 0.0]

        over = (*scheduled.past, *scheduled.events, epoch(now + 1, 57.0, evidence()))
        error = given(*over).when(advance(at=now + 1)).raises(CullPending)
        assert (error.step, error.end_step) == (begin + 10, begin + 20)
        over = (*over, epoch(now + 2, 57.0, evidence()))
        done = given(*over).when(advance(at=now + 2)).then_only(e.SeedCulled, e.StageChanged)
        assert done.events[0] == seed_culled(at=now + 2, cause=CullCause.REQUESTED)
        assert done.slot.stage is Stage.CULLED
        assert seed_of(done).cull_reason is None

    def test_halfway_up_the_ramp_goes_down_from_there(self):
        scheduled = given(*entered(Stage.BLENDING)).when(
            c.Cull(step=55, slot_id=SLOT, reason="enough", ramp_steps=10, curve=Curve.LINEAR)
        )
        assert [seed_of(scheduled).alpha(step) for step in (55, 57, 65)] == [0.5, 0.4, 0.0]

    @pytest.mark.parametrize("stage", [Stage.GERMINATED, Stage.TRAINING])
    def test_a_seed_that_is_not_exposed_has_nothing_to_ramp(self, stage):
        done = given(*ready(stage)).when(cull(at=READY_AT[stage], ramp_steps=20))
        done.then_only(e.SeedCulled, e.StageChanged)

    @pytest.mark.parametrize("ramp_steps", [0, 20])
    @pytest.mark.parametrize("stage", CULLABLE)
    def test_a_cull_needs_a_reason_when_it_is_asked_for(self, stage, ramp_steps):
        blank = cull(at=READY_AT[stage], reason=" ", ramp_steps=ramp_steps)
        given(*ready(stage)).when(blank).raises(InvalidCommand, saying="needs a reason")

    def test_a_seed_being_ramped_out_can_be_culled_at_once_or_over_another_ramp(self):
        past = (*ready(Stage.SHADOWING), cull_scheduled(at=8))
        assert given(*past).when(cull(at=8)).slot.stage is Stage.CULLED
        longer = given(*past).when(cull(at=9, ramp_steps=40, reason="patience"))
        assert seed_of(longer).cull_reason == "patience"
        assert seed_of(longer).schedule.start == pytest.approx(0.5)

    def test_advancing_makes_sense_once_the_ramp_has_finished(self):
        slot = slot_after(*ready(Stage.SHADOWING), cull_scheduled(at=8))  # from step 80 to 100
        assert [advanceable(slot, GatePolicy(), step) for step in (80, 99, 100, 500)] == [
            False,
            False,
            True,
            True,
        ]

    def test_a_seed_being_ramped_out_is_not_paused(self):
        past = (*ready(Stage.SHADOWING), cull_scheduled(at=8))
        given(*past).when(pause(at=8)).raises(CullPending, saying="go on until then")

    def test_the_run_goes_on_while_the_ramp_finishes_unattended(self):
        past = (*ready(Stage.SHADOWING), cull_scheduled(at=8))
        lived = tuple(epoch(number, 57.0, evidence()) for number in range(9, 30))
        state = state_after(*past, *lived)
        assert state.slot(SLOT).stage is Stage.SHADOWING
        assert state.slot(SLOT).seed.alpha(state.step) == 0.0
        done = given(*past, *lived).when(advance(at=29))
        assert done.slot.stage is Stage.CULLED


def test_a_ramp_is_as_long_as_the_epochs_before_it_wherever_their_numbers_begin():
    """A host that was trained before comes with epochs of its own, here a hundred."""
    past = (
        *entered(Stage.TRAINING),
        *(
            changed(epoch(number, 60.0, evidence()), epoch=100 + number, step=number * 10)
            for number in (2, 3, 4)
        ),
    )
    done = given(*past).when(changed(advance(at=4), step=40))
    (scheduled,) = [event for event in done.events if isinstance(event, e.BlendScheduled)]
    assert scheduled.schedule.steps == 30
