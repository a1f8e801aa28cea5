"""Connections to SQLite, set up as they must be; each line of it was found by trial.

A writer waits for its turn (the busy time-out comes first), switches to WAL with retries (the
switch itself does not wait), and begins every transaction with BEGIN IMMEDIATE: with the driver's
own deferred BEGIN four processes lost a third of their appends. A reader cannot write at all.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path

from attrs import frozen
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import QueuePool

from kasmina.domain.errors import StoreUnavailable

BUSY_SECONDS = 10.0
"""How long a connection waits for another process's lock."""

OLDEST_SQLITE = (3, 38, 0)
"""STRICT tables came with 3.37, the JSON functions of the view are always there since 3.38."""

Pragmas = Mapping[str, int | str]


class Access(Enum):
    """What a store may do. ``READ`` never creates, migrates or locks anything."""

    READ = "read"
    WRITE = "write"


class Durability(Enum):
    """What an acknowledged append means, as SQLite's ``synchronous``.

    ``FULL``: it is on disk. ``RELAXED``: it survives the process, but a power cut may take the
    last transactions; the file never becomes corrupt.
    """

    FULL = 2
    RELAXED = 1


@frozen(kw_only=True)
class Location:
    """A database file: the URL as it was given, and the absolute path it means."""

    url: str
    path: Path


def locate(url: str) -> Location:
    """The file that ``url`` names. Raises ``StoreUnavailable`` where it names none."""
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        oldest = ".".join(map(str, OLDEST_SQLITE))
        raise StoreUnavailable(
            url,
            f"this Python has SQLite {sqlite3.sqlite_version}, but {oldest} is needed",
            "use a Python with a newer SQLite library",
        )
    example = "write it as sqlite:///kasmina.db or sqlite:////absolute/path/kasmina.db"
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise StoreUnavailable(url, "this is not a database URL", example) from None
    target = parsed.render_as_string(hide_password=True)
    if parsed.drivername not in {"sqlite", "sqlite+pysqlite"}:
        raise StoreUnavailable(target, "only SQLite databases are supported", example)
    if parsed.host or parsed.query:
        raise StoreUnavailable(target, "a SQLite URL holds a path and nothing else", example)
    if parsed.database in {None, "", ":memory:"}:
        raise StoreUnavailable(
            target, "it names no file", f"{example}; for tests there is MemoryEventStore"
        )
    return Location(url=target, path=Path(str(parsed.database)).absolute())


def reader(location: Location) -> Engine:
    """Connections that can only read, and never create the file."""
    return _engine(location, mode="ro", pragmas={"query_only": 1})


def writer(location: Location, durability: Durability, *, create: bool = False) -> Engine:
    """One connection that appends, and holds the database's only write lock while it does."""
    pragmas = {
        "journal_mode": "wal",
        "synchronous": durability.value,
        "recursive_triggers": 1,  # without it REPLACE deletes rows past the append-only triggers
        "foreign_keys": 1,
    }
    engine = _engine(location, mode="rwc" if create else "rw", pragmas=pragmas)
    event.listen(engine, "begin", _begin_immediate)
    return engine


def require_file(location: Location) -> None:
    """Raise ``StoreUnavailable`` where there is no file to read."""
    if not location.path.exists():
        raise StoreUnavailable(
            location.url,
            "there is no such file",
            "check the path; the first run that is opened there creates it",
        )
    if not location.path.is_file():
        raise StoreUnavailable(location.url, "it is not a file", "give the path of a file")


def require_writable(location: Location) -> None:
    """Raise ``StoreUnavailable`` where this user could not create the file or append to it."""
    path, folder = location.path, location.path.parent
    if not folder.is_dir():
        raise StoreUnavailable(
            location.url, f"its folder {folder} does not exist", "create it, or correct the path"
        )
    if path.exists():
        require_file(location)
    mend = "give this user the permission, or choose another place"
    # SQLite keeps two files beside the database while it is in use.
    for place in (folder, path) if path.exists() else (folder,):
        if not os.access(place, os.W_OK):
            raise StoreUnavailable(location.url, f"{place} may only be read", mend)


def _engine(location: Location, *, mode: str, pragmas: Pragmas) -> Engine:
    return create_engine(
        "sqlite://",
        creator=_connector(location, mode, pragmas),
        poolclass=QueuePool,
        pool_size=1,
        max_overflow=-1 if mode == "ro" else 0,
        pool_timeout=BUSY_SECONDS,
    )


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _connector(location: Location, mode: str, pragmas: Pragmas) -> Callable[[], sqlite3.Connection]:
    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{location.path.as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,  # transactions begin where _begin_immediate says
            check_same_thread=False,  # the pool hands a connection to one thread at a time
        )
        try:
            for name, value in pragmas.items():
                _set(connection, location, name, value)
        except BaseException:
            connection.close()
            raise
        return connection

    return connect


def _set(connection: sqlite3.Connection, location: Location, name: str, value: int | str) -> None:
    """Set a PRAGMA and read it back: SQLite ignores what it does not know or cannot do."""
    _patiently(lambda: connection.execute(f"PRAGMA {name} = {value}"))
    (found,) = connection.execute(f"PRAGMA {name}").fetchone()
    if found != value:
        raise StoreUnavailable(
            location.url,
            f"SQLite set {name} to {found!r} instead of {value!r}",
            "keep the database on a local disk: network file systems lack what WAL needs",
        )


def _patiently(act: Callable[[], object]) -> None:
    """Repeat until the lock is free: switching to WAL fails at once, whatever the time-out."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            act()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
