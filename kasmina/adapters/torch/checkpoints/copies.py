"""Averaged models among what is restored: given the seeds that they had, before their tensors."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

from kasmina.adapters.torch.averages import follow_growth
from kasmina.adapters.torch.checkpoints.contents import Stateful
from kasmina.adapters.torch.graft import Slots
from kasmina.adapters.torch.slot import SeedSlot
from kasmina.adapters.torch.streams import Stream
from kasmina.domain.projections import SlotView


def regrow(
    extra: Mapping[str, Stateful],
    saved: Mapping[str, Mapping[str, Any]],
    slots: Slots,
    undo: ExitStack,
) -> None:
    """Let each ``AveragedModel`` of the grafted model hold the seeds of which tensors were saved.

    A seed that was born after the last update of the average was not in it yet.
    """
    for name, each in extra.items():
        if isinstance(each, AveragedModel) and (copied := _slots(each)):
            for slot in copied.values():
                undo.callback(_put_back, slot, slot.seed, slot.mixer, slot.stream, slot.view)
            follow_growth(each, slots.model)
            for path, slot in copied.items():
                known = any(key.startswith(f"{path}.") for key in saved[name])
                if slot.seed is not None and not known:
                    slot.detach()


def _slots(model: nn.Module) -> dict[str, SeedSlot]:
    return {path: each for path, each in model.named_modules() if isinstance(each, SeedSlot)}


def _put_back(
    slot: SeedSlot,
    seed: nn.Module | None,
    mixer: nn.Module | None,
    stream: Stream | None,
    view: SlotView,
) -> None:
    if slot.seed is seed:
        return
    if slot.seed is not None:
        slot.detach()
    if seed is not None:
        slot.mixer, slot.stream = mixer, stream
        slot.attach(seed)
    slot.show(view, slot.step)
