"""Every statement of the event store, built once."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import (
    CTE,
    Dialect,
    LargeBinary,
    bindparam,
    cast,
    func,
    insert,
    select,
    type_coerce,
)
from sqlalchemy.types import NullType

from kasmina.infra.integrity import Columns, Row
from kasmina.infra.schema import events

_COVERED = tuple(events.c[name] for name in Columns._fields)
_TEXTS = {"run_id", "slot_id", "seed_id", "type", "payload", "batch"}

# Text is read as its stored bytes: that is what the digest covers and what the codec wants, and
# it stays readable for `verify` where a flipped bit has made it invalid UTF-8. The type is
# coerced because the driver gives bytes already.
_STORED = (
    events.c.position,
    *(
        type_coerce(cast(c, LargeBinary), NullType).label(c.name) if c.name in _TEXTS else c
        for c in _COVERED
    ),
    type_coerce(events.c.digest, NullType).label("digest"),
)

HEAD = (
    select(events.c.sequence, type_coerce(events.c.digest, NullType))
    .where(events.c.run_id == bindparam("run_id"))
    .order_by(events.c.sequence.desc())
    .limit(1)
)

RUN = select(*_STORED).where(events.c.run_id == bindparam("run_id"))

STRETCH = (
    RUN.where(events.c.sequence > bindparam("after"), events.c.sequence <= bindparam("until"))
    .order_by(events.c.sequence)
    .limit(bindparam("limit"))
)

# Without the unique index, a sequence could be there twice: verify must see both.
WHOLE_RUN = RUN.order_by(events.c.sequence, events.c.position)

POSITIONS = (
    select(events.c.position)
    .where(events.c.run_id == bindparam("run_id"), events.c.sequence > bindparam("after"))
    .order_by(events.c.sequence)
)

FOLLOW = (
    select(*_STORED)
    .where(events.c.position > bindparam("after"))
    .order_by(events.c.position)
    .limit(bindparam("limit"))
)


def _run_ids() -> CTE:
    """Every run, by hopping from run to run in the unique index; a null row ends it.

    Looking for every ``sequence = 1`` would read the index of all events instead, and miss a run
    whose first event was removed.
    """
    first = select(func.min(events.c.run_id).label("run_id")).cte("hop", recursive=True)
    following = (
        select(func.min(events.c.run_id)).where(events.c.run_id > first.c.run_id).scalar_subquery()
    )
    return first.union_all(select(following).where(first.c.run_id.is_not(None)))


_HOP = _run_ids()

RUN_IDS = select(_HOP.c.run_id).where(_HOP.c.run_id.is_not(None)).order_by(_HOP.c.run_id)

FIRST_EVENTS = (
    select(*_STORED)
    .join(_HOP, (events.c.run_id == _HOP.c.run_id) & (events.c.sequence == 1))
    .order_by(events.c.position)
)


def insertion(dialect: Dialect) -> str:
    """The INSERT for the driver itself; SQLAlchemy's own path costs a third of the speed."""
    names = [*Columns._fields, "digest"]
    return str(insert(events).compile(dialect=dialect, column_keys=names))


def parameters(row: Row) -> tuple[object, ...]:
    """What ``insertion`` takes for a row."""
    run_id, sequence, slot_id, seed_id, kind, version, epoch, recorded_at, payload, batch = (
        row.columns
    )
    return (
        run_id.decode(),
        sequence,
        None if slot_id is None else slot_id.decode(),
        None if seed_id is None else seed_id.decode(),
        kind.decode(),
        version,
        epoch,
        recorded_at,
        payload.decode(),
        None if batch is None else batch.decode(),
        row.digest,
    )


def rows(fetched: Iterable[Sequence[Any]]) -> list[Row]:
    """What a query for ``_STORED`` columns fetched, as rows."""
    return [Row(position, Columns(*covered), digest) for position, *covered, digest in fetched]
