"""The arithmetic of a slot: exact at both ends of alpha, deaf to a seed that is not finite.

Shapes: ``host`` and ``seed`` are features of one shape and dtype; ``alpha``, ``incubating`` and
``nonfinite`` are 0-dim tensors on their device, so that nothing here waits for the device or
recompiles when they change. Each function returns features; none works in place on its features.
"""

from typing import Protocol, cast

import torch
from torch import Tensor
from torch.autograd import Function
from typing_extensions import override


def finite(features: Tensor) -> Tensor:
    """Whether all of ``features`` are finite: 0-dim, bool, left on the device.

    Decided from the sum, in which no NaN and no infinity can hide. A finite tensor whose sum
    leaves the range of its dtype (the range of float32 for halves) counts as not finite: its
    entries would have to be near 1e38. On a CPU the sum took 5 µs for 131,072 float32 entries,
    ``aminmax`` 25 µs, ``isfinite().all()`` 247 µs.
    """
    if features.numel() == 0:
        return torch.ones((), dtype=torch.bool, device=features.device)
    plain = features.detach()
    # A float16 sum ends at 65504. The mean accumulates in float32, also under autocast.
    total = plain.mean() if plain.dtype in (torch.float16, torch.bfloat16) else plain.sum()
    return (total - total) == 0


def count_nonfinite(seed: Tensor, nonfinite: Tensor) -> Tensor:
    """``finite(seed)``, after adding one to the integer ``nonfinite`` if it is not."""
    sound = finite(seed)
    nonfinite.add_(~sound)
    return sound


class _Context(Protocol):
    """What a backward may know of its forward; torch's own classes do not say."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _Incubate(Function):
    generate_vmap_rule = True

    @staticmethod
    @override
    def forward(host: Tensor, seed: Tensor) -> Tensor:  # the seed is not seen
        # Not `return host`: autograd would make that a view, and forbid a later in-place ReLU.
        # The alias shares the version counter, so in-place checks see what they saw before.
        return host.detach()

    @staticmethod
    @override
    def setup_context(ctx: _Context, inputs: tuple[Tensor, ...], output: object) -> None:
        """Keep nothing: the backward needs no activation."""

    @staticmethod
    @override
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        return gradient, gradient


class _Blend(Function):
    """Any weight in [0, 1]. The host's gradient is times ``1 - weight``, the seed's ``gain``."""

    generate_vmap_rule = True

    @staticmethod
    @override
    def forward(host: Tensor, seed: Tensor, weight: Tensor, gain: Tensor) -> Tensor:
        mixed = torch.lerp(host, seed, weight.to(host.dtype))
        return torch.where(weight == 0, host, torch.where(weight == 1, seed, mixed))

    @staticmethod
    @override
    def setup_context(ctx: _Context, inputs: tuple[Tensor, ...], output: object) -> None:
        _, _, weight, gain = inputs
        ctx.save_for_backward(weight, gain)

    @staticmethod
    @override
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        weight, gain = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            gradient * (1 - weight) if wanted[0] else None,
            gradient * gain if wanted[1] else None,
            None,
            None,
        )


class _BlendWithin(_Blend):
    """The same bits, for an alpha known to lie strictly between 0 and 1."""

    @staticmethod
    @override
    def forward(host: Tensor, seed: Tensor, weight: Tensor, gain: Tensor) -> Tensor:
        return torch.where(weight == 0, host, torch.lerp(host, seed, weight.to(host.dtype)))


class _BlendAtSeed(_Blend):
    """The same bits, for an alpha known to be 1."""

    @staticmethod
    @override
    def forward(host: Tensor, seed: Tensor, weight: Tensor, gain: Tensor) -> Tensor:
        return torch.where(weight == 0, host, seed)


class _BlendAtHost(_Blend):
    """The same bits, for an alpha known to be 0.

    A copy: an in-place operation of the host must not overwrite what the seed kept of its input.
    """

    @staticmethod
    @override
    def forward(host: Tensor, seed: Tensor, weight: Tensor, gain: Tensor) -> Tensor:
        return host.clone()


class _Gate(Function):
    generate_vmap_rule = True

    @staticmethod
    @override
    def forward(features: Tensor) -> Tensor:
        return features.detach()

    @staticmethod
    @override
    def setup_context(ctx: _Context, inputs: tuple[Tensor, ...], output: object) -> None:
        """Keep nothing: the backward needs no activation."""

    @staticmethod
    @override
    def backward(ctx: _Context, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        return gradient.nan_to_num(0.0, 0.0, 0.0)


def _apply(function: type[Function], *tensors: Tensor) -> Tensor:
    """``function.apply``, without the 11 µs in which torch 2.13 inspects its signature each time.

    Those serve keyword arguments, compilation and ``torch.func`` alone; what is below them is the
    method that ``apply`` ends in itself.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():  # noqa: SLF001
        return cast("Tensor", function.apply(*tensors))  # type: ignore[no-untyped-call]
    return cast("Tensor", super(Function, function).apply(*tensors))  # type: ignore[misc]


def incubate(host: Tensor, seed: Tensor) -> Tensor:
    """The host's features themselves, uncopied; their gradient goes unchanged to both.

    The gradient is that of ``host + seed``, the value that of ``host`` alone: whatever the seed
    holds, NaN included, touches neither the host's output nor its gradient.
    """
    return _apply(_Incubate, host, seed)


def gate(features: Tensor) -> Tensor:
    """``features`` for a seed to read: where its gradient is not finite, zero comes back."""
    return _apply(_Gate, features)


def _weight(seed: Tensor, alpha: Tensor, nonfinite: Tensor) -> Tensor:
    """``alpha``, or 0 where the seed is not finite."""
    return alpha * count_nonfinite(seed, nonfinite)


def blend(host: Tensor, seed: Tensor, alpha: Tensor, nonfinite: Tensor) -> Tensor:
    """``torch.lerp(host, seed, alpha)``, but exactly ``host`` at 0 and exactly ``seed`` at 1.

    A seed that is not finite everywhere is left out altogether: the output is ``host``, all of
    the gradient goes to the host and zero to the seed, and ``nonfinite`` grows by one.
    """
    weight = _weight(seed, alpha, nonfinite)
    return _apply(_Blend, host, seed, weight, weight)


def blend_within(host: Tensor, seed: Tensor, alpha: Tensor, nonfinite: Tensor) -> Tensor:
    """``blend`` for an ``alpha`` known to lie strictly between 0 and 1."""
    weight = _weight(seed, alpha, nonfinite)
    return _apply(_BlendWithin, host, seed, weight, weight)


def blend_at_seed(host: Tensor, seed: Tensor, alpha: Tensor, nonfinite: Tensor) -> Tensor:
    """``blend`` for an ``alpha`` known to be 1."""
    weight = _weight(seed, alpha, nonfinite)
    return _apply(_BlendAtSeed, host, seed, weight, weight)


def blend_at_host(host: Tensor, seed: Tensor, alpha: Tensor, nonfinite: Tensor) -> Tensor:
    """``blend`` for an ``alpha`` known to be 0."""
    weight = _weight(seed, alpha, nonfinite)
    return _apply(_BlendAtHost, host, seed, weight, weight)


def mix(host: Tensor, seed: Tensor, alpha: Tensor, incubating: Tensor, nonfinite: Tensor) -> Tensor:
    """``incubate`` where ``incubating`` is 1 and ``alpha`` 0, ``blend`` where it is 0.

    For compiled code: one graph serves both, with the bits of either.
    """
    weight = _weight(seed, alpha, nonfinite)
    return _apply(_Blend, host, seed, weight, torch.maximum(weight, incubating))
