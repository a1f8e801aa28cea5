"""What a store's history tells: a run's state, at any point, and where it came from."""

from kasmina.domain import events as e
from kasmina.domain.comparison import Stretch, same_tensors
from kasmina.domain.errors import CheckpointError, CorruptHistory, UnknownRun
from kasmina.domain.evolve import evolve, surviving
from kasmina.domain.points import (
    Point,
    TensorsNotSaved,
    decision_around,
    sequence_at,
)
from kasmina.domain.ports import EventStore
from kasmina.domain.state import RunState


def load(store: EventStore, run_id: str, *, until: int | None = None) -> RunState | None:
    """The run's state after event ``until``, or now; ``None`` for an unknown run.

    Streams: a run that was never rewound is read once, any other twice.
    """
    state: RunState | None = None
    rewinds: list[tuple[int, int]] = []
    head = 0
    for record in store.read(run_id, until=until):
        head, event = record.sequence, record.event
        if isinstance(event, e.RunRewound):
            rewinds.append((head, event.to))
        elif not rewinds:
            origin = _parent(store, event) if isinstance(event, e.RunForked) else state
            state = evolve(origin, event)
    if not rewinds:
        return state
    state = None
    for after, stop in surviving(rewinds, head=head):
        for record in store.read(run_id, after=after, until=stop):
            event = record.event
            origin = _parent(store, event) if isinstance(event, e.RunForked) else state
            state = evolve(origin, event)
    return state


def _parent(store: EventStore, event: e.RunForked) -> RunState:
    lineage(store, event.parent_run_id, until=event.parent_sequence)  # ends in a run of its own
    state = load(store, event.parent_run_id, until=event.parent_sequence)
    if state is None:
        raise CorruptHistory(
            f"run {event.run_id!r} was forked from {event.parent_run_id!r}, which is not in this "
            f"store: copy it here as well"
        )
    return state


def locate(store: EventStore, run_id: str, point: Point | None) -> int:
    """The last event of the run that belongs to ``point``; its head where that is ``None``.

    Raises ``UnknownRun`` and ``NoSuchPoint``.
    """
    history = list(store.read(run_id))
    if not history:
        raise unknown(store, run_id)
    return history[-1].sequence if point is None else sequence_at(history, point)


def state_at(store: EventStore, run_id: str, point: Point) -> RunState:
    """The run as it stood at ``point``. Raises ``UnknownRun`` and ``NoSuchPoint``."""
    return _known(store, run_id, locate(store, run_id, point))


def _known(store: EventStore, run_id: str, until: int) -> RunState:
    state = load(store, run_id, until=until)
    if state is None:
        raise unknown(store, run_id)
    return state


def unknown(store: EventStore, run_id: str) -> UnknownRun:
    """The error for a run that is not in the store, with the nearest that are."""
    return UnknownRun(run_id, (record.run_id for record in store.runs()))


def lineage(store: EventStore, run_id: str, *, until: int) -> tuple[Stretch, ...]:
    """The run up to event ``until``, and before it those from which it was forked, oldest first.

    Raises ``CorruptHistory`` for a run that was forked from itself.
    """
    stretches = [Stretch(run_id=run_id, after=0, until=until)]
    while (forked := origin(store, stretches[-1].run_id)) is not None:
        if forked.parent_run_id in {stretch.run_id for stretch in stretches}:
            raise CorruptHistory(f"run {forked.parent_run_id!r} was forked from itself")
        stretches.append(
            Stretch(run_id=forked.parent_run_id, after=0, until=forked.parent_sequence)
        )
    return tuple(reversed(stretches))


def origin(store: EventStore, run_id: str) -> e.RunForked | None:
    """Where the run was forked from; ``None`` for one that was opened anew."""
    first = next(store.read(run_id, until=1), None)
    return first.event if first is not None and isinstance(first.event, e.RunForked) else None


def beginning(store: EventStore, run_id: str) -> int:
    """The last event of the decision that began the run, before anything was trained."""
    _, last = decision_around(store.read(run_id), 1)
    return last


def saved_tensors(store: EventStore, run_id: str, *, at: int) -> e.CheckpointSaved | None:
    """The checkpoint that holds the tensors of a run as they were after event ``at``.

    It may be one of a run from which this one was forked. ``None`` where training had not begun.
    Raises ``TensorsNotSaved``.
    """
    for stretch in reversed(lineage(store, run_id, until=at)):
        state = _known(store, stretch.run_id, stretch.until)
        saved = state.checkpoint
        nearest = beginning(store, stretch.run_id) if saved is None else saved.sequence + 1
        there = load(store, stretch.run_id, until=nearest)
        if there is None or not same_tensors(there, state):
            raise TensorsNotSaved(stretch.run_id, stretch.until, nearest=nearest)
        if saved is not None:
            return saved
    return None


def resume_point(
    store: EventStore, run_id: str, *, taken_in: str, sequence: int, digest: bytes, path: str
) -> int:
    """The event to which a run must return to go on from a checkpoint.

    The checkpoint was taken in run ``taken_in`` after event ``sequence``, which had ``digest``.
    That is the record of the checkpoint itself where it was still written, or the run's beginning
    for a checkpoint at which it was forked. Raises ``CheckpointError`` when the run has no such
    event, or a different one.
    """
    ancestors = lineage(store, run_id, until=1)
    if taken_in not in {stretch.run_id for stretch in ancestors}:
        raise CheckpointError(
            path,
            f"it was taken in run {taken_in!r}, and {run_id!r} was not forked from there",
            "give the checkpoint of this run",
        )
    point = _point_of(store, taken_in, sequence=sequence, digest=digest, path=path)
    if taken_in == run_id:
        return point
    begun = beginning(store, run_id)
    if not same_tensors(_known(store, taken_in, point), _known(store, run_id, begun)):
        raise CheckpointError(
            path,
            f"it was taken after event {sequence} of run {taken_in!r}, and {run_id!r} was forked "
            f"from another point",
            "give the checkpoint of the point at which the run was forked",
        )
    return begun


def _point_of(store: EventStore, run_id: str, *, sequence: int, digest: bytes, path: str) -> int:
    records = list(store.read(run_id, after=sequence - 1, until=sequence + 1))
    if not records or records[0].sequence != sequence:
        raise CheckpointError(
            path,
            f"it was taken after event {sequence}, but run {run_id!r} has no such event",
            "give the checkpoint of this run, or a database that holds its whole log",
        )
    if records[0].digest != digest:
        raise CheckpointError(
            path,
            f"it was taken in another history: event {sequence} has a different digest",
            "give the checkpoint of this run and this database",
        )
    saved = records[-1].event
    if isinstance(saved, e.CheckpointSaved) and saved.sequence == sequence:
        return sequence + 1
    return sequence
