"""A slot as an observation: named features in a fixed, documented order."""

import math

import pytest
from attrs import evolve as changed
from attrs import fields

from kasmina.domain import events as e
from kasmina.domain.errors import UnknownSlot
from kasmina.domain.evidence import HostDescription
from kasmina.domain.observation import NOT_EVALUATED, Observation, observe
from kasmina.domain.stages import Gate, Stage
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
    opened,
    paused,
    ready,
    recycled,
    slot_opened,
    state_after,
)

ORDER = (
    *("stage", "epochs_in_stage", "alpha", "improvement"),
    *("g0", "g1", "g2", "g3", "g4", "g5"),
    *(f"g{n}_evaluated" for n in range(6)),
    *("contribution", "contribution_measured", "relative_parameters"),
)
CODES = {
    "DORMANT": 1,
    "GERMINATED": 2,
    "TRAINING": 3,
    "BLENDING": 4,
    "SHADOWING": 5,
    "PROBATIONARY": 6,
    "FOSSILIZED": 7,
    "CULLED": 8,
    "EMBARGOED": 9,
    "RESETTING": 10,
}


def seen(*events):
    return observe(state_after(*events), SLOT)


def test_the_order_of_the_vector_is_the_order_of_the_names():
    assert tuple(field.name for field in fields(Observation)) == ORDER
    numbered = Observation(**{name: float(n) for n, name in enumerate(ORDER)})
    assert list(numbered.vector()) == [float(n) for n in range(19)]


def test_every_feature_is_documented():
    for name in ORDER:
        assert name in Observation.__doc__ or name.startswith("g") or name.endswith("_measured")


def test_the_vector_is_nineteen_float32_that_others_can_read_without_a_copy():
    view = memoryview(seen(*ready(Stage.BLENDING)).vector())
    assert (view.format, view.shape, view.itemsize) == ("f", (19,), 4)


@pytest.mark.parametrize("stage", Stage)
def test_a_stage_has_its_code(stage):
    assert seen(*entered(stage)).stage == CODES[stage.value]


def test_an_empty_slot_is_all_zeros_but_for_its_stage():
    vector = list(seen(opened(), slot_opened()).vector())
    assert vector == [1.0] + [0.0] * 18


@pytest.mark.parametrize("objective", [ACCURACY, LOSS], ids=["maximised", "minimised"])
def test_the_first_four_are_the_seed_system_s(objective):
    observation = seen(*ready(Stage.BLENDING, objective))
    assert list(observation.vector())[:4] == [4.0, 3.0, 1.0, 3.0]


def test_alpha_is_that_of_the_run_s_last_step():
    past = (*entered(Stage.BLENDING), e.GatePolicyChanged(epoch=4, step=55, policy=opened().policy))
    assert seen(*past).alpha == 0.5
    assert seen(*past[:-1], paused(at=4), past[-1]).alpha == 0.0


def test_gates_that_were_not_evaluated_are_masked():
    observation = seen(*ready(Stage.TRAINING))
    vector = list(observation.vector())
    assert vector[4:10] == [1.0, 1.0, *[NOT_EVALUATED] * 4]
    assert vector[10:16] == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_a_refusing_gate_shows_its_score_too():
    lived = [epoch(n, 50.0 + 0.1, evidence()) for n in (2, 3, 4)]
    refused = given(*entered(Stage.TRAINING), *lived).when(advance(at=4))
    assert not refused.outcome.passed
    observation = observe(refused.state, SLOT)
    assert observation.g2 == refused.outcome.score == pytest.approx(0.02)
    assert observation.g2_evaluated == 1.0


def test_a_contribution_has_its_mask():
    assert (
        seen(*entered(Stage.SHADOWING)).contribution,
        seen(*entered(Stage.SHADOWING)).contribution_measured,
    ) == (0.0, 0.0)
    nought = contrasted(at=7, objective_with=50.0, objective_without=50.0)
    observation = seen(*entered(Stage.SHADOWING), nought)
    assert (observation.contribution, observation.contribution_measured) == (0.0, 1.0)
    worth = contrasted(at=7, objective_with=52.0, objective_without=50.0)
    assert seen(*entered(Stage.SHADOWING), worth).contribution == 2.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_feature_is_ever_anything_but_finite(value):
    broken = contrasted(at=9, objective_with=value, objective_without=50.0)
    observation = seen(*ready(Stage.PROBATIONARY), epoch(10, value, evidence()), broken)
    assert all(math.isfinite(feature) for feature in observation.vector())
    assert observation.contribution_measured == 0.0
    assert observation.improvement == 0.0


def test_parameters_are_relative_to_the_host():
    past = entered(Stage.TRAINING)
    assert seen(*past).relative_parameters == 0.1
    empty = changed(opened(), host=HostDescription(kind="empty", parameters=0, digest=""))
    assert seen(empty, *past[1:]).relative_parameters == 100.0


def test_a_recycled_slot_shows_no_seed():
    observation = seen(*recycled())
    assert (observation.stage, observation.alpha, observation.relative_parameters) == (1.0, 0, 0)


def test_an_unknown_slot_is_named():
    with pytest.raises(UnknownSlot, match="layer2"):
        observe(state_after(opened(), slot_opened()), "layer")


def test_every_gate_has_a_score_and_a_mask():
    for gate in Gate:
        assert gate.value.lower() in ORDER
        assert f"{gate.value.lower()}_evaluated" in ORDER
