import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kasmina.adapters.torch import ops

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
NONFINITE = [math.nan, math.inf, -math.inf]
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

numbers = st.floats(-1e3, 1e3, width=32)
rows = st.lists(numbers, min_size=1, max_size=8)
alphas = st.floats(0.0, 1.0, width=32)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """``torch.equal`` takes -0.0 for 0.0; this does not."""
    kind = BITS[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.view(kind), b.view(kind))


def counter():
    return torch.zeros((), dtype=torch.int64)


def features(dtype=torch.float32):
    zeros = torch.tensor([0.0, -0.0, 0.0, -0.0])
    return torch.cat([zeros, torch.randn(60)]).to(dtype)


class TestFinite:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("value", NONFINITE)
    def test_one_bad_entry_is_enough(self, dtype, value):
        x = torch.randn(3, 5, 7).to(dtype)
        assert ops.finite(x)
        x[1, 2, 3] = value
        assert not ops.finite(x)

    def test_opposite_infinities_do_not_cancel(self):
        assert not ops.finite(torch.tensor([math.inf, -math.inf]))

    def test_the_sum_of_halves_does_not_end_at_their_range(self):
        assert ops.finite(torch.full((1000,), 60000.0, dtype=torch.float16))

    def test_nothing_at_all_is_finite(self):
        assert ops.finite(torch.empty(0, 4))

    def test_it_stays_on_the_device_as_one_bool(self):
        verdict = ops.finite(torch.randn(3, requires_grad=True))
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


BLENDS = [(ops.blend_at_host, 0.0), (ops.blend_within, 0.25), (ops.blend_at_seed, 1.0)]


class TestBlend:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("blend", [ops.blend, ops.blend_at_host])
    def test_at_alpha_0_it_is_the_host_bit_for_bit(self, dtype, blend):
        host, seed = features(dtype), features(dtype).flip(0)
        assert same_bits(blend(host, seed, torch.tensor(0.0), counter()), host)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("blend", [ops.blend, ops.blend_at_seed])
    def test_at_alpha_1_it_is_the_seed_bit_for_bit(self, dtype, blend):
        host, seed = features(dtype), features(dtype).flip(0)
        assert same_bits(blend(host, seed, torch.tensor(1.0), counter()), seed)

    def test_at_alpha_1_a_host_that_is_not_finite_is_gone(self):
        seed = torch.randn(3)
        host = torch.tensor([math.inf, math.nan, 1.0])
        assert same_bits(ops.blend_at_seed(host, seed, torch.tensor(1.0), counter()), seed)
        assert same_bits(ops.blend(host, seed, torch.tensor(1.0), counter()), seed)

    @given(rows, alphas)
    def test_between_it_is_lerp(self, row, alpha):
        host, seed, weight = torch.tensor(row), torch.tensor(row).flip(0) + 1, torch.tensor(alpha)
        expected = torch.lerp(host, seed, weight)
        if 0 < alpha < 1:
            assert same_bits(ops.blend(host, seed, weight, counter()), expected)

    @given(st.sampled_from(DTYPES), st.integers(0, 2**31), alphas)
    @settings(deadline=None)
    def test_the_act_for_a_known_alpha_has_the_bits_of_the_general_one(self, dtype, draw, alpha):
        generator = torch.Generator().manual_seed(draw)
        host, seed, gradient = (torch.randn(3, 4, generator=generator).to(dtype) for _ in range(3))
        known = {0.0: ops.blend_at_host, 1.0: ops.blend_at_seed}
        blend = known.get(alpha, ops.blend_within)
        results = []
        for each in (ops.blend, blend):
            h, s = host.clone().requires_grad_(), seed.clone().requires_grad_()
            out = each(h, s, torch.tensor(alpha), counter())
            out.backward(gradient)
            results.append((out.detach(), h.grad, s.grad))
        assert all(same_bits(a, b) for a, b in zip(*results, strict=True))

    @pytest.mark.parametrize("value", NONFINITE)
    @pytest.mark.parametrize(("blend", "alpha"), [*BLENDS, (ops.blend, 0.0), (ops.blend, 0.5)])
    def test_a_seed_that_is_not_finite_is_left_out_and_counted(self, blend, alpha, value):
        host = torch.randn(6, requires_grad=True)
        seed = torch.randn(6)
        seed[2] = value
        seed.requires_grad_()
        count = counter()
        out = blend(host, seed, torch.tensor(alpha), count)
        out.sum().backward()
        assert same_bits(out.detach(), host.detach())
        assert torch.equal(host.grad, torch.ones(6))
        assert torch.equal(seed.grad, torch.zeros(6))
        assert count == 1

    @pytest.mark.parametrize(("blend", "alpha"), BLENDS)
    def test_a_finite_seed_is_not_counted(self, blend, alpha):
        count = counter()
        blend(features(), features(), torch.tensor(alpha), count)
        assert count == 0

    @pytest.mark.parametrize(("blend", "alpha"), [*BLENDS, (ops.blend, 0.7)])
    def test_gradients_are_those_of_the_formula(self, blend, alpha):
        host = torch.randn(4, dtype=torch.float64, requires_grad=True)
        seed = torch.randn(4, dtype=torch.float64, requires_grad=True)
        weight = torch.tensor(alpha, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda h, s: blend(h, s, weight, counter()), (host, seed))
        assert torch.autograd.gradgradcheck(
            lambda h, s: blend(h, s, weight, counter()), (host, seed)
        )

    @pytest.mark.parametrize(("blend", "alpha"), BLENDS)
    def test_the_host_may_go_on_in_place(self, blend, alpha):
        leaf = torch.randn(5, requires_grad=True)
        host, seed = leaf * 1, torch.randn(5, requires_grad=True)
        kept = host.detach().clone()
        blend(host, seed, torch.tensor(alpha), counter()).relu_()
        assert torch.equal(host, kept)


class TestMix:
    @given(st.integers(0, 2**31), alphas, st.booleans())
    @settings(deadline=None)
    def test_one_op_has_the_bits_of_incubation_and_of_every_blend(self, draw, alpha, incubating):
        generator = torch.Generator().manual_seed(draw)
        host, seed, gradient = (torch.randn(3, 4, generator=generator) for _ in range(3))
        weight = torch.tensor(0.0 if incubating else alpha)
        results = []
        for mixed in (True, False):
            h, s = host.clone().requires_grad_(), seed.clone().requires_grad_()
            if mixed:
                out = ops.mix(h, s, weight, torch.tensor(float(incubating)), counter())
            else:
                out = ops.incubate(h, s) if incubating else ops.blend(h, s, weight, counter())
            out.backward(gradient)
            results.append((out.detach(), h.grad, s.grad))
        assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


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
            within = ops._apply(ops._BlendWithin, ops.gate(h), s, weight, weight)
            return (ops.incubate(within, s) ** 2).sum()

        grads = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)))(host, seed)
        for index in range(3):
            h, s = host[index].clone().requires_grad_(), seed[index].clone().requires_grad_()
            loss(h, s).backward()
            torch.testing.assert_close(grads[0][index], h.grad)
            torch.testing.assert_close(grads[1][index], s.grad)
