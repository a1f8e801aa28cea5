"""Follows the log of all runs, and tells a receiver each event once, in the order of its run."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from attrs import frozen

from kasmina.adapters.sinks.errors import SinkDiverged, SinkUnavailable
from kasmina.adapters.sinks.marks import Mark
from kasmina.domain import events as e
from kasmina.domain.errors import CorruptHistory
from kasmina.domain.evolve import evolve
from kasmina.domain.ports import EventStore, Recorded
from kasmina.domain.state import RunState
from kasmina.history import load

PAGE = 500
"""Events that are read, and shown, at a time."""

POLL_SECONDS = 1.0


@frozen(kw_only=True)
class Entry:
    """An event, and the state of its run after it."""

    record: Recorded
    state: RunState

    @property
    def mark(self) -> Mark:
        """How far the run is shown once this entry is."""
        return Mark.of(self.record)


class Sink(Protocol):
    """A receiver of the log that itself knows how far it was told."""

    def marks(self) -> Mapping[str, Mark]:
        """How far each run is shown, by run, read anew from the receiver.

        Raises ``SinkUnavailable``.
        """
        ...

    def show(self, entries: Sequence[Entry]) -> None:
        """Show the entries, which go on in each run where its mark is, and move the marks.

        Raises ``SinkUnavailable``; any first part of each run's entries may then be shown.
        """
        ...


class Follower:
    """Tells ``sink`` what is in ``store``: of all runs, or of one.

    It only reads, and holds neither a connection nor a lock while the receiver takes its time. A
    mark is a run's sequence and its digest rather than a position, so that it also holds in a
    copy of the log.
    """

    def __init__(
        self, store: EventStore, sink: Sink, *, run_id: str | None = None, page: int = PAGE
    ) -> None:
        self._store = store
        self._sink = sink
        self._run_id = run_id
        self._page = page
        self._after: int | None = None
        self._marks: Mapping[str, Mark] = {}
        self._states: dict[str, RunState] = {}

    def catch_up(self) -> int:
        """Show all that was recorded until now, and return how many events that were.

        Raises ``SinkUnavailable``, ``SinkDiverged``, and what reading the log raises.
        """
        return sum(self.pages())

    def follow(
        self,
        stop: threading.Event,
        *,
        troubled: Callable[[SinkUnavailable], None],
        seconds: float = POLL_SECONDS,
    ) -> None:
        """Catch up every ``seconds`` until ``stop`` is set, also past failures of the receiver.

        ``troubled`` is told of the first failure of each outage.
        """
        down = False
        while not stop.is_set():
            try:
                for _ in self.pages():
                    if stop.is_set():
                        return
            except SinkUnavailable as error:
                if not down:
                    troubled(error)
                down = True
            else:
                down = False
            stop.wait(seconds)

    def pages(self) -> Iterator[int]:
        """Catch up page by page, yielding after each how many of its events were new."""
        # Unless this ends well, only the receiver knows what it has: the next attempt asks it.
        after, self._after = self._after, None
        if after is None:
            after = self._begin()
        while page := self._store.follow(after=after, limit=self._page):
            entries = [self._entry(record) for record in page if self._is_new(record)]
            if entries:
                self._sink.show(entries)
            after = page[-1].position
            yield len(entries)
        self._after = after

    def _begin(self) -> int:
        """The position before the first event that is not shown yet.

        Where all are, it is the last of their positions: what is recorded from now on lies behind.
        """
        self._states.clear()
        self._marks = self._sink.marks()
        shown, waiting = [0], []
        for first in self._store.runs():
            if self._run_id in {None, first.run_id}:
                reached, following = self._ends(first.run_id)
                shown.append(reached)
                waiting += following
        return min(waiting) - 1 if waiting else max(shown)

    def _ends(self, run_id: str) -> tuple[int, list[int]]:
        """The positions of the run's marked event (0 for none), and of the one after it."""
        mark = self._marks[run_id] if run_id in self._marks else Mark.nothing(run_id)
        around = list(self._store.read(run_id, after=mark.sequence - 1, until=mark.sequence + 1))
        following = [record.position for record in around if record.sequence > mark.sequence]
        if not mark.sequence:
            return 0, following
        if not around or Mark.of(around[0]) != mark:
            raise SinkDiverged(run_id, sequence=mark.sequence)
        return around[0].position, following

    def _is_new(self, record: Recorded) -> bool:
        run_id = record.run_id
        if self._run_id not in {None, run_id}:
            return False
        return run_id not in self._marks or record.sequence > self._marks[run_id].sequence

    def _entry(self, record: Recorded) -> Entry:
        run_id, event = record.run_id, record.event
        if run_id not in self._states or isinstance(event, e.RunRewound):
            state = load(self._store, run_id, until=record.sequence)
        else:
            state = evolve(self._states[run_id], event)
        if state is None:
            raise CorruptHistory(f"event {record.sequence} of run {run_id!r} cannot be read again")
        if isinstance(event, e.RunClosed):
            self._states.pop(run_id, None)
        else:
            self._states[run_id] = state
        return Entry(record=record, state=state)
