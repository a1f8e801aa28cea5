"""The chain of digests over what is stored.

Each digest is SHA-256 over the run's previous digest and the exact stored bytes of every column
but two: ``digest`` itself, and ``position``, which the database gives on insertion and which
changes when a run is copied elsewhere.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import Any, NamedTuple, TypeAlias

from kasmina.domain.ports import EMPTY_HEAD, Head
from kasmina.infra.codec import Encoded


class Columns(NamedTuple):
    """The columns that a digest covers, as stored: text as its bytes."""

    run_id: bytes
    sequence: int
    slot_id: bytes | None
    seed_id: bytes | None
    type: bytes
    schema_version: int
    epoch: int
    recorded_at: int
    payload: bytes
    batch: bytes | None


class Row(NamedTuple):
    """One stored row."""

    position: int
    columns: Columns
    digest: bytes


Stored: TypeAlias = tuple[Any, ...]
"""A row of a known run as a database's driver gives it; ``STORED`` names its columns."""

STORED = ("position", *Columns._fields[1:], "digest")
"""All columns but ``run_id``, text as its bytes: to read that once a row costs a twentieth."""

# All integers and all lengths (-1 for NULL) come first, at fixed places; so two different rows
# never frame to the same bytes.
_FRAME = struct.Struct(">10q")


def chain(previous: bytes, row: Columns) -> bytes:
    """The 32-byte digest of ``row``, which follows the row with digest ``previous``."""
    run_id, sequence, slot_id, seed_id, kind, version, epoch, recorded_at, payload, batch = row
    frame = _FRAME.pack(
        sequence,
        version,
        epoch,
        recorded_at,
        len(run_id),
        -1 if slot_id is None else len(slot_id),
        -1 if seed_id is None else len(seed_id),
        len(kind),
        len(payload),
        -1 if batch is None else len(batch),
    )
    parts = (previous, frame, run_id, slot_id or b"", seed_id or b"", kind, payload, batch or b"")
    return sha256(b"".join(parts)).digest()


def link(
    run_id: str, encoded: Sequence[Encoded], *, after: Head, at: int, batch: str | None
) -> list[Row]:
    """The rows that continue a run after its head; their positions (0) are the store's to give.

    ``at`` is the time in microseconds, ``batch`` marks the first row.
    """
    run, digest = run_id.encode(), after.digest
    mark = None if batch is None else batch.encode()
    rows = []
    for sequence, (slot, seed, kind, version, epoch, payload) in enumerate(
        encoded, after.sequence + 1
    ):
        row = Columns(run, sequence, slot, seed, kind, version, epoch, at, payload, mark)
        digest = chain(digest, row)
        rows.append(Row(0, row, digest))
        mark = None
    return rows


class Place(NamedTuple):
    """How far along a run: its last row, and the position of the row before that."""

    sequence: int = 0
    digest: bytes = EMPTY_HEAD.digest
    position: int = 0
    earlier: int = 0


def walk(
    run: bytes,
    rows: Iterator[Stored],
    place: Place,
    look: Callable[[Stored], object] | None = None,
) -> tuple[Place, Stored | None]:
    """Go on along ``run`` from ``place`` for as long as each row follows from the one before it.

    Returns how far that was, and the row that does not follow or ``None`` at the end. ``look`` is
    shown each row that does.
    """
    sequence, digest, position, earlier = place
    pack, join, length = _FRAME.pack, b"".join, len(run)
    for row in rows:
        here, number, slot, seed, kind, version, epoch, at, payload, batch, own = row
        try:
            # As `chain` does it: to call it here would take a quarter of the time of all the rest.
            frame = pack(
                number,
                version,
                epoch,
                at,
                length,
                -1 if slot is None else len(slot),
                -1 if seed is None else len(seed),
                len(kind),
                len(payload),
                -1 if batch is None else len(batch),
            )
            parts = (digest, frame, run, slot or b"", seed or b"", kind, payload, batch or b"")
            broken = own != sha256(join(parts)).digest() or here <= position
        except (TypeError, struct.error):
            broken = True
        if broken or number != sequence + 1:
            return Place(sequence, digest, position, earlier), row
        sequence = number
        digest = own
        earlier = position
        position = here
        if look is not None:
            look(row)
    return Place(sequence, digest, position, earlier), None
