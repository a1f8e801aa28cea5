"""Files that appear whole or not at all, and files that may be compressed."""

import gzip
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedIOBase
from pathlib import Path

from kasmina.domain.errors import StoreError
from kasmina.infra.exchange.errors import UnwritableFile

_GZIP = b"\x1f\x8b"
_SQLITE = b"SQLite format 3\x00"

_ANOTHER = "give another name"

STANDARD_INPUT = "-"


class MissingFile(StoreError):
    """A file that cannot be opened."""

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"{path} cannot be read: {problem}; check the path and its permissions")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside ``path`` that takes its name when the block has ended, and is on disk.

    When the block raises, the new file is removed and ``path`` is as it was. Raises
    ``UnwritableFile``, also for whatever ``OSError`` the block raises.
    """
    try:
        if path.exists() and not path.is_file():
            raise UnwritableFile(path, "it is not a file", "give the path of a file")
        target = path.resolve()  # a link goes on pointing to the file
        partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
        with ExitStack() as failed:
            failed.callback(_removed, partial)
            partial.open("xb").close()
            yield partial
            _flushed(partial)
            partial.replace(target)
            failed.pop_all()
        _flushed(target.parent)
    except OSError as error:
        problem = error.strerror or str(error)
        mend = "check the folder, its permissions and the free space, then try again"
        raise UnwritableFile(path, problem, mend) from error


def require_no_database(path: Path) -> None:
    """Raise ``UnwritableFile`` where ``path`` is an SQLite database: a log is not to be replaced.

    Also where it cannot be read.
    """
    try:
        with path.open("rb") as file:
            found = file.read(len(_SQLITE))
    except FileNotFoundError:
        return
    except OSError as error:
        raise UnwritableFile(path, error.strerror or str(error), _ANOTHER) from error
    if found == _SQLITE:
        raise UnwritableFile(path, "it is a database", _ANOTHER)


@contextmanager
def opened(path: str) -> Iterator[BufferedIOBase]:
    """The bytes of a file, or of the standard input (``"-"``), decompressed if it is gzipped.

    Raises ``MissingFile``.
    """
    standard = path == STANDARD_INPUT
    with ExitStack() as resources:
        try:
            file = open(0 if standard else path, "rb", closefd=not standard)  # noqa: SIM115
            resources.enter_context(file)
            zipped = file.peek(len(_GZIP)).startswith(_GZIP)
        except OSError as error:
            raise MissingFile(path, error.strerror or str(error)) from error
        yield gzip.GzipFile(fileobj=file) if zipped else file


def _flushed(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _removed(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
