"""A store's connections: many that read, and the ones that write, each for one transaction."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import closing, contextmanager
from threading import Lock
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.pool import PoolProxiedConnection

from kasmina.domain.errors import StoreUnavailable
from kasmina.infra.engine import BUSY_SECONDS, Database, Durability, translated
from kasmina.infra.statements import Cursor, Statement


class Connections:
    """To one database, until closed. ``durability`` is ``None`` where nothing is to be written."""

    def __init__(self, database: Database, durability: Durability | None) -> None:
        self.database = database
        self._reader = database.reader()
        self._writer = None if durability is None else database.writer(durability)
        self._identity = database.identity()
        self._log: Hashable = None
        self._lock = Lock()
        self._kept: PoolProxiedConnection | None = None
        self._closed = False

    @contextmanager
    def reading(self) -> Iterator[Cursor]:
        """A cursor that can only read."""
        self._require_usable()
        with translated(self.database), self._held() as raw:
            yield raw.cursor()

    def stream(self, statement: Statement, **given: object) -> Iterator[Sequence[tuple[Any, ...]]]:
        """A statement's rows in pages, from one state of the database."""
        self._require_usable()
        with translated(self.database), self._held() as raw:
            yield from self.database.stream(raw, statement, **given)

    @contextmanager
    def inspecting(self) -> Iterator[Connection]:
        """A connection as SQLAlchemy's own tools want it, that can only read."""
        self._require_usable()
        with translated(self.database), self._reader.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Cursor]:
        """A cursor in a transaction, which is durable when this is left without an error."""
        self._require_usable()
        with translated(self.database):
            raw = self._take_turn()
            try:
                cursor = raw.cursor()
                self.database.begin(cursor)
                self._require_usable()  # its turn may have been long in coming
                self._require_log()
                yield cursor
                raw.commit()
            except BaseException as error:
                self.database.recover(raw, error)
                raise
            finally:
                self._end_turn(raw)

    def touch_writer(self) -> None:
        """Connect as the writer, so that one that never appends also tidies up SQLite's WAL."""
        if self._writer is not None:
            with translated(self.database):
                self._end_turn(self._take_turn())
            self._log = self.database.log_identity()

    def close(self) -> None:
        """Release the database."""
        self._closed = True
        self._reader.dispose()
        if self._kept is not None:
            self._kept.close()
        if self._writer is not None:
            self._writer.dispose()  # the last one out tidies the WAL away, so it goes last

    def _take_turn(self) -> PoolProxiedConnection:
        """A connection to write with. Where only one can write, it is kept: a pool costs 30 µs."""
        if self._writer is None:
            problem, mend = "it was opened for reading", "open it with Access.WRITE"
            raise StoreUnavailable(self.database.url, problem, mend)
        if not self.database.one_writer:
            return self._writer.raw_connection()
        if not self._lock.acquire(timeout=BUSY_SECONDS):
            problem = "another thread has kept the store for too long"
            raise StoreUnavailable(self.database.url, problem, "wait for it, then try again")
        try:
            if self._kept is None:
                self._kept = self._writer.raw_connection()
        except BaseException:
            self._lock.release()
            raise
        return self._kept

    def _end_turn(self, raw: PoolProxiedConnection) -> None:
        if self.database.one_writer:
            self._lock.release()
        else:
            raw.close()

    @contextmanager
    def _held(self) -> Iterator[PoolProxiedConnection]:
        """A connection to read with."""
        with closing(self._reader.raw_connection()) as raw:
            try:
                yield raw
            except BaseException as error:
                self.database.recover(raw, error)
                raise

    def _require_log(self) -> None:
        """What is written to a log that was deleted is lost with the process."""
        log = self.database.log_identity()
        if self._log is None:
            self._log = log  # a file that was not in WAL mode has one since this transaction
        if log != self._log:
            raise StoreUnavailable(
                self.database.url,
                "the write-ahead log beside it was deleted or replaced while it was in use",
                "let every process that uses the file close it, so that the last one saves what "
                "the log held, then open it again",
            )

    def _require_usable(self) -> None:
        """On a file that was deleted everything would seem to succeed, and be lost."""
        if self._closed:
            raise StoreUnavailable(self.database.url, "the store was closed", "open it again")
        if self.database.identity() != self._identity:
            raise StoreUnavailable(
                self.database.url,
                "the file was deleted or replaced while it was in use",
                "put it back, or open the store again to begin a new file",
            )
