"""Two small networks to grow, for tests, the demo and benchmarks; and how a host names its slots.

The hosts are ordinary PyTorch: nothing of kasmina runs in them until it is grafted on.
"""

import math
from collections.abc import Mapping
from typing import Protocol

from attrs import field, frozen
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from kasmina.domain.stages import Topology
from kasmina.domain.validators import not_blank, positive


@frozen(kw_only=True)
class InjectionPoint:
    """A module in a host, the layout of its output, and the number of channels there."""

    path: str = field(validator=not_blank)
    topology: Topology
    width: int = field(validator=positive)


class HostProtocol(Protocol):
    """A host that names its injection points itself. Structural: no base class is needed."""

    def injection_points(self) -> Mapping[str, InjectionPoint]:
        """The points by slot name, from the host's input to its output.

        Points with the same path are slots in series, in their order.
        """


class ConvStage(nn.Sequential):
    """Convolution 3×3, BatchNorm, ReLU: ``(batch, inputs, h, w)`` to ``(batch, outputs, …)``."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )


class ConvHost(nn.Module):
    """A plain CNN classifier: ``(batch, inputs, height, width)`` to logits ``(batch, classes)``.

    One ``ConvStage`` for each entry of ``channels``, each after the first halving the height and
    width; then the spatial mean, dropout and a linear head. 5,178 parameters by default.
    """

    def __init__(
        self,
        *,
        inputs: int = 1,
        channels: tuple[int, ...] = (16, 32),
        classes: int = 10,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.channels = channels
        before = (inputs, *channels[:-1])
        self.stages = nn.Sequential(
            *(
                ConvStage(fan_in, fan_out, stride=2 if index else 1)
                for index, (fan_in, fan_out) in enumerate(zip(before, channels, strict=True))
            )
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels[-1], classes)

    @override
    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.stages(images)
        logits: Tensor = self.head(self.dropout(features.mean(dim=(2, 3))))
        return logits

    def injection_points(self) -> Mapping[str, InjectionPoint]:
        """``stage0``, ``stage1``, …: the rectified features after each stage."""
        return {
            f"stage{index}": InjectionPoint(
                path=f"stages.{index}", topology=Topology.CNN, width=width
            )
            for index, width in enumerate(self.channels)
        }


class CausalAttention(nn.Module):
    """Multi-head causal self-attention of ``(batch, positions, width)``, with dropout."""

    def __init__(self, *, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.project_in = nn.Linear(width, 3 * width)
        self.project_out = nn.Linear(width, width)

    @override
    def forward(self, x: Tensor) -> Tensor:
        projected = self.project_in(x).unflatten(-1, (3, self.heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        out: Tensor = self.project_out(mixed.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """A pre-normalised decoder block: attention, then an MLP, each added to the features."""

    def __init__(self, *, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CausalAttention(width=width, heads=heads, dropout=dropout)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        out: Tensor = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return out


class GPTHost(nn.Module):
    """A decoder as in GPT-2 (Radford et al. 2019), with its initialisation.

    Tokens ``(batch, positions)``, int64 and below ``vocabulary``, with at most ``context``
    positions, to logits ``(batch, positions, vocabulary)``. ``tied`` shares the head's weight
    with the token embedding. 106,240 parameters by default.
    """

    def __init__(
        self,
        *,
        vocabulary: int = 64,
        context: int = 32,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        dropout: float = 0.0,
        tied: bool = True,
    ) -> None:
        super().__init__()
        self.width = width
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(Block(width=width, heads=heads, dropout=dropout) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self._draw(depth)
        if tied:
            self.head.weight = self.tokens.weight

    def _draw(self, depth: int) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() > 1:
                into_residual = name.endswith(("project_out.weight", "mlp.2.weight"))
                nn.init.normal_(
                    parameter, std=0.02 / math.sqrt(2 * depth) if into_residual else 0.02
                )

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        positions = self.positions.weight[: tokens.shape[1]]
        features: Tensor = self.blocks(self.dropout(self.tokens(tokens) + positions))
        logits: Tensor = self.head(self.norm(features))
        return logits

    def injection_points(self) -> Mapping[str, InjectionPoint]:
        """``block0``, ``block1``, …: the residual stream after each block."""
        return {
            f"block{index}": InjectionPoint(
                path=f"blocks.{index}", topology=Topology.TRANSFORMER, width=self.width
            )
            for index in range(len(self.blocks))
        }
