"""Averaging the gradients of seeds over the ranks, which no wrapper of the host does for them.

At the end of each backward that reached a seed, when all its gradients have been accumulated and
before anything is clipped or unscaled, there is one all-reduce for all seeds of one dtype. Where
the host's wrapper is in ``no_sync()`` there is none, and the next one averages what was
accumulated, as it is for the host.
"""

from collections.abc import Iterable, Iterator
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from kasmina.adapters.torch.distributed.ranks import Ranks
from kasmina.adapters.torch.distributed.wrappers import Wrappers
from kasmina.adapters.torch.graft import Slots
from kasmina.adapters.torch.optimizer import SeedGroups
from kasmina.adapters.torch.sharding import is_sharded
from kasmina.adapters.torch.slot import SeedSlot, Sprout
from kasmina.domain.errors import KasminaError

_NO_TASK = -1


class GradientsApart(KasminaError):
    """An optimizer step with gradients of seeds that differ from rank to rank."""

    def __init__(self, slot_ids: tuple[str, ...]) -> None:
        self.slot_ids = slot_ids
        super().__init__(
            f"the optimizer is about to step, but the gradients of the seeds in {list(slot_ids)} "
            f"were accumulated inside no_sync() and never averaged over the ranks, nor were the "
            f"host's; run the last backward before optimizer.step() outside of no_sync()"
        )


class SeedReduction:
    """Keeps the gradients of all learning seeds of ``slots`` equal on all ranks.

    ``reductions`` counts the all-reduces.
    """

    def __init__(self, slots: Slots, ranks: Ranks) -> None:
        self._slots = slots
        self._ranks = ranks
        self._wrappers = Wrappers(slots)
        self._handles: dict[str, list[RemovableHandle]] = {}
        self._host: list[RemovableHandle] = []
        self._apart: set[str] = set()
        self._task = _NO_TASK
        self.reductions = 0

    def follow(self, slot: SeedSlot) -> None:
        """Average the gradients of the slot's seed from now on, if it learns."""
        for handle in self._handles.pop(slot.slot_id, ()):
            handle.remove()
        self._apart.discard(slot.slot_id)
        learning = tuple(_reduced(slot))
        if learning:
            came = partial(self._came, slot.slot_id)
            self._handles[slot.slot_id] = [_hook(parameter, came) for parameter in learning]
        self._follow_host()

    def require_averaged(self) -> None:
        """Before a step. Raises ``GradientsApart``."""
        if self._apart:
            apart = tuple(slot_id for slot_id in self._slots if slot_id in self._apart)
            self._apart.clear()
            raise GradientsApart(apart)

    def close(self) -> None:
        """Let go of seeds and host."""
        for handle in (*self._host, *(h for each in self._handles.values() for h in each)):
            handle.remove()
        self._handles.clear()
        self._host.clear()
        self._wrappers.close()

    def _follow_host(self) -> None:
        """Where parts of the host may be left out, so may a seed on one rank and not on another.

        All ranks must average then, and something of the host is in the backward of each.
        """
        wanted = bool(self._handles) and self._wrappers.partial
        if wanted and not self._host:
            trainable = (p for p in self._slots.host_parameters() if p.requires_grad)
            self._host = [_hook(parameter, self._attend) for parameter in trainable]
        elif not wanted:
            for handle in self._host:
                handle.remove()
            self._host.clear()

    def _came(self, slot_id: str, parameter: Tensor) -> None:
        self._apart.add(slot_id)
        self._attend(parameter)

    def _attend(self, _parameter: Tensor) -> None:
        # By the task's number, since a backward that fails never comes to its end.
        task = torch._C._current_graph_task_id()  # noqa: SLF001  # torch.autograd.graph's own way
        if task != self._task:
            self._task = task
            Variable._execution_engine.queue_callback(self._end_backward)  # noqa: SLF001  # no public name

    def _end_backward(self) -> None:
        self._task = _NO_TASK
        if not self._wrappers.averaging:
            return
        learning = [p for slot in self._slots.values() for p in _reduced(slot)]
        for alike in _by_kind(learning):
            average(alike, self._ranks.size)
            self.reductions += 1
        self._apart.clear()


class RankedGroups(SeedGroups):
    """Seeds in the optimizer of every rank, with the same gradients."""

    def __init__(self, optimizer: Optimizer, slots: Slots, ranks: Ranks) -> None:
        super().__init__(optimizer)
        self.reduction = SeedReduction(slots, ranks)

    @override
    def shield(self, slot: SeedSlot) -> None:
        super().shield(slot)
        self.reduction.follow(slot)

    @override
    def close(self) -> None:
        super().close()
        self.reduction.close()

    @override
    def _follow(self) -> None:
        self.reduction.require_averaged()
        super()._follow()


def share(sprout: Sprout) -> None:
    """Give a new seed the weights of rank 0, so that it is born the same on every rank."""
    with torch.no_grad():
        for module in sprout.modules:
            for parameter in module.parameters():
                dist.broadcast(parameter.detach(), src=0)


def average(parameters: list[nn.Parameter], ranks: int) -> None:
    """Make the gradient of each its mean over the ranks, in one all-reduce.

    A parameter without a gradient on every rank stays without one; where only some have one, it
    counts as zero on the others, as ``DistributedDataParallel`` has it. Divided first, which keeps
    half precision from overflowing.
    """
    given = [0.0 if p.grad is None else 1.0 for p in parameters]
    flat = torch.cat(
        [
            *((torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters),
            parameters[0].new_tensor(given),
        ]
    ).div_(ranks)
    dist.all_reduce(flat)
    *means, came = torch.split(flat, [*(p.numel() for p in parameters), len(parameters)])
    for parameter, mean in zip(parameters, means, strict=True):
        if parameter.grad is not None:
            parameter.grad.copy_(mean.view_as(parameter))
    if 0.0 in given:  # only then is the device waited for
        for parameter, mean, count in zip(parameters, means, came.tolist(), strict=True):
            if parameter.grad is None and count > 0.0:
                parameter.grad = mean.view_as(parameter).clone()


def _reduced(slot: SeedSlot) -> Iterator[nn.Parameter]:
    """What of the slot learns and is whole on every rank; a sharded seed averages itself."""
    if slot.learning:
        yield from (p for p in slot.seed_parameters() if p.requires_grad and not is_sharded(p))


def _by_kind(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    kinds: dict[tuple[torch.device, torch.dtype], list[nn.Parameter]] = {}
    for parameter in parameters:
        kinds.setdefault((parameter.device, parameter.dtype), []).append(parameter)
    yield from kinds.values()


def _hook(parameter: Tensor, hook: object) -> RemovableHandle:
    handle: RemovableHandle = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    return handle
