"""The log as tables for analysis: the events themselves, or one row for each check of a gate.

``gate_outcomes`` has the columns of the SQL view of that name, with figures as floats (also NaN
and the infinities), verdicts as truth values, and nothing for what was not measured.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from types import MappingProxyType
from typing import TypeAlias

from kasmina.domain.errors import UnreadableEvent
from kasmina.domain.events import GateEvaluated
from kasmina.infra import codec
from kasmina.infra.exchange.errors import UnexportableEvent
from kasmina.infra.integrity import Row
from kasmina.infra.queries import parameters


class Table(Enum):
    """What a row is: an event, or one check of one decision."""

    EVENTS = "events"
    GATE_OUTCOMES = "gate_outcomes"


class Kind(Enum):
    """What a column holds; the value says as which Python type."""

    TEXT = "str"
    INTEGER = "int"
    REAL = "float"
    FLAG = "bool"
    MOMENT = "int: microseconds since 1970 in UTC"
    DIGEST = "bytes"


Cells: TypeAlias = tuple[str | int | float | bytes | None, ...]

COLUMNS: Mapping[Table, Mapping[str, Kind]] = MappingProxyType(
    {
        Table.EVENTS: {
            "position": Kind.INTEGER,
            "run_id": Kind.TEXT,
            "sequence": Kind.INTEGER,
            "slot_id": Kind.TEXT,
            "seed_id": Kind.TEXT,
            "type": Kind.TEXT,
            "schema_version": Kind.INTEGER,
            "epoch": Kind.INTEGER,
            "recorded_at": Kind.MOMENT,
            "payload": Kind.TEXT,
            "batch": Kind.TEXT,
            "digest": Kind.DIGEST,
        },
        Table.GATE_OUTCOMES: {
            "run_id": Kind.TEXT,
            "sequence": Kind.INTEGER,
            "slot_id": Kind.TEXT,
            "seed_id": Kind.TEXT,
            "epoch": Kind.INTEGER,
            "gate": Kind.TEXT,
            "passed": Kind.FLAG,
            "score": Kind.REAL,
            "check_name": Kind.TEXT,
            "measured": Kind.REAL,
            "comparison": Kind.TEXT,
            "required": Kind.REAL,
            "check_passed": Kind.FLAG,
        },
    }
)
"""The columns of each table, in their order."""


def records(table: Table, rows: Iterable[Row]) -> Iterator[Cells]:
    """What ``rows`` come to in a table, in the order of its ``COLUMNS``.

    Raises ``UnexportableEvent`` for text that is none, and for a decision that cannot be read.
    """
    cells = _CELLS[table]
    for row in rows:
        try:
            yield from cells(row)
        except (UnicodeDecodeError, TypeError, AttributeError) as error:
            raise UnexportableEvent(row, str(error)) from error


def _event(row: Row) -> Iterator[Cells]:
    yield (row.position, *parameters(row))


_DECISION = b"GateEvaluated"


def _checks(row: Row) -> Iterator[Cells]:
    columns = row.columns
    if columns.type != _DECISION:
        return
    try:
        event = codec.decode(_DECISION.decode(), columns.schema_version, columns.payload)
    except UnreadableEvent as error:
        raise UnexportableEvent(row, error.problem) from error
    if not isinstance(event, GateEvaluated):
        raise UnexportableEvent(row, "only a newer release of kasmina can read it")
    outcome = event.outcome
    decision = (columns.run_id.decode(), columns.sequence, event.slot_id, event.seed_id)
    verdict = (event.epoch, outcome.gate.value, outcome.passed, outcome.score)
    for check in outcome.checks:
        figures = (check.name, check.measured, check.comparison.value, check.required)
        yield (*decision, *verdict, *figures, check.passed)


_CELLS: Mapping[Table, Callable[[Row], Iterator[Cells]]] = MappingProxyType(
    {Table.EVENTS: _event, Table.GATE_OUTCOMES: _checks}
)
