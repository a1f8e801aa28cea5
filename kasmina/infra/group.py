"""Group commit: for fleets of runs in one process, whose appends share transactions.

A durable transaction costs a write to the disk, however little is in it. One thread writes, and
takes into each transaction whatever has been submitted since it began the last one.
"""

from collections.abc import Iterator, Sequence
from threading import Condition, Lock, Thread
from types import TracebackType
from typing import Self

from kasmina.domain.errors import StoreUnavailable
from kasmina.domain.events import Event
from kasmina.domain.ports import Append, EventStore, Head, Recorded

LARGEST = 1000
"""Appends in one transaction."""

MOST_WAITING = 20_000
"""Appends that may wait; who submits more waits for room."""


class Pending:
    """An append that is on its way to the store."""

    __slots__ = ("_done", "_error", "_group", "_recorded", "append")

    def __init__(self, append: Append, group: "GroupCommit") -> None:
        self.append = append
        self._group = group
        self._done = Lock()
        self._done.acquire()
        self._error: BaseException | None = None
        self._recorded: tuple[Recorded, ...] = ()

    def done(self) -> bool:
        """Whether it has been recorded, or has failed."""
        return not self._done.locked()

    def result(self, timeout: float | None = None) -> tuple[Recorded, ...]:
        """What was recorded, once it is durable.

        Raises what the append raised, and ``TimeoutError`` after ``timeout`` seconds without
        either; it is then still on its way.
        """
        if not self._done.acquire(timeout=-1 if timeout is None else timeout):
            raise TimeoutError(
                f"the append to run {self.append.run_id!r} was not durable after {timeout} s; "
                f"it is still waiting: ask again"
            )
        self._done.release()
        if self._error is not None:
            self._group.noticed(self)
            raise self._error
        return self._recorded

    def settle(self, recorded: tuple[Recorded, ...], error: BaseException | None) -> None:
        """Let those who wait for it go on."""
        self._recorded, self._error = recorded, error
        self._done.release()


class GroupCommit:
    """An event store for any number of threads, in which appends share transactions.

    ``append`` waits until it is durable, together with what other threads append meanwhile.
    ``submit`` does not wait at all: nothing may depend on it before ``result`` has returned.
    Appends to one run keep their order. A failure that nobody has asked for is raised by the next
    ``submit`` to that run, by ``flush``, and by ``close``.
    """

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._turn = Condition()
        self._waiting: list[Pending] = []
        self._failed: dict[str, Pending] = {}
        self._busy = self._closed = False
        self._thread = Thread(target=self._write, name="kasmina-group-commit", daemon=True)
        self._thread.start()

    def submit(self, append: Append) -> Pending:
        """Queue an append, and return at once unless ``MOST_WAITING`` are queued already."""
        pending = Pending(append, self)
        with self._turn:
            while len(self._waiting) >= MOST_WAITING and not self._closed:
                self._turn.wait()
            if self._closed:
                raise StoreUnavailable("group commit", "it was closed", "open the store again")
            failed = self._failed.pop(append.run_id, None) if self._failed else None
            if failed is None:
                self._waiting.append(pending)
                self._turn.notify_all()
        if failed is not None:
            failed.result()
        return pending

    def append(
        self, run_id: str, events: Sequence[Event], *, expected: int, batch: str | None = None
    ) -> tuple[Recorded, ...]:
        """Add events to a run; see the port."""
        append = Append(run_id=run_id, events=events, expected=expected, batch=batch)
        return self.submit(append).result()

    def append_all(self, appends: Sequence[Append]) -> tuple[tuple[Recorded, ...], ...]:
        """Do several appends, all or none, after what was submitted before; see the port."""
        with self._turn:
            self._wait()
        return self._store.append_all(appends)

    def flush(self) -> None:
        """Wait until all that was submitted is durable. Raises a failure nobody has asked for."""
        with self._turn:
            self._wait()
            failed = next(iter(self._failed.values()), None)
        if failed is not None:
            failed.result()

    def close(self) -> None:
        """Write what is waiting, then stop; the store itself stays open."""
        try:
            self.flush()
        finally:
            with self._turn:
                self._closed = True
                self._turn.notify_all()
            self._thread.join()

    def noticed(self, pending: Pending) -> None:
        """Somebody has been told of its failure."""
        with self._turn:
            if self._failed.get(pending.append.run_id) is pending:
                del self._failed[pending.append.run_id]

    def read(self, run_id: str, *, after: int = 0, until: int | None = None) -> Iterator[Recorded]:
        """What the store reads; what was submitted shows once it is durable."""
        return self._store.read(run_id, after=after, until=until)

    def head(self, run_id: str) -> Head:
        """The store's head."""
        return self._store.head(run_id)

    def runs(self) -> Iterator[Recorded]:
        """The store's runs."""
        return self._store.runs()

    def follow(self, *, after: int = 0, limit: int = 1000) -> tuple[Recorded, ...]:
        """What the store has after a position."""
        return self._store.follow(after=after, limit=limit)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _wait(self) -> None:
        """Until nothing is on its way; called by who holds the turn."""
        while self._waiting or self._busy:
            self._turn.wait()

    def _write(self) -> None:
        while group := self._next():
            self._commit(group)

    def _next(self) -> list[Pending]:
        with self._turn:
            self._busy = False
            self._turn.notify_all()
            while not self._waiting and not self._closed:
                self._turn.wait()
            group, self._waiting = self._waiting[:LARGEST], self._waiting[LARGEST:]
            self._busy = bool(group)
            return group

    def _commit(self, group: list[Pending]) -> None:
        try:
            recorded = self._store.append_all([pending.append for pending in group])
        except StoreUnavailable as error:  # it concerns them all, and each would wait for it again
            self._refuse(group, error)
        except Exception as error:  # noqa: BLE001 - it is whoever waits that must hear of it
            if len(group) == 1:
                self._refuse(group, error)
                return
            for pending in group:
                self._commit([pending])
        else:
            for pending, records in zip(group, recorded, strict=True):
                pending.settle(records, None)

    def _refuse(self, group: list[Pending], error: Exception) -> None:
        with self._turn:
            for pending in group:
                self._failed.setdefault(pending.append.run_id, pending)
        for pending in group:
            pending.settle((), error)
