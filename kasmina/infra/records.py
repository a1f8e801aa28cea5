"""Between rows as they are stored and records as the domain reads them; every store uses it."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from kasmina.domain.errors import UnreadableEvent
from kasmina.domain.events import Event
from kasmina.domain.ports import Recorded
from kasmina.infra import codec
from kasmina.infra.codec import Encoded
from kasmina.infra.integrity import Row

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def microseconds(moment: datetime) -> int:
    """An aware time as whole microseconds since 1970 in UTC; exact, as no float could be."""
    return (moment - _EPOCH) // _MICROSECOND


def record(row: Row) -> Recorded:
    """The row, read. Raises ``UnreadableEvent`` naming the run and the sequence."""
    columns = row.columns
    name = columns.type.decode(errors="replace")
    try:
        event = codec.decode(name, columns.schema_version, columns.payload)
    except UnreadableEvent as error:
        run = columns.run_id.decode(errors="replace")
        problem = f"{error.problem} (run {run!r}, sequence {columns.sequence})"
        raise UnreadableEvent(name, columns.schema_version, problem) from error
    return placed(row, event)


def placed(row: Row, event: Event, position: int | None = None) -> Recorded:
    """The record of an event whose row is known, at the row's position or the one given."""
    columns = row.columns
    return Recorded(
        position=row.position if position is None else position,
        run_id=columns.run_id.decode(errors="replace"),
        sequence=columns.sequence,
        recorded_at=_EPOCH + timedelta(microseconds=columns.recorded_at),
        event=event,
        digest=row.digest,
    )


def repeats(rows: Sequence[Row], encoded: Sequence[Encoded], batch: str | None) -> bool:
    """Whether ``rows`` are what an earlier attempt at this append wrote."""
    if batch is None or len(rows) != len(encoded) or rows[0].columns.batch != batch.encode():
        return False
    return all(
        (row.columns.type, row.columns.payload) == (new.type, new.payload)
        for row, new in zip(rows, encoded, strict=True)
    )
