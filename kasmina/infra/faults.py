"""What SQLite can refuse, in words that help; no database exception leaves the store."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from kasmina.domain.errors import StoreUnavailable

_LOCKED = (
    "another process has kept it locked for too long",
    "wait for that process, or stop it, then try again",
)
_DISK = (
    "the disk could not be read or written",
    "check the free space, the limit on file sizes and the disk itself, then try again",
)
_PERMISSIONS = (
    "give this user the permission on the file and on its folder, where SQLite keeps two more "
    "while it is in use; or copy it to a folder of your own"
)

_FAULTS = {
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_IOERR: _DISK,
    sqlite3.SQLITE_FULL: ("the disk is full", "free some space, then try again"),
    sqlite3.SQLITE_READONLY: ("it may only be read", _PERMISSIONS),
    sqlite3.SQLITE_CORRUPT: (
        "the file is damaged",
        "restore it from a backup; `kasmina verify` shows which runs are whole",
    ),
    sqlite3.SQLITE_NOTADB: (
        "it is not a SQLite database",
        "give the path of a kasmina database, or of a file that does not exist yet",
    ),
    sqlite3.SQLITE_CANTOPEN: ("it cannot be opened", _PERMISSIONS),
}


@contextmanager
def translated(target: str) -> Iterator[None]:
    """Raise what the database raises inside as ``StoreUnavailable`` about ``target``."""
    try:
        yield
    except SQLAlchemyError as error:
        raise fault(error, target) from error


def fault(error: SQLAlchemyError, target: str) -> StoreUnavailable:
    """The ``StoreUnavailable`` that tells what ``error`` means."""
    cause = error.orig if isinstance(error, DBAPIError) else None
    # Only errors of the SQLite library carry a code, those of the Python driver do not.
    extended = vars(cause).get("sqlite_errorcode", 0) if isinstance(cause, sqlite3.Error) else 0
    primary = extended & 0xFF
    if primary not in _FAULTS:
        return StoreUnavailable(
            target,
            f"the database refused: {cause or error}",
            "try again; if it stays so, `kasmina verify` checks what is stored",
        )
    problem, mend = _FAULTS[primary]
    return StoreUnavailable(target, f"{problem} ({cause})", mend)
