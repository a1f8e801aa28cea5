"""Time-outs, culls, the embargo, and a slot's second life."""

import pytest

from kasmina.domain import commands as c
from kasmina.domain import events as e
from kasmina.domain.errors import CullPending, EmbargoActive, SlotOccupied
from kasmina.domain.evidence import Comparison, Violation
from kasmina.domain.policies import G2Policy, G5Policy, GatePolicy, MetricCheck, Timeouts
from kasmina.domain.schedules import BlendPlan
from kasmina.domain.stages import CullCause, Gate, Health, Leak, Stage
from kasmina.testing import given
from tests.domain.scenario import (
    ACCURACY,
    SLOT,
    advance,
    cull,
    entered,
    epoch,
    evidence,
    germinate,
    germinated,
    paused,
    planned,
    ready,
    record_epoch,
    recycled,
    seed_after,
    slot_after,
)

NEVER_MEASURED = MetricCheck(
    gate=Gate.G1, metric="never measured", comparison=Comparison.AT_LEAST, required=0.0
)

# The limit of each stage that can run out of time, by its field in ``Timeouts``.
LIMIT_OF = {
    Stage.GERMINATED: "germinated",
    Stage.TRAINING: "training",
    Stage.BLENDING: "blending",
    Stage.SHADOWING: "shadowing",
    Stage.PROBATIONARY: "probationary",
}
FIRST_REFUSAL = {
    Stage.TRAINING: "improvement",
    Stage.BLENDING: "epochs_in_stage",
    Stage.SHADOWING: "shadow_evaluations, agreement, shadow_contribution",
    Stage.PROBATIONARY: "total_improvement",
}


def idle(stage, epochs):
    """The past of a slot that lived ``epochs`` in ``stage`` without getting anywhere."""
    past = entered(stage)
    now = last_epoch(past)
    return (*past, *(epoch(now + n, 50.0, evidence()) for n in range(1, epochs + 1)))


def last_epoch(past):
    return past[-1].epoch


class TestTimeouts:
    @pytest.mark.parametrize("stage", FIRST_REFUSAL)
    def test_a_seed_is_rejected_by_the_decision_that_finds_it_out_of_time(self, stage):
        epochs = 2 if stage is Stage.BLENDING else 4
        policy = GatePolicy(timeouts=Timeouts(**{LIMIT_OF[stage]: epochs}))
        early = idle(stage, epochs - 1)
        given(*early).when(advance(at=last_epoch(early)), policy).then_only(e.GateEvaluated)
        late = idle(stage, epochs)
        done = given(*late).when(advance(at=last_epoch(late)), policy)
        rejected = done.events[1]
        assert rejected.cause is CullCause.TIMED_OUT
        assert FIRST_REFUSAL[stage] in rejected.reason
        assert f"refused for {epochs} epochs" in rejected.reason

    @pytest.mark.parametrize("stage", [Stage.GERMINATED, Stage.TRAINING])
    def test_a_seed_that_its_host_never_saw_is_culled_at_once(self, stage):
        policy = GatePolicy(
            timeouts=Timeouts(**{LIMIT_OF[stage]: 1}), extra_checks=(NEVER_MEASURED,)
        )
        past = idle(stage, 1)
        done = given(*past).when(advance(at=last_epoch(past)), policy)
        done.then_only(e.GateEvaluated, e.SeedCulled, e.StageChanged)
        assert done.events[1].cause is CullCause.TIMED_OUT
        assert done.slot.stage is Stage.CULLED

    def test_the_event_says_how_long_the_gate_really_refused(self):
        past = idle(Stage.TRAINING, 9)
        policy = GatePolicy(timeouts=Timeouts(training=2))
        done = given(*past).when(advance(at=last_epoch(past)), policy)
        assert "G2 refused for 9 epochs" in done.events[1].reason

    def test_a_seed_that_passes_at_the_last_moment_is_not_culled(self):
        policy = GatePolicy(timeouts=Timeouts(training=3))
        done = given(*ready(Stage.TRAINING)).when(advance(at=4), policy)
        assert done.slot.stage is Stage.BLENDING

    def test_there_is_no_time_out_unless_one_is_asked_for(self):
        past = idle(Stage.TRAINING, 300)
        given(*past).when(advance(at=last_epoch(past))).then_only(e.GateEvaluated)

    def test_a_pause_stops_the_clock(self):
        policy = GatePolicy(timeouts=Timeouts(training=3))
        past = (*idle(Stage.TRAINING, 1), paused(at=2))
        rested = (*past, *(epoch(n, 50.0, evidence()) for n in range(3, 30)))
        resumed = e.SeedResumed(epoch=29, step=290, slot_id=SLOT, seed_id="seed-1")
        done = given(*rested, resumed).when(advance(at=29), policy)
        done.then_only(e.GateEvaluated)

    def test_stages_that_nothing_refuses_have_no_limit(self):
        timeouts = Timeouts(germinated=1, training=2, blending=3, shadowing=4, probationary=5)
        limits = {stage: timeouts.of(stage) for stage in Stage}
        assert {stage: limit for stage, limit in limits.items() if limit is not None} == dict(
            zip(LIMIT_OF, range(1, 6), strict=True)
        )


HASTY = Timeouts(blending=2, shadowing=2, probationary=2)
EXPOSED = [Stage.BLENDING, Stage.SHADOWING, Stage.PROBATIONARY]


class TestTheRampBeforeATimedOutCull:
    def timed_out(self, stage, *, blend=None, **policy):
        """The decision that finds the seed out of time, and the step at which it is made."""
        past = idle(stage, 2)
        if blend is not None:
            past = planned(past, blend=blend)
        now = last_epoch(past)
        ruling = GatePolicy(timeouts=HASTY, **policy)
        return given(*past).when(advance(at=now), ruling), now

    @pytest.mark.parametrize("target", [1.0, 0.25])
    @pytest.mark.parametrize(("ramp_epochs", "steps"), [(1.0, 10), (2.5, 25), (0.1, 1)])
    @pytest.mark.parametrize("stage", EXPOSED)
    def test_an_exposed_seed_is_ramped_out_before_it_is_culled(
        self, stage, ramp_epochs, steps, target
    ):
        plan = BlendPlan(target=target)
        done, now = self.timed_out(stage, blend=plan, cull_ramp_epochs=ramp_epochs)
        done.then_only(e.GateEvaluated, e.CullScheduled)
        slot, begin = done.slot, now * 10
        alpha = seed_after(*done.past).alpha(begin)
        assert 0.0 < alpha <= target
        assert (slot.stage, slot.seed.cull_cause) == (stage, CullCause.TIMED_OUT)
        assert slot.seed.cull_reason == done.events[1].reason
        course = [slot.seed.alpha(begin + step) for step in range(-1, steps + 2)]
        assert course[0] == course[1] == alpha
        assert course == sorted(course, reverse=True)
        assert course[steps] > 0.0 == course[steps + 1]

    @pytest.mark.parametrize("stage", EXPOSED)
    def test_the_cull_at_the_end_of_the_ramp_has_the_cause_of_its_beginning(self, stage):
        scheduled, now = self.timed_out(stage, cull_ramp_epochs=2.0)
        reason = scheduled.events[1].reason
        lived = (*scheduled.after.events, epoch(now + 1, 50.0, evidence()))
        error = given(*lived).when(advance(at=now + 1)).raises(CullPending)
        assert error.end_step == (now + 2) * 10
        lived = (*lived, epoch(now + 2, 50.0, evidence()))
        done = given(*lived).when(advance(at=now + 2))
        done.then_only(e.SeedCulled, e.StageChanged)
        assert (done.events[0].cause, done.events[0].reason) == (CullCause.TIMED_OUT, reason)
        assert done.slot.stage is Stage.CULLED
        assert done.slot.seed.alpha(10**9) == 0.0

    @pytest.mark.parametrize("ramp_epochs", [0.0, 0.04])
    @pytest.mark.parametrize("stage", EXPOSED)
    def test_without_a_step_to_ramp_over_it_is_culled_at_once(self, stage, ramp_epochs):
        done, _ = self.timed_out(stage, cull_ramp_epochs=ramp_epochs)
        done.then_only(e.GateEvaluated, e.SeedCulled, e.StageChanged)
        assert done.events[1].cause is CullCause.TIMED_OUT

    def test_a_seed_that_is_ramped_out_cannot_be_paused(self):
        scheduled, now = self.timed_out(Stage.SHADOWING)
        pause = c.PauseSeed(step=now * 10, slot_id=SLOT)
        scheduled.after.when(pause).raises(CullPending, saying="go on until then")

    def test_a_cull_by_request_takes_the_place_of_the_timed_out_one(self):
        scheduled, now = self.timed_out(Stage.SHADOWING)
        over = scheduled.after.when(cull(at=now, ramp_steps=30, reason="after all"))
        assert over.slot.seed.cull_cause is CullCause.REQUESTED
        lived = [epoch(now + n, 50.0, evidence()) for n in (1, 2, 3)]
        done = given(*over.after.events, *lived).when(advance(at=now + 3))
        assert (done.events[0].cause, done.events[0].reason) == (CullCause.REQUESTED, "after all")
        at_once = scheduled.after.when(cull(at=now))
        assert at_once.events[0].cause is CullCause.REQUESTED

    def test_a_rewind_to_before_the_ramp_takes_the_cull_back(self):
        scheduled, now = self.timed_out(Stage.SHADOWING)
        head = len(scheduled.past)
        back = scheduled.after.when(c.Rewind(step=now * 10, epoch=now, to=head))
        assert back.slot.seed == seed_after(*scheduled.past)
        assert back.slot.seed.alpha(10**9) == 1.0
        forth = back.after.when(c.Rewind(step=now * 10, epoch=now, to=head + 2))
        assert forth.slot.seed == scheduled.slot.seed


class TestEmbargo:
    def test_a_culled_slot_rests_before_it_is_used_again(self):
        done = given(*entered(Stage.CULLED)).when(advance(at=4)).then_only(e.StageChanged)
        assert done.slot.stage is Stage.EMBARGOED

    @pytest.mark.parametrize("lived", range(5))
    def test_a_reset_before_its_time_says_how_many_epochs_are_left(self, lived):
        past = (*entered(Stage.EMBARGOED), *(epoch(5 + n, 50.0) for n in range(lived)))
        error = (
            given(*past)
            .when(advance(at=4 + lived))
            .raises(EmbargoActive, saying=f"record {5 - lived} more")
        )
        assert (error.slot_id, error.epochs, error.required) == (SLOT, lived, 5)

    @pytest.mark.parametrize("lived", [5, 6, 40])
    def test_a_reset_is_open_once_the_embargo_has_run_out(self, lived):
        past = (*entered(Stage.EMBARGOED), *(epoch(5 + n, 50.0) for n in range(lived)))
        done = given(*past).when(advance(at=4 + lived)).then_only(e.StageChanged)
        assert done.slot.stage is Stage.RESETTING

    def test_a_policy_without_embargo_lets_the_slot_go_at_once(self):
        policy = GatePolicy(embargo_epochs=0)
        done = given(*entered(Stage.EMBARGOED)).when(advance(at=4), policy)
        assert done.slot.stage is Stage.RESETTING

    @pytest.mark.parametrize("stage", [Stage.CULLED, Stage.EMBARGOED, Stage.RESETTING])
    def test_a_resting_slot_takes_no_seed(self, stage):
        past = given(*ready(stage))
        past.when(germinate(at=9, seed_id="seed-2")).raises(SlotOccupied)


class TestASlotsSecondSeed:
    def test_the_slot_comes_back_empty(self):
        done = given(*entered(Stage.RESETTING)).when(advance(at=9))
        done.then(*recycled()[-2:])
        assert done.slot.stage is Stage.DORMANT
        assert done.slot.seed is None

    def test_nothing_of_the_first_seed_is_left_in_the_second(self):
        spoilt = (
            *ready(Stage.PROBATIONARY),
            e.IsolationViolated(
                epoch=9,
                step=90,
                slot_id=SLOT,
                seed_id="seed-1",
                leak=Leak.GRADIENT,
                count=11,
                subject="conv1.weight",
            ),
            e.HealthChanged(
                epoch=9, step=90, slot_id=SLOT, seed_id="seed-1", health=Health.UNHEALTHY
            ),
        )
        past = spoilt
        commands = [
            cull(at=9),
            advance(at=9),
            *(record_epoch(n, 50.0) for n in range(10, 15)),
            advance(at=14),
            advance(at=14),
            germinate(at=14, seed_id="seed-2"),
        ]
        for command in commands:
            past = (*past, *given(*past).when(command).events)
        slot = slot_after(*past)
        fresh = slot_after(
            *entered(Stage.DORMANT),
            epoch(14, 50.0),
            *germinated(at=14, seed_id="seed-2"),
        )
        assert slot.germinations == 2
        assert slot.seed == fresh.seed
        assert slot.seed.baseline == slot.stage_baseline == 50.0
        assert set(slot.outcomes) == {Gate.G0}
        assert (slot.stage, slot.epochs_in_stage, slot.objectives) == (
            fresh.stage,
            fresh.epochs_in_stage,
            fresh.objectives,
        )

    def test_the_second_seed_lives_by_its_own_figures(self):
        """It fossilizes in a slot whose first seed had leaked beyond the limit."""
        leaky = (SLOT, Violation(leak=Leak.GRADIENT, count=99, subject="conv1.weight"))
        policy = GatePolicy(
            embargo_epochs=0,
            g2=G2Policy(min_epochs=1, min_improvement=0.0),
            g5=G5Policy(min_improvement=-1.0),
        )
        past = entered(Stage.TRAINING, ACCURACY, policy)
        commands = [
            record_epoch(2, 51.0, evidence(), violations=(leaky,)),
            cull(at=2),
            *(advance(at=2) for _ in range(3)),
            germinate(at=2, seed_id="seed-2"),
            advance(at=2),
            record_epoch(3, 51.0, evidence(seed_id="seed-2")),
            advance(at=3),
        ]
        for command in commands:
            past = (*past, *given(*past).when(command).events)
        assert slot_after(*past).stage is Stage.BLENDING
        assert slot_after(*past).seed.violations == 0
