"""The search for whatever is wrong with a stored run: its chain, its payloads, its history.

What no search through the run alone can find is a tail that was cut off, and a history that was
rewritten with every digest computed anew and still makes sense: keep a ``Seal`` elsewhere.
"""

import itertools
import struct
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Protocol

from attrs import frozen

from kasmina.domain import events as e
from kasmina.domain.errors import CorruptHistory, UnreadableEvent
from kasmina.domain.legality import Inspector, Offence
from kasmina.domain.ports import EventStore, Head
from kasmina.domain.state import RunState
from kasmina.history import load
from kasmina.infra import codec
from kasmina.infra.chain import STORED, Columns, Place, Row, Stored, chain, link, walk

__all__ = [
    "STORED",
    "Columns",
    "Flaw",
    "Problem",
    "Row",
    "Scrutiny",
    "Seal",
    "Stored",
    "Verification",
    "chain",
    "link",
    "verify",
]

PROBLEMS_KEPT = 100
"""Problems that a verification lists, so that a file full of them does not fill the memory."""


# What a fold can raise where a log is wrong, or where two runs are each other's parents.
_UNFOLDABLE = (CorruptHistory, UnreadableEvent, ValueError, ArithmeticError, RecursionError)


class Flaw(Enum):
    """What can be wrong with a stored run; the value says it."""

    ALTERED = "its digest does not follow from its columns and the event before it"
    MISSING = "there is no event of this sequence"
    REPEATED = "there is more than one event of this sequence"
    MISNUMBERED = "sequences begin at 1"
    MISPLACED = "its position in the store is not between those of its neighbours"
    UNREADABLE = "its payload cannot be read"
    CONTRADICTORY = "its columns and its payload disagree"
    ILLEGAL = Offence.ILLEGAL.value
    UNJUSTIFIED = Offence.UNJUSTIFIED.value
    UNFINISHED = Offence.UNFINISHED.value
    DISOWNED = "the run that it was forked from has no such event, or another"
    ABSENT = "the sealed run is not in this database"
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
    """What was found of a run.

    ``problems`` are the first ``PROBLEMS_KEPT``, in order, and what only the seal shows.
    ``unjudged`` events could not be held against the state of the run, because that is not known:
    after an event of a newer release, and in a fork whose parent is elsewhere.
    """

    run_id: str
    events: int
    head: Head
    problems: tuple[Problem, ...]
    unjudged: int = 0

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def seal(self) -> Seal:
        """The seal of the run as it stands."""
        return Seal(run_id=self.run_id, length=self.head.sequence, digest=self.head.digest)


class Scrutiny(Enum):
    """How closely to look: at the chain alone, at every payload too, or at what they tell."""

    CHAIN = "chain"
    PAYLOADS = "payloads"
    HISTORY = "history"


class Archive(EventStore, Protocol):
    """An event store that also shows what it stores."""

    def pages(self, run_id: str) -> Iterable[Iterable[Stored]]:
        """A run's rows by sequence, then by position; all from one state of the database."""
        ...


def verify(
    run_id: str,
    archive: Archive,
    *,
    seal: Seal | None = None,
    scrutiny: Scrutiny = Scrutiny.HISTORY,
) -> Verification:
    """Go through the rows of a run once, in constant memory.

    Every link is judged against what is stored before it, so one altered event is one problem and
    what follows is judged on its own. For its history a run is read again up to each point that it
    was rewound to, and its parent up to the event that it was forked from.
    """
    examiner = _Examiner(run_id, archive, seal, scrutiny)
    examiner.go_through(itertools.chain.from_iterable(archive.pages(run_id)))
    return examiner.conclude()


class _Examiner:
    """One verification, as far as it has come."""

    def __init__(
        self, run_id: str, archive: Archive, seal: Seal | None, scrutiny: Scrutiny
    ) -> None:
        self._run_id = run_id
        self._run = run_id.encode()
        self._archive = archive
        self._seal = seal
        self._scrutiny = scrutiny
        self._inspector = Inspector(run_id, self._recall)
        self._judging = scrutiny is Scrutiny.HISTORY
        self._parent: str | None = None
        self._place = Place()
        self._events = 0
        self._problems: list[Problem] = []

    def go_through(self, rows: Iterator[Stored]) -> None:
        """Every row, up to one that cannot be told from rubbish."""
        look = None if self._scrutiny is Scrutiny.CHAIN and self._seal is None else self._look
        while True:
            before = self._place.sequence
            self._place, misfit = walk(self._run, rows, self._place, look)
            self._events += self._place.sequence - before
            if misfit is None or not self._stumble(misfit):
                return
            self._events += 1

    def conclude(self) -> Verification:
        """What was found, and what the end of the run adds to it."""
        place, seal = self._place, self._seal
        unfinished = self._inspector.conclude() if self._judging else None
        if seal is not None and place.sequence < seal.length:
            self._broken_seal(place.sequence + 1, Flaw.CUT if self._events else Flaw.ABSENT)
        elif unfinished is not None:
            self._add(place.sequence + 1, Flaw[unfinished.offence.name], unfinished.detail)
        return Verification(
            run_id=self._run_id,
            events=self._events,
            head=Head(sequence=place.sequence, digest=place.digest),
            problems=tuple(self._problems),
            unjudged=self._inspector.unjudged,
        )

    def _add(self, sequence: int, flaw: Flaw, detail: str = "") -> None:
        if len(self._problems) < PROBLEMS_KEPT:
            self._problems.append(Problem(sequence=sequence, flaw=flaw, detail=detail))

    def _broken_seal(self, sequence: int, flaw: Flaw) -> None:
        """Said once, and however much else there is: it is what the seal was for."""
        self._problems.append(Problem(sequence=sequence, flaw=flaw))
        self._seal = None

    def _stumble(self, row: Stored) -> bool:
        """Say what is wrong between a row and the one before it; whether to go on after it."""
        before, (position, digest), columns = (
            self._place,
            (row[0], row[-1]),
            Columns(self._run, *row[1:-1]),
        )
        try:
            altered = chain(before.digest, columns) != digest
            too_early = position <= before.position
        except (TypeError, struct.error):
            detail = "a column holds a value of another type than its own"
            self._add(before.sequence + 1, Flaw.UNREADABLE, detail)
            return False
        if columns.sequence < 1:
            self._add(columns.sequence, Flaw.MISNUMBERED)
            return True
        # Of two rows out of order the first is, where the second one fits after the one before.
        swapped = too_early and position > before.earlier
        if swapped:
            self._add(before.sequence, Flaw.MISPLACED)
        self._count(before.sequence, columns.sequence, altered=altered)
        if too_early and not swapped:
            self._add(columns.sequence, Flaw.MISPLACED)
            position, earlier = before.position, before.earlier
        else:
            earlier = before.earlier if swapped else before.position
        self._place = Place(columns.sequence, digest, position, earlier)
        self._look(row)
        return True

    def _count(self, last: int, found: int, *, altered: bool) -> None:
        if found <= last:
            self._add(found, Flaw.REPEATED)
        elif found > last + 1:
            self._add(last + 1, Flaw.MISSING, f"up to {found - 1}" if found > last + 2 else "")
        elif altered:
            self._add(found, Flaw.ALTERED)
        self._judging = self._judging and found == last + 1

    def _look(self, row: Stored) -> None:
        """Say what is wrong with a row by itself, and in the history so far."""
        sequence, seal = row[1], self._seal
        if seal is not None and sequence == seal.length and row[-1] != seal.digest:
            self._broken_seal(sequence, Flaw.UNSEALED)
        if self._scrutiny is Scrutiny.CHAIN:
            return
        event = self._read(Columns(self._run, *row[1:-1]))
        if event is None:
            self._judging = False
        elif self._judging:
            self._judge(sequence, event)

    def _read(self, columns: Columns) -> e.Event | None:
        try:
            event = codec.decode(columns.type.decode(), columns.schema_version, columns.payload)
        except UnreadableEvent as error:
            self._add(columns.sequence, Flaw.UNREADABLE, error.problem)
            return None
        except UnicodeDecodeError:
            self._add(columns.sequence, Flaw.UNREADABLE, "its type is not text")
            return None
        copies = (*codec.places(event), event.epoch)
        if copies != (columns.slot_id, columns.seed_id, columns.epoch):
            self._add(columns.sequence, Flaw.CONTRADICTORY, "slot, seed or epoch")
        if isinstance(event, e.RunOpened | e.RunForked) and event.run_id != self._run_id:
            self._add(columns.sequence, Flaw.CONTRADICTORY, "run")
        return event

    def _judge(self, sequence: int, event: e.Event) -> None:
        if isinstance(event, e.RunForked) and self._disowned(event):
            self._add(sequence, Flaw.DISOWNED)
            self._judging = False
            return
        finding = self._inspector.judge(sequence, event)
        if finding is not None:
            self._add(sequence, Flaw[finding.offence.name], finding.detail)
            self._judging = False

    def _disowned(self, fork: e.RunForked) -> bool:
        """Whether the parent is here, but not as the fork saw it, which is a seal of it."""
        parent = fork.parent_run_id
        try:
            digest = bytes.fromhex(fork.parent_digest)
        except ValueError:
            digest = b""
        seen = Seal(run_id=parent, length=max(fork.parent_sequence, 1), digest=digest)
        found = verify(parent, self._archive, seal=seen, scrutiny=Scrutiny.CHAIN)
        flaws = {problem.flaw for problem in found.problems if problem.sequence <= seen.length}
        self._parent = None if flaws else parent
        return not flaws.isdisjoint({Flaw.UNSEALED, Flaw.CUT})

    def _recall(self, run_id: str, sequence: int) -> RunState | None:
        """The state at a point of this run, or of the parent where that is whole up to there."""
        if run_id not in {self._run_id, self._parent}:
            return None
        try:
            return load(self._archive, run_id, until=sequence)
        except _UNFOLDABLE:
            return None
