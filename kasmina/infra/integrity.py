"""The chain of digests over what is stored, and the search for whatever breaks it.

Each digest is SHA-256 over the run's previous digest and the exact stored bytes of every column
but two: ``digest`` itself, and ``position``, which the database gives on insertion and which
changes when a run is copied elsewhere. Within its run, positions must still grow with the sequence.

What a chain alone cannot see: a tail that was cut off (keep a ``Seal`` elsewhere), and a history
rewritten from some event to its end with all digests computed anew (likewise).
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from hashlib import sha256
from typing import NamedTuple

from attrs import frozen

from kasmina.domain import events as e
from kasmina.domain.errors import UnreadableEvent
from kasmina.domain.ports import EMPTY_HEAD, Head
from kasmina.infra import codec

PROBLEMS_KEPT = 100
"""Problems that a verification lists, so that a file full of them does not fill the memory."""


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


class Flaw(Enum):
    """What can be wrong with a stored run; the value says it."""

    ALTERED = "its digest does not follow from its columns and the event before it"
    MISSING = "there is no event of this sequence"
    REPEATED = "there is more than one event of this sequence"
    MISPLACED = "its position in the store is not after that of the event before it"
    UNREADABLE = "its payload cannot be read"
    CONTRADICTORY = "its columns and its payload disagree"
    CUT = "the run ends before the sealed length"
    UNSEALED = "its digest is not the sealed one"


@frozen(kw_only=True)
class Problem:
    """A flaw, and the sequence where it shows."""

    sequence: int
    flaw: Flaw
    detail: str = ""

    @property
    def message(self) -> str:
        """The problem in one line."""
        detail = f" ({self.detail})" if self.detail else ""
        return f"sequence {self.sequence}: {self.flaw.value}{detail}"


@frozen(kw_only=True)
class Seal:
    """What a run was when it was sealed; kept elsewhere, it shows a cut or rewritten tail."""

    run_id: str
    length: int
    digest: bytes


@frozen(kw_only=True)
class Verification:
    """What was found of a run. ``problems`` are the first ``PROBLEMS_KEPT``, in order."""

    run_id: str
    events: int
    head: Head
    problems: tuple[Problem, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def seal(self) -> Seal:
        """The seal of the run as it stands."""
        return Seal(run_id=self.run_id, length=self.head.sequence, digest=self.head.digest)


class Scrutiny(Enum):
    """How closely to look: at the chain alone, or at every payload as well."""

    CHAIN = "chain"
    PAYLOADS = "payloads"


def link(
    run_id: str, encoded: Sequence[codec.Encoded], *, after: Head, at: int, batch: str | None
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


def verify(
    run_id: str,
    rows: Iterable[Row],
    *,
    seal: Seal | None = None,
    scrutiny: Scrutiny = Scrutiny.PAYLOADS,
) -> Verification:
    """Walk over the rows of a run in their order, once and in constant memory.

    Every link is judged against what is stored before it, so one altered event is one problem and
    what follows is judged on its own.
    """
    problems: list[Problem] = []
    events = position = sequence = 0
    digest = EMPTY_HEAD.digest
    for row in rows:
        columns = row.columns
        try:
            problems.extend(_links(row, position, sequence, digest))
            if scrutiny is Scrutiny.PAYLOADS:
                problems.extend(_payload(columns))
        except (TypeError, AttributeError, struct.error):
            detail = "a column holds a value of another type than its own"
            problems.append(Problem(sequence=sequence + 1, flaw=Flaw.UNREADABLE, detail=detail))
            break
        position, sequence, digest = row.position, columns.sequence, row.digest
        events += 1
        if seal is not None and sequence == seal.length and digest != seal.digest:
            problems.append(Problem(sequence=sequence, flaw=Flaw.UNSEALED))
        del problems[PROBLEMS_KEPT:]
    if seal is not None and sequence < seal.length:
        problems.append(Problem(sequence=sequence + 1, flaw=Flaw.CUT))
    head = Head(sequence=sequence, digest=digest)
    return Verification(run_id=run_id, events=events, head=head, problems=tuple(problems))


def _links(row: Row, position: int, sequence: int, digest: bytes) -> Iterable[Problem]:
    """What is wrong between a row and the one before it."""
    found = row.columns.sequence
    whole = found == sequence + 1 and chain(digest, row.columns) == row.digest
    if whole and row.position > position:
        return ()
    return _broken(row, position, sequence, altered=not whole)


def _broken(row: Row, position: int, sequence: int, *, altered: bool) -> Iterator[Problem]:
    found = row.columns.sequence
    if found <= sequence:
        yield Problem(sequence=found, flaw=Flaw.REPEATED)
    elif found > sequence + 1:
        upto = f"up to {found - 1}" if found > sequence + 2 else ""
        yield Problem(sequence=sequence + 1, flaw=Flaw.MISSING, detail=upto)
    elif altered:
        yield Problem(sequence=found, flaw=Flaw.ALTERED)
    if row.position <= position:
        yield Problem(sequence=found, flaw=Flaw.MISPLACED)


def _payload(columns: Columns) -> Iterator[Problem]:
    """What is wrong with a row by itself."""
    name = columns.type.decode(errors="replace")
    try:
        event = codec.decode(name, columns.schema_version, columns.payload)
    except UnreadableEvent as error:
        yield Problem(sequence=columns.sequence, flaw=Flaw.UNREADABLE, detail=error.problem)
        return
    copies = (*codec.places(event), event.epoch)
    if copies != (columns.slot_id, columns.seed_id, columns.epoch):
        detail = "slot, seed or epoch"
        yield Problem(sequence=columns.sequence, flaw=Flaw.CONTRADICTORY, detail=detail)
    if isinstance(event, e.RunOpened | e.RunForked) and event.run_id.encode() != columns.run_id:
        yield Problem(sequence=columns.sequence, flaw=Flaw.CONTRADICTORY, detail="run")
