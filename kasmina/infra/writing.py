"""Files that appear whole, and never in the place of others."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from kasmina.infra.exchange.errors import UnwritableFile

OPEN, SECRET = 0o644, 0o600
"""Modes of a new file: for everybody to read, and for its owner alone."""


def write_new(path: Path, data: bytes, *, mode: int = OPEN) -> None:
    """Make the file, on disk when this returns. Raises ``UnwritableFile``, also where one is."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        path.hardlink_to(partial)  # unlike a renaming this never replaces a file
    except FileExistsError as error:
        problem, mend = "there is such a file already", "give another name"
        raise UnwritableFile(path, problem, mend) from error
    except OSError as error:
        mend = "check the folder, its permissions and the free space, then try again"
        raise UnwritableFile(path, error.strerror or str(error), mend) from error
    finally:
        with suppress(OSError):
            partial.unlink()
