"""Which of the rows that are offered a database lacks, and whether its own are the same."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby

from attrs import frozen

from kasmina.infra.event_store import SqlEventStore
from kasmina.infra.exchange.errors import MissingEvents, OtherHistory
from kasmina.infra.integrity import Row


@frozen(kw_only=True)
class Transfer:
    """What became of a run: events that were added, and events that were there already."""

    run_id: str
    added: int
    present: int


class Continuation:
    """Passes on what continues the runs of ``store``, and holds the rest against what is there."""

    def __init__(self, store: SqlEventStore) -> None:
        self._store = store
        self._added: Counter[str] = Counter()
        self._present: Counter[str] = Counter()

    @property
    def transfers(self) -> tuple[Transfer, ...]:
        """What has been offered so far, run by run."""
        return tuple(map(self.transfer, sorted(self._added | self._present)))

    def transfer(self, run_id: str) -> Transfer:
        """What has been offered so far of a run."""
        added, present = self._added[run_id], self._present[run_id]
        return Transfer(run_id=run_id, added=added, present=present)

    def of(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows of any runs that the store has not; those of a run must be in their order.

        Raises ``OtherHistory`` at the first row that the store has with another content, and
        ``MissingEvents`` where rows are left out. Whether a row follows from the one before it is
        for ``SqlEventStore.adopt`` to judge.
        """
        for run_id, stretch in groupby(rows, key=_run_id):
            yield from self._of_run(run_id, stretch)

    def _of_run(self, run_id: str, rows: Iterator[Row]) -> Iterator[Row]:
        head = self._store.head(run_id).sequence
        held = self._store.rows(run_id) if head else iter(())
        for row in rows:
            if row.columns.sequence > head:
                yield self._new(run_id, head, row)
                continue
            _require_same(run_id, row, held)
            self._present[run_id] += 1

    def _new(self, run_id: str, head: int, row: Row) -> Row:
        expected = head + self._added[run_id] + 1
        if row.columns.sequence != expected:
            raise MissingEvents(run_id, expected=expected, found=row.columns.sequence)
        self._added[run_id] += 1
        return row


def _require_same(run_id: str, row: Row, held: Iterator[Row]) -> None:
    """Raise ``OtherHistory`` unless the next one of its sequence in ``held`` is the same row."""
    sequence = row.columns.sequence
    same = next((kept for kept in held if kept.columns.sequence >= sequence), None)
    if same is None or (same.columns, same.digest) != (row.columns, row.digest):
        raise OtherHistory(run_id, sequence)


def _run_id(row: Row) -> str:
    return row.columns.run_id.decode(errors="replace")
