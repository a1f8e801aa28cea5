"""The event store in a database, SQLite or PostgreSQL."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import chain, islice, repeat
from types import TracebackType
from typing import Self

from kasmina.domain.errors import BrokenChain, ConcurrentAppend, StoreUnavailable
from kasmina.domain.events import Event
from kasmina.domain.ports import EMPTY_HEAD, Append, Clock, Head, Recorded
from kasmina.infra import codec, engine, integrity, records, revision, schema
from kasmina.infra.codec import Encoded
from kasmina.infra.connections import Connections
from kasmina.infra.engine import PAGE, Access, Durability, Overtaken
from kasmina.infra.integrity import Columns, Row, Scrutiny, Seal, Stored, Verification
from kasmina.infra.queries import Queries, parameters
from kasmina.infra.records import microseconds, record, repeats
from kasmina.infra.statements import Cursor
from kasmina.infra.system import SystemClock

_LAST = 2**63 - 1


class SqlEventStore:
    """Runs in a database, as ``kasmina.domain.ports.EventStore`` describes. Made by ``open_store``.

    May be shared by threads; reads do not wait for appends.
    """

    def __init__(self, connections: Connections, clock: Clock) -> None:
        self._connections = connections
        self._database = connections.database
        self._queries = Queries(self._database.dialect)
        self._clock = clock

    @property
    def url(self) -> str:
        """The URL it was opened at, without a password."""
        return self._database.url

    def append(
        self, run_id: str, events: Sequence[Event], *, expected: int, batch: str | None = None
    ) -> tuple[Recorded, ...]:
        """Add events to a run in one transaction; see the port.

        Raises ``ConcurrentAppend``, ``StoreUnavailable``, and ``UnwritableEvent`` for a value that
        could not be read back.
        """
        append = Append(run_id=run_id, events=events, expected=expected, batch=batch)
        (recorded,) = self.append_all((append,))
        return recorded

    def append_all(self, appends: Sequence[Append]) -> tuple[tuple[Recorded, ...], ...]:
        """Add events to many runs in one transaction, all or none; see the port."""
        encoded = [[codec.encode(event) for event in append.events] for append in appends]
        moment = self._clock.now()
        try:
            return self._append(appends, encoded, moment)
        except Overtaken:  # the heads now show what the other writer did
            return self._append(appends, encoded, moment)

    def _append(
        self, appends: Sequence[Append], encoded: Sequence[Sequence[Encoded]], moment: datetime
    ) -> tuple[tuple[Recorded, ...], ...]:
        at = microseconds(moment)
        heads: dict[str, Head] = {}
        linked: list[list[Row]] = []
        earlier: dict[int, list[Row]] = {}
        with self._connections.writing() as cursor:
            for number, (append, fresh) in enumerate(zip(appends, encoded, strict=True)):
                run_id = append.run_id
                head = heads[run_id] if run_id in heads else self._head(cursor, run_id)
                if head.sequence != append.expected:
                    earlier[number] = self._repeated(cursor, append, fresh, head)
                    linked.append([])
                    continue
                rows = integrity.link(run_id, fresh, after=head, at=at, batch=append.batch)
                if rows:
                    last = rows[-1]
                    heads[run_id] = Head(sequence=last.columns.sequence, digest=last.digest)
                linked.append(rows)
            new = list(map(parameters, chain.from_iterable(linked)))
            positions = iter(self._database.insert(cursor, new) if new else ())
        return tuple(
            tuple(map(record, earlier[number]))
            if number in earlier
            else tuple(
                Recorded(
                    next(positions), append.run_id, row.columns.sequence, moment, event, row.digest
                )
                for row, event in zip(linked[number], append.events, strict=True)
            )
            for number, append in enumerate(appends)
        )

    def _repeated(
        self, cursor: Cursor, append: Append, encoded: Sequence[Encoded], head: Head
    ) -> list[Row]:
        """What an earlier attempt at this append wrote. Raises ``ConcurrentAppend``."""
        found = self._queries.stretch.run(
            cursor, run_id=append.run_id, after=append.expected, limit=len(append.events)
        )
        rows = list(map(_row, repeat(append.run_id.encode()), found.fetchall()))
        if not repeats(rows, encoded, append.batch):
            raise ConcurrentAppend(append.run_id, expected=append.expected, found=head.sequence)
        return rows

    def adopt(self, rows: Iterable[Row]) -> int:
        """Write rows of other stores as they are, in one transaction, and return how many.

        Their positions are given anew. Each run's rows come in order and go on from the head that
        it has here. Raises ``BrokenChain`` where a digest does not follow from what is before it,
        ``ConcurrentAppend`` where the run does not end there, ``StoreUnavailable``; then, and when
        ``rows`` raises, nothing was written.
        """
        remaining = iter(rows)
        heads: dict[bytes, Head] = {}
        count = 0
        try:
            with self._connections.writing() as cursor:
                while page := list(islice(remaining, PAGE)):
                    for row in page:
                        self._follow_on(cursor, heads, row)
                    self._database.insert(cursor, list(map(parameters, page)))
                    count += len(page)
        except Overtaken as error:
            problem = "another writer has appended to a run that was being taken in"
            raise StoreUnavailable(self.url, problem, "repeat it: it goes on from there") from error
        return count

    def _follow_on(self, cursor: Cursor, heads: dict[bytes, Head], row: Row) -> None:
        run_id, sequence = row.columns.run_id, row.columns.sequence
        name = run_id.decode(errors="replace")
        head = heads[run_id] if run_id in heads else self._head(cursor, name)
        if sequence != head.sequence + 1:
            raise ConcurrentAppend(name, expected=sequence - 1, found=head.sequence)
        if integrity.chain(head.digest, row.columns) != row.digest:
            raise BrokenChain(name, sequence)
        heads[run_id] = Head(sequence=sequence, digest=row.digest)

    def read(self, run_id: str, *, after: int = 0, until: int | None = None) -> Iterator[Recorded]:
        """The events of a run in a range, fetched page by page; see the port.

        Raises ``UnreadableEvent`` at the event that cannot be read.
        """
        last = _LAST if until is None else until
        while True:
            with self._connections.reading() as cursor:
                page = self._queries.read.run(
                    cursor, run_id=run_id, after=after, until=last, limit=PAGE
                ).fetchall()
            yield from map(records.read, repeat(run_id), page)
            if len(page) < PAGE:
                return
            after = page[-1][1]

    def head(self, run_id: str) -> Head:
        """The end of a run; see the port."""
        with self._connections.reading() as cursor:
            return self._head(cursor, run_id)

    def _head(self, cursor: Cursor, run_id: str) -> Head:
        found = self._queries.head.run(cursor, run_id=run_id).fetchone()
        return EMPTY_HEAD if found is None else Head(sequence=found[0], digest=found[1])

    def runs(self) -> Iterator[Recorded]:
        """The first event of every run; see the port."""
        after = 0
        while True:
            with self._connections.reading() as cursor:
                page = self._queries.beginnings.run(cursor, after=after, limit=PAGE).fetchall()
            yield from map(records.read_any, page)
            if len(page) < PAGE:
                return
            after = page[-1][0]

    def latest_runs(self, *, before: int | None = None, limit: int) -> tuple[Recorded, ...]:
        """The first events of the runs begun last, newest first, from before a position on."""
        until = _LAST if before is None else before
        with self._connections.reading() as cursor:
            found = self._queries.latest_beginnings.run(cursor, before=until, limit=limit)
            page = found.fetchall()
        return tuple(map(records.read_any, page))

    def run_ids(self, *, start: str = "", limit: int = _LAST) -> tuple[str, ...]:
        """Runs with any event in the order of their ids, from ``start`` on.

        Also those whose first event is missing or unreadable.
        """
        with self._connections.reading() as cursor:
            found = self._queries.run_ids.run(cursor, start=start, limit=limit).fetchall()
        return tuple(run_id for (run_id,) in found)

    def follow(self, *, after: int = 0, limit: int = PAGE) -> tuple[Recorded, ...]:
        """What was recorded after a position; see the port. None is ever missed."""
        with self._connections.reading() as cursor:
            until = self._database.settled(cursor)
            found = self._queries.follow.run(cursor, after=after, until=until, limit=limit)
            page = found.fetchall()
        return tuple(map(records.read_any, page))

    def pages(self, run_id: str) -> Iterator[Sequence[Stored]]:
        """A run exactly as it is stored, streamed from one state of the database.

        The columns are those of ``integrity.STORED``.
        """
        return self._connections.stream(self._queries.whole_run, run_id=run_id)

    def rows(self, run_id: str) -> Iterator[Row]:
        """A run exactly as it is stored, row by row."""
        for page in self.pages(run_id):
            yield from map(_row, repeat(run_id.encode()), page)

    def verify(
        self, run_id: str, *, seal: Seal | None = None, scrutiny: Scrutiny = Scrutiny.PAYLOADS
    ) -> Verification:
        """Look for whatever is wrong with a run; see ``integrity.verify``."""
        return integrity.verify(run_id, self, seal=seal, scrutiny=scrutiny)

    def require_ready(self) -> None:
        """Connect, and raise ``SchemaMismatch`` where the schema is not this code's."""
        with self._connections.inspecting() as connection:
            revision.require_present(connection, self._database)
        self._connections.touch_writer()

    def close(self) -> None:
        """Release the database. The store cannot be used any more."""
        self._connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_store(
    url: str,
    *,
    access: Access = Access.WRITE,
    durability: Durability = Durability.FULL,
    clock: Clock | None = None,
) -> SqlEventStore:
    """The store at ``url`` (``"sqlite:///kasmina.db"``, ``"postgresql://user@host/database"``).

    To be closed, or used in a ``with``. WRITE creates the tables or brings them up to date; READ
    does neither. Raises ``StoreUnavailable`` and ``SchemaMismatch``, with nothing changed.
    """
    database = engine.locate(url)
    if access is Access.WRITE:
        database.require_writable()
        if not database.exists() or revision.peek(database) != schema.REVISION:
            # Alembic takes longer to load than most commands to run: only where it has work.
            from kasmina.infra import migrate  # noqa: PLC0415

            migrate.upgrade(url)
    database.require_readable()
    connections = Connections(database, durability if access is Access.WRITE else None)
    store = SqlEventStore(connections, clock or SystemClock())
    try:
        store.require_ready()
    except BaseException:
        store.close()
        raise
    return store


def _row(run_id: bytes, stored: Stored) -> Row:
    position, *covered, digest = stored
    return Row(position, Columns(run_id, *covered), digest)
