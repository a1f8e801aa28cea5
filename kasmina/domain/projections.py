"""Read models: what a slot does in the forward, what the gates decided, what happened when."""

from collections.abc import Callable, Sequence
from datetime import datetime
from enum import Enum

from attrs import field, frozen

from kasmina.domain import events as e
from kasmina.domain.evidence import GateOutcome
from kasmina.domain.evolve import surviving
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.ports import Recorded
from kasmina.domain.schedules import AlphaSchedule, held
from kasmina.domain.stages import Blend, Incubator, SeedInput, Stage
from kasmina.domain.state import RunState, SeedState


class Behaviour(Enum):
    """What a slot does to the host's features.

    ``IDENTITY`` hands them on; ``INCUBATE`` hands them on and gives the seed their gradient;
    ``BLEND`` mixes host and seed by alpha; ``SEED`` is the seed alone.
    """

    IDENTITY = "identity"
    INCUBATE = "incubate"
    BLEND = "blend"
    SEED = "seed"


@frozen(kw_only=True)
class SlotView:
    """The one value that crosses from the domain to a slot: how to act, never whether to.

    ``seed_input`` is what holds once the seed is exposed; an incubating seed is always detached.
    """

    slot_id: str
    stage: Stage = Stage.DORMANT
    seed_id: str | None = None
    behaviour: Behaviour = Behaviour.IDENTITY
    seed_input: SeedInput = SeedInput.OPEN
    learning: bool = False
    incubation: IncubationPlan = field(factory=IncubationPlan)
    blend: Blend = Blend.LERP
    schedule: AlphaSchedule = field(factory=lambda: held(0.0))
    paused_at: int | None = None

    def alpha(self, step: int) -> float:
        """Alpha at ``step``."""
        return self.schedule.alpha(step if self.paused_at is None else self.paused_at)


_BESIDE_THE_HOST = (Incubator.STRAIGHT_THROUGH, Incubator.PROXIMAL)


def slot_view(state: RunState, slot_id: str) -> SlotView:
    """How the slot acts in ``state``. Raises ``UnknownSlot``."""
    slot = state.slot(slot_id)
    if slot.seed is None or not slot.stage.holds_seed:
        return SlotView(slot_id=slot_id, stage=slot.stage)
    seed = slot.seed
    return SlotView(
        slot_id=slot_id,
        stage=slot.stage,
        seed_id=seed.seed_id,
        behaviour=_behaviour(slot.stage, seed),
        seed_input=seed.seed_input,
        learning=_learns(slot.stage, seed),
        incubation=seed.incubation,
        blend=seed.blend.blend,
        schedule=seed.schedule,
        paused_at=seed.paused_at,
    )


def _behaviour(stage: Stage, seed: SeedState) -> Behaviour:
    if stage is Stage.TRAINING:
        beside = seed.incubation.incubator in _BESIDE_THE_HOST
        return Behaviour.INCUBATE if beside else Behaviour.IDENTITY
    if not stage.exposed:
        return Behaviour.IDENTITY
    replaces = stage is Stage.FOSSILIZED and seed.blend.blend is Blend.LERP and seed.target == 1.0
    return Behaviour.SEED if replaces else Behaviour.BLEND


def _learns(stage: Stage, seed: SeedState) -> bool:
    if seed.paused_at is not None:
        return False
    if stage is Stage.TRAINING:
        return seed.incubation.incubator is not Incubator.NONE
    return stage.exposed


@frozen(kw_only=True)
class Decision:
    """One line of the gate ledger. ``undone`` when a later rewind took the decision back."""

    sequence: int
    recorded_at: datetime
    epoch: int
    step: int
    slot_id: str
    seed_id: str
    outcome: GateOutcome
    undone: bool = False


@frozen(kw_only=True)
class Moment:
    """One line of the timeline: an event that changed what a slot is or does."""

    sequence: int
    recorded_at: datetime
    epoch: int
    step: int
    slot_id: str | None
    seed_id: str | None
    event: e.Event
    undone: bool = False


def gate_ledger(history: Sequence[Recorded]) -> list[Decision]:
    """Every gate outcome of a run's whole ``history``, in order."""
    survives = _survivors(history)
    return [
        Decision(
            sequence=record.sequence,
            recorded_at=record.recorded_at,
            epoch=record.event.epoch,
            step=record.event.step,
            slot_id=record.event.slot_id,
            seed_id=record.event.seed_id,
            outcome=record.event.outcome,
            undone=not survives(record.sequence),
        )
        for record in history
        if isinstance(record.event, e.GateEvaluated)
    ]


# Evidence and gate outcomes fill most of a log; the ledger shows the latter, the state the former.
_ROUTINE = (e.EpochRecorded, e.GateEvaluated, e.CheckpointSaved)


def timeline(history: Sequence[Recorded]) -> list[Moment]:
    """What happened in a run, without routine evidence and gate outcomes, in order."""
    survives = _survivors(history)
    return [
        Moment(
            sequence=record.sequence,
            recorded_at=record.recorded_at,
            epoch=record.event.epoch,
            step=record.event.step,
            slot_id=record.event.slot_id if isinstance(record.event, e.SlotEvent) else None,
            seed_id=record.event.seed_id if isinstance(record.event, e.SeedEvent) else None,
            event=record.event,
            undone=not survives(record.sequence),
        )
        for record in history
        if not isinstance(record.event, _ROUTINE)
    ]


def _survivors(history: Sequence[Recorded]) -> Callable[[int], bool]:
    rewinds = [
        (record.sequence, record.event.to)
        for record in history
        if isinstance(record.event, e.RunRewound)
    ]
    stretches = surviving(rewinds, head=history[-1].sequence if history else 0)
    return lambda sequence: any(after < sequence <= until for after, until in stretches)
