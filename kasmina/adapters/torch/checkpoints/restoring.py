"""Taking on a checkpoint, entirely or not at all."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kasmina.adapters.torch import schedulers
from kasmina.adapters.torch.checkpoints.contents import Checkpoint, Stateful
from kasmina.adapters.torch.checkpoints.copies import regrow
from kasmina.adapters.torch.checkpoints.fitting import Fit, fitted
from kasmina.adapters.torch.checkpoints.moments import numbered_state
from kasmina.adapters.torch.graft import Slots
from kasmina.adapters.torch.randomness import RandomStreams, devices_of
from kasmina.adapters.torch.slot import SeedSlot
from kasmina.adapters.torch.streams import Stream
from kasmina.domain.errors import CheckpointError


def restore(
    checkpoint: Checkpoint, slots: Slots, optimizer: Optimizer, extra: Mapping[str, Stateful]
) -> tuple[str, ...]:
    """Take on all that ``checkpoint`` holds; returns the random streams that are not here.

    Raises ``CheckpointError`` for what does not fit, with everything as it was.
    """
    with _refusable(checkpoint, "it fits nothing here"):
        fit = fitted(checkpoint, slots, optimizer, extra)
        with ExitStack() as undo:
            for each in extra.values():
                _remember(each, undo)
            _regroup(optimizer, fit.order, undo)
            regrow(extra, checkpoint.extra, slots, undo)
            for name, each in extra.items():
                with _refusable(checkpoint, f"extra {name!r} refused its state"):
                    each.load_state_dict(deepcopy(dict(checkpoint.extra[name])))
            with _refusable(checkpoint, "the optimizer refused its state"):
                _take_state(optimizer, fit)
            undo.callback(slots.model.load_state_dict, _copied(slots.model))
            with _refusable(checkpoint, "the model refused its state"):
                slots.model.load_state_dict(checkpoint.model)
            with _refusable(checkpoint, "a random stream refused its state"):
                absent = _restore_streams(checkpoint, slots, undo)
            undo.pop_all()
    return absent


@contextmanager
def _refusable(checkpoint: Checkpoint, problem: str) -> Iterator[None]:
    """Let errors inside, of which a user's object may raise any, say what they came of."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            checkpoint.path, f"{problem} ({error})", "build it as it was"
        ) from error


def _remember(taker: Stateful, undo: ExitStack) -> None:
    """Let ``taker`` be given its present state again when what follows is undone."""
    if isinstance(taker, LRScheduler):
        # It takes whatever is in a state for an attribute, and would keep it.
        undo.callback(_leave, vars(taker), frozenset(vars(taker)))
    undo.callback(taker.load_state_dict, deepcopy(taker.state_dict()))


def _leave(attributes: dict[str, Any], known: frozenset[str]) -> None:
    for name in attributes.keys() - known:
        del attributes[name]


def _regroup(optimizer: Optimizer, order: Sequence[int], undo: ExitStack) -> None:
    """Put the optimizer's groups, and what its schedulers keep of each, in ``order``."""
    undo.callback(setattr, optimizer, "state", optimizer.state)
    undo.callback(setattr, optimizer, "param_groups", optimizer.param_groups)
    for values in schedulers.by_group(optimizer):
        before = list(values)
        undo.callback(_fill, values, before)
        _fill(values, [before[position] for position in order])
    optimizer.param_groups = [optimizer.param_groups[position] for position in order]


def _fill(values: list[Any], others: list[Any]) -> None:
    values[:] = others


def _take_state(optimizer: Optimizer, fit: Fit) -> None:
    # A step would otherwise write into the checkpoint's own tensors.
    state = numbered_state(fit.state, optimizer.param_groups, fit.names)
    optimizer.load_state_dict(deepcopy(state))
    # torch gives every moment the dtype of its parameter, also one that was kept in a wider one.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = fit.names[parameter]
            for entry, saved in fit.state.state[name].items() if name in fit.state.state else ():
                taken = optimizer.state[parameter][entry]
                if isinstance(saved, Tensor) and saved.dtype != taken.dtype:
                    optimizer.state[parameter][entry] = saved.to(taken.device, copy=True)


def _copied(model: nn.Module) -> dict[str, Any]:
    """The model's state aside, on the CPU, with the versions that torch notes on it."""
    state = model.state_dict()
    for name, value in state.items():
        tensor = isinstance(value, Tensor)
        state[name] = value.to("cpu", copy=True) if tensor else deepcopy(value)
    return state


def _restore_streams(checkpoint: Checkpoint, slots: Slots, undo: ExitStack) -> tuple[str, ...]:
    for slot_id, states in checkpoint.seed_streams.items():
        _require_usable(states)
        _set_stream(slots[slot_id], states, undo)
    undo.callback(RandomStreams.capture(devices_of(slots.model)).restore)
    return checkpoint.random.restore()


def _require_usable(states: Mapping[str, Tensor]) -> None:
    """Raise, as a generator of the kind does, for what is no state of it."""
    for kind, state in states.items():
        if kind == "cpu" or torch.get_device_module(kind).is_available():
            torch.Generator(kind).set_state(state)


def _set_stream(slot: SeedSlot, states: Mapping[str, Tensor], undo: ExitStack) -> None:
    if slot.stream is None:
        undo.callback(_take_stream, slot, None)
        _take_stream(slot, Stream.standing(states))
    else:
        undo.callback(slot.stream.set_state, slot.stream.state())
        slot.stream.set_state(states)


def _take_stream(slot: SeedSlot, stream: Stream | None) -> None:
    slot.stream = stream
    slot.choose()
