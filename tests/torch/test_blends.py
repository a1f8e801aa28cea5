"""The blends beside lerp: the documented formulas, exact at their ends, deaf to a broken seed."""

import math
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kasmina.adapters.torch import finite, ops
from kasmina.adapters.torch.germination import sprout
from kasmina.adapters.torch.graft import graft
from kasmina.adapters.torch.hosts import GPTHost
from kasmina.adapters.torch.mixer import Mixer
from kasmina.adapters.torch.slot import SeedSlot, Sprout
from kasmina.domain.evidence import Probe
from kasmina.domain.projections import Behaviour, SlotView
from kasmina.domain.schedules import held
from kasmina.domain.stages import Blend, SeedInput, Topology
from tests.torch.bits import DTYPES, NONFINITE, as_on_a_device, same_bits, with_signed_zeros

BLENDS = [Blend.GATED, Blend.MULTIPLY]
SHAPES = {Topology.CNN: (3, 8, 4, 4), Topology.TRANSFORMER: (3, 5, 8)}
POSITIONS = {Topology.CNN: (2, 3), Topology.TRANSFORMER: (1,)}

somewhere = pytest.mark.parametrize("place", [nullcontext, as_on_a_device], ids=["cpu", "device"])


class Pointwise(nn.Module):
    """``rule(gain * x)``: a seed for features of every shape."""

    def __init__(self, rule=torch.tanh):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.rule = rule

    def forward(self, x):
        return self.rule(self.gain * x)


class DoublingInPlace(nn.Module):
    """Writes to what it is given."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.gain * x.mul_(2.0)


def mixer_of(topology):
    """With weights that tell samples apart."""
    mixer = Mixer(topology, 8)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        mixer.logit.weight.copy_(torch.randn(1, 8, generator=generator))
        mixer.logit.bias.fill_(0.3)
    return mixer


def make(
    blend,
    alpha,
    *,
    seed=None,
    topology=Topology.CNN,
    dtype=torch.float32,
    seed_input=SeedInput.OPEN,
):
    """A slot that blends as asked."""
    slot = SeedSlot("s", topology=topology, width=8)
    mixer = mixer_of(topology) if blend is Blend.GATED else None
    module = seed or Pointwise()
    slot.attach(Sprout(module=module, probe=Probe(), parameters=1, stream=None, mixer=mixer))
    slot.to(dtype)
    slot.follow(
        SlotView(
            slot_id="s",
            behaviour=Behaviour.BLEND,
            seed_input=seed_input,
            learning=True,
            blend=blend,
            schedule=held(alpha),
        ),
        0,
    )
    return slot


def plainly(blend, slot, x, alpha):
    """The formulas of the documentation, and nothing else."""
    seed = slot.seed(x)
    if blend is Blend.MULTIPLY:
        return x * (1 + alpha * torch.tanh(seed - x))
    logit = slot.mixer.logit(x.mean(POSITIONS[slot.topology]))
    share = torch.sigmoid(logit).view(-1, *[1] * (x.dim() - 1))
    return x + alpha * share * (seed - x)


@somewhere
@pytest.mark.parametrize("topology", SHAPES)
@pytest.mark.parametrize("blend", BLENDS)
@given(alpha=st.floats(1e-6, 1.0), draw=st.integers(0, 2**31))
@settings(max_examples=12)
def test_value_and_every_gradient_are_those_of_the_formula(blend, topology, place, alpha, draw):
    slot = make(blend, alpha, topology=topology, dtype=torch.float64)
    x = with_signed_zeros(*SHAPES[topology], draw=draw, dtype=torch.float64).requires_grad_()
    tensors = [x, *slot.seed_parameters()]
    with place():
        told = slot(x)
        gradients = torch.autograd.grad(told.square().sum(), tensors)
    expected = plainly(blend, slot, x, slot.alpha)
    torch.testing.assert_close(told, expected)
    by_hand = torch.autograd.grad(expected.square().sum(), tensors)
    for ours, theirs in zip(gradients, by_hand, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("blend", BLENDS)
def test_their_gradients_are_those_of_their_values(blend):
    slot = make(blend, 0.4, dtype=torch.float64)
    x = torch.randn(2, 8, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(slot, (x,))


@somewhere
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blend", BLENDS)
def test_at_alpha_0_each_is_the_host_bit_for_bit_and_so_is_its_gradient(blend, dtype, place):
    slot = make(blend, 0.0, dtype=dtype)
    x = with_signed_zeros(*SHAPES[Topology.CNN], dtype=dtype).requires_grad_()
    gradient = with_signed_zeros(*x.shape, draw=1, dtype=dtype)
    with place():
        out = slot(x)
        out.backward(gradient)
    assert same_bits(out, x)
    assert same_bits(x.grad + 0.0, gradient + 0.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blend", BLENDS)
def test_a_cpu_and_a_device_give_the_same_bits(blend, dtype):
    results = []
    for place in (nullcontext, as_on_a_device):
        slot = make(blend, 0.6, dtype=dtype)
        x = with_signed_zeros(*SHAPES[Topology.CNN], dtype=dtype).requires_grad_()
        with place():
            out = slot(x)
            out.backward(with_signed_zeros(*x.shape, draw=1, dtype=dtype))
        results.append([out, x.grad + 0.0, *(p.grad + 0.0 for p in slot.seed_parameters())])
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


@somewhere
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("value", NONFINITE)
@pytest.mark.parametrize("blend", BLENDS)
def test_a_seed_that_is_not_finite_reaches_neither_output_nor_gradient(blend, value, alpha, place):
    slot = make(blend, alpha, seed=Pointwise(lambda x: torch.where(x > 1, value * x, x)))
    x = with_signed_zeros(*SHAPES[Topology.CNN]).requires_grad_()
    gradient = torch.randn(x.shape)
    with place():
        out = slot(x)
        out.backward(gradient)
    assert same_bits(out, x)
    assert torch.equal(x.grad, gradient)
    assert slot.nonfinite_outputs == 1


@somewhere
def test_a_gate_weighs_the_features_and_not_what_a_writing_seed_leaves_of_them(place):
    slot = make(Blend.GATED, 0.5, seed=DoublingInPlace())
    slot.writes = True  # as a watched forward finds
    slot.choose()
    x = with_signed_zeros(*SHAPES[Topology.CNN])
    share = slot.mixer(x)
    with place():
        out = slot(x.clone())
    torch.testing.assert_close(out, torch.lerp(x, 2 * x, 0.5 * share))


@somewhere
@pytest.mark.parametrize("value", NONFINITE)
def test_a_mixer_that_is_not_finite_reaches_neither_output_nor_gradient(value, place):
    slot = make(Blend.GATED, 0.5)
    nn.init.constant_(slot.mixer.logit.weight, value)
    x = with_signed_zeros(*SHAPES[Topology.CNN]).requires_grad_()
    gradient = torch.randn(x.shape)
    with place():
        out = slot(x)
        out.backward(gradient)
    assert out.isfinite().all()
    assert x.grad.isfinite().all()
    if math.isnan(value):
        assert same_bits(out, x)
        assert torch.equal(x.grad, gradient)
        assert slot.mixer.logit.weight.grad.isnan().any(), "for the monitor to see"


@somewhere
@pytest.mark.parametrize("blend", [*BLENDS, Blend.LERP])
def test_an_infinite_gradient_out_of_a_finite_seed_stops_before_the_host(blend, place):
    slot = make(
        blend, 0.5, seed=Pointwise(lambda x: (x - x).sqrt())
    )  # value 0, derivative infinite
    x = torch.randn(SHAPES[Topology.CNN]).requires_grad_()
    with place():
        slot(x).sum().backward()
    assert not slot.seed.gain.grad.isfinite()
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("blend", BLENDS)
def test_with_its_input_detached_the_seed_tells_the_host_nothing(blend):
    """What remains is the derivative by the host's own features in the formula."""
    slot = make(blend, 0.5, seed_input=SeedInput.DETACHED, dtype=torch.float64)
    x = torch.randn(SHAPES[Topology.CNN], dtype=torch.float64, requires_grad=True)
    (told,) = torch.autograd.grad(slot(x).sum(), x)
    seed = slot.seed(x).detach()
    if blend is Blend.MULTIPLY:
        change = torch.tanh(seed - x)
        expected = 1 + 0.5 * (change - x * (1 - change**2))
    else:
        expected = (1 - 0.5 * slot.mixer(x)).expand_as(x)
    torch.testing.assert_close(told, expected)


@pytest.mark.parametrize("blend", BLENDS)
def test_the_host_may_go_on_in_place(blend):
    slot = make(blend, 0.5)
    leaf = torch.randn(SHAPES[Topology.CNN], requires_grad=True)
    slot(leaf * 1).relu_().sum().backward()
    kept, leaf.grad = leaf.grad, None
    slot(leaf * 1).relu().sum().backward()
    assert torch.equal(kept, leaf.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("blend", BLENDS)
def test_under_autocast_the_features_keep_their_dtype(blend, dtype):
    slot = make(blend, 0.5, seed=nn.Conv2d(8, 8, 1))
    for kind in (torch.float32, dtype):
        x = torch.randn(SHAPES[Topology.CNN]).to(kind).requires_grad_()
        with torch.autocast("cpu", dtype=dtype):
            out = slot(x)
        out.sum().backward()
        assert out.dtype is kind
        assert all(p.grad.isfinite().all() for p in slot.seed_parameters())


@pytest.mark.parametrize("blend", BLENDS)
def test_channels_last_stays_channels_last(blend):
    slot = make(blend, 0.5)
    x = torch.randn(SHAPES[Topology.CNN]).to(memory_format=torch.channels_last)
    assert slot(x).is_contiguous(memory_format=torch.channels_last)


class TestTheMixer:
    @pytest.mark.parametrize("topology", SHAPES)
    def test_is_born_without_a_preference(self, topology):
        weight = Mixer(topology, 8)(torch.randn(SHAPES[topology]))
        assert weight.shape == (3, *[1] * (len(SHAPES[topology]) - 1))
        assert torch.equal(weight, torch.full_like(weight, 0.5))

    @pytest.mark.parametrize("topology", SHAPES)
    def test_weighs_each_sample_by_its_own_features(self, topology):
        x, mixer = torch.randn(SHAPES[topology]), mixer_of(topology)
        weights = mixer(x)
        assert len(set(weights.flatten().tolist())) == len(x)
        for row in range(len(x)):
            torch.testing.assert_close(mixer(x[row : row + 1]), weights[row : row + 1])

    def test_draws_nothing_when_it_is_made(self):
        before = torch.get_rng_state()
        Mixer(Topology.CNN, 8)
        assert torch.equal(before, torch.get_rng_state())

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_comes_with_a_gated_sprout_in_the_slots_dtype(self, dtype):
        host = GPTHost(width=8, depth=1, heads=2, vocabulary=5, context=6, dropout=0.0).to(dtype)
        slots = graft(host, {"blocks.0": Topology.TRANSFORMER})

        def grow(blend):
            return sprout(
                slots["blocks.0"],
                lambda: nn.Linear(8, 8),
                blueprint_id="mine",
                init_seed=0,
                host_parameters=slots.host_parameters(),
                blend=blend,
            )

        gated, plain = grow(Blend.GATED), grow(Blend.LERP)
        assert gated.parameters == plain.parameters + 9
        assert plain.mixer is None
        assert gated.mixer.logit.weight.dtype is dtype
        assert same_bits(gated.module.weight, plain.module.weight)

    def test_is_the_slots_as_the_seed_is(self, view):
        slot = make(Blend.GATED, 0.5)
        mixer = slot.mixer
        assert set(slot.state_dict()) == {"seed.gain", "mixer.logit.weight", "mixer.logit.bias"}
        assert slot.seed_parameters() == (slot.seed.gain, *mixer.parameters())
        slot.follow(view("s", Behaviour.BLEND, 0.5, learning=False), 0)
        assert not any(p.requires_grad for p in mixer.parameters())
        slot.detach()
        assert slot.mixer is None
        assert slot.state_dict() == {}
        assert all(p.requires_grad for p in mixer.parameters())


def test_ops_without_a_slot_broadcast_the_share_over_each_sample():
    host, seed = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    share = torch.tensor([0.25, 1.0]).view(2, 1, 1)
    out = ops.gated(host, seed, torch.tensor(0.5), finite.finite(seed), share)
    assert torch.equal(out[:, 0, 0], torch.tensor([0.125, 0.5]))
