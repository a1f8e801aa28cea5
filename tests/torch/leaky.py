"""Seeds that leak, each in one way; and what of it is seen.

They grow at ``BLOCK`` of ``build_host()`` (tests/journeys/loop.py), a convolution, a BatchNorm and
a ReLU, and behave well until their victim is ``leaking``, so that they pass the trial at birth.
"""

import random
from collections.abc import Callable
from typing import ClassVar, Self

import numpy.random  # loaded when first needed, otherwise
import torch
from attrs import define
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from kasmina.domain.stages import Leak

BLOCK = "2"

Sights = frozenset[tuple[Leak, str]]


def as_seen(leak: Leak, *subjects: str) -> Sights:
    return frozenset((leak, subject) for subject in subjects)


@define(eq=False)
class Victim:
    """The host, as its leaky seed knows it; ``kept`` is the live output of its BatchNorm."""

    host: nn.Module
    leaking: bool = False
    kept: Tensor | None = None

    def __attrs_post_init__(self) -> None:
        self.norm.register_forward_hook(self.keep)

    def keep(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self.kept = output

    def __deepcopy__(self, _memo: object) -> Self:
        return self  # a copied seed leaks into the same host

    @property
    def conv(self) -> nn.Conv2d:
        return self.host.get_submodule(f"{BLOCK}.0")

    @property
    def norm(self) -> nn.BatchNorm2d:
        return self.host.get_submodule(f"{BLOCK}.1")

    def write(self) -> None:
        with torch.no_grad():
            self.conv.bias.add_(1e-3)


class Backward(Function):
    """Hands everything on, and does something on the way back."""

    @staticmethod
    def forward(ctx, features, act):
        ctx.act = act
        return features.view_as(features)

    @staticmethod
    def backward(ctx, gradient):
        ctx.act()
        return gradient, None


class Leaky(nn.Module):
    """``before`` sees its input, ``after`` its output; both may return something else."""

    place: ClassVar[str] = BLOCK
    sights: ClassVar[Sights]
    aside: ClassVar[Sights] = frozenset()
    """What is seen besides, aside, where values are compared."""
    needs_training: ClassVar[bool] = False
    """Whether a forward and ``torch.autograd.grad`` alone do not show it."""

    def __init__(self, width: int, victim: Victim) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.victim = victim

    def forward(self, x: Tensor) -> Tensor:
        if not self.victim.leaking:
            return x + self.norm(self.conv(x))
        x = self.before(x)
        return self.after(x + self.norm(self.conv(x)))

    def before(self, x: Tensor) -> Tensor:
        return x

    def after(self, y: Tensor) -> Tensor:
        return y


# --- gradient ---


class ThroughAParameter(Leaky):
    sights = as_seen(Leak.GRADIENT, "2.0.bias")

    def after(self, y):
        return y + self.victim.conv.bias.mean()


class ThroughAView(Leaky):
    sights = as_seen(Leak.GRADIENT, "2.0.weight")

    def after(self, y):
        return y * self.victim.conv.weight[:1].flatten()[3]


class ThroughAnActivation(Leaky):
    sights = as_seen(
        Leak.GRADIENT,
        *("0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias"),
        *("2.0.weight", "2.0.bias", "2.1.weight", "2.1.bias"),
    )

    def after(self, y):
        return y + self.victim.kept.mean()


class IntoAGradient(Leaky):
    sights = as_seen(Leak.IN_PLACE_WRITE, "gradient of 2.0.bias")

    def after(self, y):
        return Backward.apply(y, self.add)

    def add(self):
        bias = self.victim.conv.bias
        bias.grad = torch.ones_like(bias) if bias.grad is None else bias.grad.add_(1)


# --- shared memory ---


class SharesAParameter(Leaky):
    sights = as_seen(Leak.SHARED_PARAMETER, "conv.bias shares memory with 2.0.bias")

    def before(self, x):
        self.conv.bias.data = self.victim.conv.bias.data
        return x


class SharesABuffer(Leaky):
    sights = as_seen(Leak.SHARED_PARAMETER, "norm.running_var shares memory with 2.1.running_var")
    aside = as_seen(Leak.IN_PLACE_WRITE, "2.1.running_var")

    def before(self, x):
        self.norm.running_var = self.victim.norm.running_var.detach()
        return x


class SharesAPart(Leaky):
    sights = as_seen(Leak.SHARED_PARAMETER, "conv.bias shares memory with 2.0.weight")

    def before(self, x):
        start, length = 5, self.conv.bias.numel()
        self.conv.bias.data = self.victim.conv.weight.data.flatten()[start : start + length]
        return x


# --- writes ---


class WritesToTheActivation(Leaky):
    """Where nobody keeps it for a backward: elsewhere autograd refuses that backward itself."""

    place = f"{BLOCK}.1"
    sights = as_seen(Leak.IN_PLACE_WRITE, "activation")

    def before(self, x):
        return x.relu_()


class WritesToAParameter(Leaky):
    sights = as_seen(Leak.IN_PLACE_WRITE, "2.0.bias")

    def before(self, x):
        self.victim.write()
        return x


class WritesToABuffer(Leaky):
    sights = as_seen(Leak.IN_PLACE_WRITE, "2.1.num_batches_tracked")

    def before(self, x):
        self.victim.norm.num_batches_tracked.add_(1)
        return x


class ReplacesABuffer(Leaky):
    sights = as_seen(Leak.IN_PLACE_WRITE, "2.1.running_mean")

    def before(self, x):
        self.victim.norm.running_mean = self.victim.norm.running_mean + 1
        return x


class WritesInItsBackward(Leaky):
    sights = as_seen(Leak.IN_PLACE_WRITE, "2.0.bias")

    def before(self, x):
        return x

    def after(self, y):
        return Backward.apply(y, self.victim.write)


class WritesToABufferInItsBackward(Leaky):
    sights = as_seen(Leak.IN_PLACE_WRITE, "2.1.num_batches_tracked")

    def after(self, y):
        return Backward.apply(y, lambda: self.victim.norm.num_batches_tracked.add_(1))


class WritesFromItsOutputsHook(Leaky):
    sights = as_seen(Leak.IN_PLACE_WRITE, "2.0.bias")

    def after(self, y):
        if y.requires_grad:
            y.register_hook(lambda _: self.victim.write())
        return y


class WritesFromItsParametersHook(Leaky):
    sights = as_seen(Leak.IN_PLACE_WRITE, "2.0.bias")
    needs_training = True

    def before(self, x):
        self.conv.weight.register_post_accumulate_grad_hook(lambda _: self.victim.write())
        return x


# --- random streams ---


class DrawsFromTorch(Leaky):
    sights = as_seen(Leak.RANDOM_STREAM, "cpu")

    def after(self, y):
        return F.dropout(y, 0.1)


class DrawsFromPython(Leaky):
    sights = as_seen(Leak.RANDOM_STREAM, "python")

    def after(self, y):
        return y * random.random()


class DrawsFromNumpy(Leaky):
    sights = as_seen(Leak.RANDOM_STREAM, "numpy")

    def after(self, y):
        return y * float(numpy.random.rand())  # noqa: NPY002  # the stream that all share


class DrawsInItsBackward(Leaky):
    sights = as_seen(Leak.RANDOM_STREAM, "cpu")

    def after(self, y):
        return Backward.apply(y, lambda: torch.rand(1))


# --- hooks ---


def nothing(*_arguments: object) -> None:
    """A hook that is only there."""


class HooksAModule(Leaky):
    sights = as_seen(Leak.HOOK, "hooks of 2.0")

    def before(self, x):
        self.victim.conv.register_forward_hook(nothing)
        return x


class HooksAllModules(Leaky):
    sights = as_seen(Leak.HOOK, "hooks of all modules")

    def before(self, x):
        nn.modules.module.register_module_forward_hook(nothing)
        return x


class HooksAParameter(Leaky):
    sights = as_seen(Leak.HOOK, "hooks of 2.0.bias")

    def before(self, x):
        self.victim.conv.bias.register_hook(nothing)
        return x


class HooksInItsBackward(Leaky):
    sights = as_seen(Leak.HOOK, "hooks of 2.0")

    def after(self, y):
        return Backward.apply(y, lambda: self.victim.conv.register_forward_pre_hook(nothing))


class CallsAModule(Leaky):
    sights = as_seen(Leak.HOOK, "hooks of 2.1 ran") | as_seen(
        Leak.IN_PLACE_WRITE, "2.1.num_batches_tracked"
    )
    aside = as_seen(Leak.IN_PLACE_WRITE, "2.1.running_mean", "2.1.running_var")

    def before(self, x):
        with torch.no_grad():
            self.victim.norm(x)
        return x


SEEN: tuple[type[Leaky], ...] = tuple(Leaky.__subclasses__())


# --- what no sampled step sees ---


class WritesUnannounced(Leaky):
    """``.data`` has a version of its own."""

    sights = as_seen(Leak.IN_PLACE_WRITE, "2.0.bias")

    def before(self, x):
        self.victim.conv.bias.data.add_(1e-3)
        return x


class NormalisesWithTheHosts(Leaky):
    """The kernel writes to the running statistics, and raises no version."""

    sights = as_seen(Leak.IN_PLACE_WRITE, "2.1.running_mean", "2.1.running_var")

    def before(self, x):
        norm = self.victim.norm
        F.batch_norm(x, norm.running_mean, norm.running_var, training=True)
        return x


UNANNOUNCED: tuple[type[Leaky], ...] = (WritesUnannounced, NormalisesWithTheHosts)

Build = Callable[[int], Leaky]
