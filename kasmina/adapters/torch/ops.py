"""The arithmetic of a slot: exact at both ends of alpha, deaf to a seed that is not finite.

Shapes: ``host`` and ``seed`` are features of one shape and dtype; ``alpha``, ``incubating`` and
``nonfinite`` are 0-dim tensors on their device, so that nothing here waits for the device or
recompiles when they change. Each function returns features; none works in place on its features.
"""

import math
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.autograd import Function
from typing_extensions import override

_HALVES = (torch.float16, torch.bfloat16)
_SOUND = torch.ones((), dtype=torch.bool, device="cpu")


def finite(features: Tensor) -> Tensor:
    """Whether all of ``features`` are finite: 0-dim, bool, left on the device.

    Decided from the sum, in which no NaN and no infinity can hide. A finite tensor whose sum
    leaves the range of its dtype (the range of float32 for halves) counts as not finite: its
    entries would have to be near 1e38. On a CPU the sum took 5 µs for 131,072 float32 entries,
    ``aminmax`` 25 µs, ``isfinite().all()`` 247 µs.
    """
    if features.numel() == 0:
        return torch.ones((), dtype=torch.bool, device=features.device)
    total = _total(features)
    return (total - total) == 0


def _total(features: Tensor) -> Tensor:
    plain = features.detach()
    # A float16 sum ends at 65504. The mean accumulates in float32, also under autocast.
    return plain.mean() if plain.dtype in _HALVES else plain.sum()


def _seen_finite(features: Tensor) -> bool:
    """Whether ``features`` are all finite, where that can be read at once.

    It can on a CPU, outside of compiled and transformed code: reading there waits for nothing,
    and spares a pass over the features wherever all is well, which is always but once.
    """
    return (
        type(features) is Tensor
        and features.is_cpu
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()  # noqa: SLF001
        and math.isfinite(_total(features).item())
    )


def count_nonfinite(seed: Tensor, nonfinite: Tensor) -> Tensor:
    """``finite(seed)``, after adding one to the integer ``nonfinite`` if it is not.

    Not within a transform of ``torch.func``, which may not write to what it captures.
    """
    if _seen_finite(seed):
        return _SOUND
    sound = finite(seed)
    if not torch._C._are_functorch_transforms_active():  # noqa: SLF001
        nonfinite.add_(~sound)
    return sound


class _Context(Protocol):
    """What a backward may know of its forward; torch's own classes do not say."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _Alias(Function):
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


class _Incubate(_Alias):
    @staticmethod
    @override
    def forward(host: Tensor, seed: Tensor) -> Tensor:
        return _alias(host)

    @staticmethod
    @override
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        return gradient, gradient


class _IncubateNear(_Alias):
    @staticmethod
    @override
    def forward(host: Tensor, seed: Tensor, away: Tensor, strength: Tensor) -> Tensor:
        return _alias(host)

    @staticmethod
    @override
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        return gradient, _pulled(gradient, *ctx.saved_tensors), None, None


class _Tap(_Alias):
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


class _TapNear(_Alias):
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


class _Gate(_Alias):
    @staticmethod
    @override
    def forward(features: Tensor) -> Tensor:
        return _alias(features)

    @staticmethod
    @override
    def backward(ctx: _Context, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        if _seen_finite(gradient):
            return gradient
        return gradient.nan_to_num(0.0, 0.0, 0.0)


class _Valve(_Alias):
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
    pull = (_norm(gradient) * strength).clamp_max(torch.finfo(gradient.dtype).max)
    return torch.addcmul(gradient, away, pull.to(gradient.dtype))


def _norm(features: Tensor) -> Tensor:
    """The Euclidean norm of all entries, 0-dim; in float32 for halves, which end at 65504."""
    wide = torch.float32 if features.dtype in _HALVES else None
    norm: Tensor = torch.linalg.vector_norm(features, dtype=wide)
    return norm


class _Blend(Function):
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


class _BlendWithin(_Blend):
    """The same bits, for an alpha known to lie strictly between 0 and 1."""

    @staticmethod
    @override
    def forward(host: Tensor, seed: Tensor, weight: Tensor) -> Tensor:
        return torch.where(weight == 0, host, torch.lerp(host, seed, weight.to(host.dtype)))


class _BlendAtSeed(_Blend):
    """The same bits, for an alpha known to be 1."""

    @staticmethod
    @override
    def forward(host: Tensor, seed: Tensor, weight: Tensor) -> Tensor:
        return torch.where(weight == 0, host, seed)


class _SeedShown(_Alias):
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


class _BlendAtHost(_Blend):
    """The same bits, for an alpha known to be 0.

    A copy: an in-place operation of the host must not overwrite what the seed kept of its input.
    """

    @staticmethod
    @override
    def forward(host: Tensor, seed: Tensor, weight: Tensor) -> Tensor:
        return host.clone()


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


def incubate_near(host: Tensor, seed: Tensor, penalty: float) -> Tensor:
    """``incubate``, with ``penalty * |gradient| / |host| * (seed - host)`` added for the seed.

    That is the gradient of a quadratic in the seed's distance from the host, whose strength
    follows the gradient's: the seed is at rest ``|host| / penalty`` away, against the gradient.
    Keeps one tensor of the features' size for the backward. Norms are over the whole batch.
    """
    return _apply(_IncubateNear, host, seed, *_away(host, seed, penalty))


def _away(host: Tensor, seed: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    # A host that vanishes gives no measure of a distance: no pull then.
    strength = (penalty / _norm(host.detach())).nan_to_num(posinf=0.0)
    return (seed - host).detach(), strength


def tap(shown: Tensor, seed: Tensor, incubating: Tensor) -> Tensor:
    """``shown``; while ``incubating`` is 1 its gradient goes to ``seed`` too.

    For compiled code: around a blend at alpha 0 this is ``incubate``, with the same bits, and the
    graph is that of the blend.
    """
    return _apply(_Tap, shown, seed, incubating)


def tap_near(
    shown: Tensor, seed: Tensor, incubating: Tensor, host: Tensor, penalty: float
) -> Tensor:
    """``tap`` for ``incubate_near``."""
    return _apply(_TapNear, shown, seed, incubating, *_away(host, seed, penalty))


def gate(features: Tensor) -> Tensor:
    """``features`` for a seed to read: where its gradient is not finite, zero comes back."""
    return _apply(_Gate, features)


def valve(features: Tensor, opened: Tensor) -> Tensor:
    """``gate`` while ``opened`` is 1, ``detach`` while it is 0: one graph serves both."""
    return _apply(_Valve, features, opened)


def blend(host: Tensor, seed: Tensor, alpha: Tensor, sound: Tensor) -> Tensor:
    """``torch.lerp(host, seed, alpha)``, but exactly ``host`` at 0 and exactly ``seed`` at 1.

    Where ``sound`` (see ``finite``) is false the seed is left out altogether: the output is
    ``host``, all of the gradient goes to the host and zero to the seed.
    """
    return _apply(_Blend, host, seed, alpha * sound)


def blend_within(host: Tensor, seed: Tensor, alpha: Tensor, sound: Tensor) -> Tensor:
    """``blend`` for an ``alpha`` known to lie strictly between 0 and 1."""
    if sound is _SOUND:
        return torch.lerp(host, seed, alpha.to(host.dtype))
    return _apply(_BlendWithin, host, seed, alpha * sound)


def blend_at_seed(host: Tensor, seed: Tensor, alpha: Tensor, sound: Tensor) -> Tensor:
    """``blend`` for an ``alpha`` known to be 1."""
    if sound is _SOUND:
        return _apply(_SeedShown, seed, host)
    return _apply(_BlendAtSeed, host, seed, alpha * sound)


def blend_at_host(host: Tensor, seed: Tensor, alpha: Tensor, sound: Tensor) -> Tensor:
    """``blend`` for an ``alpha`` known to be 0."""
    return _apply(_BlendAtHost, host, seed, alpha * sound)


def gated(host: Tensor, seed: Tensor, alpha: Tensor, sound: Tensor, share: Tensor) -> Tensor:
    """``lerp(host, seed, alpha * share)``, guarded as ``blend``; ``share`` broadcasts over both.

    A ``share`` that is not finite leaves the seed out as well.
    """
    sound = sound & finite(share)
    weight = alpha * sound
    share = torch.where(sound, share, 0.0)
    mixed = torch.lerp(host, _guarded(host, seed, sound), (weight * share).to(host.dtype))
    return torch.where(weight == 0, host, mixed)


def multiplied(host: Tensor, seed: Tensor, alpha: Tensor, sound: Tensor) -> Tensor:
    """``host * (1 + alpha * tanh(seed - host))``, guarded as ``blend``."""
    weight = alpha * sound
    change = torch.tanh(_guarded(host, seed, sound) - host)
    return torch.where(weight == 0, host, host * (1 + weight.to(host.dtype) * change))


def _guarded(host: Tensor, seed: Tensor, sound: Tensor) -> Tensor:
    """``seed``, or ``host`` in its place: zero times infinity would reach the gradients."""
    return torch.where(sound, seed, host.detach())
