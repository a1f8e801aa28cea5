"""The random streams of every rank in one checkpoint: resumed from one, all would draw the same."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import torch
from attrs import define, field

from kasmina.adapters.torch.distributed.ranks import Ranks
from kasmina.adapters.torch.graft import Slots
from kasmina.adapters.torch.randomness import RandomStreams, devices_of

RANKS = "kasmina.ranks"
"""The name among a checkpoint's extras."""


@define(eq=False)
class RankStreams:
    """What a checkpoint holds of the ranks: their random streams, by rank.

    A rank that was not there when the checkpoint was taken keeps the streams that it has.
    """

    slots: Slots
    ranks: Ranks
    states: list[dict[str, Any]] = field(factory=list)

    def gather(self) -> None:
        """Take every rank's streams as they are now; an exchange."""

        def hold(states: Sequence[bytes]) -> None:
            self.states = [torch.load(BytesIO(each), weights_only=True) for each in states]

        self.ranks.together("gather the random streams", self._own, hold)

    def restore(self) -> None:
        """Put this rank's own streams back, as the checkpoint that was loaded has them."""
        if self.ranks.rank < len(self.states):
            RandomStreams.of(self.states[self.ranks.rank]).restore()

    def state_dict(self) -> dict[str, Any]:
        """The streams that were gathered last."""
        return {"streams": list(self.states)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the streams on, without putting them back yet."""
        self.states = list(state_dict["streams"])

    def _own(self) -> bytes:
        written = BytesIO()
        torch.save(RandomStreams.capture(devices_of(self.slots.model)).state_dict(), written)
        return written.getvalue()
