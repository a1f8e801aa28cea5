"""Between rows as they are stored and records as the domain reads them; every store uses it."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from kasmina.domain.errors import UnreadableEvent
from kasmina.domain.ports import Recorded
from kasmina.infra import codec
from kasmina.infra.codec import Encoded
from kasmina.infra.integrity import Row

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_DAMAGED = (AttributeError, TypeError, OverflowError)
"""What a value raises that SQLite would never have stored: no bytes, no number, no date."""


def microseconds(moment: datetime) -> int:
    """An aware time as whole microseconds since 1970 in UTC; exact, as no float could be."""
    return (moment - _EPOCH) // _MICROSECOND


def moment(at: int) -> datetime:
    """The inverse of ``microseconds``."""
    return _EPOCH + timedelta(microseconds=at)


def read(run_id: str, stored: Sequence[Any]) -> Recorded:
    """The record of a run's row, of which the columns ``queries.READ`` come first.

    Raises ``UnreadableEvent`` naming the run and the sequence.
    """
    position, sequence, recorded_at, kind, version, payload, digest = stored[:7]
    try:
        event = codec.read(kind, version, payload)
        return Recorded(position, run_id, sequence, moment(recorded_at), event, digest)
    except UnreadableEvent as error:
        name, problem = error.type_name, error.problem
        cause: Exception = error
    except _DAMAGED as error:
        name, problem = str(kind), f"a column is empty or holds what it never could: {error}"
        cause = error
    raise UnreadableEvent(
        name, version, f"{problem} (run {run_id!r}, sequence {sequence})"
    ) from cause


def read_any(stored: Sequence[Any]) -> Recorded:
    """The same for a row of any run, whose ``run_id`` comes last."""
    run_id = stored[-1]
    return read(run_id.decode(errors="replace") if isinstance(run_id, bytes) else "", stored)


def record(row: Row) -> Recorded:
    """A whole row, read."""
    columns = row.columns
    return read_any(
        (
            row.position,
            columns.sequence,
            columns.recorded_at,
            columns.type,
            columns.schema_version,
            columns.payload,
            row.digest,
            columns.run_id,
        )
    )


def repeats(rows: Sequence[Row], encoded: Sequence[Encoded], batch: str | None) -> bool:
    """Whether ``rows`` are what an earlier attempt at this append wrote."""
    if batch is None or len(rows) != len(encoded) or rows[0].columns.batch != batch.encode():
        return False
    return all(
        (row.columns.type, row.columns.payload) == (new.type, new.payload)
        for row, new in zip(rows, encoded, strict=True)
    )
