"""Every tensor of a run in one file: written whole or not at all, read without running its code.

The file is what ``torch.save`` writes, of tensors, numbers, text and containers alone, so that
``torch.load(weights_only=True)`` reads it. Structure is not in it: seeds are grown again from the
run's log first, then their tensors fit.
"""

import os
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from itertools import chain
from os import PathLike, fspath
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from attrs import frozen
from torch import Tensor
from torch.optim import Optimizer
from torch.serialization import get_crc32_options, set_crc32_options

from kasmina.adapters.torch.graft import Slots
from kasmina.adapters.torch.optimizer import SEED_KEY, Group, seed_order
from kasmina.adapters.torch.randomness import RandomStreams, devices_of
from kasmina.adapters.torch.slot import SeedSlot
from kasmina.adapters.torch.streams import Stream
from kasmina.domain.errors import CheckpointError

FORMAT = "kasmina checkpoint"
VERSION = 1

_ENTRIES = frozenset(
    {"epoch", "digest", "extra", "model", "optimizer", "optimizer_kind", "random", "run_id"}
    | {"seed_streams", "sequence", "step"}
)
_NAMED = 3  # how many names of a long list an error tells
_REGROW = "build the host as it was and resume the run, which grows its seeds again first"
_OLDER = "resume from an older checkpoint (checkpoint=...)"
# What torch's optimizers keep in the parameter's shape; other entries have shapes of their own.
_SHAPED_AS_PARAMETER = frozenset(
    {"exp_avg", "exp_avg_sq", "exp_inf", "max_exp_avg_sq", "momentum_buffer", "square_avg", "sum"}
)


class Stateful(Protocol):
    """What a user may add to checkpoints: a scheduler, a scaler, an averaged model."""

    def state_dict(self) -> dict[str, Any]:
        """The state, as tensors, numbers, text and containers of them."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object:
        """Take the state on."""
        ...


@frozen(kw_only=True, eq=False)
class Checkpoint:
    """A checkpoint in memory, on the CPU.

    The tensors are those after event ``sequence``, which had ``digest`` (32 bytes), of run
    ``run_id``, ``step`` optimizer steps and ``epoch`` epochs into it.
    """

    path: str
    run_id: str
    sequence: int
    digest: bytes
    epoch: int
    step: int
    model: Mapping[str, Any]
    optimizer_kind: str
    optimizer: Mapping[str, Any]
    extra: Mapping[str, Mapping[str, Any]]
    random: RandomStreams
    seed_streams: Mapping[str, Mapping[str, Tensor]]


def save_checkpoint(
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
) -> None:
    """Write everything that training needs to go on to ``path``, durably.

    Folders are made as needed. A checkpoint that was at ``path`` stays until the new one is
    complete and on the disk. Raises ``CheckpointError``, with ``path`` untouched.
    """
    position = {"run_id": run_id, "sequence": sequence, "digest": digest.hex()}
    position |= {"epoch": epoch, "step": step}
    try:
        tensors = _tensors(slots, optimizer, extra or {})
    except TypeError as error:
        raise CheckpointError(
            fspath(path),
            f"not written, {error}",
            "state_dict() must hold tensors, numbers, text and containers of them alone",
        ) from error
    _replace(Path(path), {"format": FORMAT, "version": VERSION, **position, **tensors})


def read_checkpoint(path: str | PathLike[str]) -> Checkpoint:
    """The checkpoint at ``path``. Never runs code from the file.

    Raises ``CheckpointError`` for a file that is missing, damaged (every byte is checked), not a
    checkpoint, or of a newer kasmina.
    """
    source = fspath(path)
    content = _content(source)
    if not isinstance(content, dict) or "format" not in content or content["format"] != FORMAT:
        raise CheckpointError(
            source,
            "was not written by kasmina",
            "give a file that run.checkpoint() wrote; for other weights, load_state_dict() them "
            "into the host before the run is opened",
        )
    if content["version"] > VERSION:
        raise CheckpointError(
            source,
            f"has format {content['version']}, this kasmina reads up to {VERSION}",
            "upgrade kasmina",
        )
    lacking = _ENTRIES - content.keys()
    if lacking:
        raise CheckpointError(source, f"lacks {_some(lacking)}", _OLDER)
    entries = {name: content[name] for name in _ENTRIES}
    entries["digest"] = bytes.fromhex(content["digest"])
    entries["random"] = RandomStreams.of(content["random"])
    return Checkpoint(path=source, **entries)


def restore_checkpoint(
    checkpoint: Checkpoint,
    *,
    slots: Slots,
    optimizer: Optimizer,
    extra: Mapping[str, Stateful] | None = None,
) -> tuple[str, ...]:
    """Take on all that ``checkpoint`` holds; the seeds must be attached, and in ``optimizer``.

    The optimizer's groups are put in the checkpoint's order of seeds. Returns the random streams
    that are not on this machine, and so could not be restored.

    Raises ``CheckpointError`` for what does not fit, with everything as it was.
    """
    given = extra or {}
    _check(checkpoint, slots, optimizer, given)
    with ExitStack() as undo:
        for name, each in given.items():
            undo.callback(each.load_state_dict, deepcopy(each.state_dict()))
            _refusable(checkpoint, f"extra {name!r}", each, checkpoint.extra[name])
        undo.callback(setattr, optimizer, "param_groups", optimizer.param_groups)
        optimizer.param_groups = _in_order(optimizer, seed_order(_groups(checkpoint.optimizer)))
        # A step would otherwise write into the checkpoint's own tensors.
        _refusable(checkpoint, "the optimizer", optimizer, checkpoint.optimizer)
        slots.model.load_state_dict(checkpoint.model)
        undo.pop_all()
    for slot_id, states in checkpoint.seed_streams.items():
        _set_stream(slots[slot_id], states)
    return checkpoint.random.restore()


# --- writing ---


def _tensors(
    slots: Slots, optimizer: Optimizer, extra: Mapping[str, Stateful]
) -> dict[str, dict[str, Any] | str]:
    model = slots.model.state_dict()
    for name, value in model.items():  # in place, which keeps the versions that torch notes on it
        model[name] = _storable(value, name)
    states = {name: each.state_dict() for name, each in extra.items()}
    drawing = {slot_id: slot.stream for slot_id, slot in slots.items() if slot.stream is not None}
    return {
        "model": model,
        "optimizer_kind": type(optimizer).__qualname__,
        "optimizer": _storable(optimizer.state_dict(), "optimizer"),
        "extra": _storable(states, "extra"),
        "random": RandomStreams.capture(devices_of(slots.model)).state_dict(),
        "seed_streams": {slot_id: stream.state() for slot_id, stream in drawing.items()},
    }


def _storable(value: Any, where: str) -> Any:  # noqa: ANN401 - any value of a state_dict
    """``value`` as ``torch.load(weights_only=True)`` reads it. Raises ``TypeError`` if it cannot.

    NumPy's float64 is a ``float``, but is pickled as an object: rates are often made with NumPy.
    """
    if value is None or isinstance(value, Tensor | bool | str | torch.Size | torch.dtype):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, dict):
        kind = type(value) if type(value) in (OrderedDict, Counter) else dict
        return kind(
            {
                _storable(key, where): _storable(each, f"{where}[{key!r}]")
                for key, each in value.items()
            }
        )
    if type(value) in (list, tuple):
        return type(value)(_storable(each, f"{where}[{i}]") for i, each in enumerate(value))
    raise TypeError(f"{where} is a {type(value).__qualname__}")


def _replace(target: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` beside ``target`` and, when it is on the disk, put it in its place."""
    # One name for all attempts: what a killed process left behind is overwritten by the next one.
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as undo:
            undo.callback(partial.unlink, missing_ok=True)
            with partial.open("wb") as file, _checksums():
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
            undo.pop_all()
        _sync_folder(target.parent)
    except (OSError, RuntimeError) as error:  # torch turns a failed write into a RuntimeError
        raise CheckpointError(
            fspath(target),
            f"could not be written ({error})",
            "make room or choose another place; what was there before is untouched",
        ) from error


@contextmanager
def _checksums() -> Iterator[None]:
    """Let ``torch.save`` write a checksum of each tensor, whatever the user's setting is."""
    before = get_crc32_options()
    set_crc32_options(compute_crc32=True)
    try:
        yield
    finally:
        set_crc32_options(before)


def _sync_folder(folder: Path) -> None:
    """Make a renaming in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- reading ---


def _content(source: str) -> Any:  # noqa: ANN401 - whatever the file holds
    try:
        # torch.load notices no flipped bit in a tensor; the archive's checksums show it.
        with zipfile.ZipFile(source) as archive:
            broken = archive.testzip()
        if broken is None:
            return torch.load(source, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(source, "is missing", "give the path of another one") from None
    except UnpicklingError as error:
        raise CheckpointError(
            source,
            "holds more than tensors, numbers and text, and was not read",
            "trust it no more than a program; give a file that run.checkpoint() wrote",
        ) from error
    except Exception as error:  # a damaged file may fail anywhere, with any error
        raise CheckpointError(source, f"cannot be read ({error})", _OLDER) from error
    raise CheckpointError(source, f"is damaged at {broken}", _OLDER)


# --- restoring ---


def _check(
    checkpoint: Checkpoint,
    slots: Slots,
    optimizer: Optimizer,
    extra: Mapping[str, Stateful],
) -> None:
    """Raise ``CheckpointError`` unless everything has the structure that was saved."""
    for what, problems, mend in (
        ("the model", _model_problems(checkpoint.model, slots.model.state_dict()), _REGROW),
        ("the optimizer", _optimizer_problems(checkpoint, optimizer), f"build it so; {_REGROW}"),
        ("extra", _differences(checkpoint.extra, extra), "give the same names as extra={...}"),
    ):
        if problems:
            raise CheckpointError(checkpoint.path, f"does not fit {what}: {_some(problems)}", mend)


def _model_problems(saved: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    kinds = {name: (_kind(saved[name]), _kind(present[name])) for name in saved if name in present}
    changed = [f"{name} was {then}, is {now}" for name, (then, now) in kinds.items() if then != now]
    return _differences(saved, present) + changed


def _optimizer_problems(checkpoint: Checkpoint, optimizer: Optimizer) -> list[str]:
    kind, saved = type(optimizer).__qualname__, _groups(checkpoint.optimizer)
    if checkpoint.optimizer_kind != kind:
        return [f"it was {checkpoint.optimizer_kind}, is {kind}"]
    seeds = seed_order(saved)
    strangers = _differences(seeds, seed_order(optimizer.param_groups), what="seed ")
    if strangers:
        return strangers
    ordered = _in_order(optimizer, seeds)
    then, now = ([len(group["params"]) for group in groups] for groups in (saved, ordered))
    if then != now:
        return [f"its groups had {then} parameters, have {now}"]
    return _misshapen(checkpoint.optimizer["state"], saved, ordered)


def _misshapen(
    state: Mapping[int, Mapping[str, Any]], saved: Sequence[Group], present: Sequence[Group]
) -> list[str]:
    indices = chain.from_iterable(group["params"] for group in saved)
    parameters = chain.from_iterable(group["params"] for group in present)
    return [
        f"{name} of parameter {index} was {_kind(value)}, the parameter is {_kind(parameter)}"
        for index, parameter in zip(indices, parameters, strict=True)
        if index in state
        for name, value in state[index].items()
        if name in _SHAPED_AS_PARAMETER and value is not None and value.shape != parameter.shape
    ]


def _differences(saved: Iterable[str], present: Iterable[str], *, what: str = "") -> list[str]:
    then, now = dict.fromkeys(saved), dict.fromkeys(present)
    return [f"it has no {what}{name}" for name in now if name not in then] + [
        f"its {what}{name} has no place" for name in then if name not in now
    ]


def _in_order(optimizer: Optimizer, seeds: Sequence[str]) -> list[Group]:
    """The optimizer's groups with the seeds' in the order of ``seeds``, the host's as they are."""
    by_seed = {group[SEED_KEY]: group for group in optimizer.param_groups if SEED_KEY in group}
    waiting = iter(seeds)
    return [
        by_seed[next(waiting)] if SEED_KEY in group else group for group in optimizer.param_groups
    ]


def _refusable(
    checkpoint: Checkpoint, what: str, taker: Stateful, state: Mapping[str, Any]
) -> None:
    try:
        taker.load_state_dict(deepcopy(dict(state)))
    except Exception as error:  # the user's object may raise anything
        raise CheckpointError(
            checkpoint.path, f"{what} refused its state ({error})", "build it as it was"
        ) from error


def _set_stream(slot: SeedSlot, states: Mapping[str, Tensor]) -> None:
    if slot.stream is None:
        slot.stream = Stream.standing(states)
        slot.choose()
    else:
        slot.stream.set_state(states)


def _groups(state: Mapping[str, Any]) -> list[Group]:
    groups: list[Group] = state["param_groups"]
    return groups


def _kind(value: object) -> str:
    """Dtype and shape of a tensor, the type's name of anything else."""
    if not isinstance(value, Tensor):
        return type(value).__qualname__
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def _some(texts: Iterable[str]) -> str:
    """``texts``, of which a long list is cut."""
    every = sorted(texts)
    rest = len(every) - _NAMED
    return "; ".join(every[:_NAMED]) + (f"; and {rest} more" if rest > 0 else "")
