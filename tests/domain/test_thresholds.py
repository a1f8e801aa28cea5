"""Thresholds by name: what can be said, what a policy becomes, and what is refused."""

import itertools
import math

import pytest
from attrs import evolve as changed
from attrs import fields
from hypothesis import given
from hypothesis import strategies as st

from kasmina.domain.evidence import Comparison
from kasmina.domain.policies import G2Policy, GatePolicy, MetricCheck, Timeouts
from kasmina.domain.stages import Gate
from kasmina.domain.thresholds import (
    InvalidThreshold,
    Sweep,
    Threshold,
    UnknownThreshold,
    in_force,
    thresholds_of,
    with_thresholds,
)

LOSS = MetricCheck(gate=Gate.G5, metric="val_loss", comparison=Comparison.AT_MOST, required=0.75)
ASKING = GatePolicy(extra_checks=(LOSS,))


def other(policy, *texts):
    return with_thresholds(policy, [Threshold.parse(text) for text in texts])


class TestNames:
    def test_every_number_by_which_a_gate_decides_has_a_name(self):
        assert sorted(thresholds_of(ASKING)) == [
            "G2.max_isolation_violations",
            "G2.min_epochs",
            "G2.min_improvement",
            "G2.min_rehearsed_contribution",
            "G3.min_alpha",
            "G3.min_epochs",
            "G4.min_agreement",
            "G4.min_shadow_evaluations",
            "G5.min_contribution",
            "G5.min_epochs",
            "G5.min_improvement",
            "G5.min_stability",
            "G5.val_loss",
            "timeouts.blending",
            "timeouts.germinated",
            "timeouts.probationary",
            "timeouts.shadowing",
            "timeouts.training",
            "tolerance",
        ]

    def test_no_field_of_the_policy_is_forgotten(self):
        """A new field must become a threshold, or be named among those that decide nothing."""
        known = {"g2", "g3", "g4", "g5", "timeouts", "tolerance", "extra_checks"}
        silent = {"embargo_epochs", "cull_ramp_epochs"}
        assert {field.name for field in fields(GatePolicy)} == known | silent

    def test_the_values_are_those_of_the_policy(self):
        named = thresholds_of(changed(ASKING, tolerance=2.5))
        assert named["tolerance"] == 2.5
        assert named["G3.min_alpha"] == 0.95
        assert named["timeouts.training"] is None
        assert named["G5.val_loss"] == 0.75


class TestReplacing:
    @pytest.mark.parametrize("name", sorted(thresholds_of(ASKING)))
    def test_replacing_one_leaves_all_others(self, name):
        wanted = 1.0 if name == "G3.min_alpha" else 1
        policy = other(ASKING, f"{name}={wanted}")
        assert thresholds_of(policy) == {**thresholds_of(ASKING), name: 1}

    @pytest.mark.parametrize("name", sorted(thresholds_of(ASKING)))
    def test_a_threshold_replaced_by_itself_is_the_same_policy(self, name):
        value = thresholds_of(ASKING)[name]
        same = with_thresholds(ASKING, [Threshold(name=name, value=value)])
        assert same == ASKING
        assert repr(same) == repr(ASKING)

    def test_several_at_once(self):
        policy = other(ASKING, "G2.min_improvement=1", "timeouts.training=5", "G5.val_loss=0.25")
        assert policy == changed(
            ASKING,
            g2=G2Policy(min_improvement=1.0),
            timeouts=Timeouts(training=5),
            extra_checks=(changed(LOSS, required=0.25),),
        )

    def test_none_lifts_a_time_out(self):
        limited = GatePolicy(timeouts=Timeouts(training=5))
        assert other(limited, "timeouts.training=none").timeouts.training is None

    def test_a_built_in_name_goes_before_a_metric_of_the_same_name(self):
        check = changed(LOSS, gate=Gate.G2, metric="min_improvement")
        policy = other(GatePolicy(extra_checks=(check,)), "G2.min_improvement=3")
        assert policy.g2.min_improvement == 3
        assert policy.extra_checks == (check,)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("G2.min_epochs=2.5", "min_epochs must be a whole number, got 2.5"),
            ("G2.min_epochs=inf", "min_epochs must be a whole number, got inf"),
            ("G2.min_epochs=-1", "min_epochs must be finite and at least 0, got -1"),
            ("G3.min_alpha=1.5", "min_alpha must lie in [0, 1], got 1.5"),
            ("G2.min_improvement=inf", "min_improvement must be finite, got inf"),
            ("tolerance=-1", "tolerance must be finite and at least 0, got -1.0"),
            ("tolerance=none", "tolerance needs a number, got none"),
            ("timeouts.training=0", "training must be finite and above 0, got 0"),
            ("G5.val_loss=none", "the check needs a number, got none"),
        ],
    )
    def test_a_value_that_the_policy_refuses_is_refused_by_name(self, text, said):
        with pytest.raises(InvalidThreshold) as raised:
            other(ASKING, text)
        assert raised.value.name == text.partition("=")[0]
        assert said in str(raised.value)

    def test_two_bounds_of_one_metric_cannot_be_told_apart(self):
        band = (LOSS, changed(LOSS, comparison=Comparison.ABOVE, required=0.1))
        with pytest.raises(InvalidThreshold, match="asks for this metric more than once"):
            other(GatePolicy(extra_checks=band), "G5.val_loss=0.5")

    @pytest.mark.parametrize(
        ("name", "nearest"),
        [("G2.min_improvment", "G2.min_improvement"), ("G5.val_los", "G5.val_loss")],
    )
    def test_an_unknown_name_gets_the_nearest_ones(self, name, nearest):
        with pytest.raises(UnknownThreshold, match="there is no threshold") as raised:
            other(ASKING, f"{name}=1")
        assert nearest in raised.value.nearest

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("G2.full_score_improvement", "it scales a score"),
            ("G5.full_score_improvement", "it scales a score"),
            ("embargo_epochs", "no gate asks for it"),
            ("cull_ramp_epochs", "no gate asks for it"),
        ],
    )
    def test_what_decides_nothing_is_refused_and_says_so(self, name, said):
        with pytest.raises(InvalidThreshold, match=said):
            other(ASKING, f"{name}=1")


class TestInForce:
    def test_each_value_once_and_only_where_the_policy_has_it(self):
        policies = [GatePolicy(), ASKING, changed(ASKING, tolerance=1.0)]
        asked = [Threshold(name="tolerance", value=0), Threshold(name="G5.val_loss", value=0)]
        assert in_force(policies, asked) == {"tolerance": (0.5, 1.0), "G5.val_loss": (0.75,)}

    def test_a_name_that_no_policy_has_is_unknown(self):
        with pytest.raises(UnknownThreshold) as raised:
            in_force([GatePolicy(), ASKING], [Threshold(name="G5.val_lost", value=0)])
        assert "G5.val_loss" in raised.value.nearest

    def test_what_decides_nothing_is_no_unknown_name(self):
        with pytest.raises(InvalidThreshold, match="embargo_epochs"):
            in_force([ASKING], [Threshold(name="embargo_epochs", value=1)])

    def test_one_threshold_cannot_have_two_values(self):
        twice = [Threshold(name="tolerance", value=value) for value in (0, 1)]
        with pytest.raises(InvalidThreshold, match="given more than once"):
            in_force([ASKING], twice)


class TestText:
    @pytest.mark.parametrize(
        ("text", "name", "value"),
        [
            ("G2.min_improvement=1.0", "G2.min_improvement", 1.0),
            (" tolerance = 1e-3 ", "tolerance", 0.001),
            ("timeouts.training=none", "timeouts.training", None),
            ("G5.a=b=-2", "G5.a=b", -2.0),
        ],
    )
    def test_a_threshold(self, text, name, value):
        assert Threshold.parse(text) == Threshold(name=name, value=value)

    @pytest.mark.parametrize("text", ["tolerance", "tolerance=", "=1", "", "tolerance=x", "a=nan"])
    def test_what_is_no_threshold(self, text):
        with pytest.raises(InvalidThreshold):
            Threshold.parse(text)

    @pytest.mark.parametrize(
        ("text", "values"),
        [
            ("t=0:3:0.75", (0.0, 0.75, 1.5, 2.25, 3.0)),
            ("t=0:1:0.4", (0.0, 0.4, 0.8)),
            ("t=0.1:0.3:0.1", (0.1, 0.2, 0.3)),
            ("t=2:0:-1", (2.0, 1.0, 0.0)),
            ("t=1:1:5", (1.0,)),
            ("t=3,none, 1.5", (3.0, None, 1.5)),
        ],
    )
    def test_a_sweep(self, text, values):
        assert Sweep.parse(text) == Sweep(name="t", values=values)

    @pytest.mark.parametrize(
        "text",
        [
            "t=0:3",
            "t=0:3:0",
            "t=0:3:-1",
            "t=0:0.5:-1",
            "t=0:x:1",
            "t=0:inf:1",
            "t=0:nan:1",
            "t=0:1:1e-9",
            "t=0:1e999999:1e-999999",
            "t=1,,2",
            "t=",
            "0:3:1",
        ],
    )
    def test_what_is_no_sweep(self, text):
        with pytest.raises(InvalidThreshold):
            Sweep.parse(text)

    def test_a_sweep_of_nothing_cannot_be_built(self):
        with pytest.raises(ValueError, match="values"):
            Sweep(name="t", values=())

    def test_a_sweep_is_a_threshold_for_each_value(self):
        swept = Sweep(name="t", values=(1.0, None))
        assert swept.thresholds == (Threshold(name="t", value=1.0), Threshold(name="t", value=None))

    @given(start=st.integers(-50, 50), steps=st.integers(0, 99), step=st.integers(1, 40))
    def test_a_range_goes_from_end_to_end_by_equal_steps(self, start, steps, step):
        low, high, by = start / 100, (start + steps * step) / 100, step / 100
        values = Sweep.parse(f"t={low}:{high}:{by}").values
        assert len(values) == steps + 1
        assert (values[0], values[-1]) == (low, high)
        assert all(math.isclose(b - a, by) for a, b in itertools.pairwise(values))
