"""JSON lines: an object an event, from which the stored bytes and their digest can be had again.

The payload stands in its line as the very bytes that were stored, the other columns as JSON. Only
``position`` is left out: a database gives it anew, and no digest covers it.
"""

import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from io import BufferedIOBase
from typing import Annotated, Any

import msgspec

from kasmina.domain import events as e
from kasmina.infra import codec
from kasmina.infra.exchange.errors import UnexportableEvent, UnreadableLine
from kasmina.infra.integrity import Columns, Row
from kasmina.infra.records import record

LONGEST_LINE = 16 * 2**20
"""Bytes that a line may have by default; an event of kasmina's own has a few hundred."""

_LARGEST = 2**63 - 1
_FIRST_MOMENT, _LAST_MOMENT = -62_135_596_800_000_000, 253_402_300_799_999_999  # years 1 to 9999

_Count = Annotated[int, msgspec.Meta(ge=0, le=_LARGEST)]
_Ordinal = Annotated[int, msgspec.Meta(ge=1, le=_LARGEST)]
_Moment = Annotated[int, msgspec.Meta(ge=_FIRST_MOMENT, le=_LAST_MOMENT)]
_Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}\\Z")]


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    run_id: str
    sequence: _Ordinal
    slot_id: str | None
    seed_id: str | None
    type: str
    schema_version: _Ordinal
    epoch: _Count
    recorded_at: _Moment
    payload: msgspec.Raw
    batch: str | None
    digest: _Digest


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(_Line)
_VALUE = msgspec.json.Decoder(msgspec.Raw)

_READING = (msgspec.MsgspecError, ValueError, RecursionError)
_WRITING = (*_READING, TypeError, AttributeError)  # a column of another type than its own


def lines(rows: Iterable[Row]) -> Iterator[bytes]:
    """A line for each row, ended by a line feed. Raises ``UnexportableEvent``."""
    for row in rows:
        try:
            line = _line(row)
        except _WRITING as error:
            raise UnexportableEvent(row, str(error)) from error
        yield line


def rows(stream: BufferedIOBase, source: str, *, longest: int = LONGEST_LINE) -> Iterator[Row]:
    """The rows that the lines of ``stream`` hold, each readable as an event; positions are 0.

    Raises ``UnreadableLine``, naming ``source``, for anything else, and for a line of more than
    ``longest`` bytes; ``UnreadableEvent`` for a payload that is not its type's. Digests are not
    judged here.
    """
    number = 0
    while True:
        number += 1
        try:
            line = stream.readline(longest + 1)
            if not line:
                return
            if len(line) > longest:
                raise UnreadableLine(source, number, f"it is longer than {longest:,} bytes")
            row = _row(line)
        except (*_READING, OSError, EOFError, zlib.error) as error:
            raise UnreadableLine(source, number, str(error)) from error
        _require_agreement(row, source, number)
        yield row


def _line(row: Row) -> bytes:
    run_id, sequence, slot_id, seed_id, kind, version, epoch, recorded_at, payload, batch = (
        row.columns
    )
    payload.decode()  # Raw is not looked into
    if b"\n" in payload or bytes(_VALUE.decode(payload)) != payload:
        raise ValueError("its payload has white space around or within it")
    line = _Line(
        run_id.decode(),
        sequence,
        None if slot_id is None else slot_id.decode(),
        None if seed_id is None else seed_id.decode(),
        kind.decode(),
        version,
        epoch,
        recorded_at,
        msgspec.Raw(payload),
        None if batch is None else batch.decode(),
        row.digest.hex(),
    )
    return _ENCODER.encode(line) + b"\n"


def _row(line: bytes) -> Row:
    found = _DECODER.decode(line)
    # Of a key that is there twice SQL sees the first and the codec the last. (An integer's value
    # is the codec's business, and might take for ever here.)
    json.loads(line.decode(), object_pairs_hook=_once, parse_int=str, parse_float=str)
    columns = Columns(
        found.run_id.encode(),
        found.sequence,
        None if found.slot_id is None else found.slot_id.encode(),
        None if found.seed_id is None else found.seed_id.encode(),
        found.type.encode(),
        found.schema_version,
        found.epoch,
        found.recorded_at,
        bytes(found.payload),
        None if found.batch is None else found.batch.encode(),
    )
    return Row(0, columns, bytes.fromhex(found.digest))


def _once(pairs: list[tuple[str, Any]]) -> None:
    counts = Counter(key for key, _ in pairs)
    if len(counts) != len(pairs):
        repeated = max(counts, key=lambda key: counts[key])
        raise ValueError(f"it holds the key {repeated!r} more than once")


def _require_agreement(row: Row, source: str, number: int) -> None:
    """Raise ``UnreadableLine`` where the columns that repeat the payload say something else."""
    columns, event = row.columns, record(row).event
    found = (columns.slot_id, columns.seed_id, columns.epoch, columns.run_id)
    run_id = columns.run_id
    if isinstance(event, e.RunOpened | e.RunForked):
        run_id = event.run_id.encode()
    if (*codec.places(event), event.epoch, run_id) != found:
        problem = "its run, slot, seed or epoch is not that of its payload"
        raise UnreadableLine(source, number, problem)
