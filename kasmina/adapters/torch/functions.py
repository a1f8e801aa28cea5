"""The autograd functions of a slot, with gradients that are not those of their values.

Shapes: features of one shape and dtype, first; weights and flags are 0-dim tensors on their device.
"""

from typing import Protocol, cast

import torch
from torch import Tensor
from torch.autograd import Function
from typing_extensions import override

from kasmina.adapters.torch import finite


class _Context(Protocol):
    """What a backward may know of its forward; torch's own classes do not say."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class Alias(Function):
    """The first tensor itself; of the others, those after the second are kept for the backward.

    Each forward names its tensors: without gradients dynamo tells by their number alone whether it
    takes a context too (``AutogradFunctionVariable.call_apply``, as of torch 2.13).
    """

    generate_vmap_rule = True

    @staticmethod
    @override
    def setup_context(ctx: _Context, inputs: tuple[Tensor, ...], output: object) -> None:
        ctx.save_for_backward(*inputs[2:])


def _alias(shown: Tensor) -> Tensor:
    # Not `return shown`: autograd would make that a view, and forbid a later in-place ReLU.
    # The alias shares the version counter, so in-place checks see what they saw before.
    return shown.detach()


class Incubate(Alias):
    """The host, and its gradient for both."""

    @staticmethod
    @override
    def forward(host: Tensor, seed: Tensor) -> Tensor:
        return _alias(host)

    @staticmethod
    @override
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        return gradient, gradient


class IncubateNear(Alias):
    """The host; the seed's gradient pulls it back along ``away``."""

    @staticmethod
    @override
    def forward(host: Tensor, seed: Tensor, away: Tensor, strength: Tensor) -> Tensor:
        return _alias(host)

    @staticmethod
    @override
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        return gradient, _pulled(gradient, *ctx.saved_tensors), None, None


class Tap(Alias):
    """Elsewhere than in incubation the seed gets a negative zero, which changes no sum."""

    @staticmethod
    @override
    def forward(shown: Tensor, seed: Tensor, incubating: Tensor) -> Tensor:
        return _alias(shown)

    @staticmethod
    @override
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        (incubating,) = ctx.saved_tensors
        return gradient, _where(incubating, gradient), None


class TapNear(Alias):
    """``Tap`` with the gradient of ``IncubateNear``."""

    @staticmethod
    @override
    def forward(
        shown: Tensor, seed: Tensor, incubating: Tensor, away: Tensor, strength: Tensor
    ) -> Tensor:
        return _alias(shown)

    @staticmethod
    @override
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        incubating, away, strength = ctx.saved_tensors
        return gradient, _where(incubating, _pulled(gradient, away, strength)), None, None, None


class Gate(Alias):
    """The features; of their gradient what is not finite becomes zero."""

    @staticmethod
    @override
    def forward(features: Tensor) -> Tensor:
        return _alias(features)

    @staticmethod
    @override
    def backward(ctx: _Context, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        if finite.seen_finite(gradient):
            return gradient
        return gradient.nan_to_num(0.0, 0.0, 0.0)


class Valve(Alias):
    """``Gate`` while ``opened`` is 1; else nothing comes back, a negative zero as in ``Tap``."""

    @staticmethod
    @override
    def forward(features: Tensor, opened: Tensor) -> Tensor:
        return _alias(features)

    @staticmethod
    @override
    def setup_context(ctx: _Context, inputs: tuple[Tensor, ...], output: object) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    @override
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        (opened,) = ctx.saved_tensors
        return _where(opened, gradient.nan_to_num(0.0, 0.0, 0.0)), None


def _where(flag: Tensor, gradient: Tensor) -> Tensor:
    return torch.where(flag != 0, gradient, gradient.new_full((), -0.0))


def _pulled(gradient: Tensor, away: Tensor, strength: Tensor) -> Tensor:
    # An infinite pull would make NaN of a distance of zero; float16 ends at 65504.
    pull = (norm(gradient) * strength).clamp_max(torch.finfo(gradient.dtype).max)
    return torch.addcmul(gradient, away, pull.to(gradient.dtype))


def norm(features: Tensor) -> Tensor:
    """The Euclidean norm of all entries, 0-dim; in float32 for halves, which end at 65504."""
    wide = torch.float32 if features.dtype in finite.HALVES else None
    size: Tensor = torch.linalg.vector_norm(features, dtype=wide)
    return size


class Blend(Function):
    """Any weight in [0, 1]. The host's gradient is times ``1 - weight``, the seed's ``weight``."""

    generate_vmap_rule = True

    @staticmethod
    @override
    def forward(host: Tensor, seed: Tensor, weight: Tensor) -> Tensor:
        mixed = torch.lerp(host, seed, weight.to(host.dtype))
        return torch.where(weight == 0, host, torch.where(weight == 1, seed, mixed))

    @staticmethod
    @override
    def setup_context(ctx: _Context, inputs: tuple[Tensor, ...], output: object) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    @override
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        weight = ctx.saved_tensors[0].to(gradient.dtype)  # as the forward rounded it
        wanted = ctx.needs_input_grad
        return (
            gradient * (1 - weight) if wanted[0] else None,
            gradient * weight if wanted[1] else None,
            None,
        )


class BlendWithin(Blend):
    """The same bits, for an alpha known to lie strictly between 0 and 1."""

    @staticmethod
    @override
    def forward(host: Tensor, seed: Tensor, weight: Tensor) -> Tensor:
        return torch.where(weight == 0, host, torch.lerp(host, seed, weight.to(host.dtype)))


class BlendAtSeed(Blend):
    """The same bits, for an alpha known to be 1."""

    @staticmethod
    @override
    def forward(host: Tensor, seed: Tensor, weight: Tensor) -> Tensor:
        return torch.where(weight == 0, host, seed)


class SeedShown(Alias):
    """A copy of the seed. The host still gets its gradient, of zero: it is not left out."""

    @staticmethod
    @override
    def forward(seed: Tensor, host: Tensor) -> Tensor:
        return seed.clone()

    @staticmethod
    @override
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        return gradient, torch.zeros_like(gradient) if ctx.needs_input_grad[1] else None


class BlendAtHost(Blend):
    """The same bits, for an alpha known to be 0.

    A copy: an in-place operation of the host must not overwrite what the seed kept of its input.
    """

    @staticmethod
    @override
    def forward(host: Tensor, seed: Tensor, weight: Tensor) -> Tensor:
        return host.clone()


def apply(function: type[Function], *tensors: Tensor) -> Tensor:
    """``function.apply``, without the 11 µs in which torch 2.13 inspects its signature each time.

    Those serve keyword arguments, compilation and ``torch.func`` alone; what is below them is the
    method that ``apply`` ends in itself.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():  # noqa: SLF001
        return cast("Tensor", function.apply(*tensors))  # type: ignore[no-untyped-call]
    return cast("Tensor", super(Function, function).apply(*tensors))  # type: ignore[misc]
