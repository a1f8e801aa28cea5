"""The checkpoint of a sharded host: a file that rank 0 writes, and a folder in which all do.

The folder comes first, under a name of its own; the file, which names it, is put in its place when
every rank's part is on the disk. So the checkpoint that was there before stays whole until then.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.state_dict_saver import save

from kasmina.adapters.torch.checkpoints import archive, spread
from kasmina.adapters.torch.checkpoints.layout import SHARDED
from kasmina.adapters.torch.distributed.ranks import Ranks
from kasmina.domain.errors import CheckpointError

_ENDING = ".shards"


def save_together(
    path: str | PathLike[str], ranks: Ranks, pack: Callable[[], dict[str, Any]]
) -> None:
    """Write what ``pack`` returns on each rank, tensors of which every rank holds a part among it.

    Every rank must call it, with the same ``path``, which all of them can write to. Raises
    ``CheckpointError``, or ``RankFailed`` for that of another rank, with the checkpoint that was at
    ``path`` untouched.
    """
    target = Path(path)
    packed: list[tuple[dict[str, Any], Mapping[str, Any]]] = []
    ranks.together(
        "take the tensors for a checkpoint", lambda: packed.append(spread.apart(pack())), _nothing
    )
    ((content, tensors),) = packed
    name = ranks.from_first("choose a folder for a checkpoint", lambda: _unused(target))
    folder = target.parent / name

    def write() -> dict[str, str]:
        try:
            save(dict(tensors), checkpoint_id=folder, process_group=ranks.group)
            own = spread.digests(folder, f"__{ranks.rank}_*")
            return own | (spread.digests(folder, ".metadata") if ranks.rank == 0 else {})
        except Exception as error:  # torch gathers what any rank raised
            raise _unwritten(path, error) from error

    def finish(written: Sequence[dict[str, str]]) -> None:
        files = {file: digest for each in written for file, digest in each.items()}
        shards = {"folder": name, "files": files}
        archive.sync_folder(folder)
        archive.sync_folder(folder.parent)
        archive.write(target, {**content, "version": SHARDED, "shards": shards})
        _clear(folder)

    ranks.together("save a checkpoint", write, finish)


def _unused(target: Path) -> str:
    """A folder beside ``target`` that was not there, relative to where that lies."""
    every = target.with_name(target.name + _ENDING)
    try:
        every.mkdir(parents=True, exist_ok=True)
        number = 1 + max(
            (int(each.name) for each in every.iterdir() if each.name.isdigit()), default=0
        )
        (every / str(number)).mkdir()
    except OSError as error:
        raise _unwritten(target, error) from error
    return f"{every.name}/{number}"


def _clear(folder: Path) -> None:
    """Take away what earlier checkpoints, and attempts at one, left beside ``folder``."""
    for each in folder.parent.iterdir():
        if each != folder:
            shutil.rmtree(each, ignore_errors=True)


def _unwritten(path: str | PathLike[str], error: Exception) -> CheckpointError:
    return CheckpointError(
        str(path),
        f"could not be written ({error})",
        "make room or choose another place; what was there before is untouched",
    )


def _nothing(_each: object) -> None: ...
