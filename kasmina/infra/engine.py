"""What the store needs of a database, whichever it is; and which one a URL means."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any, Protocol

from sqlalchemy import Connection, Dialect, Engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import PoolProxiedConnection

from kasmina.domain.errors import StoreUnavailable
from kasmina.infra.statements import Cursor, Statement

BUSY_SECONDS = 10.0
"""How long a connection waits for another one's lock."""

PAGE = 1000
"""Rows fetched or written at a time."""


class Access(Enum):
    """What a store may do. ``READ`` never creates, migrates or locks anything."""

    READ = "read"
    WRITE = "write"


class Durability(Enum):
    """What an acknowledged append means.

    ``FULL``: it is on disk. ``RELAXED``: it survives the process, but a power cut may take the
    last transactions; the database never becomes corrupt.
    """

    FULL = "full"
    RELAXED = "relaxed"


class Overtaken(Exception):
    """Another writer has committed the same sequence of the same run a moment before."""


class Database(Protocol):
    """One database, and all that differs from one kind to the other."""

    @property
    def url(self) -> str:
        """Its URL as it is shown to people, without a password."""
        ...

    @property
    def dialect(self) -> Dialect:
        """How SQLAlchemy words statements for it."""
        ...

    @property
    def one_writer(self) -> bool:
        """Whether its writers take turns."""
        ...

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What its driver raises."""
        ...

    def reader(self) -> Engine:
        """Connections that can only read, and never create anything."""
        ...

    def writer(self, durability: Durability, *, create: bool = False) -> Engine:
        """Connections that append."""
        ...

    def exists(self) -> bool:
        """Whether there is anything to connect to."""
        ...

    def require_readable(self) -> None:
        """Raise ``StoreUnavailable`` where there is nothing to read."""
        ...

    def require_writable(self) -> None:
        """Raise ``StoreUnavailable`` where it could not be created or appended to."""
        ...

    def identity(self) -> Hashable:
        """What tells it apart from one that was put in its place; ``None`` where it is gone."""
        ...

    def log_identity(self) -> Hashable:
        """The same for the log that it writes ahead, once a writer is connected."""
        ...

    def begin(self, cursor: Cursor) -> None:
        """Begin a transaction that writes."""
        ...

    def lock_schema(self, connection: Connection) -> None:
        """Let nobody else create or migrate until the transaction ends."""
        ...

    def missing_guards(self, connection: Connection) -> list[str]:
        """What should make the table append-only and is not there."""
        ...

    def strangers(self, tables: Sequence[str]) -> list[str]:
        """Those of ``tables``, in a database without a kasmina schema, that forbid making one."""
        ...

    def insert(self, cursor: Cursor, rows: Sequence[tuple[object, ...]]) -> Sequence[int]:
        """Insert rows (``queries.INSERTED``, in order) and return their positions."""
        ...

    def settled(self, cursor: Cursor, /) -> int:
        """The position up to which no event can appear any more that is not there already."""
        ...

    def stream(
        self, raw: PoolProxiedConnection, statement: Statement, **given: object
    ) -> Iterator[Sequence[tuple[Any, ...]]]:
        """A statement's rows in pages, from one state of the database, in constant memory."""
        ...

    def recover(self, raw: PoolProxiedConnection, error: BaseException, /) -> None:
        """Undo the transaction in which ``error`` was raised, and drop what is not usable."""
        ...

    def fault(self, error: Exception) -> StoreUnavailable | Overtaken:
        """What an error of the driver means, in words that help."""
        ...


def locate(url: str) -> Database:
    """The database that ``url`` names. Raises ``StoreUnavailable`` where it names none."""
    # A kind of database is loaded where it is used: psycopg need not be installed.
    from kasmina.infra import sqlite  # noqa: PLC0415

    try:
        parsed = make_url(url)
    except ArgumentError:
        raise StoreUnavailable(url, "this is not a database URL", sqlite.EXAMPLE) from None
    match parsed.drivername:
        case "sqlite" | "sqlite+pysqlite":
            return sqlite.SqliteDatabase(parsed)
        case "postgresql" | "postgresql+psycopg":
            try:
                from kasmina.infra import postgresql  # noqa: PLC0415
            except ImportError as error:
                problem = f"psycopg 3, which talks to PostgreSQL, cannot be loaded ({error})"
                mend = "pip install 'kasmina[postgres]'"
                raise StoreUnavailable(parsed.render_as_string(), problem, mend) from error
            return postgresql.PostgresDatabase(parsed)
        case _:
            raise StoreUnavailable(
                parsed.render_as_string(hide_password=True),
                "only SQLite and PostgreSQL (through psycopg 3) are supported",
                f"{sqlite.EXAMPLE}, or as postgresql://user@host/database",
            )


@contextmanager
def translated(database: Database) -> Iterator[None]:
    """Raise what the driver or SQLAlchemy raises inside as what it means for ``database``."""
    try:
        yield
    except SQLAlchemyError as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        raise database.fault(cause if isinstance(cause, Exception) else error) from error
    except database.errors as error:
        raise database.fault(error) from error
