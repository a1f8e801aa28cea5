"""What may be asked of a run. A command is a wish; only the events it leads to are kept.

Every command carries ``step``, the optimizer steps taken so far in the run.
"""

from attrs import field, frozen
from attrs.validators import optional

from kasmina.domain.evidence import (
    HostDescription,
    Metric,
    Probe,
    SeedEvidence,
    Software,
    Violation,
)
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.objective import Objective
from kasmina.domain.policies import GatePolicy
from kasmina.domain.schedules import AlphaSchedule, BlendPlan, Curve
from kasmina.domain.stages import SeedInput, Topology
from kasmina.domain.validators import not_blank, not_negative, of_type, positive, unit_interval


@frozen(kw_only=True)
class Command:
    """A wish addressed to a run."""

    step: int = field(validator=not_negative)


@frozen(kw_only=True)
class SlotCommand(Command):
    """A wish addressed to one slot."""

    slot_id: str


@frozen(kw_only=True)
class OpenRun(Command):
    """Begin a run."""

    run_id: str
    name: str
    objective: Objective = field(validator=of_type(Objective))
    policy: GatePolicy = field(validator=of_type(GatePolicy))
    host: HostDescription
    random_seed: int
    software: tuple[Software, ...] = ()


@frozen(kw_only=True)
class OpenSlot(SlotCommand):
    """Declare a place in the host; ``width`` is its number of channels."""

    topology: Topology = field(validator=of_type(Topology))
    width: int = field(validator=positive)


@frozen(kw_only=True)
class Germinate(SlotCommand):
    """Put a seed, already built and probed, into a DORMANT slot."""

    seed_id: str
    blueprint_id: str
    probe: Probe = field(validator=of_type(Probe))
    parameters: int = field(validator=not_negative)
    init_seed: int
    incubation: IncubationPlan = field(factory=IncubationPlan, validator=of_type(IncubationPlan))
    seed_input: SeedInput = field(default=SeedInput.OPEN, validator=of_type(SeedInput))
    blend: BlendPlan = field(factory=BlendPlan, validator=of_type(BlendPlan))
    learning_rate: float | None = field(default=None, validator=optional(not_negative))
    weight_decay: float | None = field(default=None, validator=optional(not_negative))


@frozen(kw_only=True)
class Advance(SlotCommand):
    """Pull the forward trigger of the slot's stage: its gate decides, where it has one."""


@frozen(kw_only=True)
class Cull(SlotCommand):
    """Reject the seed, at once or after alpha has been ramped down over ``ramp_steps``."""

    reason: str
    ramp_steps: int = field(default=0, validator=not_negative)
    curve: Curve = field(default=Curve.SIGMOID, validator=of_type(Curve))


@frozen(kw_only=True)
class RecordEpoch(Command):
    """One epoch is over: its evidence. ``violations`` are by slot, as ``seeds`` are."""

    epoch: int = field(validator=not_negative)
    objective: float | None
    metrics: tuple[Metric, ...] = ()
    seeds: tuple[SeedEvidence, ...] = ()
    violations: tuple[tuple[str, Violation], ...] = ()


@frozen(kw_only=True)
class RecordShadow(SlotCommand):
    """The model was evaluated with the seed and without it."""

    agreement: float | None
    values: int = field(validator=not_negative)
    objective_with: float | None
    objective_without: float | None


@frozen(kw_only=True)
class RecordCounterfactual(SlotCommand):
    """The objective was measured with the seed at ``alpha`` and without it."""

    alpha: float = field(validator=unit_interval)
    objective_with: float | None
    objective_without: float | None


@frozen(kw_only=True)
class ScheduleAlpha(SlotCommand):
    """Let alpha follow a schedule of the caller's own; BLENDING only."""

    schedule: AlphaSchedule = field(validator=of_type(AlphaSchedule))


@frozen(kw_only=True)
class OverrideAlpha(SlotCommand):
    """Hold alpha where the caller wants it; BLENDING only."""

    alpha: float = field(validator=unit_interval)


@frozen(kw_only=True)
class PauseSeed(SlotCommand):
    """Stop the seed's learning, its progress and its clocks."""


@frozen(kw_only=True)
class ResumeSeed(SlotCommand):
    """Let a paused seed go on."""


@frozen(kw_only=True)
class ChangePolicy(Command):
    """Decide by other thresholds from now on."""

    policy: GatePolicy = field(validator=of_type(GatePolicy))


@frozen(kw_only=True)
class SaveCheckpoint(Command):
    """The tensors as of event ``sequence`` are safe at ``path``."""

    path: str = field(validator=not_blank)
    sequence: int = field(validator=not_negative)


@frozen(kw_only=True)
class Rewind(Command):
    """Go back to the state at sequence ``to``; ``epoch`` and ``step`` are what they were there."""

    to: int = field(validator=positive)
    epoch: int = field(validator=not_negative)


@frozen(kw_only=True)
class CloseRun(Command):
    """The training is over."""
