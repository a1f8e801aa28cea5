"""Looking into a folder of ``torch.distributed.checkpoint`` before torch does.

Torch unpickles the folder's list of contents, and whatever the list calls bytes, which may run any
code. So the list must be made of the classes of which torch makes it, and name tensors alone.
"""

import pickle
from pathlib import Path
from typing import cast

import torch
from typing_extensions import override

from kasmina.domain.errors import CheckpointError

METADATA = ".metadata"

_TORCH = "torch.distributed.checkpoint"
_MADE_OF = {
    f"{_TORCH}.filesystem": {"_StorageInfo"},
    f"{_TORCH}.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "pathlib": {"PosixPath", "WindowsPath"},
    "torch": {"Size", *(str(v)[6:] for v in vars(torch).values() if isinstance(v, torch.dtype))},
    "torch.serialization": {"_get_layout"},
}


def require_sober(path: str, metadata: Path) -> None:
    """Raise ``CheckpointError`` where the list lists more than tensors; none of it is run."""
    try:
        with metadata.open("rb") as file:
            _Reader(file).load()
    except _Foreign as error:
        raise CheckpointError(
            path,
            f"its folder holds more than tensors ({error}), and was not read",
            "trust it no more than a program; give a file that run.checkpoint() wrote",
        ) from error
    except Exception as error:  # a foreign file may fail anywhere, with any error
        raise CheckpointError(
            path, f"its folder cannot be read ({error})", "give a file that run.checkpoint() wrote"
        ) from error


class _Foreign(Exception):
    """A class that torch does not use there."""


class _Reader(pickle.Unpickler):
    @override
    def find_class(self, module_name: str, global_name: str, /) -> object:
        if global_name not in _MADE_OF.get(module_name, ()):
            raise _Foreign(f"{module_name}.{global_name}")
        return cast("object", super().find_class(module_name, global_name))
