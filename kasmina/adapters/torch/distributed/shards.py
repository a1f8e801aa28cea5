"""Seeds sharded as their host is, by FSDP2's ``fully_shard``."""

from collections.abc import Callable
from os import PathLike
from typing import Any, Self

import torch.distributed as dist
from attrs import frozen
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard

from kasmina.adapters.torch.distributed.ranks import RankPlan, Ranks
from kasmina.adapters.torch.distributed.saving import save_together
from kasmina.adapters.torch.germination import Sprout
from kasmina.adapters.torch.graft import Slots
from kasmina.domain.errors import KasminaError


class ShardedHost(KasminaError):
    """A host that is sharded in a way that its seeds could not follow."""

    def __init__(self, tensor: str, problem: str) -> None:
        self.tensor = tensor
        self.problem = problem
        super().__init__(
            f"the host's {tensor!r} is {problem}; shard the host with fully_shard over all ranks, "
            f"alone or with copies (a mesh of one or two dimensions), or wrap it in "
            f"DistributedDataParallel"
        )


@frozen(kw_only=True, eq=False)
class Sharding:
    """How a host is sharded, and its seeds with it."""

    slots: Slots
    mesh: DeviceMesh
    precision: MixedPrecisionPolicy

    @classmethod
    def of(cls, slots: Slots, ranks: RankPlan | None) -> Self:
        """That of the host of ``slots``.

        Raises ``ShardedHost``.
        """
        settle(slots)
        sharded = {name: p for name, p in slots.host_named_parameters() if isinstance(p, DTensor)}
        name, first = next(iter(sharded.items()))
        if ranks is None:
            raise ShardedHost(name, "sharded over processes that shall each be a run (ranks=None)")
        by_torch = [each for each in slots.model.modules() if isinstance(each, FSDPModule)]
        if not by_torch:
            raise ShardedHost(name, "a DTensor that fully_shard did not make")
        for each, parameter in sharded.items():
            _require_followed(each, parameter, first.device_mesh)
        given = by_torch[0]._get_fsdp_state()._mp_policy  # noqa: SLF001  # no public name
        # A seed hands on features of the dtype that it was given, whatever the host's end does.
        precision = MixedPrecisionPolicy(given.param_dtype, given.reduce_dtype)
        return cls(slots=slots, mesh=first.device_mesh, precision=precision)

    def spread(self, sprout: Sprout) -> None:
        """Shard the seed in ``sprout``, which is the same on every rank; all of them must do so.

        It is gathered for each forward and backward alone, also where it is the last module.
        """
        for module in sprout.modules:
            fully_shard(
                module, mesh=self.mesh, mp_policy=self.precision, reshard_after_forward=True
            )

    def save(
        self, path: str | PathLike[str], ranks: Ranks, pack: Callable[[], dict[str, Any]]
    ) -> None:
        """Write a checkpoint to which every rank adds its part; see ``save_together``."""
        settle(self.slots)
        save_together(path, ranks, pack)


def settle(slots: Slots) -> None:
    """Let every rank hold its part of the host alone; after a forward a root may hold it all."""
    for module in slots.model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _require_followed(name: str, parameter: DTensor, mesh: DeviceMesh) -> None:
    if parameter.device_mesh != mesh:
        raise ShardedHost(name, "sharded over other ranks than the rest of it")
    if mesh.size() != dist.get_world_size():
        raise ShardedHost(
            name, f"sharded over {mesh.size()} ranks of the {dist.get_world_size()} that there are"
        )
    *copied, last = parameter.placements
    if len(copied) > 1 or not all(isinstance(each, Replicate) for each in copied):
        raise ShardedHost(name, f"placed as {parameter.placements}")
    if not isinstance(last, Shard | Replicate):
        raise ShardedHost(name, f"placed as {parameter.placements}")
