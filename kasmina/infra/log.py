"""One structured line for every event, after it is durable. Nothing is set up on import."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from enum import Enum
from itertools import chain

import structlog

from kasmina.domain.events import Event, GateEvaluated, SeedEvent, SlotEvent, StageChanged
from kasmina.domain.ports import Append, EventStore, Head, Recorded


class LogFormat(Enum):
    """How lines look: for people, or one JSON object each."""

    CONSOLE = "console"
    JSON = "json"


def configure_logging(style: LogFormat) -> None:
    """Write structured lines to the standard error, for the whole process."""
    last: structlog.typing.Processor = structlog.processors.JSONRenderer()
    if style is LogFormat.CONSOLE:
        last = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            last,
        ],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )


class LoggingEventStore:
    """An event store that logs what another one has recorded."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._log = structlog.get_logger("kasmina")

    def append(
        self, run_id: str, events: Sequence[Event], *, expected: int, batch: str | None = None
    ) -> tuple[Recorded, ...]:
        """Append to the store, then log a line for each event."""
        append = Append(run_id=run_id, events=events, expected=expected, batch=batch)
        (recorded,) = self.append_all((append,))
        return recorded

    def append_all(self, appends: Sequence[Append]) -> tuple[tuple[Recorded, ...], ...]:
        """Do the appends, then log a line for each event."""
        recorded = self._store.append_all(appends)
        # The events are durable: a full disk or a closed pipe under the log must not look as if
        # they were not.
        with suppress(OSError, ValueError):
            for record in chain.from_iterable(recorded):
                self._log.info("recorded", **fields(record))
        return recorded

    def read(self, run_id: str, *, after: int = 0, until: int | None = None) -> Iterator[Recorded]:
        """What the store reads."""
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


def fields(record: Recorded) -> dict[str, str | int | bool]:
    """What the line of a recorded event says."""
    event = record.event
    said: dict[str, str | int | bool] = {
        "run_id": record.run_id,
        "sequence": record.sequence,
        "type": type(event).__name__,
        "epoch": event.epoch,
    }
    if isinstance(event, SlotEvent):
        said["slot"] = event.slot_id
    if isinstance(event, SeedEvent):
        said["seed"] = event.seed_id
    if isinstance(event, GateEvaluated):
        said["gate"] = event.outcome.gate.value
        said["passed"] = event.outcome.passed
    if isinstance(event, StageChanged):
        said["stage"] = event.target.value
    said["digest"] = record.digest.hex()[:12]
    return said
