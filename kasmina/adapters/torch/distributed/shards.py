"""Tensors that ``fully_shard`` and its like have spread over the ranks."""

import sys

from torch import Tensor

from kasmina.adapters.torch.graft import Slots
from kasmina.domain.errors import KasminaError


class ShardedHost(KasminaError):
    """A host of which each rank holds a part alone."""

    def __init__(self, tensor: str) -> None:
        self.tensor = tensor
        super().__init__(
            f"the host is sharded ({tensor!r} is a DTensor), and seeds can neither be watched nor "
            f"saved beside one yet; use DistributedDataParallel"
        )


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds a part of the tensor alone."""
    if "torch.distributed.tensor" not in sys.modules:  # its loading takes half a second
        return False
    from torch.distributed.tensor import DTensor  # noqa: PLC0415

    return isinstance(tensor, DTensor)


def require_whole(slots: Slots) -> None:
    """Raise ``ShardedHost`` unless every rank holds the whole host."""
    for name, tensor in slots.host_tensors():
        if is_sharded(tensor):
            raise ShardedHost(name)
