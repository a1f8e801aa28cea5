"""Every tensor of a run in one file: written whole or not at all, read without running its code.

The file is what ``torch.save`` writes, of tensors, numbers, text and containers alone, so that
``torch.load(weights_only=True)`` reads it. Structure is not in it: seeds are grown again from the
run's log first, then their tensors fit.
"""

import warnings
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Protocol

from torch.optim import Optimizer

from kasmina.adapters.torch.checkpoints import archive
from kasmina.adapters.torch.checkpoints.contents import Checkpoint, OptimizerState, Stateful
from kasmina.adapters.torch.checkpoints.layout import VERSION, packed, unpacked
from kasmina.adapters.torch.checkpoints.moments import named_state
from kasmina.adapters.torch.checkpoints.naming import Unnamed, occupants, parameter_names
from kasmina.adapters.torch.checkpoints.plain import plain
from kasmina.adapters.torch.checkpoints.restoring import restore
from kasmina.adapters.torch.checkpoints.spread import apart, placed
from kasmina.adapters.torch.graft import Slots
from kasmina.adapters.torch.randomness import RandomStreams, devices_of
from kasmina.domain.errors import CheckpointError

__all__ = [
    "Checkpoint",
    "Pack",
    "Stateful",
    "StreamsLost",
    "pack_checkpoint",
    "read_checkpoint",
    "restore_checkpoint",
    "write_checkpoint",
]


class Pack(Protocol):
    """``pack_checkpoint`` with all but ``extra`` given."""

    def __call__(self, *, extra: Mapping[str, Stateful]) -> dict[str, Any]:
        """What the file is to hold."""
        ...


class StreamsLost(UserWarning):
    """Random streams of a checkpoint that are not on this machine: other bits will be drawn."""

    def __init__(self, path: str, streams: tuple[str, ...]) -> None:
        self.path = path
        self.streams = streams
        super().__init__(
            f"checkpoint {path}: the random streams of {', '.join(streams)} are not on this "
            f"machine; training goes on, but draws other numbers than it would have"
        )


def pack_checkpoint(
    path: str | PathLike[str],
    *,
    slots: Slots,
    optimizer: Optimizer,
    run_id: str,
    sequence: int,
    digest: bytes,
    epoch: int,
    step: int,
    extra: Mapping[str, Stateful] | None = None,
) -> dict[str, Any]:
    """Everything that training needs to go on, as a file at ``path`` is to hold it.

    Raises ``CheckpointError`` for what cannot be stored; also where the optimizer trains what
    neither the model nor ``extra`` holds, which would be lost.
    """
    given = extra or {}
    try:
        states = {name: each.state_dict() for name, each in given.items()}
        return packed(
            Checkpoint(
                path=fspath(path),
                version=VERSION,
                run_id=run_id,
                sequence=sequence,
                digest=digest,
                epoch=epoch,
                step=step,
                slots=occupants(slots),
                model=_model_state(slots),
                optimizer=_optimizer_state(slots, optimizer, given),
                extra=plain(states, "extra"),
                random=RandomStreams.capture(devices_of(slots.model)),
                seed_streams={
                    slot_id: slot.stream.state()
                    for slot_id, slot in slots.items()
                    if slot.stream is not None
                },
            )
        )
    except Unnamed as error:
        raise CheckpointError(
            fspath(path), f"not written, {error}", "give what holds them as extra={...}"
        ) from error
    except TypeError as error:
        raise CheckpointError(
            fspath(path),
            f"not written, {error}",
            "state_dict() must hold tensors, numbers, text and containers of them alone",
        ) from error


def write_checkpoint(path: str | PathLike[str], content: dict[str, Any]) -> None:
    """Write to ``path`` what ``pack_checkpoint`` made for it, durably.

    Folders are made as needed. A checkpoint that was at ``path`` stays until the new one is
    complete and on the disk. Raises ``CheckpointError``, with ``path`` untouched.
    """
    content, sharded = apart(content)
    if sharded:
        raise CheckpointError(
            fspath(path),
            f"not written, {next(iter(sharded))} is sharded over ranks",
            "let every rank call run.checkpoint(), on a run that has them as its ranks",
        )
    archive.write(Path(path), content)


def read_checkpoint(path: str | PathLike[str]) -> Checkpoint:
    """The checkpoint at ``path``, with its tensors on the CPU. Never runs code from the file.

    Raises ``CheckpointError`` for a file that is missing, damaged (every byte is checked), not a
    checkpoint, or of a newer kasmina.
    """
    source = fspath(path)
    return unpacked(archive.read(source), source)


def restore_checkpoint(
    checkpoint: Checkpoint,
    *,
    slots: Slots,
    optimizer: Optimizer,
    extra: Mapping[str, Stateful] | None = None,
) -> tuple[str, ...]:
    """Take on all that ``checkpoint`` holds; the seeds must be attached, and in ``optimizer``.

    Tensors go where their places are now, on whatever device. The optimizer's groups, and what
    schedulers keep of each, are put in the checkpoint's order. Returns the random streams that are
    not on this machine, and so could not be restored; ``StreamsLost`` warns of them.

    Raises ``CheckpointError`` for what does not fit, with everything as it was. For that the
    model's tensors are held on the CPU once more meanwhile.
    """
    given = extra or {}
    lost = restore(placed(checkpoint, slots, given), slots, optimizer, given)
    if lost:
        warnings.warn(StreamsLost(checkpoint.path, lost), stacklevel=2)
    return lost


def _model_state(slots: Slots) -> dict[str, Any]:
    state = slots.model.state_dict()
    for name, value in state.items():  # in place, which keeps the versions that torch notes on it
        state[name] = plain(value, name)
    return state


def _optimizer_state(
    slots: Slots, optimizer: Optimizer, extra: Mapping[str, Stateful]
) -> OptimizerState:
    state = named_state(optimizer, parameter_names(optimizer.param_groups, slots, extra))
    return OptimizerState(
        kind=state.kind,
        groups=plain(state.groups, "optimizer"),
        state=plain(state.state, "optimizer"),
        shared=plain(state.shared, "optimizer"),
        other=plain(state.other, "optimizer"),
    )
