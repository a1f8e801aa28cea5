"""Values are valid when they are built, and "better" has one sign."""

import math

import pytest
from attrs import evolve as changed
from hypothesis import given as each
from hypothesis import strategies as st

from kasmina.domain.evidence import Comparison
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.objective import Direction, Objective
from kasmina.domain.policies import (
    G2Policy,
    G3Policy,
    G4Policy,
    G5Policy,
    GatePolicy,
    MetricCheck,
    Timeouts,
)
from kasmina.domain.schedules import BlendPlan
from kasmina.domain.stages import Blend, Gate, Incubator, Stage
from tests.domain.scenario import ACCURACY, LOSS, germinate

finite = st.floats(-1e300, 1e300)


class TestObjective:
    def test_more_accuracy_and_less_loss_are_better(self):
        assert ACCURACY.direction is Direction.MAXIMIZE
        assert ACCURACY.improvement(50.0, 51.5) == 1.5
        assert LOSS.direction is Direction.MINIMIZE
        assert LOSS.improvement(50.0, 51.5) == -1.5

    @each(finite, finite)
    def test_the_two_directions_mirror_each_other(self, before, after):
        assert ACCURACY.improvement(before, after) == -LOSS.improvement(before, after)
        assert ACCURACY.improvement(before, after) == LOSS.improvement(after, before)

    @pytest.mark.parametrize("objective", [ACCURACY, LOSS])
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_what_is_not_finite_is_never_an_improvement(self, objective, value):
        assert math.isnan(objective.improvement(1.0, value))
        assert math.isnan(objective.improvement(value, 1.0))

    @pytest.mark.parametrize("pair", [(None, 1.0), (1.0, None), (None, math.nan)])
    def test_what_was_not_measured_has_no_improvement(self, pair):
        assert ACCURACY.improvement(*pair) is None

    def test_it_has_a_name(self):
        with pytest.raises(ValueError, match="name must not be blank, got ' '"):
            Objective.maximize(" ")


class TestPolicy:
    def test_the_defaults_are_the_contract_s(self):
        policy = GatePolicy()
        assert (policy.g2.min_improvement, policy.g2.max_isolation_violations) == (0.5, 10)
        assert (policy.g2.min_epochs, policy.g2.full_score_improvement) == (3, 5.0)
        assert (policy.g3.min_alpha, policy.g3.min_epochs) == (0.95, 3)
        assert (policy.g4.min_shadow_evaluations, policy.g4.min_agreement) == (1, 0.9)
        assert (policy.g5.min_improvement, policy.g5.min_contribution) == (0.0, 0.0)
        assert (policy.g5.min_stability, policy.g5.full_score_improvement) == (0.95, 10.0)
        assert (policy.tolerance, policy.cull_ramp_epochs) == (0.5, 1.0)

    @pytest.mark.parametrize(
        "build",
        [
            lambda: G2Policy(max_isolation_violations=-1),
            lambda: G2Policy(full_score_improvement=0.0),
            lambda: G3Policy(min_alpha=1.1),
            lambda: G4Policy(min_shadow_evaluations=-1),
            lambda: G5Policy(min_stability=-0.1),
            lambda: G5Policy(full_score_improvement=math.nan),
            lambda: GatePolicy(tolerance=-0.1),
            lambda: GatePolicy(embargo_epochs=-1),
            lambda: GatePolicy(cull_ramp_epochs=-0.5),
            lambda: GatePolicy(cull_ramp_epochs=math.inf),
            lambda: Timeouts(training=0),
            lambda: MetricCheck(gate=Gate.G2, metric="", comparison=Comparison.ABOVE, required=0.0),
        ],
    )
    def test_thresholds_that_cannot_be_meant_are_not_built(self, build):
        with pytest.raises(ValueError, match="must"):
            build()


OUTSIDE = [0.0, -0.1, 1.0000001, math.nan, math.inf]


class TestPlans:
    def test_the_defaults_ramp_a_proximal_seed_up_to_the_seed_itself(self):
        incubation, blend = IncubationPlan(), BlendPlan()
        assert (incubation.incubator, incubation.penalty) == (Incubator.PROXIMAL, 3.0)
        assert (incubation.share, incubation.warmup_steps) == (0.25, 50)
        assert (blend.blend, blend.target, blend.search) == (Blend.LERP, 1.0, ())

    @pytest.mark.parametrize("value", OUTSIDE)
    def test_a_target_a_searched_alpha_and_a_share_lie_above_0_and_up_to_1(self, value):
        with pytest.raises(ValueError, match=r"target must lie in \(0, 1\], got"):
            BlendPlan(target=value)
        with pytest.raises(ValueError, match=r"search must lie in \(0, 1\], got"):
            BlendPlan(search=(0.5, value))
        with pytest.raises(ValueError, match=r"share must lie in \(0, 1\], got"):
            IncubationPlan(share=value)

    def test_a_search_is_a_tuple(self):
        with pytest.raises(TypeError, match=r"search must be of type tuple, got \[0.5, 1.0\]"):
            BlendPlan(search=[0.5, 1.0])

    @pytest.mark.parametrize("penalty", [0.0, -1.0, math.nan, math.inf])
    def test_a_penalty_is_above_0(self, penalty):
        with pytest.raises(ValueError, match="penalty must be finite and above 0"):
            IncubationPlan(penalty=penalty)

    def test_a_warm_up_is_no_shorter_than_nothing(self):
        assert IncubationPlan(warmup_steps=0).warmup_steps == 0
        with pytest.raises(ValueError, match="warmup_steps must be finite and at least 0"):
            IncubationPlan(warmup_steps=-1)


class TestStages:
    def test_ten_stages_have_the_contract_s_codes(self):
        names = (
            "DORMANT GERMINATED TRAINING BLENDING SHADOWING PROBATIONARY "
            "FOSSILIZED CULLED EMBARGOED RESETTING"
        )
        assert {stage.value: stage.code for stage in Stage} == {
            name: code for code, name in enumerate(names.split(), 1)
        }

    def test_a_seed_is_attached_from_germination_until_it_is_culled(self):
        assert {stage.value for stage in Stage if stage.holds_seed} == {
            *("GERMINATED", "TRAINING", "BLENDING", "SHADOWING", "PROBATIONARY", "FOSSILIZED"),
        }

    def test_a_seed_reaches_the_loss_from_blending_on(self):
        assert {stage.value for stage in Stage if stage.exposed} == {
            *("BLENDING", "SHADOWING", "PROBATIONARY", "FOSSILIZED"),
        }


@pytest.mark.parametrize(
    ("build", "problem"),
    [
        (
            lambda: Objective(name="loss", direction="minimize"),
            r"direction must be of type Direction \(MAXIMIZE, MINIMIZE\), got 'minimize'",
        ),
        (
            lambda: BlendPlan(curve="linear"),
            r"curve must be of type Curve \(SIGMOID, LINEAR, COSINE\)",
        ),
        (lambda: GatePolicy(g2={"min_epochs": 1}), r"g2 must be of type G2Policy, got \{"),
        (
            lambda: BlendPlan(blend="lerp"),
            r"blend must be of type Blend \(LERP, GATED, MULTIPLY\), got 'lerp'",
        ),
        (
            lambda: IncubationPlan(incubator="none"),
            r"of type Incubator \(STRAIGHT_THROUGH, PROXIMAL, REHEARSAL, NONE\), got 'none'",
        ),
        (
            lambda: IncubationPlan(incubator=Blend.LERP),
            "incubator must be of type Incubator",
        ),
        (
            lambda: changed(germinate(at=0), incubation=Incubator.NONE),
            "incubation must be of type IncubationPlan, got <Incubator.NONE",
        ),
    ],
)
def test_text_and_mappings_are_not_taken_for_what_they_name(build, problem):
    with pytest.raises(TypeError, match=problem):
        build()


def test_a_threshold_that_is_not_finite_is_no_threshold():
    with pytest.raises(ValueError, match="min_improvement must be finite, got nan"):
        G2Policy(min_improvement=float("nan"))
