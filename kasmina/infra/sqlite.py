"""SQLite, set up as it must be; each line of it was found by trial.

A writer waits for its turn (the busy time-out comes first), switches to WAL with retries (the
switch itself does not wait), and begins every transaction with BEGIN IMMEDIATE: with the driver's
own deferred BEGIN four processes lost a third of their appends. A reader cannot write at all.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine import URL
from sqlalchemy.pool import PoolProxiedConnection, QueuePool

from kasmina.domain.errors import StoreUnavailable
from kasmina.infra import queries, schema
from kasmina.infra.engine import BUSY_SECONDS, Durability
from kasmina.infra.statements import Cursor, Statement

OLDEST_SQLITE = (3, 38, 0)
"""STRICT tables came with 3.37, the JSON functions of the view are always there since 3.38."""

EXAMPLE = "write it as sqlite:///kasmina.db or sqlite:////absolute/path/kasmina.db"

Pragmas = Mapping[str, int | str]

AT_ONCE = 100
"""Rows that are streamed at a time: few enough to stay in the processor's cache."""

_LAST = 2**63 - 1
_SYNCHRONOUS = {Durability.FULL: 2, Durability.RELAXED: 1}

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


class SqliteDatabase:
    """A file. Writers take turns in it; readers wait for nobody. See ``engine.Database``."""

    dialect = SQLiteDialect_pysqlite()
    one_writer = True
    # UnicodeDecodeError: of a message that quotes a damaged schema.
    errors = (sqlite3.Error, UnicodeDecodeError)

    def __init__(self, url: URL) -> None:
        self.url = url.render_as_string(hide_password=True)
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            oldest = ".".join(map(str, OLDEST_SQLITE))
            raise StoreUnavailable(
                self.url,
                f"this Python has SQLite {sqlite3.sqlite_version}, but {oldest} is needed",
                "use a Python with a newer SQLite library",
            )
        if url.host or url.query:
            raise StoreUnavailable(self.url, "a SQLite URL holds a path and nothing else", EXAMPLE)
        if url.database in {None, "", ":memory:"}:
            mend = f"{EXAMPLE}; for tests there is MemoryEventStore"
            raise StoreUnavailable(self.url, "it names no file", mend)
        self.path = Path(str(url.database)).absolute()
        self._insertion = queries.insertion("?")

    def reader(self) -> Engine:
        """Connections that can only read, and never create the file."""
        return self._engine("ro", {"query_only": 1})

    def writer(self, durability: Durability, *, create: bool = False) -> Engine:
        """One connection that appends, and holds the file's only write lock while it does."""
        pragmas: Pragmas = {
            "journal_mode": "wal",
            "synchronous": _SYNCHRONOUS[durability],
            "recursive_triggers": 1,  # without it REPLACE deletes rows past the triggers
            "foreign_keys": 1,
        }
        engine = self._engine("rwc" if create else "rw", pragmas)
        event.listen(engine, "begin", _begin_immediate)
        return engine

    def exists(self) -> bool:
        """Whether there is a file."""
        return self.path.exists()

    def require_readable(self) -> None:
        """Raise ``StoreUnavailable`` where there is no file to read."""
        if not self.path.exists():
            raise StoreUnavailable(
                self.url,
                "there is no such file",
                "check the path; the first run that is opened there creates it",
            )
        if not self.path.is_file():
            raise StoreUnavailable(self.url, "it is not a file", "give the path of a file")

    def require_writable(self) -> None:
        """Raise ``StoreUnavailable`` where this user could not create the file or append to it."""
        path, folder = self.path, self.path.parent
        if not folder.is_dir():
            problem = f"its folder {folder} does not exist"
            raise StoreUnavailable(self.url, problem, "create it, or correct the path")
        if path.exists():
            self.require_readable()
        mend = "give this user the permission, or choose another place"
        # SQLite keeps two files beside the database while it is in use.
        for place in (folder, path) if path.exists() else (folder,):
            if not os.access(place, os.W_OK):
                raise StoreUnavailable(self.url, f"{place} may only be read", mend)

    def identity(self) -> Hashable:
        """Device and number of the file, ``None`` where it is gone."""
        return _identity(self.path)

    def log_identity(self) -> Hashable:
        """Device and number of the file beside it that holds the newest transactions."""
        return _identity(f"{self.path}-wal")

    def begin(self, cursor: Cursor) -> None:
        """Wait for the write lock."""
        cursor.execute("BEGIN IMMEDIATE")

    def lock_schema(self, connection: Connection) -> None:
        """Nothing more: BEGIN IMMEDIATE has locked the file."""

    def missing_guards(self, connection: Connection) -> list[str]:
        """Alembic's batch mode rebuilds a table without its triggers and its AUTOINCREMENT."""
        made = connection.execute(text("SELECT name, sql FROM sqlite_master"))
        statements = {name: sql for name, sql in made}  # noqa: C416 - dict() does not type-check
        missing = [name for name in schema.TRIGGERS if name not in statements]
        if "AUTOINCREMENT" not in statements["events"]:
            missing.append("AUTOINCREMENT of events")
        return missing

    def strangers(self, tables: Sequence[str]) -> list[str]:
        """All of them: a file is either kasmina's or another program's."""
        return list(tables)

    def insert(self, cursor: Cursor, rows: Sequence[tuple[object, ...]]) -> Sequence[int]:
        """Insert rows; under the write lock AUTOINCREMENT gives them consecutive positions."""
        cursor.executemany(self._insertion, rows)
        (last,) = cursor.execute("SELECT last_insert_rowid()").fetchone()
        return range(last - len(rows) + 1, last + 1)

    def settled(self, _: Cursor, /) -> int:
        """Everything: writers take turns, so positions are committed in their order."""
        return _LAST

    def stream(
        self, raw: PoolProxiedConnection, statement: Statement, **given: object
    ) -> Iterator[Sequence[tuple[Any, ...]]]:
        """A statement's rows in pages; a cursor of SQLite reads on as it is asked."""
        cursor = raw.cursor()
        try:
            statement.run(cursor, **given)
            while page := cursor.fetchmany(AT_ONCE):
                yield page
        finally:
            cursor.close()

    def recover(self, raw: PoolProxiedConnection, _: BaseException, /) -> None:
        """Roll back."""
        raw.rollback()

    def fault(self, error: Exception) -> StoreUnavailable:
        """What SQLite refused; only errors of its library carry a code, the driver's do not."""
        primary = _primary_code(error)
        if primary not in _FAULTS:
            problem = f"the database refused: {error}"
            mend = "try again; if it stays so, `kasmina verify` checks what is stored"
            return StoreUnavailable(self.url, problem, mend)
        problem, mend = _FAULTS[primary]
        return StoreUnavailable(self.url, f"{problem} ({error})", mend)

    def _engine(self, mode: str, pragmas: Pragmas) -> Engine:
        return create_engine(
            "sqlite://",
            creator=self._connector(mode, pragmas),
            poolclass=QueuePool,
            pool_size=1,
            max_overflow=-1 if mode == "ro" else 0,
            pool_timeout=BUSY_SECONDS,
        )

    def _connector(self, mode: str, pragmas: Pragmas) -> Callable[[], sqlite3.Connection]:
        def connect() -> sqlite3.Connection:
            connection = sqlite3.connect(
                f"{self.path.as_uri()}?mode={mode}",
                uri=True,
                timeout=BUSY_SECONDS,
                isolation_level=None,  # transactions begin where the store says
                check_same_thread=False,  # the pool hands a connection to one thread at a time
            )
            try:
                for name, value in pragmas.items():
                    self._set(connection, name, value)
            except BaseException:
                connection.close()
                raise
            return connection

        return connect

    def _set(self, connection: sqlite3.Connection, name: str, value: int | str) -> None:
        """Set a PRAGMA and read it back: SQLite ignores what it does not know or cannot do."""
        patiently(lambda: connection.execute(f"PRAGMA {name} = {value}"))
        (found,) = connection.execute(f"PRAGMA {name}").fetchone()
        if found != value:
            raise StoreUnavailable(
                self.url,
                f"SQLite set {name} to {found!r} instead of {value!r}",
                "keep the database on a local disk: network file systems lack what WAL needs",
            )


def _identity(path: Path | str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - half the time of Path.stat, asked thrice
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _primary_code(error: Exception) -> int:
    if isinstance(error, UnicodeDecodeError):
        return sqlite3.SQLITE_CORRUPT
    extended = vars(error).get("sqlite_errorcode", 0) if isinstance(error, sqlite3.Error) else 0
    return int(extended) & 0xFF


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def patiently(act: Callable[[], object]) -> None:
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
