"""The files that TensorBoard reads: framed records, of which the last may be torn by a crash.

A record is the length of its data (8 bytes, little-endian), a masked CRC-32C of that, the data,
and a masked CRC-32C of the data.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")


def framed(data: bytes) -> bytes:
    """``data`` as one record."""
    header = struct.pack("<Q", len(data))
    return b"".join(
        (_HEADER.pack(len(data), masked_crc32c(header)), data, _FOOTER.pack(masked_crc32c(data)))
    )


def records(path: Path) -> Iterator[bytes]:
    """The data of each record up to the first that is not whole: what TensorBoard will see."""
    content = path.read_bytes()
    start = 0
    while start + _HEADER.size <= len(content):
        length, check = _HEADER.unpack_from(content, start)
        if masked_crc32c(content[start : start + 8]) != check:
            return
        start += _HEADER.size
        data = content[start : start + length]
        start += length + _FOOTER.size
        if start > len(content) or _FOOTER.unpack_from(content, start - _FOOTER.size) != (
            masked_crc32c(data),
        ):
            return
        yield data


def next_file(folder: Path, *, sequence: int) -> Path:
    """A new file for what begins with event ``sequence``, behind all there are by name.

    TensorBoard reads a folder's files in the order of their names. There is already one for the
    same event where a crash tore its very first record.
    """
    stem = f"events.out.tfevents.{sequence:010d}"
    earlier = len(list(folder.glob(f"{stem}.*")))
    return folder / f"{stem}.{earlier:04d}.kasmina"


def newest_first(folder: Path) -> list[Path]:
    """The files of ``next_file``, backwards."""
    return sorted(folder.glob("events.out.tfevents.*.kasmina"), reverse=True)
