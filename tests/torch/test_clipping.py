"""A loop that clips the whole model clips its host as if no seed were learning in it."""

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad, clip_grad_norm_

from kasmina.adapters.torch import clipping
from kasmina.domain.projections import SlotView
from kasmina.domain.stages import Stage
from tests.torch.continuity import (
    BORN,
    BOUND,
    CLIPS,
    Alone,
    assert_same,
    clip_whole,
)


def clipped_by(arm, clip):
    """Let the arm clip so, and note the norm that its loop is told."""

    def step():
        arm.optimizer.zero_grad()
        loss = arm.loss()
        loss.backward()
        arm.losses += [loss.detach(), clip(arm)]
        arm.optimizer.step()

    arm.step = step
    return arm


@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
class TestWhileASeedIsInTraining:
    def test_the_host_and_the_norm_that_its_loop_sees_are_as_without_it(self, clip, grown):
        alone, seeded = clipped_by(Alone(), clip), clipped_by(grown(), clip)
        alone.train()
        seeded.train()
        assert alone.losses[1] > BOUND
        assert_same(alone, seeded)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*:UserWarning:torch")
def test_a_compiled_clip_leaves_the_host_as_alone_too(grown):
    torch.compiler.reset()
    compiled = torch.compile(lambda all_of_it: clip_grad_norm_(all_of_it, BOUND), backend="eager")
    alone = clipped_by(Alone(), clip_whole)
    seeded = clipped_by(grown(), lambda arm: compiled(list(arm.model.parameters())))
    alone.train()
    seeded.train()
    assert_same(alone, seeded)


def test_without_this_the_seed_would_shrink_its_hosts_steps(grown, monkeypatch):
    alone, seeded = clipped_by(Alone(), clip_whole), clipped_by(grown(), clip_whole)
    monkeypatch.setattr(clipping, "follow", lambda slot: None)
    alone.train()
    seeded.train()
    assert seeded.losses[2 * BORN + 1] > alone.losses[2 * BORN + 1]


@pytest.mark.parametrize("kind", [1.0, 2.0, torch.inf])
def test_a_seed_is_clipped_as_when_the_loop_clips_apart(kind, grown):
    seeds = []
    for clip in (
        lambda arm: clip_grad_norm_(arm.model.parameters(), BOUND, kind),
        lambda arm: arm.slots.clip_grad_norm_(BOUND, kind),
    ):
        arm = clipped_by(grown(gone=None), clip)
        arm.train()
        seeds.append(list(arm.slots.seed_parameters()))
    assert all(map(torch.equal, *seeds))


class Seeded:
    """A slot with a seed, and a host, with gradients of norm 4 and 3."""

    def __init__(self, slots, stage):
        self.host, self.slot = nn.Parameter(torch.zeros(9)), slots["0"]
        self.slot.attach(nn.Linear(4, 4, bias=False))
        self.seed = self.slot.seed.weight
        self.show(stage)
        self.host.grad, self.seed.grad = torch.ones(9), torch.ones(4, 4)

    def show(self, stage, *, learning=True):
        behaviour = SlotView(slot_id="0").behaviour
        self.slot.follow(
            SlotView(slot_id="0", stage=stage, behaviour=behaviour, learning=learning), 0
        )
        clipping.follow(self.slot)

    def clip(self, bound=1.0):
        norm = clip_grad_norm_([self.host, self.seed], bound).item()
        return norm, self.host.grad.norm().item(), self.seed.grad.norm().item()


class TestASeed:
    @pytest.fixture
    def slots(self, grown):
        return grown().slots

    def test_is_clipped_by_its_own_norm_while_it_is_in_training(self, slots):
        assert Seeded(slots, Stage.TRAINING).clip() == pytest.approx((3.0, 1.0, 1.0), abs=1e-5)

    @pytest.mark.parametrize("stage", [Stage.BLENDING, Stage.SHADOWING, Stage.FOSSILIZED])
    def test_that_the_host_sees_is_clipped_with_it(self, stage, slots):
        assert Seeded(slots, stage).clip() == pytest.approx((5.0, 0.6, 0.8), abs=1e-5)

    def test_leaves_incubation_with_its_stage(self, slots):
        seeded = Seeded(slots, Stage.TRAINING)
        seeded.show(Stage.BLENDING)
        assert seeded.clip() == pytest.approx((5.0, 0.6, 0.8), abs=1e-5)

    def test_alone_is_clipped_as_ever(self, slots):
        seeded = Seeded(slots, Stage.TRAINING)
        assert clip_grad_norm_(seeded.seed, 1.0).item() == pytest.approx(4.0)
        assert seeded.seed.grad.norm().item() == pytest.approx(1.0, abs=1e-5)

    def test_that_is_not_finite_leaves_its_hosts_gradient_finite(self, slots):
        seeded = Seeded(slots, Stage.TRAINING)
        seeded.seed.grad.fill_(torch.nan)
        norm = clip_grad_norm_([seeded.host, seeded.seed], 1.0, error_if_nonfinite=True)
        assert norm.item() == pytest.approx(3.0)
        assert seeded.host.grad.norm().item() == pytest.approx(1.0, abs=1e-5)

    def test_without_a_gradient_is_passed_over(self, slots):
        seeded = Seeded(slots, Stage.TRAINING)
        seeded.seed.grad = None
        assert clip_grad_norm_([seeded.host, seeded.seed], 1.0).item() == pytest.approx(3.0)


class TestTorchsOwnFunctions:
    def test_are_taken_part_in_once(self, grown):
        grown()
        before = clip_grad._get_total_norm, nn.utils.get_total_norm
        clipping.attend()
        assert (clip_grad._get_total_norm, nn.utils.get_total_norm) == before

    def test_clip_a_tensor_twice_that_is_given_twice_as_ever(self, grown):
        grown()
        parameter = nn.Parameter(torch.zeros(4))
        parameter.grad = torch.ones(4)
        nn.utils.clip_grads_with_norm_([parameter, parameter], 1.0, torch.tensor(2.0))
        assert torch.allclose(parameter.grad, torch.full((4,), 0.25))
