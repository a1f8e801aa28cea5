"""The state of a run, as values. A promise to the past: fields may only be added, with defaults.

The classes have no slots, validators or converters, so that ``changed`` can copy them quickly.
"""

import math
from collections.abc import Mapping

from attrs import field, frozen

from kasmina.domain.errors import UnknownSlot
from kasmina.domain.events import CheckpointSaved
from kasmina.domain.evidence import GateOutcome, HostDescription, Probe
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.objective import Objective
from kasmina.domain.policies import GatePolicy
from kasmina.domain.schedules import AlphaSchedule, BlendPlan, held
from kasmina.domain.stages import CullCause, Gate, Health, SeedInput, Stage, Topology

OBJECTIVES_KEPT = 256
"""Epochs of the present stage whose objective the state remembers; the log keeps them all."""


@frozen(kw_only=True, slots=False)
class SeedState:
    """The seed in a slot: what it is, and what has been measured of it.

    ``shadow_contribution`` and ``contribution`` are objectives with the seed minus without it,
    signed so that better is positive; ``None`` until measured. The latter is the mean over
    ``contributions`` measurements, on probation over those made there. ``rehearsals`` are the
    latest of TRAINING, by alpha. ``nonfinite`` counts the last epoch's outputs and gradients that
    were not finite. ``target`` is the alpha at which the seed is to stay.
    ``baseline`` is the objective at germination, by the rule of ``SlotState.stage_baseline``.
    """

    seed_id: str
    blueprint_id: str
    incubation: IncubationPlan
    seed_input: SeedInput
    blend: BlendPlan
    probe: Probe
    parameters: int
    init_seed: int
    learning_rate: float | None
    weight_decay: float | None
    baseline: float | None
    schedule: AlphaSchedule = field(default=held(0.0))
    paused_at: int | None = None
    violations: int = 0
    gradient_norm: float | None = None
    nonfinite: int = 0
    health: Health = Health.HEALTHY
    rehearsals: Mapping[float, float] = field(factory=dict)
    shadow_evaluations: int = 0
    agreement: float | None = None
    shadow_contribution: float | None = None
    contribution: float | None = None
    contributions: int = 0
    cull_reason: str | None = None
    cull_cause: CullCause = CullCause.REQUESTED
    target: float = 1.0

    def alpha(self, step: int) -> float:
        """Alpha at ``step``; a paused seed keeps the alpha at which it was paused."""
        return self.schedule.alpha(step if self.paused_at is None else self.paused_at)

    @property
    def candidates(self) -> tuple[float, ...]:
        """The alphas at which to rehearse: any of them may become the target."""
        return self.blend.search or (self.blend.target,)

    @property
    def best_rehearsal(self) -> tuple[float, float] | None:
        """The candidate that contributed most and its contribution; of equals, the largest.

        A contribution that is not finite comes behind every other.
        """
        tried = {a: self.rehearsals[a] for a in self.candidates if a in self.rehearsals}
        if not tried:
            return None
        best = max(tried, key=lambda a: (tried[a] if math.isfinite(tried[a]) else -math.inf, a))
        return best, tried[best]


@frozen(kw_only=True, slots=False)
class SlotState:
    """One slot, with its seed from germination until it is recycled.

    ``stage_baseline`` is the objective at the stage's start: the last one measured before it, or
    the first one after it where there was none. ``objectives`` are those of the present stage's
    last ``OBJECTIVES_KEPT`` epochs, oldest first. ``outcomes`` are the latest of each gate for
    the latest seed.
    """

    slot_id: str
    topology: Topology
    width: int
    stage: Stage = Stage.DORMANT
    seed: SeedState | None = None
    germinations: int = 0
    epochs_in_stage: int = 0
    stage_baseline: float | None = None
    objectives: tuple[float | None, ...] = ()
    outcomes: Mapping[Gate, GateOutcome] = field(factory=dict)


@frozen(kw_only=True, slots=False)
class RunState:
    """A run after ``sequence`` events. ``epoch`` and ``step`` are the last ones recorded.

    ``epoch_ended`` is the step at the end of the last recorded epoch, ``steps_per_epoch`` the
    number of steps in it.

    ``latest`` is the last epoch's objective as it was recorded, finite or not; ``measured`` is the
    last finite one, from which baselines are taken. ``metrics`` are the last epoch's.

    ``unknown_events`` counts those of a newer release; what they changed is missing here.
    """

    run_id: str
    name: str
    sequence: int
    epoch: int
    step: int
    objective: Objective
    policy: GatePolicy
    host: HostDescription
    random_seed: int
    latest: float | None = None
    measured: float | None = None
    metrics: Mapping[str, float] = field(factory=dict)
    slots: Mapping[str, SlotState] = field(factory=dict)
    checkpoint: CheckpointSaved | None = None
    rewinds: int = 0
    closed: bool = False
    epoch_ended: int = 0
    steps_per_epoch: int = 0
    unknown_events: int = 0

    def slot(self, slot_id: str) -> SlotState:
        """The slot of that name. Raises ``UnknownSlot``."""
        if slot_id not in self.slots:
            raise UnknownSlot(slot_id, self.slots)
        return self.slots[slot_id]
