"""What G0 to G5 require: each check holds at its bound and fails just past it."""

import math

import pytest
from attrs import evolve as changed

from kasmina.domain.evidence import Comparison, Metric
from kasmina.domain.gates import evaluate, evaluate_g0, stability
from kasmina.domain.policies import (
    G2Policy,
    G3Policy,
    G4Policy,
    G5Policy,
    GatePolicy,
    MetricCheck,
)
from kasmina.domain.stages import Gate, Health, Stage
from kasmina.testing import given
from tests.domain.scenario import (
    ACCURACY,
    LOSS,
    POLICY,
    PROBE,
    SLOT,
    advance,
    contrasted,
    entered,
    epoch,
    evidence,
    germinate,
    germinated,
    opened,
    ready,
    seed_after,
    shadowed,
    slot_opened,
    state_after,
)

STAGE_OF = {
    Gate.G1: Stage.GERMINATED,
    Gate.G2: Stage.TRAINING,
    Gate.G3: Stage.BLENDING,
    Gate.G4: Stage.SHADOWING,
    Gate.G5: Stage.PROBATIONARY,
}
NAN, INF = math.nan, math.inf


def judged(gate, *, run=None, slot=None, seed=None, policy=POLICY, objective=ACCURACY):
    """The gate's outcome where it would pass, but for the figures that are given."""
    state = state_after(*ready(STAGE_OF[gate], objective))
    step = (run or {}).get("step", state.step)
    tenant = changed(state.slot(SLOT).seed, **(seed or {}))
    place = changed(state.slot(SLOT), seed=tenant, **(slot or {}))
    return evaluate(gate, changed(state, **(run or {})), place, policy, step)


def verdict(outcome, name):
    """The one check of that name, and whether it alone decided against the seed."""
    (check,) = [check for check in outcome.checks if check.name == name]
    assert outcome.passed is all(other.passed for other in outcome.checks)
    return check


def measured_all_else_passing(outcome, name):
    assert {check.name for check in outcome.failures} <= {name}
    return verdict(outcome, name)


@pytest.mark.parametrize("gate", STAGE_OF)
def test_a_seed_that_meets_every_bound_passes(gate):
    outcome = judged(gate)
    assert outcome.passed
    assert outcome.failures == ()
    assert 0.0 <= outcome.score <= 1.0


@pytest.mark.parametrize("gate", STAGE_OF)
def test_every_later_gate_asserts_the_identity_again(gate):
    names = [check.name for check in judged(gate).checks]
    assert names[:2] == ["seed_id_present", "blueprint_id_present"]
    assert len(names) == len(set(names))
    assert [c.name for c in judged(gate, seed={"seed_id": " "}).failures] == ["seed_id_present"]
    nameless = judged(gate, seed={"blueprint_id": ""})
    assert [c.name for c in nameless.failures] == ["blueprint_id_present"]


# Each row: gate, check, where the figure is kept, a value that passes, values that do not.
CASES = [
    (Gate.G1, "stage_code", "slot", "stage", Stage.GERMINATED, [Stage.TRAINING]),
    (Gate.G2, "improvement", "run", "latest", 50.5, [50.499, 40.0, NAN, INF, -INF, None]),
    (Gate.G2, "isolation_violations", "seed", "violations", 10, [11]),
    (Gate.G2, "epochs_in_stage", "slot", "epochs_in_stage", 3, [2, 0]),
    (Gate.G2, "seed_gradient_norm", "seed", "gradient_norm", 0.0, [NAN, INF, None]),
    (Gate.G2, "nonfinite_values", "seed", "nonfinite", 0, [1]),
    (Gate.G2, "rehearsed_contribution", "seed", "rehearsals", 0.0, [-1e-9, NAN, -INF]),
    (Gate.G3, "epochs_in_stage", "slot", "epochs_in_stage", 3, [2]),
    (Gate.G4, "shadow_evaluations", "seed", "shadow_evaluations", 1, [0]),
    (Gate.G4, "agreement", "seed", "agreement", 0.9, [0.8999, -1.0, NAN, INF, None]),
    (Gate.G4, "shadow_contribution", "seed", "shadow_contribution", -0.5, [-0.501, NAN, None]),
    (Gate.G5, "total_improvement", "run", "latest", 50.001, [50.0, 49.0, NAN, INF, None]),
    (Gate.G5, "healthy", "seed", "health", Health.HEALTHY, [Health.UNHEALTHY]),
    (Gate.G5, "epochs_in_stage", "slot", "epochs_in_stage", 3, [2, 0]),
    (Gate.G5, "contribution", "seed", "contribution", 1e-9, [0.0, -1.0, NAN, INF]),
]


def kept(where, field, figure):
    """The figure in its place; that of a rehearsal is kept by its alpha."""
    return {where: {field: {1.0: figure} if field == "rehearsals" else figure}}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[1])
def test_a_check_passes_at_its_bound_and_fails_just_past_it(case):
    gate, name, where, field, good, bad = case
    at_bound = judged(gate, **kept(where, field, good))
    assert measured_all_else_passing(at_bound, name).passed
    assert at_bound.passed
    for value in bad:
        outcome = judged(gate, **kept(where, field, value))
        check = measured_all_else_passing(outcome, name)
        assert not check.passed, value
        assert not outcome.passed
        assert 0.0 <= outcome.score <= 1.0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[1])
def test_what_was_not_measured_fails_by_name_and_what_is_not_finite_is_kept(case):
    gate, name, where, field, _, bad = case
    for value in bad:
        if value is None:
            assert verdict(judged(gate, **{where: {field: None}}), name).measured is None
        elif isinstance(value, float) and not math.isfinite(value):
            measured = verdict(judged(gate, **kept(where, field, value)), name).measured
            assert measured is not None
            assert not math.isfinite(measured)


class TestG0:
    def judged(self, seed_id="seed-1", blueprint_id="norm", policy=POLICY):
        return evaluate_g0(seed_id, blueprint_id, state_after(opened(), slot_opened()), policy)

    def test_wants_a_seed_and_a_blueprint(self):
        assert self.judged().passed
        assert self.judged().score == 1.0

    @pytest.mark.parametrize("blank", ["", "  \n"])
    def test_names_the_identifier_that_is_missing(self, blank):
        assert [c.name for c in self.judged(seed_id=blank).failures] == ["seed_id_present"]
        assert [c.name for c in self.judged(blueprint_id=blank).failures] == [
            "blueprint_id_present"
        ]
        assert self.judged(seed_id=blank).score == 0.0

    def test_takes_checks_of_the_user_s_own(self):
        extra = MetricCheck(
            gate=Gate.G0, metric="gib_free", comparison=Comparison.ABOVE, required=1
        )
        assert [c.name for c in self.judged(policy=GatePolicy(extra_checks=(extra,))).failures] == [
            "gib_free"
        ]

    def test_refuses_without_putting_the_seed_in_the_slot(self):
        refused = given(opened(), slot_opened()).when(germinate(at=0, blueprint_id=" "))
        assert not refused.outcome.passed
        assert refused.slot.seed is None
        assert refused.slot.stage is Stage.DORMANT


class TestG1:
    def judged(self, **fields):
        return judged(Gate.G1, seed={"probe": changed(PROBE, **fields)})

    def test_scores_one_or_nothing(self):
        assert self.judged().score == 1.0
        assert self.judged(trainable_parameters=0).score == 0.0

    @pytest.mark.parametrize(
        ("fields", "failing"),
        [
            ({"output_shape": (2, 8, 4, 3)}, "shape_preserved"),
            ({"output_dtype": "float16"}, "dtype_preserved"),
            ({"trainable_parameters": 0}, "trainable_parameters"),
        ],
    )
    def test_names_what_the_seed_does_not_keep(self, fields, failing):
        assert [check.name for check in self.judged(**fields).failures] == [failing]

    @pytest.mark.parametrize("field", ["input_shape", "output_shape"])
    def test_an_unprobed_shape_refuses_by_name(self, field):
        (check,) = self.judged(**{field: None}).failures
        assert (check.name, check.measured) == ("shape_preserved", None)

    @pytest.mark.parametrize("field", ["input_dtype", "output_dtype"])
    def test_an_unprobed_dtype_refuses_by_name(self, field):
        (check,) = self.judged(**{field: None}).failures
        assert (check.name, check.measured) == ("dtype_preserved", None)

    def test_one_trainable_parameter_is_enough(self):
        assert self.judged(trainable_parameters=1).passed


class TestG2:
    @pytest.mark.parametrize(("gain", "score"), [(0.5, 0.1), (5.0, 1.0), (50.0, 1.0), (-3.0, 0.0)])
    def test_scores_the_improvement_over_five(self, gain, score):
        assert judged(Gate.G2, run={"latest": 50.0 + gain}).score == pytest.approx(score)

    @pytest.mark.parametrize("latest", [None, NAN, INF])
    def test_scores_nothing_for_what_is_no_improvement(self, latest):
        assert judged(Gate.G2, run={"latest": latest}).score == 0.0

    def test_does_not_ask_for_a_rehearsal_that_was_not_made(self):
        assert "rehearsed_contribution" not in [c.name for c in judged(Gate.G2).checks]

    def test_does_not_judge_a_rehearsal_at_an_alpha_that_is_no_candidate(self):
        elsewhere = judged(Gate.G2, seed={"rehearsals": {0.3: -9.0}})
        assert "rehearsed_contribution" not in [c.name for c in elsewhere.checks]

    def test_a_rehearsal_without_figures_does_not_erase_one_that_refused(self):
        past = ready(Stage.TRAINING)
        bad = contrasted(at=4, objective_with=50.0, objective_without=53.0)
        void = contrasted(at=4, objective_with=None, objective_without=53.0)
        refused = given(*past, bad, void).when(advance(at=4))
        assert [check.name for check in refused.outcome.failures] == ["rehearsed_contribution"]
        good = contrasted(at=4, objective_with=53.0, objective_without=53.0)
        assert given(*past, bad, void, good).when(advance(at=4)).outcome.passed

    def test_improvement_counts_from_the_beginning_of_training_and_not_from_germination(self):
        waited = (*entered(Stage.GERMINATED), epoch(2, 60.0))
        past = (*waited, *given(*waited).when(advance(at=2)).events)
        lived = [epoch(number, 60.4, evidence()) for number in (3, 4, 5)]
        outcome = given(*past, *lived).when(advance(at=5)).outcome
        assert [check.name for check in outcome.failures] == ["improvement"]
        assert verdict(outcome, "improvement").measured == pytest.approx(0.4)

    @pytest.mark.parametrize("where", ["nonfinite_outputs", "nonfinite_gradients"])
    def test_values_that_are_not_finite_refuse_until_an_epoch_without_them(self, where):
        past = (*ready(Stage.TRAINING), epoch(5, 60.0, evidence(**{where: 2})))
        refused = given(*past).when(advance(at=5)).outcome
        assert [(c.name, c.measured) for c in refused.failures] == [("nonfinite_values", 2.0)]
        assert given(*past, epoch(6, 60.0, evidence())).when(advance(at=6)).outcome.passed

    def test_thresholds_come_from_the_policy(self):
        assert (
            judged(Gate.G2, policy=GatePolicy(g2=G2Policy(full_score_improvement=6.0))).score == 0.5
        )
        policy = GatePolicy(g2=G2Policy(min_improvement=4.0, min_epochs=1))
        assert [c.name for c in judged(Gate.G2, policy=policy).failures] == ["improvement"]
        assert judged(Gate.G2, policy=policy, run={"latest": 54.0}).passed


class TestG3:
    def test_wants_alpha_at_the_step_of_the_question(self):
        past = entered(Stage.BLENDING)  # ramps from step 40 to 70
        lived = [epoch(number, 54.0, evidence()) for number in (5, 6, 7)]
        outcome = given(*past, *lived).when(advance(at=7)).outcome
        assert outcome.passed
        assert outcome.score == 1.0

    @pytest.mark.parametrize(("alpha", "passes"), [(0.95, True), (0.9499, False), (0.0, False)])
    def test_takes_alpha_at_its_bound_and_scores_it(self, alpha, passes):
        policy = GatePolicy(g3=G3Policy(min_epochs=0))
        schedule = changed(seed_after(*ready(Stage.BLENDING)).schedule, end=alpha, steps=0)
        outcome = judged(Gate.G3, seed={"schedule": schedule}, policy=policy)
        assert outcome.passed is passes
        assert outcome.score == alpha
        assert verdict(outcome, "alpha").measured == alpha

    @pytest.mark.parametrize("target", [0.5, 0.1])
    def test_alpha_is_asked_for_relative_to_the_seed_s_target(self, target):
        policy = GatePolicy(g3=G3Policy(min_alpha=0.75, min_epochs=0))
        schedule = seed_after(*ready(Stage.BLENDING)).schedule
        for share, passes in ((0.75, True), (0.7499, False), (0.0, False)):
            reached = changed(schedule, end=share * target, steps=0)
            outcome = judged(Gate.G3, seed={"schedule": reached, "target": target}, policy=policy)
            check = measured_all_else_passing(outcome, "alpha")
            assert (check.measured, check.required) == (share * target, 0.75 * target)
            assert check.passed is passes
            assert outcome.score == pytest.approx(share)

    def test_a_target_that_is_reached_meets_even_the_strictest_bound(self):
        policy = GatePolicy(g3=G3Policy(min_alpha=1.0))
        for target in (0.1, 0.3, 1 / 3, 0.7, 5e-324, 1.0):
            schedule = changed(seed_after(*ready(Stage.BLENDING)).schedule, end=target)
            outcome = judged(Gate.G3, seed={"schedule": schedule, "target": target}, policy=policy)
            assert (outcome.passed, outcome.score) == (True, 1.0)

    def test_an_alpha_above_the_target_scores_no_more_than_one(self):
        schedule = changed(seed_after(*ready(Stage.BLENDING)).schedule, end=1.0, steps=0)
        outcome = judged(Gate.G3, seed={"schedule": schedule, "target": 0.25})
        assert (outcome.passed, outcome.score) == (True, 1.0)

    def test_a_paused_ramp_is_judged_where_it_stands(self):
        assert not judged(Gate.G3, seed={"paused_at": 40}).passed


class TestG4:
    @pytest.mark.parametrize(
        ("agreement", "score"), [(0.9, 0.9), (1.0, 1.0), (-0.4, 0.0), (None, 0.0), (NAN, 0.0)]
    )
    def test_scores_the_agreement(self, agreement, score):
        assert judged(Gate.G4, seed={"agreement": agreement}).score == score

    def test_refuses_a_slot_that_was_never_compared(self):
        lived = epoch(8, 57.0, evidence())
        refused = given(*entered(Stage.SHADOWING), lived).when(advance(at=8))
        assert {check.name: check.measured for check in refused.outcome.failures} == {
            "shadow_evaluations": 0.0,
            "agreement": None,
            "shadow_contribution": None,
        }

    def test_judges_by_the_last_comparison(self):
        past = (*entered(Stage.SHADOWING), epoch(8, 57.0, evidence()))
        poor, fine = shadowed(at=8, agreement=0.5), shadowed(at=8, agreement=0.95)
        assert given(*past, poor, fine).when(advance(at=8)).outcome.passed
        assert not given(*past, fine, poor).when(advance(at=8)).outcome.passed

    def test_the_tolerance_is_signed_by_the_objective(self):
        policy = GatePolicy(tolerance=0.5, g4=G4Policy(min_agreement=0.0))
        for objective, worse in ((ACCURACY, 55.4), (LOSS, 56.6)):
            past = (*entered(Stage.SHADOWING, objective), epoch(8, 57.0, evidence()))
            spoilt = shadowed(at=8, objective_with=worse, objective_without=56.0)
            outcome = given(*past, spoilt).when(advance(at=8), policy).outcome
            assert [check.name for check in outcome.failures] == ["shadow_contribution"]
            assert verdict(outcome, "shadow_contribution").measured == pytest.approx(-0.6)


class TestG5:
    def test_improvement_counts_from_germination(self):
        outcome = judged(Gate.G5)  # 50 when it germinated, 57 when PROBATIONARY began, 60 now
        assert verdict(outcome, "total_improvement").measured == 10.0
        half = GatePolicy(g5=G5Policy(full_score_improvement=20.0))
        assert judged(Gate.G5, policy=half).score == 0.5

    @pytest.mark.parametrize(("gain", "score"), [(1.0, 0.1), (10.0, 1.0), (-1.0, 0.0)])
    def test_scores_the_total_improvement_over_ten(self, gain, score):
        assert judged(Gate.G5, run={"latest": 50.0 + gain}).score == pytest.approx(score)

    def test_does_not_ask_for_a_contribution_that_was_not_measured(self):
        outcome = judged(Gate.G5, seed={"contribution": None})
        assert outcome.passed
        assert "contribution" not in [check.name for check in outcome.checks]

    def test_a_measurement_without_figures_does_not_erase_one_that_refused(self):
        harmful = contrasted(at=9, objective_with=50.0, objective_without=58.0)
        void = contrasted(at=9, objective_with=58.0, objective_without=None)
        refused = given(*ready(Stage.PROBATIONARY), harmful, void).when(advance(at=9))
        assert [check.name for check in refused.outcome.failures] == ["contribution"]

    def test_a_measurement_that_is_not_finite_refuses(self):
        harmful = contrasted(at=9, objective_with=NAN, objective_without=58.0)
        refused = given(*ready(Stage.PROBATIONARY), harmful).when(advance(at=9))
        (check,) = refused.outcome.failures
        assert check.name == "contribution"
        assert math.isnan(check.measured)

    @pytest.mark.parametrize(("share", "passes"), [(19, True), (18, False)])
    def test_stability_passes_at_its_bound(self, share, passes):
        objectives = (57.0,) * share + (40.0,) * (20 - share)
        outcome = judged(Gate.G5, slot={"objectives": objectives})
        assert verdict(outcome, "stability").measured == share / 20
        assert outcome.passed is passes

    def test_stability_is_not_measured_before_the_first_epoch(self):
        refused = given(*entered(Stage.PROBATIONARY)).when(advance(at=8))
        assert [(check.name, check.measured) for check in refused.outcome.failures] == [
            ("epochs_in_stage", 0.0),
            ("stability", None),
        ]

    def test_judges_the_mean_contribution_of_the_stage_and_not_its_luckiest_epoch(self):
        """As seen on digits: one good epoch after five bad ones."""
        past = entered(Stage.PROBATIONARY)
        lived = [
            event
            for at, contribution in enumerate((-1.0, -0.75, 0.0, -2.25, -2.0, 2.25), start=9)
            for event in (
                epoch(at, 60.0, evidence()),
                contrasted(at=at, objective_with=60.0 + contribution, objective_without=60.0),
            )
        ]
        refused = given(*past, *lived).when(advance(at=14))
        (check,) = refused.outcome.failures
        assert check.name == "contribution"
        assert check.measured == pytest.approx(-0.625)


class TestStability:
    def of(self, *objectives, start=50.0, objective=ACCURACY, tolerance=0.5):
        state = state_after(*entered(Stage.PROBATIONARY, objective))
        slot = changed(state.slot(SLOT), stage_baseline=start, objectives=objectives)
        return stability(slot, state, GatePolicy(tolerance=tolerance))

    def test_is_the_share_of_epochs_no_worse_than_the_start_by_the_tolerance(self):
        assert self.of(50.0, 49.5, 49.4, 60.0) == 0.75

    def test_has_the_sign_of_the_objective(self):
        assert self.of(50.0, 50.5, 50.6, 40.0, objective=LOSS) == 0.75

    def test_is_none_until_an_epoch_was_measured(self):
        assert self.of() is None
        assert self.of(None, None) is None

    def test_leaves_out_epochs_that_were_not_measured(self):
        assert self.of(50.0, None, 40.0) == 0.5

    @pytest.mark.parametrize("value", [NAN, INF, -INF])
    def test_counts_what_is_not_finite_as_worse(self, value):
        assert self.of(50.0, value) == 0.5

    def test_is_none_without_a_start_to_compare_with(self):
        assert self.of(NAN, start=None) is None


class TestChecksOfTheUserSOwn:
    @pytest.mark.parametrize("gate", STAGE_OF)
    @pytest.mark.parametrize(
        ("value", "passes"), [(3.0, True), (2.9, False), (NAN, False), (None, False)]
    )
    def test_join_the_gate_they_name(self, gate, value, passes):
        check = MetricCheck(
            gate=gate, metric="images_per_second", comparison=Comparison.AT_LEAST, required=3.0
        )
        metrics = {} if value is None else {"images_per_second": value}
        policy = GatePolicy(extra_checks=(check,))
        outcome = judged(gate, run={"metrics": metrics}, policy=policy)
        assert outcome.passed is passes
        assert measured_all_else_passing(outcome, "images_per_second").required == 3.0

    @pytest.mark.parametrize("gate", STAGE_OF)
    def test_do_not_join_another(self, gate):
        others = tuple(
            MetricCheck(gate=other, metric="x", comparison=Comparison.ABOVE, required=0.0)
            for other in Gate
            if other is not gate
        )
        assert judged(gate, policy=GatePolicy(extra_checks=others)).passed

    def test_read_the_metrics_of_the_last_epoch_alone(self):
        check = MetricCheck(gate=Gate.G1, metric="x", comparison=Comparison.ABOVE, required=0.0)
        policy = GatePolicy(extra_checks=(check,))
        past = entered(Stage.GERMINATED, policy=policy)
        first = epoch(2, 51.0, metrics=(Metric(name="x", value=1.0),))
        assert given(*past, first).when(advance(at=2)).outcome.passed
        assert not given(*past, first, epoch(3, 52.0)).when(advance(at=3)).outcome.passed


class TestBaselines:
    def test_are_none_until_measured(self):
        past = (opened(), slot_opened(), *germinated(at=0))
        state = state_after(*past)
        assert state.measured is state.slot(SLOT).stage_baseline is None
        assert seed_after(*past).baseline is None

    def test_come_from_the_first_measured_epoch_where_there_was_none(self):
        past = (opened(), slot_opened(), *germinated(at=0))
        unmeasured = (epoch(1, None), epoch(2, NAN))
        assert seed_after(*past, *unmeasured).baseline is None
        measured = (*past, *unmeasured, epoch(3, 60.0), epoch(4, 70.0))
        assert seed_after(*measured).baseline == 60.0
        assert state_after(*measured).slot(SLOT).stage_baseline == 60.0

    def test_come_from_the_last_finite_measurement_before_the_stage(self):
        past = (opened(), slot_opened(), epoch(1, 60.0), epoch(2, None), epoch(3, INF))
        state = state_after(*past, *germinated(at=3))
        assert state.slot(SLOT).stage_baseline == 60.0
        assert state.slot(SLOT).seed.baseline == 60.0

    @pytest.mark.parametrize("objective", [ACCURACY, LOSS], ids=["maximised", "minimised"])
    def test_improvement_has_the_sign_of_the_objective(self, objective):
        outcome = given(*ready(Stage.TRAINING, objective)).when(advance(at=4)).outcome
        assert verdict(outcome, "improvement").measured == 3.0

    @pytest.mark.parametrize("objective", [ACCURACY, LOSS], ids=["maximised", "minimised"])
    def test_getting_worse_is_a_negative_improvement(self, objective):
        worse = 40.0 if objective is ACCURACY else 60.0
        past = (*ready(Stage.TRAINING, objective), epoch(5, worse, evidence()))
        check = verdict(given(*past).when(advance(at=5)).outcome, "improvement")
        assert check.measured == -10.0
        assert not check.passed


def test_a_gate_cannot_judge_an_empty_slot():
    state = state_after(opened(), slot_opened())
    with pytest.raises(ValueError, match="holds no seed for G1 to judge"):
        evaluate(Gate.G1, state, state.slot(SLOT), POLICY, 0)


@pytest.mark.parametrize("gate", STAGE_OF)
def test_an_outcome_can_be_replayed_under_other_thresholds(gate):
    """Every check holds the figures that decided it, and no more is needed to decide again."""
    for check in judged(gate, policy=GatePolicy(g5=G5Policy(min_stability=1.0))).checks:
        assert check.comparison.holds(check.measured, check.required) is check.passed
