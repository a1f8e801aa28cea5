"""The tensors of a checkpoint that are spread over ranks, in a folder beside its file.

In the file a tensor without values, on the meta device, stands for each. The folder is what
``torch.distributed.checkpoint`` writes, every rank its own part; it is read again by any number of
ranks, and by a process that holds all of its host.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from attrs import evolve as changed
from torch import Tensor

from kasmina.adapters.torch.checkpoints.archive import OLDER
from kasmina.adapters.torch.checkpoints.contents import Checkpoint, Shards, Stateful
from kasmina.adapters.torch.checkpoints.sober import METADATA, require_sober
from kasmina.adapters.torch.graft import Slots
from kasmina.adapters.torch.sharding import is_sharded
from kasmina.domain.errors import CheckpointError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Act = Callable[[Tensor, str], Tensor]

# Where the parts of a checkpoint are in the content of its file.
_MODEL = "['model']"
_MOMENTS = "['optimizer']['state']"
_EXTRA = "['extra']"


def apart(content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``content`` for the file, and the sharded tensors that were in it by their places there."""
    found: dict[str, Tensor] = {}

    def take(tensor: Tensor, where: str) -> Tensor:
        if not is_sharded(tensor):
            return tensor
        found[where] = tensor.detach()
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    return _mapped(content, "", take), found


def digests(folder: Path, pattern: str) -> dict[str, str]:
    """The SHA-256 of each file in ``folder`` whose name is like ``pattern``, by name."""
    return {each.name: _digest(each) for each in sorted(folder.glob(pattern))}


def placed(checkpoint: Checkpoint, slots: Slots, extra: Mapping[str, Stateful]) -> Checkpoint:
    """``checkpoint`` with every tensor laid out as what it is for: whole, or this rank's part.

    Where the host is sharded every rank must do this, and it is a collective. Raises
    ``CheckpointError``, on every rank, where a file of the folder is missing or damaged, and for
    one of version 1 where the host is sharded.
    """
    together = any(map(is_sharded, slots.host_parameters()))
    if checkpoint.shards is None and not together:
        return checkpoint
    if together and checkpoint.version == 1:
        raise CheckpointError(
            checkpoint.path,
            "knows parameters by position, and a sharded host takes them by name",
            "resume it with a whole host, and save it again",
        )
    present = _present(checkpoint, slots, extra)
    waiting: dict[str, Tensor] = {}

    def place(tensor: Tensor, where: str) -> Tensor:
        like = present.get(where)
        if like is None or like.shape != tensor.shape or not is_sharded(like):
            like = None
        if checkpoint.shards is None or not tensor.is_meta:
            return tensor if like is None else _part(tensor, like)
        empty = torch.empty(tensor.shape) if like is None else like.detach()
        waiting[where] = torch.empty_like(empty, dtype=tensor.dtype)
        return waiting[where]

    state = checkpoint.optimizer.state
    laid = changed(
        checkpoint,
        model=_mapped(checkpoint.model, _MODEL, place),
        optimizer=changed(checkpoint.optimizer, state=_mapped(state, _MOMENTS, place)),
        extra=_mapped(checkpoint.extra, _EXTRA, place),
    )
    if checkpoint.shards is not None:
        folder = Path(checkpoint.path).parent / checkpoint.shards.folder
        _require_undamaged(checkpoint.path, folder, checkpoint.shards, together=together)
        require_sober(checkpoint.path, folder / METADATA)
        _load(checkpoint.path, folder, waiting, together=together)
    return laid


def _present(
    checkpoint: Checkpoint, slots: Slots, extra: Mapping[str, Stateful]
) -> dict[str, Tensor]:
    """What each tensor of the checkpoint is for; a moment is laid out as its parameter is."""
    model = slots.model.state_dict()
    states = {name: each.state_dict() for name, each in extra.items()}
    return {
        **_tensors(model, _MODEL),
        **_tensors(states, _EXTRA),
        **{
            where: model[name]
            for name, moments in checkpoint.optimizer.state.items()
            if name in model
            for where in _tensors(moments, f"{_MOMENTS}[{name!r}]")
        },
    }


def _load(path: str, folder: Path, waiting: dict[str, Tensor], *, together: bool) -> None:
    from torch.distributed.checkpoint.state_dict_loader import load  # noqa: PLC0415  # takes long

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a process which is alone is alone
            load(waiting, checkpoint_id=folder, no_dist=not together)
    except Exception as error:  # a foreign folder may fail anywhere, with any error
        raise CheckpointError(path, f"its folder cannot be read ({error})", OLDER) from error


def _require_undamaged(path: str, folder: Path, shards: Shards, *, together: bool) -> None:
    """Raise ``CheckpointError`` unless the files are those that were written.

    Ranks look at a share of them each, and all learn what one found.
    """
    rank, size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    share = sorted(shards.files)[rank::size]
    found: list[Any] = [list(_damaged(folder, {name: shards.files[name] for name in share}))]
    if together:
        mine, found = found[0], [None] * size
        dist.all_gather_object(found, mine)
    damaged = [problem for problems in found for problem in problems]
    if damaged:
        raise CheckpointError(path, f"its folder: {'; '.join(damaged[:3])}", OLDER)


def _damaged(folder: Path, files: Mapping[str, str]) -> Iterator[str]:
    for name, digest in files.items():
        try:
            if _digest(folder / name) != digest:
                yield f"{name} is damaged: its bytes are not those that were written"
        except OSError as error:
            yield f"{name} cannot be read ({error})"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _part(tensor: Tensor, like: "DTensor") -> Tensor:
    """This rank's part of ``tensor``, spread as ``like`` is; every rank has all of it."""
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415  # takes long

    return distribute_tensor(tensor, like.device_mesh, like.placements)


def _mapped(value: Any, where: str, act: Act) -> Any:  # noqa: ANN401  # any value of a state_dict
    """``value`` with ``act(tensor, where)`` in the place of each tensor in it."""
    if isinstance(value, Tensor):
        return act(value, where)
    if isinstance(value, dict):
        other = copy(value)  # its class, and the versions that torch notes on a model's state
        for key, each in value.items():  # not update(), by which a Counter adds
            other[key] = _mapped(each, f"{where}[{key!r}]", act)
        return other
    if type(value) in (list, tuple):
        return type(value)(_mapped(each, f"{where}[{i}]", act) for i, each in enumerate(value))
    return value


def _tensors(value: object, where: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def take(tensor: Tensor, where: str) -> Tensor:
        found[where] = tensor
        return tensor

    _mapped(value, where, take)
    return found
