"""A host that ``fully_shard`` has spread over the ranks, beside the same host as it was."""

from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.distributed.loop import Training


class Layout(Enum):
    """How the ranks hold a host."""

    WHOLE = "each all of it, in DistributedDataParallel"
    SHARDED = "each a part of it"
    COPIED = "two copies, each sharded over half of the ranks"


def laid_out(layout: Layout, **options: Any) -> Training:
    """A fresh training with AdamW on its host."""
    training = Training.fresh(wrapper={} if layout is Layout.WHOLE else None)
    if layout is not Layout.WHOLE:
        size = dist.get_world_size()
        shape = (2, size // 2) if layout is Layout.COPIED else (size,)
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("copies", "parts")[-len(shape) :])
        for module in (training.host[0], training.host[1], training.host):
            fully_shard(module, mesh=mesh, **options)
    training.optimizer = torch.optim.AdamW(training.slots.host_parameters(), lr=1e-2)
    return training


def tensors(training: Training) -> Mapping[str, Tensor]:
    """All that the ranks hold together."""
    return {name: whole(value).clone() for name, value in training.host.state_dict().items()}


def whole(value: Any) -> Tensor:
    return value.full_tensor() if isinstance(value, torch.distributed.tensor.DTensor) else value
