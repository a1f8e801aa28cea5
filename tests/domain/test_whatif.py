"""What other thresholds would have decided, and how far the log can tell."""

import math

import pytest
from attrs import evolve as changed

from kasmina.domain import commands as c
from kasmina.domain import events as e
from kasmina.domain.errors import CorruptHistory
from kasmina.domain.evidence import Check, Comparison, GateOutcome, Violation
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.policies import (
    G2Policy,
    G5Policy,
    MetricCheck,
    Timeouts,
)
from kasmina.domain.schedules import BlendPlan
from kasmina.domain.stages import CullCause, Gate, Incubator, Leak, Stage
from kasmina.domain.thresholds import (
    InvalidThreshold,
    Sweep,
    Threshold,
    UnknownThreshold,
)
from kasmina.domain.verdicts import Action, Arrival, Certainty, Change, Tally
from kasmina.domain.whatif import sweep, what_if
from tests.domain.lives import QUICK, Life, check, only
from tests.domain.scenario import evidence


def grown(policy=QUICK, slot_id="a"):
    """One seed, fossilized at epoch 5 by a gate an epoch."""
    return Life(policy, slot_id).germinate(slot_id).epochs(1.0, 1.0, 1.0, 1.0)


def under(life, *texts, origin=None):
    return what_if(life.history, [Threshold.parse(text) for text in texts], origin=origin)


def of(result, gate, slot_id="a"):
    """The verdicts on one gate of one slot."""
    return [
        verdict
        for verdict in result.verdicts
        if verdict.outcome.gate is gate and verdict.decision.slot_id == slot_id
    ]


def recorded_check(verdict, name):
    return only([found for found in verdict.decision.outcome.checks if found.name == name])


class TestFlips:
    def test_the_life_of_these_tests_is_as_they_say(self):
        life = grown()
        assert life.stage() is Stage.FOSSILIZED
        assert [v.outcome.gate for v in under(life).verdicts] == [Gate(f"G{n}") for n in range(6)]

    def test_a_higher_bar_refuses_what_passed_and_forgoes_what_followed(self):
        result = under(grown(), "G2.min_improvement=5")
        verdict = only(of(result, Gate.G2))
        assert (verdict.recorded, verdict.action) == (Action.ADVANCE, Action.STAY)
        assert (verdict.change, verdict.certainty) == (Change.TO_REFUSED, Certainty.CERTAIN)
        assert (verdict.stage, verdict.leads_to) == (Stage.TRAINING, Stage.TRAINING)
        assert check(verdict, "improvement").required == 5
        assert check(verdict, "improvement").measured == 1.0
        course = only(result.courses)
        assert course.divergence is verdict
        assert [arrival.stage for arrival in course.foregone] == [
            Stage.BLENDING,
            Stage.SHADOWING,
            Stage.PROBATIONARY,
            Stage.FOSSILIZED,
        ]
        assert course.instead_of is None
        assert course.untold_from == verdict.decision.sequence + 1

    def test_a_lower_bar_passes_earlier_and_names_the_epoch_that_it_did_not_wait_for(self):
        life = Life(QUICK).germinate().epochs(0.125, 0.125, 1.0)
        result = under(life, "G2.min_improvement=0.25")
        course = only(result.courses)
        assert course.divergence.decision.epoch == 3
        assert course.divergence.change is Change.TO_PASSING
        assert course.divergence.leads_to is Stage.BLENDING
        assert course.instead_of == Arrival(
            sequence=course.arrivals[-1].sequence, epoch=4, stage=Stage.BLENDING
        )
        assert result.in_force == {"G2.min_improvement": (0.5,)}

    def test_after_its_divergence_the_rest_of_a_life_is_moot(self):
        result = under(grown(), "G3.min_epochs=3")
        assert [verdict.certainty for verdict in result.verdicts] == [
            *[Certainty.CERTAIN] * 4,
            *[Certainty.MOOT] * 2,
        ]
        assert of(result, Gate.G3)[0].diverges
        assert not of(under(grown(), "G3.min_epochs=3", "G4.min_agreement=1"), Gate.G4)[0].diverges

    def test_nothing_changes_where_nothing_is_asked(self):
        result = under(grown())
        assert {verdict.change for verdict in result.verdicts} == {Change.NONE}
        course = only(result.courses)
        assert (course.divergence, course.foregone, course.instead_of) == (None, (), None)
        assert (course.untold_from, course.shifted_from) == (None, None)

    def test_the_recorded_decision_is_beside_the_verdict_as_it_was(self):
        verdict = only(of(under(grown(), "G2.min_improvement=5"), Gate.G2))
        assert verdict.decision.outcome.passed
        assert recorded_check(verdict, "improvement").required == 0.5
        assert verdict.outcome.score == verdict.decision.outcome.score

    def test_a_life_that_would_have_become_permanent_is_told_to_its_end(self):
        life = (
            Life(changed(QUICK, g5=G5Policy(min_epochs=9))).germinate().epochs(1.0, 1.0, 1.0, 1.0)
        )
        course = only(under(life, "G5.min_epochs=1").courses)
        assert course.divergence.leads_to is Stage.FOSSILIZED
        assert course.untold_from is None


class TestFiguresThatNoBoundTurns:
    def test_an_unmeasured_figure_stays_refused_under_any_bound(self):
        life = Life(QUICK).germinate().epochs(1.0, 1.0).epoch(agreement=None)
        result = under(life, "G4.min_agreement=-1e9")
        verdict = only(of(result, Gate.G4))
        assert check(verdict, "agreement") == Check.of("agreement", None, Comparison.AT_LEAST, -1e9)
        assert (verdict.outcome.passed, verdict.change) == (False, Change.NONE)
        assert Tally.of(result.verdicts).unusable == 1

    def test_a_figure_that_was_not_finite_stays_refused_under_any_bound(self):
        life = Life(QUICK).germinate().epoch(math.nan)
        result = under(life, "G2.min_improvement=-1e9")
        assert not only(of(result, Gate.G2)).outcome.passed
        assert Tally.of(result.verdicts).unusable == 1

    def test_a_figure_that_was_not_finite_is_no_difference_of_its_own(self):
        life = Life(QUICK).germinate().epoch(math.nan)
        refusal = life.events[-1]
        stored = tuple(  # a NaN that was read from a store is not the one of the rules
            changed(found, measured=float("nan")) if found.name == "improvement" else found
            for found in refusal.outcome.checks
        )
        life.events[-1] = changed(refusal, outcome=changed(refusal.outcome, checks=stored))
        verdict = only(of(under(life, "tolerance=9"), Gate.G2))
        assert verdict.outcome is verdict.decision.outcome

    def test_a_refusal_by_a_bound_is_not_among_them(self):
        assert Tally.of(under(grown(), "G2.min_improvement=9").verdicts).unusable == 0


class TestTimeouts:
    SLOW = changed(QUICK, timeouts=Timeouts(training=2))

    def test_a_shorter_time_out_culls_and_ends_the_course(self):
        life = Life(QUICK).germinate().epochs(0.1, 0.1, 0.1, 0.5)
        result = under(life, "timeouts.training=2")
        course = only(result.courses)
        verdict = course.divergence
        assert (verdict.change, verdict.action) == (Change.TIMED_OUT, Action.CULL)
        assert (verdict.decision.epoch, verdict.epochs_in_stage) == (3, 2)
        assert verdict.leads_to is Stage.CULLED
        assert course.untold_from is None
        assert course.foregone[0].stage is Stage.BLENDING

    def test_a_longer_time_out_spares_a_culled_seed_of_which_nothing_more_is_known(self):
        life = Life(self.SLOW).germinate().epochs(0.1, 0.1)
        assert life.stage() is Stage.CULLED
        result = under(life, "timeouts.training=none")
        verdict = of(result, Gate.G2)[-1]
        assert (verdict.recorded, verdict.action) == (Action.CULL, Action.STAY)
        assert verdict.change is Change.SPARED
        assert only(result.courses).untold_from == verdict.decision.sequence + 1

    def test_passing_undoes_a_recorded_cull(self):
        life = Life(self.SLOW).germinate().epochs(0.0, 0.1)
        verdict = of(under(life, "G2.min_improvement=0.1"), Gate.G2)[-1]
        assert (verdict.recorded, verdict.action) == (Action.CULL, Action.ADVANCE)
        assert verdict.change is Change.TO_PASSING

    def test_a_refusal_at_its_time_out_is_a_cull_at_once(self):
        life = Life(changed(QUICK, timeouts=Timeouts(training=1))).germinate().epoch()
        verdict = only(of(under(life, "G2.min_improvement=5"), Gate.G2))
        assert (verdict.change, verdict.action) == (Change.TO_REFUSED, Action.CULL)

    def test_a_cull_over_a_ramp_is_a_cull_too(self):
        gentle = changed(QUICK, timeouts=Timeouts(blending=1), cull_ramp_epochs=2.0)
        life = Life(gentle).germinate(blend=BlendPlan(epochs=9.0)).epochs(1.0, 1.0)
        assert isinstance(life.events[-1], e.CullScheduled)
        assert only(of(under(life), Gate.G3)).recorded is Action.CULL
        assert only(of(under(life, "timeouts.blending=9"), Gate.G3)).change is Change.SPARED

    def test_a_cull_that_ends_the_ramp_of_another_slot_is_not_this_decisions(self):
        gentle = changed(QUICK, timeouts=Timeouts(blending=1), cull_ramp_epochs=1.0)
        life = Life(gentle, "a", "b").germinate("b", blend=BlendPlan(epochs=9.0)).epochs(1.0, 1.0)
        life.epoch()
        refused = GateOutcome(gate=Gate.G0, passed=False, score=0.0, checks=())
        asked = e.GateEvaluated(epoch=4, step=40, slot_id="a", seed_id="a9", outcome=refused)
        culled = [type(event) for event in life.events].index(e.SeedCulled)
        assert life.events[culled].cause is CullCause.TIMED_OUT
        life.events.insert(culled, asked)
        assert only(of(under(life), Gate.G0, "a")).recorded is Action.STAY

    def test_a_cull_on_request_is_no_time_out(self):
        life = Life(QUICK).germinate().epoch(0.0).cull()
        assert life.events[-2].cause is CullCause.REQUESTED
        assert only(of(under(life), Gate.G2)).recorded is Action.STAY


class TestOtherSlots:
    def two(self):
        return Life(QUICK, "a", "b").germinate("a").germinate("b").epochs(1.0, 1.0)

    def test_decisions_on_the_same_evidence_are_certain_and_later_ones_shifted(self):
        result = under(self.two(), "G2.min_improvement=5")
        first, second = of(result, Gate.G2, "a")[0], of(result, Gate.G2, "b")[0]
        assert (first.certainty, second.certainty) == (Certainty.CERTAIN, Certainty.CERTAIN)
        assert second.diverges

    def test_evidence_of_another_course_shifts_what_rests_on_it(self):
        late = Life(QUICK, "a", "b").germinate("a").epoch().germinate("b").epoch()
        result = under(late, "G2.min_improvement=5")
        assert of(result, Gate.G1, "b")[0].certainty is Certainty.CERTAIN
        verdict = only(of(result, Gate.G2, "b"))
        assert (verdict.certainty, verdict.change) == (Certainty.SHIFTED, Change.TO_REFUSED)
        assert verdict.diverges
        course = result.courses[1]
        assert course.shifted_from == verdict.decision.sequence
        assert course.untold_from == verdict.decision.sequence + 1

    def test_the_tally_tells_them_apart(self):
        late = Life(QUICK, "a", "b").germinate("a").epoch().germinate("b").epoch()
        tally = Tally.of(under(late, "G2.min_improvement=5", "G3.min_epochs=5").verdicts)
        assert (tally.to_refused, tally.changes) == (3, 3)
        assert (tally.certain, tally.shifted, tally.moot) == (1, 1, 1)


class TestLaterTenants:
    def reused(self, policy=QUICK):
        life = Life(policy).germinate().epochs(0.0, 0.0)
        if life.stage() is Stage.TRAINING:
            life.cull()
        life.epochs(0.0, 0.0, 0.0, 0.0)
        assert life.stage() is Stage.DORMANT
        return life.germinate().epoch()

    def test_a_slot_that_another_seed_might_still_hold_has_no_later_tenant(self):
        result = under(self.reused(), "G2.min_improvement=0")
        second = result.courses[1]
        assert {verdict.certainty for verdict in second.verdicts} == {Certainty.MOOT}
        assert second.divergence is None
        assert second.untold_from == second.verdicts[0].decision.sequence

    def test_a_slot_that_is_free_no_later_has_its_tenant_on_shifted_evidence(self):
        result = under(self.reused(), "timeouts.training=1")
        second = result.courses[1]
        assert {verdict.certainty for verdict in second.verdicts} == {Certainty.SHIFTED}
        assert second.untold_from is None

    def test_a_seed_that_would_not_have_germinated_leaves_its_slot_free(self):
        asks = MetricCheck(gate=Gate.G0, metric="speed", comparison=Comparison.ABOVE, required=0.0)
        life = Life(changed(QUICK, extra_checks=(asks,))).epoch().germinate().epoch(speed=3.0)
        life.cull().epochs(0.0, 0.0, 0.0, 0.0, speed=3.0).germinate()
        result = under(life, "G0.speed=2")
        first, second = result.courses
        assert first.divergence.outcome.gate is Gate.G0
        assert (first.divergence.action, first.divergence.outcome.score) == (Action.STAY, 0.0)
        assert first.divergence.leads_to is Stage.DORMANT
        assert first.untold_from is None
        assert [verdict.certainty for verdict in first.verdicts[1:]] == [
            Certainty.MOOT for _ in first.verdicts[1:]
        ]
        assert {verdict.certainty for verdict in second.verdicts} == {Certainty.SHIFTED}
        assert {verdict.change for verdict in second.verdicts} == {Change.NONE}


class TestRewinds:
    def rewound(self):
        life = Life(QUICK).germinate().epoch(0.0)
        back = len(life.events)
        return life.epoch(1.0).rewind(back).epochs(1.0, 1.0)

    def test_what_was_taken_back_is_judged_and_marked_and_diverges_nothing(self):
        result = under(self.rewound(), "G2.min_improvement=5")
        first, undone, again = of(result, Gate.G2)
        assert [v.decision.undone for v in (first, undone, again)] == [False, True, False]
        assert undone.change is Change.TO_REFUSED
        assert (again.certainty, again.diverges) == (Certainty.CERTAIN, True)
        course = only(result.courses)
        assert course.divergence is again
        assert undone not in course.verdicts
        assert [arrival.stage for arrival in course.arrivals] == [
            Stage.GERMINATED,
            Stage.TRAINING,
            Stage.BLENDING,
            Stage.SHADOWING,
        ]

    def test_it_is_counted_apart(self):
        tally = Tally.of(under(self.rewound(), "G2.min_improvement=5").verdicts)
        assert (tally.decisions, tally.undone) == (6, 1)
        assert (tally.to_refused, tally.certain) == (1, 1)

    def test_within_what_was_taken_back_a_life_diverges_as_any_other(self):
        life = Life(QUICK).germinate()
        back = len(life.events)
        life.epochs(1.0, 1.0, 1.0).rewind(back).epochs(9.0, 9.0)
        undone = [v for v in under(life, "G2.min_improvement=5").verdicts if v.decision.undone]
        assert [v.certainty for v in undone] == [
            Certainty.CERTAIN,
            Certainty.MOOT,
            Certainty.MOOT,
        ]
        kept = [v for v in under(life, "G2.min_improvement=5").verdicts if not v.decision.undone]
        assert {v.certainty for v in kept} == {Certainty.CERTAIN}

    def test_a_divergence_before_the_rewind_still_counts_after_it(self):
        life = Life(QUICK).germinate().epoch(0.0)
        back = len(life.events)
        life.epoch().rewind(back).epoch()
        verdicts = of(under(life, "G2.min_improvement=0"), Gate.G2)
        assert [v.certainty for v in verdicts] == [
            Certainty.CERTAIN,
            Certainty.MOOT,
            Certainty.MOOT,
        ]


class TestPoliciesInForce:
    def test_each_decision_keeps_the_rest_of_the_policy_by_which_it_was_taken(self):
        life = Life(QUICK).germinate().epoch(0.1)
        strict = changed(QUICK, g2=G2Policy(min_epochs=9))
        life.do(c.ChangePolicy(step=life.step, policy=strict)).epoch(0.1)
        result = under(life, "G2.min_improvement=0.2")
        early, late = of(result, Gate.G2)
        assert check(early, "epochs_in_stage").required == 1
        assert check(late, "epochs_in_stage").required == 9
        assert {check(v, "improvement").required for v in (early, late)} == {0.2}

    def test_a_check_of_the_users_is_replaced_only_where_it_is_asked(self):
        asks = MetricCheck(
            gate=Gate.G2, metric="speed", comparison=Comparison.AT_LEAST, required=0.5
        )
        life = Life(QUICK).germinate().epoch(0.0)
        asking = changed(QUICK, extra_checks=(asks,))
        life.do(c.ChangePolicy(step=life.step, policy=asking)).epoch()
        result = under(life, "G2.speed=2")
        early, late = of(result, Gate.G2)
        assert [found.name for found in early.outcome.checks].count("speed") == 0
        assert (late.change, check(late, "speed").required) == (Change.TO_REFUSED, 2)
        assert result.in_force == {"G2.speed": (0.5,)}

    def test_a_metric_may_have_the_name_of_a_check_of_the_gates(self):
        asks = MetricCheck(gate=Gate.G3, metric="alpha", comparison=Comparison.BELOW, required=9.0)
        life = Life(changed(QUICK, extra_checks=(asks,))).germinate().epochs(1.0, 1.0)
        verdict = only(of(under(life, "G3.min_alpha=0.75"), Gate.G3))
        bounds = [found.required for found in verdict.outcome.checks if found.name == "alpha"]
        assert bounds == [0.75, 9.0]

    def test_a_fork_is_judged_from_its_parents_state_by_its_parents_policy(self):
        parent = Life(QUICK).germinate().epoch(0.0)
        forked = e.RunForked(
            epoch=parent.state.epoch,
            step=parent.step,
            run_id="run-2",
            name="fork",
            parent_run_id="run-1",
            parent_sequence=len(parent.events),
            parent_digest="00",
        )
        life = Life(origin=parent.state, events=(forked,)).epoch(0.1)
        result = under(life, "G2.min_improvement=0.1", origin=parent.state)
        assert result.in_force == {"G2.min_improvement": (0.5,)}
        assert only(result.verdicts).change is Change.TO_PASSING
        assert only(result.courses).arrivals == ()

    def test_an_unknown_threshold_gets_the_nearest_ones_of_the_run(self):
        with pytest.raises(UnknownThreshold) as raised:
            under(grown(), "G2.min_improvemnt=1")
        assert "G2.min_improvement" in raised.value.nearest

    def test_a_value_that_no_policy_takes_is_refused_before_anything_was_decided(self):
        with pytest.raises(InvalidThreshold, match="must lie in"):
            under(Life(QUICK), "G3.min_alpha=2")


class TestFiguresThatDependOnThePolicy:
    def test_the_bound_on_alpha_is_relative_to_the_seeds_target(self):
        life = Life(QUICK).germinate(blend=BlendPlan(epochs=0.0, target=0.5)).epochs(1.0, 1.0)
        verdict = only(of(under(life, "G3.min_alpha=0.9"), Gate.G3))
        assert recorded_check(verdict, "alpha").required == 0.25
        assert check(verdict, "alpha").required == 0.45

    def test_the_tolerance_bounds_what_a_shadowed_seed_may_cost(self):
        life = Life(QUICK).germinate().epochs(1.0, 1.0).epoch(gives=-0.75)
        assert life.stage() is Stage.SHADOWING
        verdict = only(of(under(life, "tolerance=1"), Gate.G4))
        assert check(verdict, "shadow_contribution").required == -1
        assert verdict.change is Change.TO_PASSING

    def test_the_stability_is_measured_again_within_another_tolerance(self):
        patient = changed(QUICK, g5=G5Policy(min_epochs=4))
        life = Life(patient).germinate().epochs(1.0, 1.0, 1.0)
        life.epochs(-0.75, 2.0, 1.0, 1.0)
        assert life.stage() is Stage.PROBATIONARY
        verdict = of(under(life, "tolerance=0.75"), Gate.G5)[-1]
        assert recorded_check(verdict, "stability").measured == 0.75
        assert check(verdict, "stability").measured == 1.0
        assert verdict.change is Change.TO_PASSING
        stricter = of(under(life, "tolerance=0"), Gate.G5)[-1]
        assert check(stricter, "stability").measured == 0.75

    @pytest.mark.parametrize(
        ("leaks", "limit", "recorded_healthy", "healthy"),
        [(4, 3, 1.0, 0.0), (4, 4, 1.0, 1.0), (11, 11, 0.0, 1.0), (11, 3, 0.0, 0.0)],
    )
    def test_health_is_judged_again_within_another_limit_of_violations(
        self, leaks, limit, recorded_healthy, healthy
    ):
        life = Life(QUICK).germinate().epochs(1.0, 1.0, 1.0)
        assert life.stage() is Stage.PROBATIONARY
        life.epoch(leaks=leaks)
        verdict = only(of(under(life, f"G2.max_isolation_violations={limit}"), Gate.G5))
        assert recorded_check(verdict, "healthy").measured == recorded_healthy
        assert check(verdict, "healthy").measured == healthy

    def test_health_is_judged_again_though_the_limit_was_lowered_after_it_was_recorded(self):
        life = Life(changed(QUICK, g5=G5Policy(min_epochs=2))).germinate().epochs(1.0, 1.0, 1.0)
        life.epoch(leaks=4)
        tight = changed(life.state.policy, g2=changed(QUICK.g2, max_isolation_violations=3))
        life.do(c.ChangePolicy(step=life.step, policy=tight)).advance("a")
        verdict = of(under(life, "G2.max_isolation_violations=2"), Gate.G5)[-1]
        assert recorded_check(verdict, "healthy").measured == 1.0
        assert check(verdict, "healthy").measured == 0.0

    def test_health_that_something_else_broke_is_not_mended_by_another_limit(self):
        life = Life(QUICK).germinate().epochs(1.0, 1.0, 1.0)
        life.epoch(leaks=11, speed=math.inf)
        verdict = only(of(under(life, "G2.max_isolation_violations=99"), Gate.G5))
        assert check(verdict, "healthy").measured == 0.0

    def test_health_that_one_seeds_own_figures_broke_leaves_its_neighbours_alone(self):
        life = Life(QUICK, "a", "b").germinate("a").germinate("b")
        life.epochs(1.0, 1.0, 1.0)
        seeds = [
            evidence(slot_id=s.slot_id, seed_id=s.seed.seed_id, nonfinite_outputs=s.slot_id == "a")
            for s in life.state.slots.values()
        ]
        leak = Violation(leak=Leak.HOOK, count=11, subject="conv")
        life.do(
            c.RecordEpoch(
                step=life.step,
                epoch=life.state.epoch + 1,
                objective=None,
                seeds=tuple(seeds),
                violations=(("a", leak), ("b", leak)),
            )
        ).advance("a", "b")
        result = under(life, "G2.max_isolation_violations=99")
        healthy = [check(only(of(result, Gate.G5, s)), "healthy").measured for s in "ab"]
        assert healthy == [0.0, 1.0]

    def test_leaks_before_the_stage_do_not_count_until_it_was_looked_at(self):
        policy = changed(QUICK, g5=G5Policy(min_epochs=0, min_stability=0.0))
        life = Life(policy).germinate().epochs(1.0, leaks=5).epochs(1.0, 1.0).advance("a")
        verdict = of(under(life, "G2.max_isolation_violations=3"), Gate.G5)[0]
        assert check(verdict, "healthy").measured == 1.0

    def test_a_fork_takes_over_the_health_that_its_parent_left(self):
        parent = Life(QUICK).germinate().epochs(1.0, 1.0, 1.0)
        sound = parent.state
        asks = c.Advance(step=parent.step, slot_id="a")
        parent.do(
            c.RecordEpoch(
                step=parent.step,
                epoch=parent.state.epoch + 1,
                objective=math.nan,
            )
        )
        for origin, healthy in ((sound, 1.0), (parent.state, 0.0)):
            forked = e.RunForked(
                epoch=origin.epoch,
                step=origin.step,
                run_id="run-2",
                name="fork",
                parent_run_id="run-1",
                parent_sequence=origin.sequence,
                parent_digest="00",
            )
            life = Life(origin=origin, events=(forked,)).do(asks)
            result = under(life, "G2.max_isolation_violations=99", origin=origin)
            assert check(only(of(result, Gate.G5)), "healthy").measured == healthy


class TestRehearsals:
    """A run rehearses a seed only once G2 could pass, so a log lacks what an earlier pass wants."""

    RULES = changed(QUICK, g2=G2Policy(min_epochs=2))

    def test_a_pass_before_the_first_rehearsal_is_left_open(self):
        life = Life(self.RULES).germinate().epoch().epoch(rehearse=True)
        first, second = of(under(life, "G2.min_epochs=1"), Gate.G2)
        assert (first.change, first.certainty) == (Change.TO_PASSING, Certainty.OPEN)
        assert second.certainty is Certainty.MOOT
        tally = Tally.of([first, second])
        assert (tally.to_passing, tally.open, tally.certain) == (1, 1, 0)

    def test_a_run_that_never_rehearses_leaves_nothing_open(self):
        life = Life(self.RULES).germinate().epochs(1.0, 1.0)
        assert of(under(life, "G2.min_epochs=1"), Gate.G2)[0].certainty is Certainty.CERTAIN

    def test_a_pass_on_a_rehearsal_is_certain(self):
        life = Life(self.RULES).germinate().epoch(0.0).epoch(0.1, rehearse=True)
        verdict = of(under(life, "G2.min_improvement=0.1"), Gate.G2)[-1]
        assert (verdict.change, verdict.certainty) == (Change.TO_PASSING, Certainty.CERTAIN)

    def test_a_seed_that_learns_nothing_is_refused_until_it_was_rehearsed(self):
        life = Life(self.RULES).germinate(incubation=IncubationPlan(incubator=Incubator.NONE))
        verdict = only(of(under(life.epoch(), "G2.min_rehearsed_contribution=-9"), Gate.G2))
        assert check(verdict, "rehearsed_contribution").measured is None
        assert not verdict.outcome.passed


class TestRulesOfThePast:
    def retold(self, *checks):
        """A life in which G2 was recorded with checks of another release."""
        life = grown()
        outcome = GateOutcome.of(Gate.G2, checks, 0.5)

        def retell(event):
            if isinstance(event, e.GateEvaluated) and event.outcome.gate is Gate.G2:
                return changed(event, outcome=outcome)
            return event

        life.events = [retell(event) for event in life.events]
        return life

    def test_a_check_that_no_rule_of_today_knows_keeps_its_bound(self):
        old = Check.of("luminosity", 3.0, Comparison.ABOVE, 2.0)
        life = self.retold(old, Check.of("improvement", 1.0, Comparison.AT_LEAST, 0.5))
        verdict = only(of(under(life, "G2.min_improvement=5"), Gate.G2))
        assert check(verdict, "luminosity") == old
        assert verdict.change is Change.TO_REFUSED

    def test_the_recorded_comparison_and_figure_are_kept(self):
        life = self.retold(Check.of("improvement", 7.0, Comparison.ABOVE, 0.5))
        verdict = only(of(under(life, "G2.min_improvement=5"), Gate.G2))
        assert check(verdict, "improvement") == Check.of("improvement", 7.0, Comparison.ABOVE, 5.0)
        assert only(of(under(life, "G2.min_improvement=7"), Gate.G2)).change is Change.TO_REFUSED

    def test_a_bound_of_the_past_moves_only_if_its_threshold_does(self):
        old = Check.of("improvement", 1.0, Comparison.AT_LEAST, 0.25)
        life = self.retold(old)
        assert check(only(of(under(life, "tolerance=9"), Gate.G2)), "improvement") is old

    def test_a_gate_that_was_asked_of_no_seed_is_a_corrupt_history(self):
        life = Life(QUICK)
        outcome = GateOutcome.of(Gate.G2, (), 0.0)
        asked = e.GateEvaluated(epoch=0, step=0, slot_id="a", seed_id="a1", outcome=outcome)
        life.events.append(asked)
        with pytest.raises(CorruptHistory, match="G2 judges a seed in slot 'a'"):
            under(life)


class TestSweeps:
    def test_a_tally_for_each_value(self):
        result = sweep(grown().history, Sweep.parse("G2.min_improvement=0:2:1"))
        assert [tally.to_refused for tally in result.tallies] == [0, 0, 1]
        assert (result.run_id, result.in_force) == ("run-1", (0.5,))

    def test_only_chosen_verdicts_are_counted(self):
        over = Sweep.parse("tolerance=0,1")
        result = sweep(grown().history, over, among=lambda v: v.outcome.gate is Gate.G5)
        assert [tally.decisions for tally in result.tallies] == [1, 1]

    def test_tallies_of_several_runs_add_up(self):
        first, second = Tally(decisions=3, open=1, moot=2), Tally(decisions=4, undone=1, moot=1)
        assert first.plus(second) == Tally(decisions=7, undone=1, open=1, moot=3)

    def test_a_sweep_of_an_unknown_threshold_is_refused(self):
        with pytest.raises(UnknownThreshold):
            sweep(grown().history, Sweep.parse("G9.min=1"))
