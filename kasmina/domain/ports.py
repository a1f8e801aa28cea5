"""What the domain asks of the world outside, as protocols."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

from attrs import frozen

from kasmina.domain.events import Event


@frozen(kw_only=True)
class Head:
    """The end of a run: its last sequence, and the 32-byte digest there (empty run: 0, zeros)."""

    sequence: int
    digest: bytes


EMPTY_HEAD = Head(sequence=0, digest=bytes(32))


class Recorded(NamedTuple):
    """An event as it was stored: its place in the store and in its run, and when (UTC)."""

    position: int
    run_id: str
    sequence: int
    recorded_at: datetime
    event: Event
    digest: bytes


@frozen(kw_only=True)
class Append:
    """Events to add after a run's head; see ``EventStore.append``."""

    run_id: str
    events: Sequence[Event]
    expected: int
    batch: str | None = None


class EventStore(Protocol):
    """Append-only runs of events. One append is one transaction."""

    def append(
        self, run_id: str, events: Sequence[Event], *, expected: int, batch: str | None = None
    ) -> tuple[Recorded, ...]:
        """Add ``events`` after the run's head, which must be at sequence ``expected``.

        All of them are durable when this returns, and none of them when it raises. ``batch``
        identifies this append: repeating it, after an acknowledgement was lost, writes nothing
        and returns what the first attempt wrote.

        Raises ``ConcurrentAppend`` when the head is elsewhere, ``StoreUnavailable`` when the
        store cannot write (locked, full, read-only, gone).
        """
        ...

    def append_all(self, appends: Sequence[Append]) -> tuple[tuple[Recorded, ...], ...]:
        """Do several appends in one transaction: all of them are durable, or none.

        What each recorded is returned in their order. A run may come more than once. Raises as
        ``append`` does, for the first that cannot be done.
        """
        ...

    def read(self, run_id: str, *, after: int = 0, until: int | None = None) -> Iterator[Recorded]:
        """The run's events with ``after < sequence <= until``, in order, streamed.

        An unknown run has none.
        """
        ...

    def head(self, run_id: str) -> Head:
        """Where the run ends; ``EMPTY_HEAD`` for an unknown run."""
        ...

    def runs(self) -> Iterator[Recorded]:
        """The first event of every run, in the order in which runs were begun."""
        ...

    def follow(self, *, after: int = 0, limit: int = 1000) -> tuple[Recorded, ...]:
        """Up to ``limit`` events of all runs with ``position > after``, in the store's order."""
        ...


class Clock(Protocol):
    """Where the store gets its time-stamps."""

    def now(self) -> datetime:
        """The present, aware, in UTC."""
        ...


class Identifiers(Protocol):
    """Where new identifiers come from; each is short, printable and never used twice."""

    def run_id(self, name: str) -> str:
        """An identifier for a new run called ``name``."""
        ...

    def seed_id(self) -> str:
        """An identifier for a new seed."""
        ...

    def batch(self) -> str:
        """An identifier for one writer's life, the prefix of its batches."""
        ...
