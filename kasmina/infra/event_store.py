"""The event store on SQLite, through SQLAlchemy Core."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from sqlalchemy import Connection, Engine

from kasmina.domain.errors import ConcurrentAppend, StoreUnavailable
from kasmina.domain.events import Event
from kasmina.domain.ports import EMPTY_HEAD, Clock, Head, Recorded
from kasmina.infra import codec, engine, integrity, queries, revision, schema
from kasmina.infra.engine import Access, Durability, Location
from kasmina.infra.faults import translated
from kasmina.infra.integrity import Row, Scrutiny, Seal, Verification
from kasmina.infra.records import microseconds, placed, record, repeats
from kasmina.infra.system import SystemClock

PAGE = 1000
"""Rows fetched at a time. Between two pages a reader holds nothing that a writer could want."""

_LAST = 2**63 - 1


class SqlEventStore:
    """Runs in a database, as ``kasmina.domain.ports.EventStore`` describes. Made by ``open_store``.

    May be shared by threads; appends of one store take turns, reads do not wait for them.
    """

    def __init__(
        self, location: Location, reader: Engine, writer: Engine | None, clock: Clock
    ) -> None:
        self._location = location
        self._reader = reader
        self._writer = writer
        self._clock = clock
        self._insertion = queries.insertion(reader.dialect)
        self._closed = False
        self._file = _identity(location)

    @property
    def url(self) -> str:
        """The URL it was opened at."""
        return self._location.url

    def append(
        self, run_id: str, events: Sequence[Event], *, expected: int, batch: str | None = None
    ) -> tuple[Recorded, ...]:
        """Add events to a run in one transaction; see the port.

        Raises ``ConcurrentAppend``, ``StoreUnavailable``, and ``UnwritableEvent`` for a value that
        could not be read back.
        """
        encoded = [codec.encode(event) for event in events]
        at = microseconds(self._clock.now())
        with self._writing() as connection:
            head = _head(connection, run_id)
            if head.sequence != expected:
                rows = _stretch(connection, run_id, after=expected, limit=len(events))
                if not repeats(rows, encoded, batch):
                    raise ConcurrentAppend(run_id, expected=expected, found=head.sequence)
                return tuple(map(placed, rows, events))
            rows = integrity.link(run_id, encoded, after=head, at=at, batch=batch)
            if rows:
                connection.exec_driver_sql(self._insertion, list(map(queries.parameters, rows)))
            given = {"run_id": run_id, "after": expected}
            positions = connection.scalars(queries.POSITIONS, given).all()
        return tuple(map(placed, rows, events, positions))

    def read(self, run_id: str, *, after: int = 0, until: int | None = None) -> Iterator[Recorded]:
        """The events of a run in a range, fetched page by page; see the port.

        Raises ``UnreadableEvent`` at the event that cannot be read.
        """
        last = _LAST if until is None else until
        while True:
            with self._reading() as connection:
                page = _stretch(connection, run_id, after=after, until=last, limit=PAGE)
            yield from map(record, page)
            if len(page) < PAGE:
                return
            after = page[-1].columns.sequence

    def head(self, run_id: str) -> Head:
        """The end of a run; see the port."""
        with self._reading() as connection:
            return _head(connection, run_id)

    def runs(self) -> Iterator[Recorded]:
        """The first event of every run; see the port."""
        with self._reading() as connection:
            found = queries.rows(connection.execute(queries.FIRST_EVENTS))
        yield from map(record, found)

    def run_ids(self) -> tuple[str, ...]:
        """Every run with any event, also one whose first event is missing or unreadable."""
        with self._reading() as connection:
            return tuple(connection.scalars(queries.RUN_IDS))

    def follow(self, *, after: int = 0, limit: int = PAGE) -> tuple[Recorded, ...]:
        """What was recorded after a position; see the port.

        Positions are committed in their order, because writers take turns: none is ever missed.
        """
        with self._reading() as connection:
            given = {"after": after, "limit": limit}
            found = queries.rows(connection.execute(queries.FOLLOW, given))
        return tuple(map(record, found))

    def rows(self, run_id: str) -> Iterator[Row]:
        """A run exactly as it is stored, streamed from one state of the database."""
        with self._reading() as connection:
            result = connection.execution_options(yield_per=PAGE).execute(
                queries.WHOLE_RUN, {"run_id": run_id}
            )
            for page in result.partitions():
                yield from queries.rows(page)

    def verify(
        self, run_id: str, *, seal: Seal | None = None, scrutiny: Scrutiny = Scrutiny.PAYLOADS
    ) -> Verification:
        """Look for whatever is wrong with a run; see ``integrity.verify``."""
        return integrity.verify(run_id, self.rows(run_id), seal=seal, scrutiny=scrutiny)

    def require_ready(self) -> None:
        """Connect, and raise ``SchemaMismatch`` where the schema is not this code's."""
        with self._reading() as connection:
            revision.require_present(connection, self.url)
        if self._writer is not None:
            # Also so that a writer that never appends tidies the WAL away: a reader cannot.
            with translated(self.url), self._writer.connect():
                pass

    def close(self) -> None:
        """Release the file. The store cannot be used any more."""
        self._closed = True
        self._reader.dispose()
        if self._writer is not None:
            self._writer.dispose()  # the last one out tidies the WAL away, so it goes last

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        self._require_usable()
        with translated(self.url), self._reader.connect() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        if self._writer is None:
            problem, mend = "it was opened for reading", "open it with Access.WRITE"
            raise StoreUnavailable(self.url, problem, mend)
        self._require_usable()
        with translated(self.url), self._writer.begin() as connection:
            self._require_usable()  # its turn may have been long in coming
            yield connection

    def _require_usable(self) -> None:
        """On a file that was deleted everything would seem to succeed, and be lost."""
        if self._closed:
            raise StoreUnavailable(self.url, "the store was closed", "open it again")
        if _identity(self._location) != self._file:
            raise StoreUnavailable(
                self.url,
                "the file was deleted or replaced while it was in use",
                "put it back, or open the store again to begin a new file",
            )


def open_store(
    url: str,
    *,
    access: Access = Access.WRITE,
    durability: Durability = Durability.FULL,
    clock: Clock | None = None,
) -> SqlEventStore:
    """The store at ``url`` (``"sqlite:///kasmina.db"``), to be closed or used in a ``with``.

    WRITE creates the database or brings it up to date; READ does neither. Raises
    ``StoreUnavailable`` and ``SchemaMismatch``, with nothing changed.
    """
    location = engine.locate(url)
    if access is Access.WRITE:
        engine.require_writable(location)
        if not _is_present(location):
            # Alembic takes longer to load than most commands to run: only where it has work.
            from kasmina.infra import migrate  # noqa: PLC0415

            migrate.upgrade(url)
    engine.require_file(location)
    writer = engine.writer(location, durability) if access is Access.WRITE else None
    store = SqlEventStore(location, engine.reader(location), writer, clock or SystemClock())
    try:
        store.require_ready()
    except BaseException:
        store.close()
        raise
    return store


def _is_present(location: Location) -> bool:
    if not location.path.exists():
        return False
    reader = engine.reader(location)
    try:
        with translated(location.url), reader.connect() as connection:
            return revision.found(connection, location.url) == schema.REVISION
    finally:
        reader.dispose()


def _identity(location: Location) -> tuple[int, int] | None:
    """What tells the file apart from any other, ``None`` where it is gone."""
    try:
        status = location.path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _head(connection: Connection, run_id: str) -> Head:
    found = connection.execute(queries.HEAD, {"run_id": run_id}).one_or_none()
    return EMPTY_HEAD if found is None else Head(sequence=found[0], digest=found[1])


def _stretch(
    connection: Connection, run_id: str, *, after: int, limit: int, until: int = _LAST
) -> list[Row]:
    given = {"run_id": run_id, "after": after, "until": until, "limit": limit}
    return queries.rows(connection.execute(queries.STRETCH, given))
