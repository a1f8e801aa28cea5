"""How much of a seed each sample gets, in a gated blend."""

import torch
from torch import Tensor, nn
from typing_extensions import override

from kasmina.domain.stages import Topology

_POSITIONS = {Topology.CNN: (2, 3), Topology.TRANSFORMER: (1,)}


class Mixer(nn.Module):
    """A weight in (0, 1) for each sample, from the mean of its features over all positions.

    The gate of a mixture of two experts (Jacobs et al. 1991, "Adaptive Mixtures of Local
    Experts"): host and seed. Born without a preference, a half for every sample.
    """

    def __init__(self, topology: Topology, width: int) -> None:
        super().__init__()
        self.positions = _POSITIONS[topology]
        # No draw for weights that are set: the random stream here is the host's.
        self.logit: nn.Linear = nn.utils.skip_init(nn.Linear, width, 1)  # type: ignore[no-untyped-call]
        nn.init.zeros_(self.logit.weight)
        nn.init.zeros_(self.logit.bias)

    @override
    def forward(self, features: Tensor) -> Tensor:
        """Weights of shape ``(batch, 1, 1[, 1])`` for features of the topology's layout."""
        weight: Tensor = torch.sigmoid(self.logit(features.mean(self.positions)))
        return weight.to(features.dtype).view(-1, *(1 for _ in self.positions), 1)
