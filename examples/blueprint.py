"""A blueprint of one's own: registered by decorator, planted by name."""

import torch
from torch import Tensor, nn

from kasmina import BlueprintKind, Topology, blueprint


@blueprint(
    "shift",
    topology=Topology.CNN,
    kind=BlueprintKind.RESIDUAL,
    summary="A learned offset for each channel.",
)
class Shift(nn.Module):
    """Adds a learned offset, zero at birth: ``(batch, width, height, width)`` to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(width, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """The features, moved."""
        return features + self.offset
