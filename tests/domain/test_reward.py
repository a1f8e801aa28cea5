"""What a policy is paid for, term by term."""

import pytest
from attrs import fields

from kasmina.domain import events as e
from kasmina.domain.evolve import replay
from kasmina.domain.reward import Reward, RewardWeights, reward
from kasmina.domain.stages import Stage
from kasmina.testing import given
from tests.domain.scenario import (
    advance,
    cull,
    cull_scheduled,
    entered,
    epoch,
    germinated,
    ready,
    seed_culled,
    slot_opened,
    state_after,
)

WEIGHTS = RewardWeights(gate_passage=1.0, fossilization=10.0, culling=2.0, compute_rent=0.5)


def paid(past, event, weights=WEIGHTS):
    return reward(state_after(*past), event, weights)


def earned(past, events, weights=WEIGHTS):
    """The rewards of a decision's events, each after the state before it."""
    return [reward(replay((*past, *events[:n])), event, weights) for n, event in enumerate(events)]


def test_the_terms_are_named_and_the_total_is_their_sum():
    assert [field.name for field in fields(Reward)] == [
        "gate_passage",
        "fossilization",
        "culling",
        "compute_rent",
    ]
    assert [field.name for field in fields(RewardWeights)] == [f.name for f in fields(Reward)]
    total = Reward(gate_passage=1.0, fossilization=2.0, culling=-4.0, compute_rent=-0.5).total
    assert total == -1.5


def test_a_passed_gate_is_a_bonus_and_a_refusal_is_nothing():
    past = ready(Stage.TRAINING)
    passed = given(*past).when(advance(at=4)).events
    assert earned(past, passed) == [Reward(gate_passage=1.0), Reward(), Reward()]
    refused = given(*entered(Stage.TRAINING)).when(advance(at=1)).events
    assert earned(entered(Stage.TRAINING), refused) == [Reward()]


def test_fossilization_is_large():
    past = ready(Stage.PROBATIONARY)
    rewards = earned(past, given(*past).when(advance(at=11)).events)
    assert rewards == [Reward(gate_passage=1.0), Reward(fossilization=10.0), Reward()]


def test_a_cull_costs_once_when_it_happens_and_not_when_it_is_planned():
    past = ready(Stage.SHADOWING)
    assert paid(past, cull_scheduled(at=8)) == Reward()
    rewards = earned(past, given(*past).when(cull(at=8)).events)
    assert rewards == [Reward(culling=-2.0), Reward()]
    assert paid(past, seed_culled(at=8)).total == -2.0


def test_rent_is_due_for_every_epoch_in_proportion_to_the_attached_parameters():
    past = entered(Stage.TRAINING)
    assert paid(past, epoch(2, None)).compute_rent == pytest.approx(-0.5 * 100 / 1000)
    more = (*past, slot_opened("layer3"), *germinated(at=1, slot_id="layer3", seed_id="seed-2"))
    assert paid(more, epoch(2, None)).total == pytest.approx(-0.5 * 200 / 1000)


@pytest.mark.parametrize("stage", Stage)
def test_rent_is_due_only_while_a_seed_is_attached(stage):
    past = entered(stage)
    rent = paid(past, epoch(past[-1].epoch + 1, None)).compute_rent
    assert (rent < 0) is stage.holds_seed


def test_the_rest_is_not_paid():
    assert paid(entered(Stage.DORMANT), e.RunClosed(epoch=0, step=0)).total == 0.0


def test_a_penalty_s_weight_is_positive():
    with pytest.raises(ValueError, match="culling must be finite and at least 0"):
        RewardWeights(culling=-1.0)
