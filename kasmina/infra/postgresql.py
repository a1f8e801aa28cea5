"""PostgreSQL through psycopg 3, where many machines write at once.

Positions are given when rows are inserted and show when their transaction commits, so they can
show out of order. A writer therefore announces itself before it takes a position: by a shared
advisory lock that carries the last position given so far and is held until its transaction has
ended. A follower reads the last position given, and then the locks: whoever took a position up to
there and has not committed is still announced, and the follower stops at the oldest. Nothing but
the table is stored for it, so it also holds after a dump was restored on another server.
"""

import re
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, cast

import psycopg
from psycopg import errors as pg
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.engine import URL
from sqlalchemy.pool import PoolProxiedConnection

from kasmina.domain.errors import StoreUnavailable
from kasmina.infra import queries, schema
from kasmina.infra.engine import BUSY_SECONDS, PAGE, Durability, Overtaken
from kasmina.infra.statements import Cursor, Statement

_SPACE = 0x6B73 << 48
"""Kasmina's share of the keys of advisory locks; the lower 48 bits hold a position."""

# ruff: noqa: S608 - the only thing these statements are built of is the number above
_ANNOUNCE = f"SELECT pg_advisory_xact_lock_shared({_SPACE} + last_value) FROM events_position"
_TAKE = "SELECT array_agg(nextval('events_position')) FROM generate_series(1, %s)"
_GIVEN = "SELECT last_value, pg_is_in_recovery() FROM events_position"
_OLDEST = f"""
SELECT min(key) - {_SPACE} FROM (
    SELECT (classid::bigint << 32) + objid::bigint AS key FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 1
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
) AS held WHERE key >= {_SPACE} AND key < {_SPACE + (1 << 48)}
"""
_LOCK_SCHEMA = f"SELECT pg_advisory_xact_lock({_SPACE + (1 << 48)})"

_NO_DATABASE = re.compile(r'database ".*" does not exist')
_REACH = "check that the server runs and that the address is right, then try again"
_ROWS_PER_COPY = 8
"""From here on COPY is quicker than single INSERTs."""


class PostgresDatabase:
    """A database on a server. Writers on different runs do not wait for each other.

    Its tables lie in the schema that comes first in the connection's ``search_path``.
    """

    errors = (psycopg.Error,)
    one_writer = False

    def __init__(self, url: URL) -> None:
        self.url = url.render_as_string(hide_password=True)
        self.dialect = PGDialect_psycopg()  # type: ignore[no-untyped-call]
        self._target = _with_defaults(url)
        columns = ("position", *queries.INSERTED)
        self._insertion = queries.insertion("%s", columns)
        self._copy = f"COPY events ({', '.join(columns)}) FROM STDIN"

    def reader(self) -> Engine:
        """Connections that can only read."""
        return self._engine("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")

    def writer(self, durability: Durability, *, create: bool = False) -> Engine:  # noqa: ARG002
        """Connections that append; RELAXED commits do not wait for the disk."""
        commits = {Durability.FULL: "on", Durability.RELAXED: "off"}[durability]
        return self._engine(f"SET SESSION synchronous_commit = {commits}")

    def exists(self) -> bool:
        """Always: only connecting can tell."""
        return True

    def require_readable(self) -> None:
        """Nothing: connecting says what is missing."""

    def require_writable(self) -> None:
        """Nothing: connecting says what is missing."""

    def identity(self) -> Hashable:
        """Always the same: a server that was replaced has closed every connection."""
        return self.url

    def log_identity(self) -> Hashable:
        """None that could be mistaken: the server minds its own."""
        return None

    def begin(self, cursor: Cursor) -> None:
        """Nothing: the driver begins with the first statement."""

    def lock_schema(self, connection: Connection) -> None:
        """Let nobody else create or migrate until the transaction ends."""
        connection.execute(text(_LOCK_SCHEMA))

    def missing_guards(self, connection: Connection) -> list[str]:
        """The triggers that are not there."""
        named = text("SELECT tgname FROM pg_trigger WHERE tgrelid = 'events'::regclass")
        made = set(connection.scalars(named))
        return [name for name in schema.TRIGGERS if name not in made]

    def strangers(self, tables: Sequence[str]) -> list[str]:
        """Those whose names kasmina wants: on a server, programs share a schema."""
        return [name for name in tables if name in schema.metadata.tables]

    def insert(self, cursor: Cursor, rows: Sequence[tuple[object, ...]]) -> Sequence[int]:
        """Insert rows at positions taken for them."""
        cursor.execute(_ANNOUNCE)
        positions: list[int]
        (positions,) = cursor.execute(_TAKE, (len(rows),)).fetchone()
        if len(rows) < _ROWS_PER_COPY:
            for position, row in zip(positions, rows, strict=True):
                cursor.execute(self._insertion, (position, *row))
            return positions
        with cast("psycopg.Cursor[Any]", cursor).copy(self._copy) as copy:
            for position, row in zip(positions, rows, strict=True):
                copy.write_row((position, *row))
        return positions

    def settled(self, cursor: Cursor, /) -> int:
        """The last position given, or the oldest that a running transaction might still show."""
        last, standby = cursor.execute(_GIVEN).fetchone()
        if standby:
            problem = "it is a standby, which does not know what its primary is about to commit"
            raise StoreUnavailable(self.url, problem, "follow the log on the primary server")
        (oldest,) = cursor.execute(_OLDEST).fetchone()
        return int(last if oldest is None else min(last, oldest))

    def stream(
        self, raw: PoolProxiedConnection, statement: Statement, **given: object
    ) -> Iterator[Sequence[tuple[Any, ...]]]:
        """A statement's rows in pages, by a cursor on the server: the driver's own fetches all."""
        connection = cast("psycopg.Connection[Any]", raw.driver_connection)
        with connection.cursor(name="kasmina") as cursor:
            cursor.execute(statement.text, statement.parameters(**given))
            while page := cursor.fetchmany(PAGE):
                yield page

    def recover(self, raw: PoolProxiedConnection, error: BaseException, /) -> None:
        """Roll back, or drop the connection where the server may have gone away."""
        if isinstance(error, pg.OperationalError | pg.InterfaceError):
            raw.invalidate(error)
        else:
            raw.rollback()

    def fault(self, error: Exception) -> StoreUnavailable | Overtaken:
        """What the server, or the way to it, refused."""
        told = " ".join(str(error).split())
        match error:
            case pg.UniqueViolation():
                return Overtaken()
            case pg.OperationalError() if _NO_DATABASE.search(told):  # it carries no code
                mend = "create it with `createdb`"
                return StoreUnavailable(self.url, f"there is no such database ({told})", mend)
            case pg.InsufficientPrivilege() | pg.ReadOnlySqlTransaction():
                mend = "give this user the right to SELECT and INSERT, or name another user"
                return StoreUnavailable(self.url, f"it may not be used so ({told})", mend)
            case pg.LockNotAvailable() | pg.QueryCanceled() | pg.DeadlockDetected():
                mend = "wait for the other transaction, or end it, then try again"
                return StoreUnavailable(self.url, f"it was locked for too long ({told})", mend)
            case pg.DiskFull():
                mend = "free some space there, then try again"
                return StoreUnavailable(self.url, f"the server's disk is full ({told})", mend)
            case pg.DataError() | pg.ProgramLimitExceeded():
                mend = "PostgreSQL stores no NUL in text, and no identifiers of over 2,000 bytes"
                return StoreUnavailable(self.url, f"it cannot be stored ({told})", mend)
            case pg.OperationalError() | pg.InterfaceError():
                return StoreUnavailable(self.url, f"the server cannot be reached ({told})", _REACH)
            case _:
                mend = "try again; if it stays so, `kasmina verify` checks what is stored"
                return StoreUnavailable(self.url, f"the database refused: {told}", mend)

    def _engine(self, setting: str) -> Engine:
        engine = create_engine(
            self._target,
            pool_size=1,
            max_overflow=-1,
            pool_timeout=BUSY_SECONDS,
            pool_pre_ping=True,  # a server that was restarted has closed what the pool kept
        )

        @event.listens_for(engine, "connect")
        def _set(connection: psycopg.Connection[Any], _: object) -> None:
            connection.execute(setting)
            connection.commit()

        return engine


def _with_defaults(url: URL) -> URL:
    """The URL with what it leaves open: how long to wait, and by what name."""
    options = f"-c lock_timeout={int(1000 * BUSY_SECONDS)} {url.query.get('options', '')}".strip()
    defaults = {
        "connect_timeout": str(int(BUSY_SECONDS)),
        "fallback_application_name": "kasmina",
        **url.query,
        "options": options,
    }
    return url.set(drivername="postgresql+psycopg", query=defaults)
