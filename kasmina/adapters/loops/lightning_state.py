"""A run inside Lightning's checkpoints: its place in the log, beside the tensors that belong to it.

Under ``ENTRY`` stands what a checkpoint of the run's own would hold. The tensors in it are those
of Lightning's entries, which ``torch.save`` writes once.
"""

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from attrs import frozen
from torch import nn
from torch.optim import Optimizer

from kasmina.adapters.loops.opening import CHECKPOINT, UnfitLoop
from kasmina.adapters.torch.blueprints import BlueprintRegistry, blueprints
from kasmina.adapters.torch.checkpoints.layout import FORMAT
from kasmina.adapters.torch.distributed.randomness import RANKS
from kasmina.adapters.torch.germination import sprout
from kasmina.adapters.torch.graft import Slots
from kasmina.adapters.torch.grafted import SlotBank
from kasmina.adapters.torch.randomness import RandomStreams, devices_of
from kasmina.domain.projections import slot_view
from kasmina.domain.state import RunState, SlotState
from kasmina.history import load, resume_point, unknown
from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store

ENTRY = "kasmina"

# Of the format: the one in which an optimizer's state may be of parameters outside the grafted
# model too, which Lightning saves. Every kasmina reads it.
_VERSION = 1


@frozen(kw_only=True)
class Place:
    """Where in the log, and after how many optimizer steps, a run stands."""

    run_id: str
    sequence: int
    digest: bytes
    epoch: int
    step: int


def slots_in(module: nn.Module) -> Slots:
    """The slots that were grafted somewhere in ``module``. Raises ``UnfitLoop``."""
    grafted = [
        each
        for each in module.modules()
        if any(isinstance(child, SlotBank) for child in each.children())
    ]
    name = type(module).__name__
    if not grafted:
        raise UnfitLoop(
            name,
            "has no slots, so nothing could ever grow",
            "graft() it, or a module in it, before Trainer.fit: in its __init__, for instance",
        )
    if len(grafted) > 1:
        raise UnfitLoop(
            name,
            f"holds {len(grafted)} grafted models, and a run has one",
            "graft the module that holds them all",
        )
    return Slots(grafted[0])


def saved(
    place: Place, slots: Slots, optimizer: Optimizer, *, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """The entry for a checkpoint that is taken at ``place``."""
    drawing = {slot_id: slot.stream for slot_id, slot in slots.items() if slot.stream is not None}
    return {
        "format": FORMAT,
        "version": _VERSION,
        "run_id": place.run_id,
        "sequence": place.sequence,
        "digest": place.digest.hex(),
        "epoch": place.epoch,
        "step": place.step,
        "model": slots.model.state_dict(),
        "optimizer_kind": type(optimizer).__qualname__,
        "optimizer": optimizer.state_dict(),
        "extra": dict(extra),
        "random": RandomStreams.capture(devices_of(slots.model)).state_dict(),
        "seed_streams": {slot_id: stream.state() for slot_id, stream in drawing.items()},
    }


def random_streams(entry: Mapping[str, Any], *, rank: int) -> RandomStreams | None:
    """Those of ``rank`` in a checkpoint's entry; ``None`` for a rank that was not there then."""
    if RANKS not in entry["extra"]:
        return RandomStreams.of(entry["random"])
    streams = entry["extra"][RANKS]["streams"]
    return RandomStreams.of(streams[rank]) if rank < len(streams) else None


@contextmanager
def as_file(entry: Mapping[str, Any]) -> Iterator[Path]:
    """A file with a checkpoint's entry, from which a run can be resumed."""
    with TemporaryDirectory(prefix="kasmina-") as folder:
        path = Path(folder) / CHECKPOINT
        torch.save(dict(entry), path)
        yield path


def without_seeds(module: nn.Module, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """What a ``state_dict`` of ``module`` holds of the host alone."""
    banks = tuple(f"{name}." for name, each in module.named_modules() if isinstance(each, SlotBank))
    return {name: value for name, value in tensors.items() if not name.startswith(banks)}


def empty(slots: Slots) -> None:
    """Take away the seeds that a run which is over has left behind."""
    for slot in slots.values():
        if slot.seed is not None:
            slot.detach()


def regrow(
    module: nn.Module,
    checkpoint: MutableMapping[str, Any],
    url: str,
    *,
    registry: BlueprintRegistry = blueprints,
) -> None:
    """Give the grafted ``module`` the seeds that it had at ``checkpoint``, by the log at ``url``.

    Call it in ``LightningModule.on_load_checkpoint``, and ``load_from_checkpoint`` and a
    ``Trainer`` without ``Growth`` load a grown model: seeds and stages as they were. What the
    weights of the seeds are, the checkpoint tells. A checkpoint without a run is left alone.

    Raises ``UnknownRun``, ``CheckpointError`` where the log at ``url`` is another one, and
    ``UnfitLoop`` for a module without slots.
    """
    if ENTRY not in checkpoint:
        return
    entry, slots = checkpoint[ENTRY], slots_in(module)
    state = _state_at(entry, url)
    empty(slots)
    for slot_id, slot in state.slots.items():
        if slot.seed is not None and slot.stage.holds_seed:
            _plant(slots, slot, registry)
        slots[slot_id].follow(slot_view(state, slot_id), entry["step"])


def _state_at(entry: Mapping[str, Any], url: str) -> RunState:
    run_id = entry["run_id"]
    with open_store(url, access=Access.READ) as store:
        to = resume_point(
            store,
            run_id,
            taken_in=run_id,
            sequence=entry["sequence"],
            digest=bytes.fromhex(entry["digest"]),
            path="the run in this Lightning checkpoint",
        )
        state = load(store, run_id, until=to)
        if state is None:
            raise unknown(store, run_id)
    return state


def _plant(slots: Slots, slot: SlotState, registry: BlueprintRegistry) -> None:
    if slot.seed is None:
        return
    seed = slot.seed
    grown = sprout(
        slots[slot.slot_id],
        lambda: registry.build(slot.topology, seed.blueprint_id, slot.width),
        blueprint_id=seed.blueprint_id,
        init_seed=seed.init_seed,
        host_parameters=(tensor for _, tensor in slots.host_tensors()),
        blend=seed.blend.blend,
    )
    slots[slot.slot_id].attach(grown)
