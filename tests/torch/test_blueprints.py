from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from kasmina.adapters.torch.blueprints import blueprints
from kasmina.adapters.torch.blueprints.cnn import SqueezeExcitation
from kasmina.adapters.torch.blueprints.parts import (
    ChannelNorm,
    Inline,
    Renormalise,
    Residual,
    ZeroConv2d,
    ZeroLinear,
)
from kasmina.domain.blueprints import SHIPPED, BlueprintKind
from kasmina.domain.stages import Topology

WIDTH = 16
CNN = tuple(spec for spec in SHIPPED if spec.topology is Topology.CNN)
TRANSFORMER = tuple(spec for spec in SHIPPED if spec.topology is Topology.TRANSFORMER)
TRAINING = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def over(specs):
    return pytest.mark.parametrize("spec", specs, ids=lambda s: f"{s.topology.value}-{s.name}")


@pytest.fixture(autouse=True)
def repeatable():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        yield


def newborn(spec, width=WIDTH, dtype=torch.float32):
    return blueprints.build(spec.topology, spec.name, width).to(dtype)


def grown(spec, width=WIDTH):
    """A seed whose every parameter has moved away from its birth."""
    seed = newborn(spec, width)
    with torch.no_grad():
        for parameter in seed.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return seed


def features(spec, width=WIDTH, *, batch=2, size=5, dtype=torch.float32):
    extents = (width, size, size + 1) if spec.topology is Topology.CNN else (size, width)
    return torch.randn(batch, *extents, dtype=torch.float64).to(dtype)


def last_layer(seed):
    return [part for part in seed.modules() if list(part.parameters(recurse=False))][-1]


@over(SHIPPED)
class TestAtBirth:
    @TRAINING
    @pytest.mark.parametrize(
        "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
    )
    def test_every_seed_is_exactly_the_identity(self, spec, dtype, training):
        seed = newborn(spec, dtype=dtype).train(training)
        x = features(spec, dtype=dtype)
        out = seed(x)
        assert out.dtype is dtype
        assert torch.equal(out, x)

    @settings(max_examples=12, deadline=None)
    @given(
        shape=st.fixed_dictionaries(
            {"width": st.integers(1, 70), "batch": st.integers(1, 3), "size": st.integers(1, 7)}
        ),
        exponent=st.integers(-8, 8),
        training=st.booleans(),
    )
    def test_at_any_width_size_and_scale(self, spec, shape, exponent, training):
        seed = newborn(spec, shape["width"]).train(training)
        x = features(spec, **shape) * 10.0**exponent
        assert torch.equal(seed(x), x)
        assert torch.equal(seed(x.relu()), x.relu())

    def test_the_features_gradient_passes_unchanged(self, spec):
        x = features(spec).relu().requires_grad_()
        gradient = features(spec)
        newborn(spec)(x).backward(gradient)
        assert torch.equal(x.grad, gradient)

    def test_training_can_start_at_the_last_layer(self, spec):
        seed = newborn(spec)
        seed(features(spec)).backward(features(spec))
        gradients = [parameter.grad for parameter in last_layer(seed).parameters()]
        assert gradients
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert all(gradient.abs().sum() > 0 for gradient in gradients)

    def test_training_moves_every_parameter_and_lowers_the_loss(self, spec):
        seed = newborn(spec)
        birth = deepcopy(seed)
        x, target = features(spec), features(spec)
        optimizer = torch.optim.Adam(seed.parameters(), lr=1e-2)
        losses = []
        for _ in range(5):
            loss = F.mse_loss(seed(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        moved = zip(seed.parameters(), birth.parameters(), strict=True)
        assert not any(torch.equal(now, then) for now, then in moved)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_autocast_rounds_neither_the_features_nor_their_dtype(self, spec, dtype):
        x = features(spec, dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16):
            out = newborn(spec)(x)
        assert out.dtype is dtype
        assert torch.equal(out, x)

    @pytest.mark.parametrize("width", [1, 2, 3, 5, 7, 12, 16, 33, 64, 131])
    def test_its_parameters_are_those_that_were_promised(self, spec, width):
        seed = newborn(spec, width)
        assert sum(parameter.numel() for parameter in seed.parameters()) == spec.parameters(width)

    def test_the_kind_is_what_was_built(self, spec):
        built = Residual if spec.kind is BlueprintKind.RESIDUAL else Inline
        assert type(newborn(spec)) is built

    def test_nothing_but_parameters_is_kept(self, spec):
        assert list(newborn(spec).buffers()) == []


@over(SHIPPED)
class TestGrown:
    def test_it_no_longer_is_the_identity(self, spec):
        x = features(spec)
        assert not torch.allclose(grown(spec)(x), x, atol=1e-2)

    @pytest.mark.parametrize("grad", [True, False], ids=["open", "detached"])
    def test_its_input_is_left_alone(self, spec, grad):
        x = features(spec).requires_grad_(grad)
        before, version = x.detach().clone(), x._version
        grown(spec)(x).sum().backward()
        assert torch.equal(x.detach(), before)
        assert x._version == version

    def test_nothing_is_drawn(self, spec):
        seed, x = grown(spec), features(spec)
        state = torch.get_rng_state()
        first = seed(x)
        first.sum().backward()
        assert torch.equal(seed(x), first)
        assert torch.equal(torch.get_rng_state(), state)

    def test_train_and_eval_agree(self, spec):
        seed, x = grown(spec), features(spec)
        assert torch.equal(seed.train()(x), seed.eval()(x))

    def test_each_sample_is_seen_alone(self, spec):
        seed, x = grown(spec).double(), features(spec, dtype=torch.float64)
        alone = torch.cat([seed(sample) for sample in x.split(1)])
        torch.testing.assert_close(seed(x), alone)

    def test_shape_and_dtype_are_kept_under_autocast(self, spec):
        x = features(spec)
        with torch.autocast("cpu", torch.bfloat16):
            out = grown(spec)(x)
        assert (out.shape, out.dtype) == (x.shape, x.dtype)

    def test_a_copy_is_equal_and_apart(self, spec):
        seed, x = grown(spec), features(spec)
        copy = deepcopy(seed)
        assert torch.equal(copy(x), seed(x))
        ours = {parameter.data_ptr() for parameter in seed.parameters()}
        assert ours.isdisjoint(parameter.data_ptr() for parameter in copy.parameters())

    def test_a_state_dict_round_trip_is_strict_and_exact(self, spec):
        seed, other, x = grown(spec), newborn(spec), features(spec)
        other.load_state_dict(seed.state_dict(), strict=True)
        assert torch.equal(other(x), seed(x))

    def test_compiled_it_is_one_graph_with_the_same_bits(self, spec):
        torch.compiler.reset()
        seed, x, gradient = grown(spec), features(spec), features(spec)
        compiled = torch.compile(deepcopy(seed), fullgraph=True, backend="aot_eager")
        eager, traced = seed(x), compiled(x)
        eager.backward(gradient)
        traced.backward(gradient)
        assert torch.equal(traced, eager)
        for ours, theirs in zip(seed.parameters(), compiled.parameters(), strict=True):
            assert torch.equal(ours.grad, theirs.grad)

    def test_it_can_be_rewritten_as_plain_torch(self, spec):
        seed, x = grown(spec), features(spec)
        assert torch.equal(torch.fx.symbolic_trace(seed)(x), seed(x))


@over(CNN)
class TestChannelsLast:
    def test_it_is_kept_and_changes_little(self, spec):
        seed, x = grown(spec).double(), features(spec, dtype=torch.float64)
        out = seed(x.to(memory_format=torch.channels_last))
        assert out.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(out, seed(x))

    @pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
    def test_a_detached_input_can_be_trained_on(self, spec, compiled):
        torch.compiler.reset()
        seed = grown(spec).to(memory_format=torch.channels_last)
        forward = torch.compile(seed, backend="aot_eager") if compiled else seed
        x = features(spec).to(memory_format=torch.channels_last)
        forward(x.detach()).square().sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in seed.parameters())


@over(TRANSFORMER)
def test_no_position_sees_a_later_one(spec):
    seed, x = grown(spec).double(), features(spec, dtype=torch.float64)
    later = x.clone()
    later[:, 3:] += 1.0
    torch.testing.assert_close(seed(later)[:, :3], seed(x)[:, :3])


def test_only_attention_mixes_positions():
    seed, x = grown(TRANSFORMER[0]), features(TRANSFORMER[0])
    assert TRANSFORMER[0].name == "attention"
    earlier = x.clone()
    earlier[:, 0] += 1.0
    assert not torch.equal(seed(earlier)[:, -1], seed(x)[:, -1])


def test_behind_a_relu_an_in_line_seed_is_a_rectified_convolution_with_dirac_kernels():
    change = ZeroConv2d(WIDTH, WIDTH, 3, padding=1).double()
    nn.init.normal_(change.weight, std=0.2)
    nn.init.normal_(change.bias, std=0.2)
    layer = nn.Conv2d(WIDTH, WIDTH, 3, padding=1).double()
    with torch.no_grad():
        layer.weight.copy_(nn.init.dirac_(torch.empty_like(layer.weight)) + change.weight)
        layer.bias.copy_(change.bias)
    x = torch.randn(2, WIDTH, 5, 5, dtype=torch.float64).relu()
    torch.testing.assert_close(Inline(change)(x), layer(x).relu())


def test_an_open_renormalisation_is_the_norm_itself():
    norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
    delta = Renormalise(norm, (WIDTH,))
    nn.init.ones_(delta.gain)
    x = torch.randn(2, 5, WIDTH)
    torch.testing.assert_close(Residual(delta)(x), norm(x))


def test_channel_attention_is_twice_the_sigmoid_gate_of_the_paper():
    delta = SqueezeExcitation(WIDTH)
    nn.init.normal_(delta.excite.weight)
    x = torch.randn(2, WIDTH, 4, 4)
    logits = delta.excite(delta.squeeze(x.mean(dim=(2, 3))).relu())
    gates = 2 * torch.sigmoid(2 * logits)
    torch.testing.assert_close(Residual(delta)(x), x * gates[:, :, None, None])


@pytest.mark.parametrize(("width", "groups"), [(1, 1), (7, 1), (16, 1), (24, 1), (48, 3), (64, 4)])
def test_channels_are_normalised_in_groups_of_sixteen_where_they_divide(width, groups):
    norm = ChannelNorm(width)
    x = torch.randn(2, width, 3, 3)
    assert norm.num_groups == groups
    assert torch.equal(norm(x), F.group_norm(x, groups, norm.weight, norm.bias, norm.eps))


def test_a_single_value_is_normalised_to_zero_up_to_rounding():
    assert ChannelNorm(1)(torch.full((1, 1, 1, 1), 3.0)).item() == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize(
    "layer", [ZeroConv2d(2, 3, 1, bias=False), ZeroLinear(2, 3, bias=False)], ids=["conv", "linear"]
)
def test_a_layer_born_zero_may_have_no_bias(layer):
    assert layer.bias is None
    assert not layer.weight.any()
