"""Blueprints for features ``(batch, positions, width)``, of any length and width from 1."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from kasmina.adapters.torch.blueprints.parts import Inline, Renormalise, Residual, ZeroLinear
from kasmina.domain.blueprints import heads, rank


class CausalSelfAttention(nn.Module):
    """Attention of each position to itself and those before it (Vaswani et al. 2017).

    Without dropout. The output projection is born zero.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = heads(width)
        self.project_in = nn.Linear(width, 3 * width)
        self.project_out = ZeroLinear(width, width)

    @override
    def forward(self, x: Tensor) -> Tensor:
        projected = self.project_in(x).unflatten(-1, (3, self.heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: Tensor = self.project_out(mixed.transpose(1, 2).flatten(2))
        return out


def _mlp(width: int, hidden: int) -> nn.Module:
    return Residual(
        nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), ZeroLinear(hidden, width)
        )
    )


def attention(width: int) -> nn.Module:
    """Pre-normalised causal self-attention: see ``CausalSelfAttention``."""
    return Residual(nn.Sequential(nn.LayerNorm(width), CausalSelfAttention(width)))


def linear_inline(width: int) -> nn.Module:
    """A rectified linear layer with the identity matrix (Net2Net): see ``Inline``."""
    return Inline(ZeroLinear(width, width))


def lora(width: int) -> nn.Module:
    """A linear map of low rank, its second factor born zero (Hu et al. 2021, "LoRA")."""
    return Residual(
        nn.Sequential(
            nn.Linear(width, rank(width), bias=False), ZeroLinear(rank(width), width, bias=False)
        )
    )


def mlp(width: int) -> nn.Module:
    """The pre-normalised MLP of GPT-2 (Radford et al. 2019): four times the width, GELU."""
    return _mlp(width, 4 * width)


def mlp_small(width: int) -> nn.Module:
    """An MLP of the width itself, as in the adapters of Houlsby et al. 2019."""
    return _mlp(width, width)


def norm(width: int) -> nn.Module:
    """Layer normalisation (Ba et al. 2016), let in by a gain per channel: see ``Renormalise``."""
    return Residual(Renormalise(nn.LayerNorm(width, elementwise_affine=False), (width,)))


BUILDERS: Mapping[str, Callable[[int], nn.Module]] = MappingProxyType(
    {
        "attention": attention,
        "linear_inline": linear_inline,
        "lora": lora,
        "mlp": mlp,
        "mlp_small": mlp_small,
        "norm": norm,
    }
)
