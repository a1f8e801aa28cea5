"""One log for many processes: rank 0 reads and writes it, and all are told the same."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import NamedTuple, Self

from kasmina.adapters.torch.distributed.ranks import Ranks, RanksDiverged
from kasmina.domain.events import Event
from kasmina.domain.ports import Append, EventStore, Head, Identifiers, Recorded

_PAGE = 1000


class _Place(NamedTuple):
    """What the store adds to an event; the event itself every rank has already."""

    position: int
    sequence: int
    recorded_at: datetime
    digest: bytes


class RankedEventStore:
    """The store that rank 0 has, for every rank; see the port. ``store`` is ``None`` elsewhere.

    An append is recorded only when every rank has decided the same events, so that all of them
    fold the same state. Every call is an exchange.
    """

    def __init__(self, ranks: Ranks, store: EventStore | None) -> None:
        self._ranks = ranks
        self._held = store

    @classmethod
    def opened(cls, ranks: Ranks, open_store: Callable[[], EventStore]) -> Self:
        """The store that ``open_store`` opens on rank 0; its error is every rank's."""
        held: list[EventStore] = []
        ranks.on_first("open the store", lambda: held.append(open_store()))
        return cls(ranks, held[0] if held else None)

    def append(
        self, run_id: str, events: Sequence[Event], *, expected: int, batch: str | None = None
    ) -> tuple[Recorded, ...]:
        """Add events to a run; see the port."""
        append = Append(run_id=run_id, events=events, expected=expected, batch=batch)
        (recorded,) = self.append_all((append,))
        return recorded

    def append_all(self, appends: Sequence[Append]) -> tuple[tuple[Recorded, ...], ...]:
        """Do the appends if every rank wants the same ones; see the port.

        Raises ``RanksDiverged`` and ``RankLost``, with nothing recorded unless rank 0 was lost
        after it had heard all others; and on every rank what the store raises on rank 0.
        """

        def record(claims: Sequence[tuple[tuple[str, str], ...]]) -> list[list[_Place]]:
            _require_same(claims)
            return [
                [
                    _Place(each.position, each.sequence, each.recorded_at, each.digest)
                    for each in one
                ]
                for one in self._store.append_all(appends)
            ]

        places = self._ranks.together("record what was decided", lambda: _claim(appends), record)
        return tuple(
            tuple(
                Recorded(
                    place.position,
                    append.run_id,
                    place.sequence,
                    place.recorded_at,
                    event,
                    place.digest,
                )
                for place, event in zip(each, append.events, strict=True)
            )
            for each, append in zip(places, appends, strict=True)
        )

    def read(self, run_id: str, *, after: int = 0, until: int | None = None) -> Iterator[Recorded]:
        """The events of a run in a range, told page by page; see the port."""
        source: Iterator[Recorded] = iter(())
        if self._ranks.rank == 0:
            source = self._store.read(run_id, after=after, until=until)
        while True:
            page = self._ranks.from_first("read the log", lambda: list(islice(source, _PAGE)))
            yield from page
            if len(page) < _PAGE:
                return

    def head(self, run_id: str) -> Head:
        """The end of a run; see the port."""
        return self._ranks.from_first("find the log's end", lambda: self._store.head(run_id))

    def runs(self) -> Iterator[Recorded]:
        """The first event of every run; see the port."""
        yield from self._ranks.from_first("list the runs", lambda: list(self._store.runs()))

    def follow(self, *, after: int = 0, limit: int = _PAGE) -> tuple[Recorded, ...]:
        """What was recorded after a position; see the port."""
        return self._ranks.from_first(
            "follow the log", lambda: self._store.follow(after=after, limit=limit)
        )

    @property
    def _store(self) -> EventStore:
        if self._held is None:
            raise RuntimeError(f"rank {self._ranks.rank} has no store of its own")
        return self._held


class RankedIdentifiers:
    """Identifiers that rank 0 makes for all; each is an exchange."""

    def __init__(self, ranks: Ranks, identifiers: Identifiers) -> None:
        self._ranks = ranks
        self._identifiers = identifiers

    def run_id(self, name: str) -> str:
        """See the port."""
        return self._ranks.from_first("name the run", lambda: self._identifiers.run_id(name))

    def seed_id(self) -> str:
        """See the port."""
        return self._ranks.from_first("name the seed", self._identifiers.seed_id)

    def batch(self) -> str:
        """See the port."""
        return self._ranks.from_first("name the writer", self._identifiers.batch)


def _claim(appends: Sequence[Append]) -> tuple[tuple[str, str], ...]:
    """What a rank wants recorded: where, then each event's kind, with digests of all fields."""
    return tuple(
        (name, hashlib.sha256(content.encode()).hexdigest()[:16])
        for append in appends
        for name, content in (
            (f"{append.run_id} after event {append.expected}", str(append.batch)),
            *((type(event).__name__, repr(event)) for event in append.events),
        )
    )


def _require_same(claims: Sequence[tuple[tuple[str, str], ...]]) -> None:
    first = claims[0]
    for rank, other in enumerate(claims):
        if other != first:
            at = next(
                (i for i, pair in enumerate(zip(first, other, strict=False)) if pair[0] != pair[1]),
                min(len(first), len(other)),
            )
            raise RanksDiverged(
                "what to record", first=_told(first, at), rank=rank, other=_told(other, at)
            )


def _told(claim: tuple[tuple[str, str], ...], at: int) -> str:
    if at >= len(claim):
        return f"no more than {at} entries"
    name, digest = claim[at]
    return f"{name} (digest {digest}) as entry {at}"
