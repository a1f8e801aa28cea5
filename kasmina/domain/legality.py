"""Whether a run's events are ones that decisions could have led to; rules that hold for ever.

Thresholds, scores and the choice of a gate's checks change from release to release, and none of
them is derived again here. What is judged is what every release promises: the machine's edges and
what they ask for, verdicts that follow from their own figures, and events that come where they
can. A rule may be loosened; one that is tightened accuses logs that are whole.
"""

from collections.abc import Callable
from enum import Enum

from attrs import frozen

from kasmina.domain import events as e
from kasmina.domain import machine
from kasmina.domain.errors import CorruptHistory
from kasmina.domain.evidence import Check
from kasmina.domain.evolve import evolve
from kasmina.domain.stages import Gate, Stage, Trigger
from kasmina.domain.state import RunState, SeedState, SlotState

Recall = Callable[[str, int], RunState | None]
"""The state of a run after one of its events; ``None`` where it cannot be had."""


class Offence(Enum):
    """In what way an event cannot be true; the value says it."""

    ILLEGAL = "it cannot have happened after what came before it"
    UNJUSTIFIED = "its verdict does not follow from its own figures"
    UNFINISHED = "the run ends within a decision"


@frozen(kw_only=True)
class Finding:
    """An offence, and what is wrong in this case."""

    offence: Offence
    detail: str


class Inspector:
    """Judges a run's events one after the other, from the first, in constant memory.

    ``recall`` gives the state that a rewind returns to, and the one that a fork begins with. Where
    it cannot be had, and after an event of a newer release, the state is not known: such events,
    counted as ``unjudged``, are held only against themselves and their neighbours.
    """

    def __init__(self, run_id: str, recall: Recall) -> None:
        self.unjudged = 0
        self._run_id = run_id
        self._recall = recall
        self._state: RunState | None = None
        self._previous: e.Event | None = None
        self._passed: e.GateEvaluated | None = None
        self._unread = False
        self._floor = (0, 0)

    def judge(self, sequence: int, event: e.Event) -> Finding | None:
        """What is wrong with the event of this ``sequence``, after all those judged so far.

        After a finding the state is no longer the run's: do not go on.
        """
        if isinstance(event, e.UnknownEvent):
            self._state = None
            self._unread = True
            self.unjudged += 1
            return None
        unjustified = _unjustified(event)
        if unjustified:
            return Finding(offence=Offence.UNJUSTIFIED, detail=unjustified)
        illegal = self._misplaced(sequence, event) or self._unwarranted(event)
        illegal = illegal or self._impossible(event)
        if illegal:
            return Finding(offence=Offence.ILLEGAL, detail=illegal)
        self._remember(event)
        return None

    def conclude(self) -> Finding | None:
        """What is wrong with a run that ends here: a decision is recorded whole or not at all."""
        due = self._due()
        if due is None:
            return None
        return Finding(offence=Offence.UNFINISHED, detail=due)

    # An event that could not be read may be what is missed before the next one, or after the last.

    def _due(self) -> str | None:
        return None if self._unread else _due(self._previous)

    def _is_brought(self, event: e.Event) -> bool:
        return self._unread or _brings(self._previous, event)

    def _misplaced(self, sequence: int, event: e.Event) -> str | None:
        """What is wrong with the event's place in the run."""
        if isinstance(event, e.RunOpened | e.RunForked) is not (sequence == 1):
            return "a run is opened or forked by its first event, and by no other"
        due = self._due()
        if due is not None and not self._is_brought(event):
            return due
        if isinstance(event, e.RunRewound):
            back = 0 < event.to <= event.head == sequence - 1
            return None if back else f"it leads from {event.head} to {event.to}"
        if isinstance(event, e.CheckpointSaved) and event.sequence >= sequence:
            return f"it saves event {event.sequence}, which is yet to come"
        epoch, step = self._floor
        over = isinstance(event, e.EpochRecorded) and event.epoch == epoch
        if over or event.epoch < epoch or event.step < step:
            return f"epoch {event.epoch}, step {event.step} after epoch {epoch}, step {step}"
        return None

    def _unwarranted(self, event: e.Event) -> str | None:
        """What the event lacks of what must come right before it."""
        match event:
            case e.SeedGerminated():
                return self._unpassed(Gate.G0, event)
            case e.SeedFossilized():
                return self._unpassed(Gate.G5, event)
            case e.SlotRecycled() if not self._is_brought(event):
                return "its slot was not recycled"
            case e.SeedCulled(reason=reason) | e.CullScheduled(reason=reason):
                return None if reason.strip() else "it gives no reason"
            case e.StageChanged():
                return self._unmoved(event)
            case _:
                return None

    def _unpassed(self, gate: Gate, event: e.SeedEvent) -> str | None:
        passed = self._passed
        if self._unread:
            return None
        if passed is not None and passed.outcome.gate is gate and _place(passed) == _place(event):
            return None
        return f"{gate.value} did not pass right before it"

    def _unmoved(self, event: e.StageChanged) -> str | None:
        """Why the machine does not move so."""
        trigger = event.trigger
        if (event.source, trigger, event.target) not in _EDGES:
            return (
                f"{trigger.value} does not lead from {event.source.value} to {event.target.value}"
            )
        if trigger in _ANNOUNCED_BY and not self._is_brought(event):
            return f"{_ANNOUNCED_BY[trigger].__name__} does not come before it"
        gate = machine.edge(event.source, trigger).gate
        return None if gate is None else self._unpassed(gate, event)

    def _impossible(self, event: e.Event) -> str | None:
        """What is wrong with the event in the run's state, which is the next one's afterwards."""
        before = self._before(event)
        if before is None and not isinstance(event, e.RunOpened):
            self._state = None
            return None
        try:
            self._state = evolve(before, event)
        except CorruptHistory as error:
            return error.problem
        except (ValueError, ArithmeticError) as error:  # a figure that no slot can act by
            return str(error)
        if before is None or isinstance(event, e.RunRewound | e.RunForked):
            return None
        return "the run was closed" if before.closed else _contradicted(before, event)

    def _before(self, event: e.Event) -> RunState | None:
        """The state on which the event comes, where it is known."""
        match event:
            case e.RunRewound():
                state = self._recall(self._run_id, event.to)
            case e.RunForked():
                state = self._recall(event.parent_run_id, event.parent_sequence)
            case _:
                return self._state
        return None if state is None or state.unknown_events else state

    def _remember(self, event: e.Event) -> None:
        if isinstance(event, e.GateEvaluated):
            self._passed = event if event.outcome.passed else None
        elif type(event) not in _ANNOUNCES:
            self._passed = None
        self._unread = self._unread and type(event) in _ANNOUNCES
        if isinstance(event, e.RunRewound) and self._state is not None:
            self._floor = (self._state.epoch, self._state.step)
        else:
            self._floor = (event.epoch, event.step)
        self._previous = event
        if self._state is None:
            self.unjudged += 1


# These events announce a move of their slot, which follows at once and never comes without them.
_ANNOUNCES: dict[type[e.Event], Trigger] = {
    e.SeedGerminated: Trigger.GERMINATE,
    e.SeedCulled: Trigger.CULL,
    e.SeedFossilized: Trigger.FOSSILIZE,
}
_ANNOUNCED_BY = {trigger: kind for kind, trigger in _ANNOUNCES.items()}

_EDGES = {(edge.source, edge.trigger, edge.target) for edge in machine.EDGES}
_GATES = {edge.source: edge.gate for edge in machine.EDGES if edge.gate is not None}


def _place(event: e.SeedEvent) -> tuple[str, str, int, int]:
    return event.slot_id, event.seed_id, event.epoch, event.step


def _due(previous: e.Event | None) -> str | None:
    """What must come right after an event, where something must."""
    if isinstance(previous, e.StageChanged) and previous.trigger is Trigger.RECYCLE:
        return "SlotRecycled is due"
    if previous is not None and type(previous) in _ANNOUNCES:
        return f"{_ANNOUNCES[type(previous)].value} is due"
    return None


def _brings(previous: e.Event | None, event: e.Event) -> bool:
    """Whether the event is what must come right after ``previous``."""
    if not (isinstance(previous, e.SeedEvent) and isinstance(event, e.SeedEvent)):
        return False
    if _place(previous) != _place(event):
        return False
    match previous, event:
        case e.StageChanged(trigger=Trigger.RECYCLE), e.SlotRecycled():
            return True
        case _, e.StageChanged(trigger=trigger):
            return _ANNOUNCES.get(type(previous)) is trigger
        case _:
            return False


def _unjustified(event: e.Event) -> str | None:
    """What in a gate's outcome does not follow from its own figures."""
    if not isinstance(event, e.GateEvaluated):
        return None
    for check in event.outcome.checks:
        if not _follows(check):
            return check.name
    if event.outcome.passed is not all(check.passed for check in event.outcome.checks):
        return event.outcome.gate.value
    return None


def _follows(check: Check) -> bool:
    try:
        return check.comparison.holds(check.measured, check.required) is check.passed
    except ValueError:  # nothing was required
        return False


# Where a seed can be when this happens to it; the other events can come in any stage.
_EXPOSED = frozenset(stage for stage in Stage if stage.exposed)
_SEEDED = frozenset(stage for stage in Stage if stage.holds_seed)
_CULLABLE = frozenset(machine.CULLABLE)
_ANY = frozenset(Stage)
_STAGES: dict[type[e.Event], frozenset[Stage]] = {
    e.BlendScheduled: _EXPOSED,
    e.AlphaOverridden: _EXPOSED,
    e.ShadowEvaluated: _SEEDED,
    e.CounterfactualMeasured: _SEEDED,
    e.HealthChanged: _SEEDED,
    e.SeedPaused: _CULLABLE,
    e.SeedResumed: _CULLABLE,
    e.CullScheduled: _CULLABLE,
}
_NEVER_PAUSED = (
    e.GateEvaluated,
    e.SeedPaused,
    e.CullScheduled,
    e.BlendScheduled,
    e.AlphaOverridden,
)
_NEVER_RAMPED_OUT = (e.GateEvaluated, e.SeedPaused, e.BlendScheduled, e.AlphaOverridden)


def _contradicted(state: RunState, event: e.Event) -> str | None:
    """What in its slot's state speaks against an event that could be folded."""
    if not isinstance(event, e.SeedEvent):
        return None
    slot = state.slot(event.slot_id)
    if slot.stage not in _STAGES.get(type(event), _ANY):
        return f"its slot was {slot.stage.value}"
    if isinstance(event, e.GateEvaluated):
        gate = event.outcome.gate
        if _GATES.get(slot.stage) is not gate:
            return f"{gate.value} is not asked in {slot.stage.value}"
        if gate is not Gate.G0 and not _holds(slot, event.seed_id):
            return f"its slot does not hold seed {event.seed_id!r}"
    if isinstance(event, e.StageChanged) and event.trigger is Trigger.RESET:
        left = state.policy.embargo_epochs - slot.epochs_in_stage
        return f"the embargo had {left} more epochs to last" if left > 0 else None
    return None if slot.seed is None else _halted(slot.seed, event)


def _holds(slot: SlotState, seed_id: str) -> bool:
    return slot.seed is not None and slot.seed.seed_id == seed_id


def _halted(seed: SeedState, event: e.SeedEvent) -> str | None:
    """What a pause, or its being ramped out, forbids a seed."""
    paused = seed.paused_at is not None
    if isinstance(event, e.SeedResumed) and not paused:
        return "the seed was not paused"
    if isinstance(event, _NEVER_PAUSED) and paused:
        return "the seed was paused"
    if isinstance(event, _NEVER_RAMPED_OUT) and seed.cull_reason is not None:
        return "the seed was being ramped out"
    return None
