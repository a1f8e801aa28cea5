"""The arithmetic of a slot: exact at both ends of alpha, deaf to a seed that is not finite.

Shapes: ``host`` and ``seed`` are features of one shape and dtype; ``alpha``, ``incubating`` and
``nonfinite`` are 0-dim tensors on their device, so that nothing here waits for the device or
recompiles when they change. Each function returns features; none works in place on its features.
"""

import torch
from torch import Tensor

from kasmina.adapters.torch import finite, functions


def incubate(host: Tensor, seed: Tensor) -> Tensor:
    """The host's features themselves, uncopied; their gradient goes unchanged to both.

    The gradient is that of ``host + seed``, the value that of ``host`` alone: whatever the seed
    holds, NaN included, touches neither the host's output nor its gradient.
    """
    return functions.apply(functions.Incubate, host, seed)


def incubate_near(host: Tensor, seed: Tensor, penalty: float) -> Tensor:
    """``incubate``, with ``penalty * |gradient| / |host| * (seed - host)`` added for the seed.

    That is the gradient of a quadratic in the seed's distance from the host, whose strength
    follows the gradient's: the seed is at rest ``|host| / penalty`` away, against the gradient.
    Keeps one tensor of the features' size for the backward. Norms are over the whole batch.
    """
    return functions.apply(functions.IncubateNear, host, seed, *_away(host, seed, penalty))


def _away(host: Tensor, seed: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    # A host that vanishes gives no measure of a distance: no pull then.
    strength = (penalty / functions.norm(host.detach())).nan_to_num(posinf=0.0)
    return (seed - host).detach(), strength


def tap(shown: Tensor, seed: Tensor, incubating: Tensor) -> Tensor:
    """``shown``; while ``incubating`` is 1 its gradient goes to ``seed`` too.

    For compiled code: around a blend at alpha 0 this is ``incubate``, with the same bits, and the
    graph is that of the blend.
    """
    return functions.apply(functions.Tap, shown, seed, incubating)


def tap_near(
    shown: Tensor, seed: Tensor, incubating: Tensor, host: Tensor, penalty: float
) -> Tensor:
    """``tap`` for ``incubate_near``."""
    return functions.apply(functions.TapNear, shown, seed, incubating, *_away(host, seed, penalty))


def gate(features: Tensor) -> Tensor:
    """``features`` for a seed to read: where its gradient is not finite, zero comes back."""
    return functions.apply(functions.Gate, features)


def valve(features: Tensor, opened: Tensor) -> Tensor:
    """``gate`` while ``opened`` is 1, ``detach`` while it is 0: one graph serves both."""
    return functions.apply(functions.Valve, features, opened)


def blend(host: Tensor, seed: Tensor, alpha: Tensor, sound: Tensor) -> Tensor:
    """``torch.lerp(host, seed, alpha)``, but exactly ``host`` at 0 and exactly ``seed`` at 1.

    Where ``sound`` (see ``finite``) is false the seed is left out altogether: the output is
    ``host``, all of the gradient goes to the host and zero to the seed.
    """
    return functions.apply(functions.Blend, host, seed, alpha * sound)


def blend_within(host: Tensor, seed: Tensor, alpha: Tensor, sound: Tensor) -> Tensor:
    """``blend`` for an ``alpha`` known to lie strictly between 0 and 1."""
    if sound is finite.SOUND:
        return torch.lerp(host, seed, alpha.to(host.dtype))
    return functions.apply(functions.BlendWithin, host, seed, alpha * sound)


def blend_at_seed(host: Tensor, seed: Tensor, alpha: Tensor, sound: Tensor) -> Tensor:
    """``blend`` for an ``alpha`` known to be 1."""
    if sound is finite.SOUND:
        return functions.apply(functions.SeedShown, seed, host)
    return functions.apply(functions.BlendAtSeed, host, seed, alpha * sound)


def blend_at_host(host: Tensor, seed: Tensor, alpha: Tensor, sound: Tensor) -> Tensor:
    """``blend`` for an ``alpha`` known to be 0."""
    return functions.apply(functions.BlendAtHost, host, seed, alpha * sound)


def gated(host: Tensor, seed: Tensor, alpha: Tensor, sound: Tensor, share: Tensor) -> Tensor:
    """``lerp(host, seed, alpha * share)``, guarded as ``blend``; ``share`` broadcasts over both.

    A ``share`` that is not finite leaves the seed out as well.
    """
    sound = sound & finite.finite(share)
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
