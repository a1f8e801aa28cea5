"""What a seed's plan decides: who rehearses, which alpha is the target, and that it is held."""

import math

import pytest
from attrs import evolve as changed

from kasmina.domain import commands as c
from kasmina.domain import events as e
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.policies import G2Policy, GatePolicy
from kasmina.domain.schedules import AlphaSchedule, BlendPlan
from kasmina.domain.stages import Blend, Incubator, Leak, Stage
from kasmina.testing import given
from tests.domain.scenario import (
    ACCURACY,
    LOSS,
    SLOT,
    advance,
    contrasted,
    entered,
    epoch,
    evidence,
    germinate,
    planned,
    ready,
    seed_after,
    shadowed,
    step_of,
)

TAUGHT = [incubator for incubator in Incubator if incubator is not Incubator.NONE]


def trained(*, incubator=None, blend=None):
    """The past of a seed whose G2 is open, as long as no rehearsal says otherwise."""
    return planned(ready(Stage.TRAINING), incubator=incubator, blend=blend)


def rehearsed(contributions, *, at=4, objective=ACCURACY):
    """One measurement for each pair of an alpha and a contribution, ``None`` if unmeasured."""
    sign = 1.0 if objective is ACCURACY else -1.0
    return [
        contrasted(
            at=at,
            alpha=alpha,
            objective_with=None if gain is None else 53.0 + sign * gain,
            objective_without=53.0,
        )
        for alpha, gain in contributions
    ]


def ramp_of(done):
    (scheduled,) = [event for event in done.events if isinstance(event, e.BlendScheduled)]
    return scheduled.schedule


class TestTheTarget:
    @pytest.mark.parametrize("target", [1.0, 0.5, 0.125])
    def test_the_ramp_ends_at_the_plan_s_target(self, target):
        done = given(*trained(blend=BlendPlan(target=target))).when(advance(at=4))
        assert ramp_of(done) == AlphaSchedule(start_step=40, steps=30, end=target)
        assert done.slot.seed.target == target

    @pytest.mark.parametrize("target", [1.0, 0.5, 0.125])
    def test_it_is_reached_and_then_held_for_good(self, target):
        now = given(*trained(blend=BlendPlan(target=target)))
        course = []
        for at, lived in ((4, (5, 6, 7)), (7, (8,)), (8, (9, 10, 11)), (11, ())):
            done = now.when(advance(at=at))
            course.append((done.slot.stage, done.slot.seed.alpha(step_of(11))))
            epochs = [epoch(n, 50.0 + n, evidence()) for n in lived]
            compared = [shadowed(at=8)] if done.slot.stage is Stage.SHADOWING else []
            now = given(*done.after.events, *epochs, *compared)
        assert course == [
            (Stage.BLENDING, target),
            (Stage.SHADOWING, target),
            (Stage.PROBATIONARY, target),
            (Stage.FOSSILIZED, target),
        ]

    def test_an_alpha_short_of_it_is_refused_and_close_to_it_is_not(self):
        blending = planned(entered(Stage.BLENDING), blend=BlendPlan(target=0.5))
        lived = [epoch(n, 54.0, evidence()) for n in (5, 6, 7)]
        for alpha, passes in ((0.474, False), (0.475, True), (0.5, True), (1.0, True)):
            hold = c.OverrideAlpha(step=70, slot_id=SLOT, alpha=alpha)
            held = given(*blending, *lived).when(hold)
            outcome = held.after.when(advance(at=7)).outcome
            assert outcome.passed is passes
            assert [check.required for check in outcome.checks if check.name == "alpha"] == [
                0.95 * 0.5
            ]

    def test_after_an_override_the_next_stage_is_at_the_target(self):
        blending = planned(entered(Stage.BLENDING), blend=BlendPlan(target=0.5))
        lived = [epoch(n, 54.0, evidence()) for n in (5, 6, 7)]
        hold = c.OverrideAlpha(step=70, slot_id=SLOT, alpha=0.9)
        done = given(*blending, *lived).when(hold).after.when(advance(at=7))
        assert done.slot.stage is Stage.SHADOWING
        assert done.slot.seed.alpha(70) == 0.5


class TestTheSearch:
    PLAN = BlendPlan(search=(0.25, 0.5, 1.0))

    @pytest.mark.parametrize(
        ("contributions", "target"),
        [
            ([(0.25, 1.0), (0.5, 3.0), (1.0, 2.0)], 0.5),
            ([(0.25, 3.0), (0.5, 1.0), (1.0, 2.0)], 0.25),
            ([(1.0, 3.0), (0.5, 1.0), (0.25, 2.0)], 1.0),
        ],
    )
    @pytest.mark.parametrize("objective", [ACCURACY, LOSS], ids=["maximised", "minimised"])
    def test_the_ramp_ends_at_the_candidate_that_contributed_most(
        self, contributions, target, objective
    ):
        past = planned(ready(Stage.TRAINING, objective), blend=self.PLAN)
        measured = rehearsed(contributions, objective=objective)
        done = given(*past, *measured).when(advance(at=4))
        assert ramp_of(done).end == target
        assert done.slot.seed.target == target
        assert done.slot.seed.best_rehearsal == (target, 3.0)

    def test_the_gate_judges_the_candidate_that_is_taken(self):
        bad_but_one = rehearsed([(0.25, 0.5), (0.5, -9.0), (1.0, -99.0)])
        done = given(*trained(blend=self.PLAN), *bad_but_one).when(advance(at=4))
        assert done.outcome.passed
        assert [x.measured for x in done.outcome.checks if x.name == "rehearsed_contribution"] == [
            0.5
        ]

    def test_it_refuses_where_no_candidate_is_good_enough(self):
        harmful = rehearsed([(0.25, -0.5), (0.5, -1.0), (1.0, -2.0)])
        refused = given(*trained(blend=self.PLAN), *harmful).when(advance(at=4))
        assert [(x.name, x.measured) for x in refused.outcome.failures] == [
            ("rehearsed_contribution", -0.5)
        ]

    @pytest.mark.parametrize("order", [(0.25, 0.5, 1.0), (1.0, 0.5, 0.25), (0.5, 1.0, 0.25)])
    def test_of_equals_the_largest_is_taken(self, order):
        equal = rehearsed([(alpha, 1.0) for alpha in order])
        done = given(*trained(blend=BlendPlan(search=order)), *equal).when(advance(at=4))
        assert ramp_of(done).end == 1.0

    @pytest.mark.parametrize("order", [(0.25, 0.5, 1.0), (1.0, 0.5, 0.25), (0.5, 1.0, 0.25)])
    @pytest.mark.parametrize("worst", [math.nan, math.inf, -math.inf])
    def test_a_candidate_that_broke_the_model_is_behind_every_other(self, order, worst):
        measured = rehearsed([(0.25, 0.5), (0.5, worst), (1.0, worst)])
        done = given(*trained(blend=BlendPlan(search=order)), *measured).when(advance(at=4))
        assert ramp_of(done).end == 0.25

    def test_candidates_that_all_broke_the_model_refuse(self):
        measured = rehearsed([(0.25, math.nan), (0.5, math.inf), (1.0, math.nan)])
        refused = given(*trained(blend=self.PLAN), *measured).when(advance(at=4))
        (check,) = refused.outcome.failures
        assert check.name == "rehearsed_contribution"
        assert math.isnan(check.measured)

    @pytest.mark.parametrize("target", [1.0, 0.75])
    def test_without_a_measurement_the_plan_s_target_is_taken(self, target):
        plan = changed(self.PLAN, target=target)
        unmeasured = rehearsed([(0.25, None), (0.5, None), (1.0, None)])
        for measured in ((), unmeasured):
            done = given(*trained(blend=plan), *measured).when(advance(at=4))
            assert ramp_of(done).end == done.slot.seed.target == target
            assert done.slot.seed.best_rehearsal is None

    def test_of_candidates_measured_in_part_the_best_of_those_is_taken(self):
        measured = rehearsed([(0.25, 1.0), (0.5, 2.0), (1.0, None)])
        done = given(*trained(blend=self.PLAN), *measured).when(advance(at=4))
        assert ramp_of(done).end == 0.5

    def test_the_latest_measurement_of_a_candidate_counts(self):
        measured = [
            *rehearsed([(0.25, 1.0), (0.5, 9.0)]),
            *rehearsed([(0.25, 2.0), (0.5, -1.0)]),
            *rehearsed([(0.25, None)]),
        ]
        done = given(*trained(blend=self.PLAN), *measured).when(advance(at=4))
        assert ramp_of(done).end == 0.25

    def test_an_alpha_that_is_no_candidate_is_never_taken(self):
        measured = rehearsed([(0.25, 1.0), (0.9, 9.0)])
        done = given(*trained(blend=self.PLAN), *measured).when(advance(at=4))
        assert ramp_of(done).end == 0.25

    def test_what_is_measured_on_the_ramp_does_not_move_the_target(self):
        past = given(*trained(blend=self.PLAN), *rehearsed([(0.5, 1.0)])).when(advance(at=4))
        later = contrasted(at=5, alpha=1.0, objective_with=90.0, objective_without=53.0)
        seed = seed_after(*past.after.events, epoch(5, 54.0, evidence()), later)
        assert (seed.target, seed.best_rehearsal) == (0.5, (0.5, 1.0))

    def test_a_rewind_takes_back_what_was_found(self):
        before = (*trained(blend=self.PLAN), *rehearsed([(0.25, 1.0)]))
        done = given(*before).when(advance(at=4))
        assert done.slot.seed.target == 0.25
        back = done.after.when(c.Rewind(step=10, epoch=1, to=len(trained())))
        assert (back.slot.seed.target, back.slot.seed.rehearsals) == (1.0, {})
        again = given(*back.after.events, *rehearsed([(0.5, 1.0)])).when(advance(at=4))
        assert again.slot.seed.target == 0.5


class TestG2:
    @pytest.mark.parametrize(
        ("contribution", "passes"),
        [(0.0, True), (1.0, True), (-0.001, False), (math.nan, False), (None, False)],
    )
    def test_a_seed_without_incubator_passes_by_its_rehearsal_alone(self, contribution, passes):
        fresh = planned(entered(Stage.TRAINING), incubator=Incubator.NONE)
        measured = rehearsed([(1.0, contribution)], at=2)
        past = given(*fresh, epoch(2, 50.0, evidence(gradient_norm=None)), *measured)
        outcome = past.when(advance(at=2)).outcome
        assert outcome.passed is passes
        assert [check.name for check in outcome.checks][2:] == [
            "isolation_violations",
            "rehearsed_contribution",
        ]

    def test_a_seed_without_incubator_that_nobody_rehearsed_is_refused(self):
        past = planned(ready(Stage.TRAINING), incubator=Incubator.NONE)
        refused = given(*past).when(advance(at=4))
        assert [(x.name, x.measured) for x in refused.outcome.failures] == [
            ("rehearsed_contribution", None)
        ]

    @pytest.mark.parametrize(("bound", "passes"), [(1.0, True), (1.001, False)])
    def test_the_bound_of_a_rehearsal_comes_from_the_policy(self, bound, passes):
        policy = GatePolicy(g2=G2Policy(min_rehearsed_contribution=bound))
        for incubator in Incubator:
            past = (*trained(incubator=incubator), *rehearsed([(1.0, 1.0)]))
            assert given(*past).when(advance(at=4), policy).outcome.passed is passes

    def test_a_seed_without_incubator_still_answers_for_its_leaks(self):
        past = (*trained(incubator=Incubator.NONE), *rehearsed([(1.0, 1.0)]))
        strict = GatePolicy(g2=G2Policy(max_isolation_violations=0))
        assert given(*past).when(advance(at=4), strict).outcome.passed
        leak = e.IsolationViolated(
            epoch=4,
            step=40,
            slot_id=SLOT,
            seed_id="seed-1",
            leak=Leak.HOOK,
            count=1,
            subject="conv1",
        )
        refused = given(*past, leak).when(advance(at=4), strict)
        assert [check.name for check in refused.outcome.failures] == ["isolation_violations"]

    @pytest.mark.parametrize("incubator", TAUGHT)
    def test_a_seed_that_learns_is_asked_the_same_by_every_incubator(self, incubator):
        outcome = given(*trained(incubator=incubator)).when(advance(at=4)).outcome
        assert outcome.passed
        assert [check.name for check in outcome.checks][2:] == [
            "improvement",
            "isolation_violations",
            "epochs_in_stage",
            "seed_gradient_norm",
            "nonfinite_values",
        ]


def test_the_plan_is_recorded_with_the_germination():
    incubation = IncubationPlan(incubator=Incubator.REHEARSAL, share=0.5, warmup_steps=7)
    blend = BlendPlan(blend=Blend.GATED, target=0.5, search=(0.25,))
    command = changed(germinate(at=0), incubation=incubation, blend=blend)
    done = given(*entered(Stage.DORMANT)).when(command)
    born = done.events[1]
    assert (born.incubation, born.blend) == (incubation, blend)
    seed = done.slot.seed
    assert (seed.incubation, seed.blend, seed.target) == (incubation, blend, 0.5)
    assert seed.candidates == (0.25,)


@pytest.mark.parametrize(
    ("incubator", "rate"),
    [
        (Incubator.STRAIGHT_THROUGH, 0.1),
        (Incubator.PROXIMAL, 1.0),
        (Incubator.REHEARSAL, 1.0),
        (Incubator.NONE, 1.0),
    ],
)
def test_only_a_seed_that_knows_no_bound_learns_slower_than_its_host(incubator, rate):
    assert IncubationPlan(incubator=incubator).relative_rate == rate
