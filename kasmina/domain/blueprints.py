"""What seeds can be made of: the catalogue, readable and countable without torch.

Every blueprint is the identity at birth. The modules themselves are built by the torch adapter,
from the inner sizes given here; tests hold the two to the same number of parameters.
"""

from collections.abc import Callable
from enum import Enum
from typing import TypeAlias

from attrs import field, frozen

from kasmina.domain.errors import KasminaError
from kasmina.domain.stages import Topology
from kasmina.domain.validators import not_blank

ParameterFormula: TypeAlias = Callable[[int], int]
"""From a slot's width to a seed's number of parameters."""


class BlueprintKind(Enum):
    """How a seed relates to the features it is given.

    ``RESIDUAL`` adds to them, ``seed(x) = x + delta(x)`` with ``delta`` zero at birth: they always
    pass through its own skip. ``INLINE`` replaces them by a layer that is born as the identity.
    """

    RESIDUAL = "residual"
    INLINE = "inline"


@frozen(kw_only=True)
class BlueprintSpec:
    """What is known of a blueprint without building it."""

    name: str = field(validator=not_blank)
    topology: Topology
    kind: BlueprintKind
    summary: str = field(validator=not_blank)
    formula: ParameterFormula = field(repr=False)

    def parameters(self, width: int) -> int:
        """The number of parameters of a seed for ``width`` channels, exactly.

        Raises ``ValueError`` for a width below 1.
        """
        return self.formula(at_least_one(width))


class DuplicateBlueprint(KasminaError):
    """A second blueprint of the same topology and name."""

    def __init__(self, topology: Topology, name: str) -> None:
        self.topology = topology
        self.name = name
        super().__init__(
            f"there already is a {topology.value} blueprint {name!r}; runs on record refer to it "
            f"by that name: give the new one another"
        )


def at_least_one(width: int) -> int:
    """The width itself. Raises ``ValueError`` for one below 1."""
    if width < 1:
        raise ValueError(f"a seed needs a width of at least 1, got {width}")
    return width


def reduced(width: int) -> int:
    """Channels inside a squeeze or a bottleneck: a quarter, at least four."""
    return max(4, width // 4)


def rank(width: int) -> int:
    """Rank of a low-rank seed: eight, as in the experiments of LoRA, or the width below that."""
    return min(8, width)


def heads(width: int) -> int:
    """Attention heads: as many as divide the width and leave each at least 32 channels."""
    return max(n for n in range(1, max(1, width // 32) + 1) if width % n == 0)


def _layer(inputs: int, outputs: int, *, taps: int = 1) -> int:
    """A linear layer, or a convolution of ``taps`` kernel elements, with its bias."""
    return inputs * outputs * taps + outputs


def _norm(width: int) -> int:
    return 2 * width


def _attention(width: int) -> int:
    return _norm(width) + _layer(width, 3 * width) + _layer(width, width)


def _bottleneck(width: int) -> int:
    inner = reduced(width)
    narrow = width * inner + 9 * inner * inner  # without biases: a norm follows each
    return narrow + 2 * _norm(inner) + _layer(inner, width)


def _conv_heavy(width: int) -> int:
    return 9 * width * width + _norm(width) + _layer(width, width, taps=9)


def _mlp(width: int, hidden: int) -> int:
    return _norm(width) + _layer(width, hidden) + _layer(hidden, width)


def _squeeze(width: int) -> int:
    return _layer(width, reduced(width)) + _layer(reduced(width), width)


def _cnn(
    name: str,
    formula: ParameterFormula,
    summary: str,
    kind: BlueprintKind = BlueprintKind.RESIDUAL,
) -> BlueprintSpec:
    return BlueprintSpec(
        name=name, topology=Topology.CNN, kind=kind, summary=summary, formula=formula
    )


def _transformer(
    name: str,
    formula: ParameterFormula,
    summary: str,
    kind: BlueprintKind = BlueprintKind.RESIDUAL,
) -> BlueprintSpec:
    return BlueprintSpec(
        name=name, topology=Topology.TRANSFORMER, kind=kind, summary=summary, formula=formula
    )


SHIPPED: tuple[BlueprintSpec, ...] = (
    _cnn("attention", _squeeze, "channel attention by squeeze and excitation"),
    _cnn("bottleneck", _bottleneck, "1×1 to a quarter of the channels, 3×3, 1×1 back"),
    _cnn("conv_heavy", _conv_heavy, "two 3×3 convolutions"),
    _cnn(
        "conv_inline",
        lambda width: _layer(width, width, taps=9),
        "a rectified 3×3 convolution in the line, born with Dirac kernels",
        BlueprintKind.INLINE,
    ),
    _cnn(
        "conv_light",
        lambda width: _norm(width) + _layer(width, width, taps=9),
        "one normalised and rectified 3×3 convolution",
    ),
    _cnn(
        "depthwise",
        lambda width: 9 * width + _norm(width) + _layer(width, width),
        "3×3 in each channel, then 1×1 across channels",
    ),
    _cnn("norm", _norm, "group normalisation, let in channel by channel"),
    _transformer("attention", _attention, "causal self-attention"),
    _transformer(
        "linear_inline",
        lambda width: _layer(width, width),
        "a rectified linear layer in the line, born as the identity matrix",
        BlueprintKind.INLINE,
    ),
    _transformer("lora", lambda width: 2 * width * rank(width), "a linear map of low rank"),
    _transformer("mlp", lambda width: _mlp(width, 4 * width), "an MLP of four times the width"),
    _transformer("mlp_small", lambda width: _mlp(width, width), "an MLP of the width itself"),
    _transformer("norm", _norm, "layer normalisation, let in channel by channel"),
)
"""The blueprints that come with kasmina, by topology and name."""
