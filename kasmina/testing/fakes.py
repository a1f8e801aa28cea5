"""Fakes of the ports that behave as the real ones do."""

import itertools
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import ParamSpec, TypeVar

from kasmina.domain import events as e
from kasmina.domain.errors import ConcurrentAppend
from kasmina.domain.ports import EMPTY_HEAD, Append, Clock, Head, Recorded
from kasmina.infra import codec, integrity
from kasmina.infra.codec import Encoded
from kasmina.infra.integrity import Row, Stored
from kasmina.infra.records import microseconds, record, repeats

P = ParamSpec("P")
E = TypeVar("E", bound=Exception)


class FixedClock:
    """A clock that shows ``start`` first, and ``step`` more at each further look."""

    def __init__(
        self,
        start: datetime = datetime(2026, 1, 1, tzinfo=UTC),
        step: timedelta = timedelta(0),
    ) -> None:
        self._next = start
        self._step = step

    def now(self) -> datetime:
        """The next moment."""
        moment = self._next
        self._next += self._step
        return moment


class CountingIdentifiers:
    """Identifiers that are the same in every run of a test: ``digits-1``, ``s2``, ``b3``."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def run_id(self, name: str) -> str:
        """``name`` and the next number."""
        return f"{name}-{next(self._numbers)}"

    def seed_id(self) -> str:
        """``s`` and the next number."""
        return f"s{next(self._numbers)}"

    def batch(self) -> str:
        """``b`` and the next number."""
        return f"b{next(self._numbers)}"


class MemoryEventStore:
    """An event store that forgets everything with the process, and is like any other until then.

    It keeps what a database would keep, so digests are those that a database would have.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or FixedClock()
        self._rows: list[Row] = []
        self._runs: dict[str, list[Row]] = {}

    def append(
        self, run_id: str, events: Sequence[e.Event], *, expected: int, batch: str | None = None
    ) -> tuple[Recorded, ...]:
        """Add events to a run; see the port."""
        append = Append(run_id=run_id, events=events, expected=expected, batch=batch)
        (recorded,) = self.append_all((append,))
        return recorded

    def append_all(self, appends: Sequence[Append]) -> tuple[tuple[Recorded, ...], ...]:
        """Add events to many runs; see the port."""
        before = len(self._rows), {run_id: len(rows) for run_id, rows in self._runs.items()}
        encoded = [[codec.encode(event) for event in append.events] for append in appends]
        at = microseconds(self._clock.now())
        try:
            rows = [self._added(*each, at) for each in zip(appends, encoded, strict=True)]
        except ConcurrentAppend:
            kept, lengths = before
            del self._rows[kept:]
            self._runs = {run_id: self._runs[run_id][:length] for run_id, length in lengths.items()}
            raise
        return tuple(tuple(map(record, added)) for added in rows)

    def _added(self, append: Append, encoded: Sequence[Encoded], at: int) -> list[Row]:
        run_id, expected = append.run_id, append.expected
        run = self.rows(run_id)
        if len(run) != expected:
            rows = run[max(expected, 0) :][: len(encoded)]
            if not repeats(rows, encoded, append.batch):
                raise ConcurrentAppend(run_id, expected=expected, found=len(run))
            return rows
        linked = integrity.link(run_id, encoded, after=self.head(run_id), at=at, batch=append.batch)
        rows = [
            row._replace(position=position)
            for position, row in enumerate(linked, len(self._rows) + 1)
        ]
        if rows:
            self._rows += rows
            self._runs.setdefault(run_id, []).extend(rows)
        return rows

    def read(self, run_id: str, *, after: int = 0, until: int | None = None) -> Iterator[Recorded]:
        """The events of a run in a range; see the port."""
        for row in self.rows(run_id):
            if after < row.columns.sequence and (until is None or row.columns.sequence <= until):
                yield record(row)

    def head(self, run_id: str) -> Head:
        """The end of a run; see the port."""
        run = self.rows(run_id)
        return Head(sequence=len(run), digest=run[-1].digest) if run else EMPTY_HEAD

    def runs(self) -> Iterator[Recorded]:
        """The first event of every run; see the port."""
        yield from [record(row) for row in self._rows if row.columns.sequence == 1]

    def follow(self, *, after: int = 0, limit: int = 1000) -> tuple[Recorded, ...]:
        """What was recorded after a position; see the port."""
        return tuple(map(record, self._rows[max(after, 0) :][:limit]))

    def pages(self, run_id: str) -> Iterator[list[Stored]]:
        """A run as a database's driver would give it, for ``integrity.verify``."""
        yield [(row.position, *row.columns[1:], row.digest) for row in self.rows(run_id)]

    def rows(self, run_id: str) -> list[Row]:
        """A run as a database would store it."""
        return list(self._runs[run_id]) if run_id in self._runs else []
