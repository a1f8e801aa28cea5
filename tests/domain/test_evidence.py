"""Evidence is numbers, and its verdicts follow from them."""

import math

import pytest
from hypothesis import given as each
from hypothesis import strategies as st

from kasmina.domain.evidence import (
    Check,
    Comparison,
    GateOutcome,
    HostDescription,
    Metric,
    Probe,
    SeedEvidence,
    Violation,
)
from kasmina.domain.stages import Gate, Leak

BOUNDED = [comparison for comparison in Comparison if comparison is not Comparison.FINITE]
NOT_FINITE = [math.nan, math.inf, -math.inf]
numbers = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize(
    ("comparison", "below", "equal", "above"),
    [
        (Comparison.AT_LEAST, False, True, True),
        (Comparison.AT_MOST, True, True, False),
        (Comparison.ABOVE, False, False, True),
        (Comparison.BELOW, True, False, False),
        (Comparison.EQUAL, False, True, False),
    ],
)
def test_a_comparison_is_the_sign_it_shows(comparison, below, equal, above):
    required = 0.5
    measured = (math.nextafter(0.5, 0), 0.5, math.nextafter(0.5, 1))
    assert [comparison.holds(value, required) for value in measured] == [below, equal, above]


@pytest.mark.parametrize("comparison", Comparison)
@pytest.mark.parametrize("measured", [None, *NOT_FINITE])
def test_nothing_holds_for_what_was_not_measured_or_is_not_finite(comparison, measured):
    assert not comparison.holds(measured, 0.0)


def test_finite_needs_no_bound_and_the_others_do():
    assert Comparison.FINITE.holds(-1e300, None)
    for comparison in BOUNDED:
        with pytest.raises(ValueError, match="needs a required value"):
            comparison.holds(1.0, None)


@each(st.sampled_from(BOUNDED), numbers, numbers)
def test_a_margin_is_negative_only_where_the_check_failed(comparison, measured, required):
    check = Check.of("figure", measured, comparison, required)
    if comparison is Comparison.EQUAL:
        assert check.margin is None
    elif check.passed:
        assert check.margin >= 0
    else:
        assert check.margin <= 0


@pytest.mark.parametrize(("measured", "required"), [(None, 1.0), (1.0, None)])
def test_there_is_no_margin_without_two_figures(measured, required):
    check = Check(
        name="x", measured=measured, comparison=Comparison.ABOVE, required=required, passed=False
    )
    assert check.margin is None


@pytest.mark.parametrize("measured", NOT_FINITE)
def test_a_non_finite_figure_is_kept_as_it_was(measured):
    check = Check.of("loss", measured, Comparison.AT_MOST, 1.0)
    assert not check.passed
    assert check.measured is measured


@each(st.floats())
def test_a_score_always_lies_in_the_unit_interval(score):
    outcome = GateOutcome.of(Gate.G2, (), score)
    assert 0.0 <= outcome.score <= 1.0
    if 0.0 <= score <= 1.0:
        assert outcome.score == score


def test_an_outcome_passes_when_all_of_its_checks_do_and_names_those_that_do_not():
    fine = Check.of("fine", 1.0, Comparison.ABOVE, 0.0)
    poor = Check.of("poor", -1.0, Comparison.ABOVE, 0.0)
    assert GateOutcome.of(Gate.G5, (fine,), 1.0).passed
    mixed = GateOutcome.of(Gate.G5, (fine, poor), 1.0)
    assert not mixed.passed
    assert mixed.failures == (poor,)


class TestProbe:
    def test_says_whether_shape_and_dtype_are_preserved(self):
        probe = Probe(
            input_shape=(1, 8), output_shape=(1, 8), input_dtype="bfloat16", output_dtype="float32"
        )
        assert probe.preserves_shape is True
        assert probe.preserves_dtype is False

    def test_does_not_guess_what_was_not_probed(self):
        assert Probe().preserves_shape is None
        assert Probe().preserves_dtype is None


@pytest.mark.parametrize(
    "build",
    [
        lambda: Check.of(" ", 1.0, Comparison.ABOVE, 0.0),
        lambda: Metric(name="", value=1.0),
        lambda: GateOutcome(gate=Gate.G0, passed=True, score=1.1, checks=()),
        lambda: Probe(trainable_parameters=-1),
        lambda: Violation(leak=Leak.GRADIENT, count=-1, subject="conv1.weight"),
        lambda: HostDescription(kind="x", parameters=-1, digest=""),
        lambda: SeedEvidence(slot_id="a", seed_id="b", alpha=math.nan),
        lambda: SeedEvidence(slot_id="a", seed_id="b", alpha=0.5, nonfinite_outputs=-1),
        lambda: SeedEvidence(slot_id="a", seed_id="b", alpha=0.5, nonfinite_gradients=-1),
    ],
)
def test_a_value_is_valid_when_it_is_built(build):
    with pytest.raises(ValueError, match=r"must (not be|be|lie)"):
        build()
