"""The shell around the pure core: fold, decide, append, fold."""

from collections.abc import Iterator, Sequence

from kasmina.domain import commands as c
from kasmina.domain import events as e
from kasmina.domain.decide import decide
from kasmina.domain.errors import ConcurrentAppend, InvalidCommand, NewerHistory
from kasmina.domain.evolve import evolve
from kasmina.domain.points import InsideDecision, decision_around, together
from kasmina.domain.policies import GatePolicy
from kasmina.domain.ports import Append, EventStore, Head, Recorded
from kasmina.domain.state import RunState
from kasmina.history import load, unknown


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


def _require_understood(state: RunState) -> None:
    if state.unknown_events:
        raise NewerHistory(state.run_id, unknown=state.unknown_events)


class Journal:
    """One run as its writer sees it: the state, and the only way to change it.

    ``writer`` is unique to this writer; a commit that is repeated because its acknowledgement was
    lost is thereby recognised and not written twice.
    """

    def __init__(
        self, store: EventStore, run_id: str, *, writer: str, state: RunState | None
    ) -> None:
        self.run_id = run_id
        self.store = store
        self._writer = writer
        self._state = state
        self._digest = store.head(run_id).digest

    @classmethod
    def open(cls, store: EventStore, run_id: str, *, writer: str) -> "Journal":
        """A run that is in the store. Raises ``UnknownRun`` and ``NewerHistory``."""
        state = load(store, run_id)
        if state is None:
            raise unknown(store, run_id)
        _require_understood(state)
        return cls(store, run_id, writer=writer, state=state)

    @property
    def state(self) -> RunState:
        """The state after the last commit."""
        return _opened(self._state)

    def head(self) -> Head:
        """Where this writer left the run. Raises ``ConcurrentAppend`` if another went on since."""
        mine = Head(sequence=self.state.sequence, digest=self._digest)
        found = self.store.head(self.run_id)
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
        (recorded,) = Journal.commit_all(((self, draft),))
        return recorded

    @staticmethod
    def commit_all(
        drafts: Sequence[tuple["Journal", Draft]],
    ) -> tuple[tuple[Recorded, ...], ...]:
        """Record drafts of many runs in one transaction, as ``commit`` does: all of them or none.

        A durable transaction takes about as long for a thousand runs as for one. The runs must
        be different ones of the same store.
        """
        written = [(journal, draft) for journal, draft in drafts if draft.events]
        if len({journal.store for journal, _ in written}) > 1:
            raise InvalidCommand("runs of different stores cannot share a transaction")
        recorded: Iterator[tuple[Recorded, ...]] = iter(())
        if written:
            store = written[0][0].store
            recorded = iter(store.append_all([j.append_of(d.events) for j, d in written]))
        return tuple(
            journal.settle(next(recorded), draft.state) if draft.events else ()
            for journal, draft in drafts
        )

    def handle(self, *commands: c.Command) -> tuple[Recorded, ...]:
        """Decide ``commands`` in order and record what follows, all of it or nothing."""
        draft = self.draft()
        for command in commands:
            draft.decide(command)
        return self.commit(draft)

    def rewind(self, to: int) -> tuple[Recorded, ...]:
        """Go back to the state after event ``to``, by an event of its own.

        Raises ``InsideDecision`` where ``to`` is not the last event of a decision.
        """
        there = load(self.store, self.run_id, until=to)
        if there is None:
            raise InvalidCommand(f"run {self.run_id!r} cannot be rewound to before its first event")
        _require_decided(self.store, self.run_id, to)
        command = c.Rewind(to=to, epoch=there.epoch, step=there.step)
        (event,) = decide(self.state, command, self.state.policy)
        (recorded,) = self.store.append_all((self.append_of([event]),))
        return self.settle(recorded, evolve(there, event))

    def fork(self, parent: str, *, at: int, name: str, policy: GatePolicy | None = None) -> Draft:
        """A draft by which this run, which must be new, begins at event ``at`` of ``parent``.

        From there on ``policy`` rules, where one is given. Raises as the function ``fork`` does.
        """
        if self._state is not None:
            raise InvalidCommand(f"run {self.run_id!r} has begun; a fork is a run of its own")
        forked, there = _forked(self.store, parent, at=at, run_id=self.run_id, name=name)
        draft = Draft(evolve(there, forked))
        draft.events.append(forked)
        if policy is not None:
            draft.decide(c.ChangePolicy(step=there.step, policy=policy))
        return draft

    def append_of(self, events: Sequence[e.Event]) -> Append:
        """The append that records ``events`` next."""
        expected = 0 if self._state is None else self._state.sequence
        batch = f"{self._writer}:{expected}"
        return Append(run_id=self.run_id, events=events, expected=expected, batch=batch)

    def settle(self, recorded: tuple[Recorded, ...], state: RunState) -> tuple[Recorded, ...]:
        """Go on from ``state``, now that what leads to it was recorded."""
        self._state = state
        self._digest = recorded[-1].digest
        return recorded

    def read(self, *, after: int = 0, until: int | None = None) -> Iterator[Recorded]:
        """The run's own events."""
        return self.store.read(self.run_id, after=after, until=until)


def fork(store: EventStore, parent: str, *, at: int, run_id: str, name: str) -> e.RunForked:
    """Begin run ``run_id`` from the state of ``parent`` after event ``at``.

    Raises ``InvalidCommand`` where the parent has no such event, and ``InsideDecision`` where it
    is not the last event of a decision.
    """
    forked, _ = _forked(store, parent, at=at, run_id=run_id, name=name)
    store.append(run_id, [forked], expected=0)
    return forked


def _forked(
    store: EventStore, parent: str, *, at: int, run_id: str, name: str
) -> tuple[e.RunForked, RunState]:
    there = load(store, parent, until=at)
    if there is None or there.sequence != at:
        raise InvalidCommand(f"run {parent!r} has no event {at} to fork from")
    _require_understood(there)
    _require_decided(store, parent, at)
    (record,) = store.read(parent, after=at - 1, until=at)
    forked = e.RunForked(
        epoch=there.epoch,
        step=there.step,
        run_id=run_id,
        name=name,
        parent_run_id=parent,
        parent_sequence=at,
        parent_digest=record.digest.hex(),
    )
    return forked, there


def _require_decided(store: EventStore, run_id: str, at: int) -> None:
    """Raise ``InsideDecision`` where the event after ``at`` was recorded together with it."""
    pair = list(store.read(run_id, after=at - 1, until=at + 1))
    if len(pair) > 1 and together(*pair):
        first, last = decision_around(store.read(run_id), at)
        raise InsideDecision(run_id, at, first=first, last=last)
