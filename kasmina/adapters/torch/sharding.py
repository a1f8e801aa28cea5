"""Tensors of which each process holds a part, as ``fully_shard`` leaves them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor, nn
from typing_extensions import TypeIs

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> "TypeIs[DTensor]":
    """Whether this process holds a part of ``tensor`` alone."""
    if "torch.distributed.tensor" not in sys.modules:  # its loading takes half a second
        return False
    from torch.distributed.tensor import DTensor  # noqa: PLC0415

    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of ``tensor``, in the same memory; all of one that is not sharded."""
    return tensor.to_local().detach() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of ``tensor``, on every process; of a sharded one that is a collective."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


@contextmanager
def parameters_in_forward(*modules: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Gathers the parameters with which forwards of ``modules`` run meanwhile.

    A sharded module runs with others than those that it has between its forwards.
    """
    found: list[nn.Parameter] = []

    def gather(module: nn.Module, _args: object) -> None:
        found.extend(module.parameters())

    handles = [module.register_forward_pre_hook(gather) for module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class that the module has without ``fully_shard``, which puts one of its own on top."""
    if "torch.distributed.fsdp" not in sys.modules:
        return type(module)
    from torch.distributed.fsdp import FSDPModule  # noqa: PLC0415

    kinds = (kind for kind in type(module).__mro__ if issubclass(kind, nn.Module))
    return next(kind for kind in kinds if not issubclass(kind, FSDPModule))
