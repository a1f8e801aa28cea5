"""Runs from one database into another, of whichever kind: every digest stays what it was."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby

from kasmina.domain.errors import UnreadableEvent
from kasmina.domain.events import RunForked
from kasmina.infra.event_store import SqlEventStore
from kasmina.infra.exchange.continuation import Continuation, Transfer
from kasmina.infra.exchange.errors import UnexportableEvent
from kasmina.infra.integrity import Row

CHUNK = 10_000
"""Events after which a transaction may end: what an interruption costs is little more."""

_NEVER = 2**63


def copy_runs(
    source: SqlEventStore, target: SqlEventStore, run_ids: Sequence[str]
) -> Iterator[Transfer]:
    """Copy runs one after the other, telling of each when it is done.

    What the target has already is held against the source, not copied again: so an interrupted
    copy goes on where it stopped. A run that is being written is copied up to a moment between
    two of its transactions. Raises ``OtherHistory``, ``BrokenChain`` and ``UnexportableEvent`` at
    the first run that cannot be copied; those before it are there.
    """
    for run_id in run_ids:
        yield _copy_run(source, target, run_id)


def every_run(store: SqlEventStore) -> tuple[str, ...]:
    """All runs in the order in which they were begun; last, those whose beginning is damaged."""
    return tuple(sorted(store.run_ids(), key=partial(_begun_at, store)))


def _begun_at(store: SqlEventStore, run_id: str) -> int:
    with suppress(UnreadableEvent):
        for record in store.read(run_id, until=1):
            return record.position
    return _NEVER


def with_parents(store: SqlEventStore, run_ids: Sequence[str]) -> tuple[str, ...]:
    """The runs, each after those that it was forked from, as far as ``store`` has them.

    A fork cannot be replayed without its parent. Raises ``UnreadableEvent`` for a first event
    that cannot be read.
    """
    found: dict[str, None] = {}
    for run_id in run_ids:
        line = [run_id]
        while (parent := _parent(store, line[-1])) is not None and parent not in line:
            line.append(parent)
        found.update(dict.fromkeys(reversed(line)))
    return tuple(found)


def _parent(store: SqlEventStore, run_id: str) -> str | None:
    for record in store.read(run_id, until=1):
        if isinstance(record.event, RunForked) and store.head(record.event.parent_run_id).sequence:
            return record.event.parent_run_id
    return None


def _copy_run(source: SqlEventStore, target: SqlEventStore, run_id: str) -> Transfer:
    head = source.head(run_id)
    if head == target.head(run_id):  # the last digest stands for all before it
        return Transfer(run_id=run_id, added=0, present=head.sequence)
    continuation = Continuation(target)
    for chunk in _chunks(continuation.of(_texts(source.rows(run_id)))):
        target.adopt(chunk)
    return continuation.transfer(run_id)


def _chunks(rows: Iterable[Row]) -> Iterator[Iterator[Row]]:
    """The rows in stretches, each of which begins where an append began that was marked as one."""
    number = size = 0

    def chunk(row: Row) -> int:
        nonlocal number, size
        if size >= CHUNK and row.columns.batch is not None:
            number, size = number + 1, 0
        size += 1
        return number

    for _, stretch in groupby(rows, key=chunk):
        yield stretch


def _texts(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows. Raises ``UnexportableEvent`` for text that is none, as tampering can leave it."""
    for row in rows:
        try:
            for value in row.columns:
                if isinstance(value, bytes):
                    value.decode()
        except UnicodeDecodeError as error:
            raise UnexportableEvent(row, str(error)) from error
        yield row
