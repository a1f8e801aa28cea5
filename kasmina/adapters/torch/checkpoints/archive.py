"""The file: written whole or not at all, and sealed, so that no byte of it changes unnoticed.

It is the zip archive that ``torch.save`` writes, and any torch reads it. Its comment, the last
bytes of the file, holds the SHA-256 of all bytes before: the archive's own checksums leave out its
headers, and ``torch.load`` looks at none of them. The seal shows damage; it is no signature.
"""

import hashlib
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from os import fspath
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch
from attrs import frozen
from torch.serialization import get_crc32_options, set_crc32_options

from kasmina.domain.errors import CheckpointError

OLDER = "resume from an older checkpoint (checkpoint=...)"

_COMMENT = b"kasmina sha256 "
_NO_COMMENT = struct.pack("<H", 0)  # how an archive ends that has none
_SEAL = len(_NO_COMMENT) + len(_COMMENT) + 2 * hashlib.sha256().digest_size
_CHUNK = 1 << 20


@frozen(kw_only=True)
class Unpacked:
    """What a file holds, and whether a seal says that it is what was written."""

    content: Any
    sealed: bool


def write(target: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` beside ``target`` and, when it is on the disk, put it in its place.

    Raises ``CheckpointError``, with ``target`` untouched.
    """
    # One name for all attempts: what a killed process left behind is overwritten by the next one.
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as undo:
            undo.callback(partial.unlink, missing_ok=True)
            with partial.open("wb") as file:
                _save(content, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
            undo.pop_all()
        sync_folder(target.parent)
    except (OSError, RuntimeError) as error:  # torch turns a failed write into a RuntimeError
        raise CheckpointError(
            fspath(target),
            f"could not be written ({error})",
            "make room or choose another place; what was there before is untouched",
        ) from error


def read(source: str) -> Unpacked:
    """What the file holds, with all tensors on the CPU. Never runs code from it.

    Raises ``CheckpointError`` for one that is missing, damaged, or not of tensors and numbers.
    """
    try:
        # Opened once: all is read from one file, whatever is put in its place meanwhile.
        with Path(source).open("rb") as file:
            sealed = _sealed(file, source)
            _require_sober(file, source, check=not sealed)
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(source, "is missing", "give the path of another one") from None
    except UnpicklingError as error:
        raise CheckpointError(
            source,
            "holds more than tensors, numbers and text, and was not read",
            "trust it no more than a program; give a file that run.checkpoint() wrote",
        ) from error
    except Exception as error:  # a damaged file may fail anywhere, with any error
        raise CheckpointError(source, f"cannot be read ({error})", OLDER) from error
    return Unpacked(content=content, sealed=sealed)


class _Hashed:
    """A file that is written from its beginning to its end, and the digest of that."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.flush: Callable[[], None] = file.flush

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)


def _save(content: Mapping[str, Any], file: IO[bytes]) -> None:
    hashed = _Hashed(file)
    before = get_crc32_options()
    set_crc32_options(compute_crc32=True)  # for `unzip -t`, whatever the user's setting is
    try:
        torch.save(content, hashed)  # type: ignore[arg-type]  # it asks for no more of a file
    finally:
        set_crc32_options(before)
    file.seek(-len(_NO_COMMENT), os.SEEK_END)
    file.write(_seal(hashed.digest.hexdigest()))


def _seal(digest: str) -> bytes:
    """The end of an archive with that comment."""
    comment = _COMMENT + digest.encode()
    return struct.pack("<H", len(comment)) + comment


def _sealed(file: IO[bytes], source: str) -> bool:
    """Whether there is a seal. Raises ``CheckpointError`` for one that is broken."""
    left = file.seek(0, os.SEEK_END) - _SEAL
    file.seek(max(left, 0))
    seal = file.read()
    if not seal.startswith(_COMMENT, len(_NO_COMMENT)):
        return False
    digest = hashlib.sha256()
    file.seek(0)
    while left > 0 and (chunk := file.read(min(left, _CHUNK))):
        digest.update(chunk)
        left -= len(chunk)
    digest.update(_NO_COMMENT)
    if seal != _seal(digest.hexdigest()):
        raise CheckpointError(
            source, "is damaged: its bytes are not those that were written", OLDER
        )
    return True


def _require_sober(file: IO[bytes], source: str, *, check: bool) -> None:
    """Raise ``CheckpointError`` for an archive that unpacks to more than it is.

    Without a seal, ``check`` compares the archive's own checksums: ``torch.load`` notices no
    flipped bit in a tensor.
    """
    size = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        if size < sum(each.file_size for each in archive.infolist()):
            raise CheckpointError(
                source,
                "unpacks to more than its size, which no checkpoint does",
                "give a file that run.checkpoint() wrote",
            )
        broken = archive.testzip() if check else None
    if broken is not None:
        raise CheckpointError(source, f"is damaged at {broken}", OLDER)


def sync_folder(folder: Path) -> None:
    """Make a renaming in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
