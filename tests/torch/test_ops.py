import math
from contextlib import nullcontext

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kasmina.adapters.torch import finite, ops
from tests.torch.bits import DTYPES, NONFINITE, as_on_a_device, same_bits

numbers = st.floats(-1e3, 1e3, width=32)
rows = st.lists(numbers, min_size=1, max_size=8)
alphas = st.floats(0.0, 1.0, width=32)


def counter():
    return torch.zeros((), dtype=torch.int64)


def guarded(blend, host, seed, alpha, count=None):
    """``blend``, told whether the seed is finite as a slot tells it."""
    sound = finite.count_nonfinite(seed, counter() if count is None else count)
    return blend(host, seed, torch.as_tensor(alpha), sound)


def features(dtype=torch.float32):
    zeros = torch.tensor([0.0, -0.0, 0.0, -0.0])
    return torch.cat([zeros, torch.randn(60)]).to(dtype)


class TestFinite:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("value", NONFINITE)
    def test_one_bad_entry_is_enough(self, dtype, value):
        x = torch.randn(3, 5, 7).to(dtype)
        assert finite.finite(x)
        x[1, 2, 3] = value
        assert not finite.finite(x)

    def test_opposite_infinities_do_not_cancel(self):
        assert not finite.finite(torch.tensor([math.inf, -math.inf]))

    def test_the_sum_of_halves_does_not_end_at_their_range(self):
        assert finite.finite(torch.full((1000,), 60000.0, dtype=torch.float16))

    def test_nothing_at_all_is_finite(self):
        assert finite.finite(torch.empty(0, 4))

    def test_it_stays_on_the_device_as_one_bool(self):
        verdict = finite.finite(torch.randn(3, requires_grad=True))
        assert verdict.shape == ()
        assert verdict.dtype is torch.bool
        assert not verdict.requires_grad


class TestIncubate:
    def test_the_output_is_the_hosts_memory_and_nothing_is_copied(self):
        host, seed = torch.randn(5, requires_grad=True), torch.randn(5, requires_grad=True)
        out = ops.incubate(host, seed)
        assert out.data_ptr() == host.data_ptr()
        assert same_bits(out.detach(), host.detach())

    @given(rows)
    def test_the_gradient_goes_unchanged_to_both(self, row):
        gradient = torch.tensor(row)
        host = torch.zeros_like(gradient, requires_grad=True)
        seed = torch.zeros_like(gradient, requires_grad=True)
        ops.incubate(host, seed).backward(gradient)
        assert same_bits(host.grad, gradient)
        assert same_bits(seed.grad, gradient)

    @pytest.mark.parametrize("value", NONFINITE)
    def test_a_seed_that_is_not_finite_touches_neither_output_nor_gradient(self, value):
        host = torch.randn(5, requires_grad=True)
        seed = torch.full((5,), value, requires_grad=True)
        out = ops.incubate(host, seed)
        (out * out).sum().backward()
        assert torch.equal(out, host)
        assert torch.equal(host.grad, 2 * host.detach())

    def test_the_host_may_go_on_in_place(self):
        leaf = torch.randn(5, requires_grad=True)
        out = ops.incubate(leaf * 1, torch.zeros(5, requires_grad=True))
        out.relu_().sum().backward()
        assert torch.equal(leaf.grad, (leaf > 0).float())

    def test_a_frozen_host_still_teaches_the_seed(self):
        seed = torch.zeros(3, requires_grad=True)
        ops.incubate(torch.ones(3), seed).sum().backward()
        assert torch.equal(seed.grad, torch.ones(3))


def near_gradient(host, seed, gradient, penalty=10.0):
    """What the seed is told by ``incubate_near``."""
    s = seed.clone().requires_grad_()
    ops.incubate_near(host, s, penalty).backward(gradient)
    return s.grad


class TestIncubateNear:
    @given(rows, st.floats(0.01, 1e3), st.integers(0, 2**31))
    def test_the_seeds_gradient_is_the_documented_one_and_the_hosts_is_untouched(
        self, row, penalty, draw
    ):
        generator = torch.Generator().manual_seed(draw)
        gradient = torch.tensor(row)
        host, seed = (torch.randn(len(row), generator=generator) for _ in range(2))
        assume(not 0 < gradient.abs().max() < 1e-15)  # whose squares are not in float32
        h, s = host.clone().requires_grad_(), seed.clone().requires_grad_()
        out = ops.incubate_near(h, s, penalty)
        out.backward(gradient)
        assert out.data_ptr() == h.data_ptr()
        assert same_bits(out, h)
        assert same_bits(h.grad, gradient)
        g, a, b = gradient.double(), host.double(), seed.double()
        expected = g + penalty * g.norm() / a.norm() * (b - a)
        torch.testing.assert_close(
            s.grad.double(), expected, rtol=1e-5, atol=1e-5 * g.norm() + 1e-30
        )

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_halves_take_their_norms_in_float32(self, dtype):
        host = torch.full((1000,), 3000.0).to(dtype)  # whose norm is 94,868
        seed, gradient = (host * 1.01).to(dtype), torch.randn(1000).to(dtype)
        g, a, b = gradient.double(), host.double(), seed.double()
        expected = g + 10 * g.norm() / a.norm() * (b - a)
        tolerance = torch.finfo(dtype).eps * expected.abs().max().item()
        told = near_gradient(host, seed, gradient)
        torch.testing.assert_close(told.double(), expected, rtol=0, atol=2 * tolerance)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("size", [0.0, 1e-7, 1e-30])
    @pytest.mark.parametrize("away", [0.0, 1.0])
    def test_a_host_that_vanishes_leaves_the_seed_a_gradient_that_is_finite(
        self, dtype, size, away
    ):
        host = torch.full((6,), size).to(dtype)
        for gradient in (torch.randn(6).to(dtype), torch.zeros(6, dtype=dtype)):
            assert near_gradient(host, host + away, gradient).isfinite().all()

    def test_where_the_host_is_zero_nothing_pulls(self):
        host, gradient = torch.zeros(6), torch.randn(6)
        assert same_bits(near_gradient(host, torch.randn(6), gradient), gradient)

    @pytest.mark.parametrize("factor", [2.0**-12, 2.0**16])
    def test_a_scaled_loss_scales_all_of_it(self, factor):
        host, seed, gradient = (torch.randn(50) for _ in range(3))
        told = near_gradient(host, seed, gradient)
        assert same_bits(near_gradient(host, seed, gradient * factor), told * factor)

    @pytest.mark.parametrize("value", NONFINITE)
    def test_a_seed_that_is_not_finite_touches_neither_output_nor_gradient(self, value):
        host = torch.randn(5, requires_grad=True)
        seed = torch.full((5,), value, requires_grad=True)
        out = ops.incubate_near(host, seed, 10.0)
        (out * out).sum().backward()
        assert same_bits(out, host)
        assert torch.equal(host.grad, 2 * host.detach())

    @pytest.mark.parametrize("penalty", [2.0, 10.0])
    def test_the_seed_comes_to_rest_where_the_docstring_says(self, penalty):
        """Against the gradient, ``|host| / penalty`` away; without a pull it never would."""
        host, gradient = torch.randn(20, dtype=torch.float64), torch.randn(20, dtype=torch.float64)
        seed = host.clone()
        for _ in range(500):
            seed -= (
                0.05
                * host.norm()
                / gradient.norm()
                / penalty
                * near_gradient(host, seed, gradient, penalty)
            )
        expected = host - host.norm() / penalty * gradient / gradient.norm()
        torch.testing.assert_close(seed, expected)

    def test_a_frozen_host_still_teaches_the_seed(self):
        gradient = torch.ones(3)
        assert same_bits(near_gradient(torch.ones(3), torch.ones(3), gradient), gradient)


BLENDS = [(ops.blend_at_host, 0.0), (ops.blend_within, 0.25), (ops.blend_at_seed, 1.0)]

somewhere = pytest.mark.parametrize("place", [nullcontext, as_on_a_device], ids=["cpu", "device"])


class TestBlend:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("blend", [ops.blend, ops.blend_at_host])
    def test_at_alpha_0_it_is_the_host_bit_for_bit(self, dtype, blend):
        host, seed = features(dtype), features(dtype).flip(0)
        assert same_bits(guarded(blend, host, seed, 0.0), host)

    @somewhere
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("blend", [ops.blend, ops.blend_at_seed])
    def test_at_alpha_1_it_is_the_seed_bit_for_bit(self, dtype, blend, place):
        host, seed = features(dtype), features(dtype).flip(0)
        with place():
            assert same_bits(guarded(blend, host, seed, 1.0), seed)

    @somewhere
    def test_at_alpha_1_a_host_that_is_not_finite_is_gone(self, place):
        seed = torch.randn(3)
        host = torch.tensor([math.inf, math.nan, 1.0])
        with place():
            assert same_bits(guarded(ops.blend_at_seed, host, seed, 1.0), seed)
            assert same_bits(guarded(ops.blend, host, seed, 1.0), seed)

    @given(rows, alphas)
    def test_between_it_is_lerp(self, row, alpha):
        host, seed = torch.tensor(row), torch.tensor(row).flip(0) + 1
        expected = torch.lerp(host, seed, torch.tensor(alpha))
        if 0 < alpha < 1:
            assert same_bits(guarded(ops.blend, host, seed, alpha), expected)
            assert same_bits(guarded(ops.blend_within, host, seed, alpha), expected)

    @given(st.sampled_from(DTYPES), st.integers(0, 2**31), alphas)
    @settings(deadline=None)
    def test_the_act_for_a_known_alpha_has_the_bits_of_the_general_one(self, dtype, draw, alpha):
        generator = torch.Generator().manual_seed(draw)
        host, seed, gradient = (torch.randn(3, 4, generator=generator).to(dtype) for _ in range(3))
        known = {0.0: ops.blend_at_host, 1.0: ops.blend_at_seed}
        blend = known.get(alpha, ops.blend_within)
        results = []
        for each, place in (
            (ops.blend, nullcontext),
            (ops.blend, as_on_a_device),
            (blend, nullcontext),
            (blend, as_on_a_device),
        ):
            h, s = host.clone().requires_grad_(), seed.clone().requires_grad_()
            with place():
                out = guarded(each, h, s, alpha)
                out.backward(gradient)
            # Where a gradient is zero its sign may differ, and changes no sum.
            results.append((out.detach(), h.grad + 0.0, s.grad + 0.0))
        first, *others = results
        for other in others:
            assert all(same_bits(a, b) for a, b in zip(first, other, strict=True))

    @somewhere
    @pytest.mark.parametrize("value", NONFINITE)
    @pytest.mark.parametrize(("blend", "alpha"), [*BLENDS, (ops.blend, 0.0), (ops.blend, 0.5)])
    def test_a_seed_that_is_not_finite_is_left_out_and_counted(self, blend, alpha, value, place):
        host = torch.randn(6, requires_grad=True)
        seed = torch.randn(6)
        seed[2] = value
        seed.requires_grad_()
        count = counter()
        with place():
            out = guarded(blend, host, seed, alpha, count)
            out.sum().backward()
        assert same_bits(out, host)
        assert torch.equal(host.grad, torch.ones(6))
        assert torch.equal(seed.grad, torch.zeros(6))
        assert count == 1

    @somewhere
    @pytest.mark.parametrize(("blend", "alpha"), BLENDS)
    def test_a_finite_seed_is_not_counted(self, blend, alpha, place):
        count = counter()
        with place():
            guarded(blend, features(), features(), alpha, count)
        assert count == 0

    @somewhere
    @pytest.mark.parametrize(("blend", "alpha"), [*BLENDS, (ops.blend, 0.7)])
    def test_gradients_are_those_of_the_formula(self, blend, alpha, place):
        host = torch.randn(4, dtype=torch.float64, requires_grad=True)
        seed = torch.randn(4, dtype=torch.float64, requires_grad=True)
        weight = torch.tensor(alpha, dtype=torch.float64)
        with place():
            sound = finite.count_nonfinite(seed, counter())
        assert torch.autograd.gradcheck(lambda h, s: blend(h, s, weight, sound), (host, seed))
        assert torch.autograd.gradgradcheck(lambda h, s: blend(h, s, weight, sound), (host, seed))

    @somewhere
    @pytest.mark.parametrize(("blend", "alpha"), BLENDS)
    def test_the_host_may_go_on_in_place(self, blend, alpha, place):
        leaf = torch.randn(5, requires_grad=True)
        host, seed = leaf * 1, torch.randn(5, requires_grad=True)
        kept = host.detach().clone(), seed.detach().clone()
        with place():
            guarded(blend, host, seed, alpha).relu_()
        assert torch.equal(host, kept[0])
        assert torch.equal(seed, kept[1])


class TestTap:
    """The one graph of compiled code has the bits of the acts that eager code chooses from."""

    @given(st.integers(0, 2**31), alphas, st.booleans(), st.sampled_from([None, 10.0]))
    @settings(deadline=None)
    def test_around_a_blend_it_has_the_bits_of_incubation_and_of_every_blend(
        self, draw, alpha, incubating, penalty
    ):
        generator = torch.Generator().manual_seed(draw)
        host, seed, gradient = (torch.randn(3, 4, generator=generator) for _ in range(3))
        weight, flag = 0.0 if incubating else alpha, torch.tensor(float(incubating))
        results = []
        for tapped in (True, False):
            h, s = host.clone().requires_grad_(), seed.clone().requires_grad_()
            if tapped:
                shown = guarded(ops.blend, h, s, weight)
                near = penalty is not None
                out = ops.tap_near(shown, s, flag, h, penalty) if near else ops.tap(shown, s, flag)
            elif incubating:
                out = ops.incubate(h, s) if penalty is None else ops.incubate_near(h, s, penalty)
            else:
                out = guarded(ops.blend, h, s, weight)
            out.backward(gradient)
            results.append((out.detach(), h.grad, s.grad))
        assert all(same_bits(a, b) for a, b in zip(*results, strict=True))

    def test_it_adds_nothing_to_a_gradient_of_negative_zeros(self):
        shown, seed = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
        ops.tap(shown, seed, torch.zeros(())).backward(torch.full((3,), math.inf))
        assert same_bits(seed.grad, torch.full((3,), -0.0))


class TestGate:
    def test_the_value_is_untouched_and_uncopied(self):
        x = torch.randn(4, requires_grad=True)
        assert ops.gate(x).data_ptr() == x.data_ptr()

    def test_a_finite_gradient_passes(self):
        x, gradient = torch.randn(4, requires_grad=True), torch.randn(4)
        ops.gate(x).backward(gradient)
        assert same_bits(x.grad, gradient)

    @pytest.mark.parametrize("value", NONFINITE)
    def test_a_gradient_becomes_zero_where_it_is_not_finite(self, value):
        x, gradient = torch.randn(4, requires_grad=True), torch.tensor([value, 1.0, 2.0, 3.0])
        ops.gate(x).backward(gradient)
        assert torch.equal(x.grad, torch.tensor([0.0, 1.0, 2.0, 3.0]))


class TestTransforms:
    def test_vmap_and_grad_go_through_every_op(self):
        host, seed = torch.randn(3, 4), torch.randn(3, 4)
        weight = torch.tensor(0.25)

        def loss(h, s):
            within = ops.blend_within(ops.gate(h), s, weight, finite.finite(s))
            return (ops.incubate(within, s) ** 2).sum()

        grads = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)))(host, seed)
        for index in range(3):
            h, s = host[index].clone().requires_grad_(), seed[index].clone().requires_grad_()
            loss(h, s).backward()
            torch.testing.assert_close(grads[0][index], h.grad)
            torch.testing.assert_close(grads[1][index], s.grad)


def every_op(host, seed, flag, alpha):
    """All that compiled code may meet in a slot."""
    sound, seen = finite.count_nonfinite(seed, counter()), ops.valve(host, flag)
    blended = ops.blend(seen, seed, alpha, sound)
    near = ops.tap_near(blended, seed, flag, host, 10.0)
    share = host.mean(1, keepdim=True)
    gated = ops.gated(ops.tap(near, seed, flag), seed, alpha, sound, share)
    return ops.multiplied(gated, seed, alpha, sound)


# torch warns of what its own compiler does with an autograd function.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_each_is_one_graph_with_and_without_gradient(context, learning):
    torch._dynamo.reset()
    flag, alpha = torch.ones(()), torch.tensor(0.3)
    host, seed = torch.randn(3, 4, requires_grad=learning), torch.randn(3, 4)
    compiled = torch.compile(every_op, backend="eager", fullgraph=True)
    with context():
        assert same_bits(compiled(host, seed, flag, alpha), every_op(host, seed, flag, alpha))
    torch._dynamo.reset()
