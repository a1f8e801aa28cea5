"""The shell around the pure core: fold, decide, append, fold."""

from collections.abc import Iterator, Sequence

from kasmina.domain import commands as c
from kasmina.domain import events as e
from kasmina.domain.decide import decide
from kasmina.domain.errors import CheckpointError, ConcurrentAppend, InvalidCommand, UnknownRun
from kasmina.domain.evolve import evolve, surviving
from kasmina.domain.ports import EventStore, Head, Recorded
from kasmina.domain.state import RunState


def load(store: EventStore, run_id: str, *, until: int | None = None) -> RunState | None:
    """The run's state after event ``until``, or now; ``None`` for an unknown run.

    Streams: a run that was never rewound is read once, any other twice.
    """
    state: RunState | None = None
    rewinds: list[tuple[int, int]] = []
    head = 0
    for record in store.read(run_id, until=until):
        head = record.sequence
        if isinstance(record.event, e.RunRewound):
            rewinds.append((record.sequence, record.event.to))
        elif not rewinds:
            state = _folded(store, state, record)
    if not rewinds:
        return state
    state = None
    for after, stop in surviving(rewinds, head=head):
        for record in store.read(run_id, after=after, until=stop):
            state = _folded(store, state, record)
    return state


def _folded(store: EventStore, state: RunState | None, record: Recorded) -> RunState:
    if isinstance(record.event, e.RunForked):
        state = load(store, record.event.parent_run_id, until=record.event.parent_sequence)
    return evolve(state, record.event)


class Draft:
    """Decisions that have been taken but not yet recorded, each on top of the one before."""

    def __init__(self, state: RunState | None) -> None:
        self._state = state
        self.events: list[e.Event] = []

    @property
    def state(self) -> RunState:
        """The state after everything in the draft."""
        return _opened(self._state)

    def decide(self, command: c.Command) -> tuple[e.Event, ...]:
        """The events that ``command`` leads to after those already in the draft."""
        policy = command.policy if isinstance(command, c.OpenRun) else self.state.policy
        decided = decide(self._state, command, policy)
        for event in decided:
            self._state = evolve(self._state, event)
        self.events.extend(decided)
        return decided


def _opened(state: RunState | None) -> RunState:
    if state is None:
        raise InvalidCommand("the first command of a run must be OpenRun")
    return state


class Journal:
    """One run as its writer sees it: the state, and the only way to change it.

    ``writer`` is unique to this writer; a commit that is repeated because its acknowledgement was
    lost is thereby recognised and not written twice.
    """

    def __init__(
        self, store: EventStore, run_id: str, *, writer: str, state: RunState | None
    ) -> None:
        self.run_id = run_id
        self._store = store
        self._writer = writer
        self._state = state
        self._digest = store.head(run_id).digest

    @classmethod
    def open(cls, store: EventStore, run_id: str, *, writer: str) -> "Journal":
        """A run that is in the store. Raises ``UnknownRun``."""
        state = load(store, run_id)
        if state is None:
            raise UnknownRun(run_id, (record.run_id for record in store.runs()))
        return cls(store, run_id, writer=writer, state=state)

    @property
    def state(self) -> RunState:
        """The state after the last commit."""
        return _opened(self._state)

    def head(self) -> Head:
        """Where this writer left the run. Raises ``ConcurrentAppend`` if another went on since."""
        mine = Head(sequence=self.state.sequence, digest=self._digest)
        found = self._store.head(self.run_id)
        if found != mine:
            raise ConcurrentAppend(self.run_id, expected=mine.sequence, found=found.sequence)
        return mine

    def draft(self) -> Draft:
        """An empty draft on top of the state as it is."""
        return Draft(self._state)

    def commit(self, draft: Draft) -> tuple[Recorded, ...]:
        """Record the draft's events in one transaction, durable when this returns.

        When it raises (``ConcurrentAppend``, ``StoreUnavailable``) nothing was recorded and the
        state is what it was.
        """
        if not draft.events:
            return ()
        expected = 0 if self._state is None else self._state.sequence
        recorded = self._append(draft.events, expected)
        self._state = draft.state
        return recorded

    def handle(self, *commands: c.Command) -> tuple[Recorded, ...]:
        """Decide ``commands`` in order and record what follows, all of it or nothing."""
        draft = self.draft()
        for command in commands:
            draft.decide(command)
        return self.commit(draft)

    def rewind(self, to: int) -> tuple[Recorded, ...]:
        """Go back to the state after event ``to``, by an event of its own."""
        there = load(self._store, self.run_id, until=to)
        if there is None:
            raise InvalidCommand(f"run {self.run_id!r} cannot be rewound to before its first event")
        command = c.Rewind(to=to, epoch=there.epoch, step=there.step)
        (event,) = decide(self.state, command, self.state.policy)
        recorded = self._append([event], self.state.sequence)
        self._state = evolve(there, event)
        return recorded

    def _append(self, events: Sequence[e.Event], expected: int) -> tuple[Recorded, ...]:
        recorded = self._store.append(
            self.run_id, events, expected=expected, batch=f"{self._writer}:{expected}"
        )
        self._digest = recorded[-1].digest
        return recorded

    def read(self, *, after: int = 0, until: int | None = None) -> Iterator[Recorded]:
        """The run's own events."""
        return self._store.read(self.run_id, after=after, until=until)


def fork(store: EventStore, parent: str, *, at: int, run_id: str, name: str) -> None:
    """Begin run ``run_id`` from the state of ``parent`` after event ``at``."""
    origin = load(store, parent, until=at)
    if origin is None or origin.sequence != at:
        raise InvalidCommand(f"run {parent!r} has no event {at} to fork from")
    (record,) = store.read(parent, after=at - 1, until=at)
    forked = e.RunForked(
        epoch=origin.epoch,
        step=origin.step,
        run_id=run_id,
        name=name,
        parent_run_id=parent,
        parent_sequence=at,
        parent_digest=record.digest.hex(),
    )
    store.append(run_id, [forked], expected=0)


def resume_point(journal: Journal, *, sequence: int, digest: bytes, path: str) -> int:
    """The event to which a run must return to go on from a checkpoint taken after ``sequence``.

    That is the record of the checkpoint itself where it was still written. Raises
    ``CheckpointError`` when the run has no such event, or a different one.
    """
    records = list(journal.read(after=sequence - 1, until=sequence + 1))
    if not records or records[0].sequence != sequence:
        raise CheckpointError(
            path,
            f"it was taken after event {sequence}, but run {journal.run_id!r} has no such event",
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
