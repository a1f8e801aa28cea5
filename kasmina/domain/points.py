"""Points in a run's past: an event, the end of an epoch, a time."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TypeAlias

from attrs import Attribute, field, frozen

from kasmina.domain.errors import InvalidCommand, KasminaError
from kasmina.domain.events import RunRewound
from kasmina.domain.evolve import surviving
from kasmina.domain.ports import Recorded

_EPOCH, _TIME = "epoch:", "time:"


def _aware(_: object, attribute: "Attribute[datetime]", value: datetime) -> None:
    if value.utcoffset() is None:
        raise ValueError(f"{attribute.name} must have a time zone, got {value!r}")


@frozen(kw_only=True)
class AtEvent:
    """Right after the event of that sequence: what a later rewind took back still counts there."""

    sequence: int


@frozen(kw_only=True)
class AtEpoch:
    """The end of an epoch, in the history that counts today: after any rewind into it."""

    epoch: int


@frozen(kw_only=True)
class AtTime:
    """What was on record at ``moment``: all events before the first one that is stamped later.

    A clock that was set back may stamp further events with earlier times; they come after the
    first later one, and so do not belong to the point.
    """

    moment: datetime = field(validator=_aware)


Point: TypeAlias = AtEvent | AtEpoch | AtTime


class NotAPoint(KasminaError):
    """Text that names no point."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(
            f"{text!r} is not a point in a run; write an event's sequence (12), an epoch (epoch:3) "
            f"or a time (time:2026-11-23T10:00, in UTC unless it says otherwise)"
        )


class NoSuchPoint(KasminaError):
    """A point at which the run has not arrived, or was not begun."""

    def __init__(self, run_id: str, unit: str, *, asked: object, first: object, last: object):
        self.run_id = run_id
        self.unit = unit
        self.asked = asked
        self.first = first
        self.last = last
        super().__init__(f"run {run_id!r} has no {unit} {asked}: it has {first} to {last}")


class InsideDecision(InvalidCommand):
    """A point between events that were decided and recorded together, ``first`` to ``last``."""

    def __init__(self, run_id: str, sequence: int, *, first: int, last: int) -> None:
        self.run_id = run_id
        self.sequence = sequence
        self.first = first
        self.last = last
        choices = [first - 1, last] if first > 1 else [last]
        super().__init__(
            f"event {sequence} of run {run_id!r} lies inside one decision, events {first} to "
            f"{last}; take {' or '.join(map(str, choices))}"
        )


class TensorsNotSaved(KasminaError):
    """A point from which nobody can train on: no checkpoint holds its tensors."""

    def __init__(self, run_id: str, sequence: int, *, nearest: int) -> None:
        self.run_id = run_id
        self.sequence = sequence
        self.nearest = nearest
        super().__init__(
            f"no recorded checkpoint holds the tensors of run {run_id!r} after event {sequence}; "
            f"the last point before it that can be trained from is event {nearest}: fork there, or "
            f"give the checkpoint (checkpoint=...) where there is one after all"
        )


def parse_point(text: str) -> Point:
    """The point that ``text`` names: ``12``, ``epoch:3``, ``time:2026-11-23T10:00+01:00``.

    A time without an offset is UTC. Raises ``NotAPoint``.
    """
    try:
        if text.startswith(_EPOCH):
            return AtEpoch(epoch=int(text.removeprefix(_EPOCH)))
        if text.startswith(_TIME):
            return AtTime(moment=_moment(text.removeprefix(_TIME)))
        return AtEvent(sequence=int(text))
    except (ValueError, OverflowError):
        raise NotAPoint(text) from None


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def sequence_at(history: Sequence[Recorded], point: Point) -> int:
    """The last event of a run's ``history``, which has at least one, that belongs to ``point``.

    Raises ``NoSuchPoint``.
    """
    if isinstance(point, AtEvent):
        return _within(history, point.sequence)
    if isinstance(point, AtEpoch):
        return _end_of_epoch(history, point.epoch)
    return _by_time(history, point.moment)


def _within(history: Sequence[Recorded], sequence: int) -> int:
    last = history[-1].sequence
    if not 1 <= sequence <= last:
        raise NoSuchPoint(history[0].run_id, "event", asked=sequence, first=1, last=last)
    return sequence


def _end_of_epoch(history: Sequence[Recorded], epoch: int) -> int:
    rewinds = [
        (record.sequence, record.event.to)
        for record in history
        if isinstance(record.event, RunRewound)
    ]
    kept = [
        record
        for after, until in surviving(rewinds, head=len(history))
        for record in history[after:until]
    ]
    first, last = kept[0].event.epoch, kept[-1].event.epoch
    if not first <= epoch <= last:
        raise NoSuchPoint(history[0].run_id, "epoch", asked=epoch, first=first, last=last)
    return max(record.sequence for record in kept if record.event.epoch <= epoch)


def _by_time(history: Sequence[Recorded], moment: datetime) -> int:
    found = 0
    for record in history:
        if record.recorded_at > moment:
            break
        found = record.sequence
    if not found:
        first, last = (history[end].recorded_at.isoformat() for end in (0, -1))
        asked = moment.isoformat()
        raise NoSuchPoint(history[0].run_id, "time", asked=asked, first=first, last=last)
    return found


def together(earlier: Recorded, later: Recorded) -> bool:
    """Whether an event was recorded with the one right before it, as parts of one decision.

    An append stamps all its events with one instant, at one epoch and step; the next append, which
    waited for the first to be on the disk, is microseconds later at least.
    """
    return (earlier.recorded_at, earlier.event.epoch, earlier.event.step) == (
        later.recorded_at,
        later.event.epoch,
        later.event.step,
    )


def decision_around(history: Iterable[Recorded], sequence: int) -> tuple[int, int]:
    """The first and the last event of the decision to which event ``sequence`` belongs."""
    first = last = 1
    before: Recorded | None = None
    for record in history:
        if before is not None and not together(before, record):
            if record.sequence > sequence:
                break
            first = record.sequence
        last = record.sequence
        before = record
    return first, last


@frozen(kw_only=True)
class Reversal:
    """What a rewind changed: ``(first, last)`` of events that count no longer, or count again."""

    undone: tuple[tuple[int, int], ...]
    restored: tuple[tuple[int, int], ...]

    def concerns(self, sequence: int) -> bool:
        """Whether event ``sequence`` counts otherwise than before."""
        return any(first <= sequence <= last for first, last in self.undone + self.restored)


def reversal(rewinds: Sequence[tuple[int, int]]) -> Reversal:
    """What the last of a run's ``rewinds``, each ``(sequence, to)``, took back and brought back."""
    *earlier, (sequence, to) = rewinds
    before, after = _counting(earlier, head=sequence - 1), _counting(earlier, head=to)
    return Reversal(undone=_ranges(before - after), restored=_ranges(after - before))


def _counting(rewinds: Iterable[tuple[int, int]], *, head: int) -> set[int]:
    return {
        sequence
        for after, until in surviving(rewinds, head=head)
        for sequence in range(after + 1, until + 1)
    }


def _ranges(sequences: set[int]) -> tuple[tuple[int, int], ...]:
    firsts = sorted(sequence for sequence in sequences if sequence - 1 not in sequences)
    lasts = sorted(sequence for sequence in sequences if sequence + 1 not in sequences)
    return tuple(zip(firsts, lasts, strict=True))
