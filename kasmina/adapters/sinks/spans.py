"""A run as spans: the run itself, in it the life of each seed, in that its stages.

A pure fold: the same events give the same spans with the same keys, whoever folds them and how
often. Spans come out when they end, in the order in which they do.
"""

from bisect import bisect_right
from collections.abc import Mapping
from datetime import datetime
from enum import Enum

from attrs import evolve as changed
from attrs import frozen

from kasmina.domain import events as e
from kasmina.domain.errors import CorruptHistory
from kasmina.domain.ports import Recorded
from kasmina.domain.stages import Health, Stage

_ROUTINE = (e.EpochRecorded, e.SlotOpened)

# After these other lives are open than before. A run that is rewound to its own end takes up those
# that its end interrupted.
_TURNS = (e.RunForked, e.RunRewound, e.SeedGerminated, e.StageChanged, e.HealthChanged)


class Kind(Enum):
    """What a span spans."""

    RUN = "run"
    SEED = "seed"
    STAGE = "stage"


class Ending(Enum):
    """Why a span ended. ``MOVED_ON`` is a stage's end, ``REWOUND`` that of what was taken back."""

    MOVED_ON = "moved_on"
    FOSSILIZED = "fossilized"
    CULLED = "culled"
    REWOUND = "rewound"
    RUN_CLOSED = "run_closed"


@frozen(kw_only=True)
class Key:
    """What tells a span from all others: what it spans, and the event with which it begins."""

    kind: Kind
    run_id: str
    slot_id: str = ""
    sequence: int


@frozen(kw_only=True)
class Span:
    """A stretch of time. ``link`` is the span that it takes up again, ``records`` lie in it."""

    key: Key
    parent: Key | None = None
    link: Key | None = None
    seed: e.SeedGerminated | None = None
    stage: Stage | None = None
    began: Recorded
    ended: datetime | None = None
    ending: Ending | None = None
    health: Health = Health.HEALTHY
    records: tuple[Recorded, ...] = ()


@frozen(kw_only=True)
class Tenancy:
    """The open spans of a slot that holds a living seed."""

    seed: Span
    stage: Span | None = None


Tenancies = Mapping[str, Tenancy]


class Spans:
    """The spans of one run. A run that was forked takes up ``inherited`` lives of its parent."""

    def __init__(self, run_id: str, inherited: Tenancies | None = None) -> None:
        self.run_id = run_id
        self._inherited = inherited or {}
        self._run: Span | None = None
        self._slots: dict[str, Tenancy] = {}
        self._past: list[tuple[int, Tenancies]] = []

    def at(self, sequence: int) -> Tenancies:
        """The lives that were open after event ``sequence``."""
        index = bisect_right(self._past, sequence, key=lambda moment: moment[0])
        return self._past[index - 1][1] if index else {}

    def see(self, record: Recorded) -> tuple[Span, ...]:
        """Go on to the next event of the run; the spans that end with it, children first."""
        event = record.event
        ended: tuple[Span, ...] = ()
        match event:
            case e.RunOpened() | e.RunForked():
                self._open(record)
            case e.RunRewound():
                ended = self._close_slots(record, Ending.REWOUND)
                self._reopen(record)
                self._take_up(record, self.at(event.to))
            case e.RunClosed():
                self._note(record)
                ended = (*self._close_slots(record, Ending.RUN_CLOSED), *self._close(record))
            case e.SeedGerminated():
                self._germinate(record, event)
            case e.StageChanged():
                ended = self._move(record, event)
            case e.HealthChanged():
                self._weaken(event)
                self._note(record)
            case _:
                self._note(record)
        if isinstance(event, _TURNS):
            self._past.append((record.sequence, dict(self._slots)))
        return ended

    def _open(self, record: Recorded) -> None:
        event = record.event
        link = None
        if isinstance(event, e.RunForked):
            link = Key(kind=Kind.RUN, run_id=event.parent_run_id, sequence=1)
        self._run = Span(key=self._key(Kind.RUN, record), link=link, began=record)
        if isinstance(event, e.RunForked):
            self._take_up(record, self._inherited)

    def _key(self, kind: Kind, record: Recorded, slot_id: str = "") -> Key:
        return Key(kind=kind, run_id=self.run_id, slot_id=slot_id, sequence=record.sequence)

    def _root(self) -> Span:
        if self._run is None:
            raise CorruptHistory(f"run {self.run_id!r} does not begin with its opening")
        return self._run

    def _reopen(self, record: Recorded) -> None:
        """After it was closed a run goes on in a span of its own; otherwise in the one it has."""
        root = self._root()
        if root.ended is not None:
            self._run = Span(key=self._key(Kind.RUN, record), link=root.key, began=record)
        self._note(record)

    def _take_up(self, record: Recorded, tenancies: Tenancies) -> None:
        for slot_id, tenancy in tenancies.items():
            seed = self._again(record, slot_id, tenancy.seed, self._root().key)
            stage = tenancy.stage and self._again(record, slot_id, tenancy.stage, seed.key)
            self._slots[slot_id] = Tenancy(seed=seed, stage=stage)

    def _again(self, record: Recorded, slot_id: str, span: Span, parent: Key) -> Span:
        key = self._key(span.key.kind, record, slot_id)
        return changed(span, key=key, parent=parent, link=span.key, began=record, records=())

    def _germinate(self, record: Recorded, event: e.SeedGerminated) -> None:
        key = self._key(Kind.SEED, record, event.slot_id)
        seed = Span(key=key, parent=self._root().key, seed=event, began=record)
        self._slots[event.slot_id] = Tenancy(seed=seed)

    def _move(self, record: Recorded, event: e.StageChanged) -> tuple[Span, ...]:
        """The stage ends; with FOSSILIZED and CULLED the seed's life does too."""
        if event.slot_id not in self._slots:
            self._note(record)
            return ()
        tenancy = self._slots[event.slot_id]
        ended = () if tenancy.stage is None else (_ended(tenancy.stage, record, Ending.MOVED_ON),)
        if event.target in _FATES:
            del self._slots[event.slot_id]
            return (*ended, _ended(tenancy.seed, record, _FATES[event.target]))
        stage = Span(
            key=self._key(Kind.STAGE, record, event.slot_id),
            parent=tenancy.seed.key,
            seed=tenancy.seed.seed,
            stage=event.target,
            began=record,
        )
        # Health is that of the present stage, as it is in the state.
        seed = changed(tenancy.seed, health=Health.HEALTHY)
        self._slots[event.slot_id] = Tenancy(seed=seed, stage=stage)
        return ended

    def _weaken(self, event: e.HealthChanged) -> None:
        if event.slot_id in self._slots:
            tenancy = self._slots[event.slot_id]
            stage = tenancy.stage and changed(tenancy.stage, health=event.health)
            seed = changed(tenancy.seed, health=event.health)
            self._slots[event.slot_id] = Tenancy(seed=seed, stage=stage)

    def _note(self, record: Recorded) -> None:
        """Put the event into the innermost open span that it belongs to."""
        event = record.event
        if isinstance(event, _ROUTINE):
            return
        if isinstance(event, e.SeedEvent) and event.slot_id in self._slots:
            tenancy = self._slots[event.slot_id]
            if tenancy.stage is None:
                tenancy = changed(tenancy, seed=_with(tenancy.seed, record))
            else:
                tenancy = changed(tenancy, stage=_with(tenancy.stage, record))
            self._slots[event.slot_id] = tenancy
        else:
            self._run = _with(self._root(), record)

    def _close_slots(self, record: Recorded, ending: Ending) -> tuple[Span, ...]:
        tenancies, self._slots = self._slots, {}
        return tuple(
            _ended(span, record, ending)
            for tenancy in tenancies.values()
            for span in (tenancy.stage, tenancy.seed)
            if span is not None
        )

    def _close(self, record: Recorded) -> tuple[Span, ...]:
        self._run = _ended(self._root(), record, Ending.RUN_CLOSED)
        return (self._run,)


_FATES = {Stage.FOSSILIZED: Ending.FOSSILIZED, Stage.CULLED: Ending.CULLED}


def _ended(span: Span, record: Recorded, ending: Ending) -> Span:
    return changed(span, ended=record.recorded_at, ending=ending)


def _with(span: Span, record: Recorded) -> Span:
    return changed(span, records=(*span.records, record))
