"""Blueprints for features ``(batch, width, height, width)``, of any size and width from 1."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from typing_extensions import override

from kasmina.adapters.torch.blueprints.parts import (
    ChannelNorm,
    Inline,
    Renormalise,
    Residual,
    ZeroConv2d,
    ZeroLinear,
)
from kasmina.domain.blueprints import reduced


class SqueezeExcitation(nn.Module):
    """The delta ``x * g``, with one gate in (-1, 1) per channel from the spatial means.

    Added to the features it gives ``x * (1 + tanh z)``, which is twice the sigmoid gate of Hu et
    al. 2018 ("Squeeze-and-Excitation Networks") at ``2z``: 1 at birth instead of a half.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(width, reduced(width))
        self.excite = ZeroLinear(reduced(width), width)

    @override
    def forward(self, x: Tensor) -> Tensor:
        squeezed = torch.relu(self.squeeze(x.mean(dim=(2, 3))))
        gate = torch.tanh(self.excite(squeezed))
        return x * gate.unsqueeze(-1).unsqueeze(-1)


def attention(width: int) -> nn.Module:
    """Channel attention (Hu et al. 2018): see ``SqueezeExcitation``."""
    return Residual(SqueezeExcitation(width))


def bottleneck(width: int) -> nn.Module:
    """The bottleneck block of He et al. 2016 ("Deep Residual Learning"), group-normalised."""
    inner = reduced(width)
    return Residual(
        nn.Sequential(
            nn.Conv2d(width, inner, 1, bias=False),
            ChannelNorm(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, padding=1, bias=False),
            ChannelNorm(inner),
            nn.ReLU(),
            ZeroConv2d(inner, width, 1),
        )
    )


def conv_heavy(width: int) -> nn.Module:
    """The basic block of He et al. 2016 ("Deep Residual Learning"), group-normalised."""
    return Residual(
        nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            ChannelNorm(width),
            nn.ReLU(),
            ZeroConv2d(width, width, 3, padding=1),
        )
    )


def conv_inline(width: int) -> nn.Module:
    """A rectified convolution with Dirac kernels (Net2Net, DiracNets): see ``Inline``."""
    return Inline(ZeroConv2d(width, width, 3, padding=1))


def conv_light(width: int) -> nn.Module:
    """One pre-activated convolution (He et al. 2016, "Identity Mappings"): norm, ReLU, 3×3."""
    return Residual(
        nn.Sequential(ChannelNorm(width), nn.ReLU(), ZeroConv2d(width, width, 3, padding=1))
    )


def depthwise(width: int) -> nn.Module:
    """The depthwise separable convolution of Howard et al. 2017 ("MobileNets")."""
    return Residual(
        nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            ChannelNorm(width),
            nn.ReLU(),
            ZeroConv2d(width, width, 1),
        )
    )


def norm(width: int) -> nn.Module:
    """Group normalisation (Wu & He 2018), let in by a gain per channel: see ``Renormalise``."""
    return Residual(Renormalise(ChannelNorm(width, affine=False), (width, 1, 1)))


BUILDERS: Mapping[str, Callable[[int], nn.Module]] = MappingProxyType(
    {
        "attention": attention,
        "bottleneck": bottleneck,
        "conv_heavy": conv_heavy,
        "conv_inline": conv_inline,
        "conv_light": conv_light,
        "depthwise": depthwise,
        "norm": norm,
    }
)
