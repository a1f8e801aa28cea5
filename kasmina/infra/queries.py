"""Every statement of the event store."""

from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Dialect,
    LargeBinary,
    bindparam,
    func,
    select,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from kasmina.infra.integrity import STORED, Columns, Row
from kasmina.infra.schema import events
from kasmina.infra.statements import Statement

_TEXTS = {"run_id", "slot_id", "seed_id", "type", "payload", "batch"}

INSERTED = (*Columns._fields, "digest")
"""The columns of an inserted row, in order; the position comes from the database."""


class stored_bytes(FunctionElement[bytes]):  # noqa: N801 - SQL functions are lower case
    """Text as its stored bytes: what the digest covers and the codec wants.

    It stays readable for ``verify`` where a flipped bit has made it invalid UTF-8.
    """

    type = LargeBinary()
    inherit_cache = True


@compiles(stored_bytes, "sqlite")
def _as_blob(element: stored_bytes, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401
    return f"CAST({compiler.process(element.clauses, **options)} AS BLOB)"


@compiles(stored_bytes, "postgresql")
def _as_bytea(element: stored_bytes, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401
    return f"convert_to({compiler.process(element.clauses, **options)}, 'UTF8')"


def _raw(name: str) -> ColumnElement[Any]:
    column = events.c[name]
    return stored_bytes(column).label(name) if name in _TEXTS else column


_STORED = tuple(map(_raw, STORED))
_READ = tuple(
    _raw(name)
    for name in (
        "position",
        "sequence",
        "recorded_at",
        "type",
        "schema_version",
        "payload",
        "digest",
    )
)
_READ_ANY = (*_READ, _raw("run_id"))

_OF_RUN = events.c.run_id == bindparam("run_id")
_AFTER = events.c.position > bindparam("after")

HEAD = (
    select(events.c.sequence, events.c.digest)
    .where(_OF_RUN)
    .order_by(events.c.sequence.desc())
    .limit(1)
)

READ = (
    select(*_READ)
    .where(
        _OF_RUN,
        events.c.sequence > bindparam("after"),
        events.c.sequence <= bindparam("until"),
    )
    .order_by(events.c.sequence)
    .limit(bindparam("limit"))
)

STRETCH = (
    select(*_STORED)
    .where(_OF_RUN, events.c.sequence > bindparam("after"))
    .order_by(events.c.sequence)
    .limit(bindparam("limit"))
)

# Without the unique index, a sequence could be there twice: verify must see both.
WHOLE_RUN = select(*_STORED).where(_OF_RUN).order_by(events.c.sequence, events.c.position)

FOLLOW = (
    select(*_READ_ANY)
    .where(_AFTER, events.c.position <= bindparam("until"))
    .order_by(events.c.position)
    .limit(bindparam("limit"))
)

BEGINNINGS = (
    select(*_READ_ANY)
    .where(events.c.sequence == 1, _AFTER)
    .order_by(events.c.position)
    .limit(bindparam("limit"))
)

LATEST_BEGINNINGS = (
    select(*_READ_ANY)
    .where(events.c.sequence == 1, events.c.position < bindparam("before"))
    .order_by(events.c.position.desc())
    .limit(bindparam("limit"))
)


def _run_ids() -> CTE:
    """Every run from one on, by hopping from run to run in the unique index; a null row ends it.

    Looking for every ``sequence = 1`` would miss a run whose first event was removed.
    """
    start = select(func.min(events.c.run_id).label("run_id")).where(
        events.c.run_id >= bindparam("start")
    )
    first = start.cte("hop", recursive=True)
    following = (
        select(func.min(events.c.run_id)).where(events.c.run_id > first.c.run_id).scalar_subquery()
    )
    return first.union_all(select(following).where(first.c.run_id.is_not(None)))


_HOP = _run_ids()

RUN_IDS = select(_HOP.c.run_id).where(_HOP.c.run_id.is_not(None)).limit(bindparam("limit"))


class Queries:
    """The statements, built for one dialect."""

    def __init__(self, dialect: Dialect) -> None:
        self.head = Statement(HEAD, dialect)
        self.read = Statement(READ, dialect)
        self.stretch = Statement(STRETCH, dialect)
        self.whole_run = Statement(WHOLE_RUN, dialect)
        self.follow = Statement(FOLLOW, dialect)
        self.beginnings = Statement(BEGINNINGS, dialect)
        self.latest_beginnings = Statement(LATEST_BEGINNINGS, dialect)
        self.run_ids = Statement(RUN_IDS, dialect)


def insertion(mark: str, names: tuple[str, ...] = INSERTED) -> str:
    """The INSERT of one row for the driver itself; ``mark`` is its mark of a parameter."""
    # ruff: noqa: S608 - built of the columns' names alone
    return f"INSERT INTO events ({', '.join(names)}) VALUES ({', '.join([mark] * len(names))})"


def parameters(row: Row) -> tuple[str | int | bytes | None, ...]:
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
