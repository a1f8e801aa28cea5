"""What the shipped blueprints are made of: each part is born so that the seed is the identity.

What a module draws or sets at birth is its ``reset_parameters``, as in torch's own layers, so a
copy can be drawn again. Nothing here works in place, draws at random in its forward, or keeps
running statistics: a seed must not be noticed by its host. Shapes are those of ``Topology``.
"""

import torch
from torch import Tensor, nn
from typing_extensions import override

CHANNELS_PER_GROUP = 16


class ZeroConv2d(nn.Conv2d):
    """A convolution born zero: the last layer of a delta.

    Its own gradient is not zero, so training can start (Zhang et al. 2019, "Fixup
    Initialization"; Bachlechner et al. 2020, "ReZero is All You Need").
    """

    @override
    def reset_parameters(self) -> None:
        """Set weight and bias to zero."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class ZeroLinear(nn.Linear):
    """A linear layer born zero, for the reasons of ``ZeroConv2d``."""

    @override
    def reset_parameters(self) -> None:
        """Set weight and bias to zero."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class ChannelNorm(nn.GroupNorm):
    """Group normalisation of ``(batch, width, height, width)`` at any width.

    Groups hold 16 channels (Wu & He 2018, "Group Normalization"), or all of them where 16 does
    not divide the width. A group of one value becomes zero (up to rounding), where
    ``nn.GroupNorm`` raises.
    """

    def __init__(self, width: int, *, affine: bool = True) -> None:
        groups = width // CHANNELS_PER_GROUP if width % CHANNELS_PER_GROUP == 0 else 1
        super().__init__(groups, width, affine=affine)

    @override
    def forward(self, input: Tensor) -> Tensor:
        # Contiguous, because torch 2.13 on CPU crashes the process in the backward of a
        # channels_last input that needs no gradient: that is the first layer of an incubating seed.
        features = input.contiguous()
        return torch.group_norm(features, self.num_groups, self.weight, self.bias, self.eps)


class Renormalise(nn.Module):
    """The delta ``gain * (norm(x) - x) + bias``: at gain 1 the seed is the norm itself.

    ``gain`` and ``bias`` have ``shape``, which broadcasts over the features, and are born zero
    (ReZero, Bachlechner et al. 2020). ``norm`` needs no parameters of its own.
    """

    def __init__(self, norm: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.norm = norm
        self.gain = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set gain and bias to zero."""
        nn.init.zeros_(self.gain)
        nn.init.zeros_(self.bias)

    @override
    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.norm(x)
        return self.gain * (normalised - x) + self.bias


class Residual(nn.Module):
    """The seed ``x + delta(x)``, with a ``delta`` that is zero at birth.

    It is then exactly the identity for all finite features from which ``delta`` stays finite, in
    every dtype; and under autocast, which may change the dtype of ``delta`` but not of ``x``.
    """

    def __init__(self, delta: nn.Module) -> None:
        super().__init__()
        self.delta = delta

    @override
    def forward(self, x: Tensor) -> Tensor:
        delta: Tensor = self.delta(x)
        return x + delta.to(x.dtype)


class Inline(nn.Module):
    """A rectified layer in the line, ``max(h, min(x, 0))`` with ``h = x + change(x)``.

    ``change`` is a zero-born linear map from features to features. Its kernels with a Dirac at
    their centre, its matrix with the identity added, are the layer's: the parametrisation of
    Zagoruyko & Komodakis 2017 ("DiracNets") of the identity layers of Chen et al. 2016
    ("Net2Net"). Weight decay pulls it to the identity instead of to zero. The Dirac is applied as
    the features themselves, since as stored weights it would be exact only where products are not
    rounded: not under TF32, Winograd or autocast.

    Behind a ReLU (features of at least 0) this is ``relu(h)``. Lowering the rectifier's floor to
    ``min(x, 0)`` makes it the identity at birth for features of either sign, in its value and in
    its derivative by ``x`` (a tie in the maximum shares the gradient between both sides).
    """

    def __init__(self, change: nn.Module) -> None:
        super().__init__()
        self.change = change

    @override
    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.change(x)
        return torch.maximum(x + change.to(x.dtype), x.clamp(max=0))
