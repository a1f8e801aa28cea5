"""What has happened. Stored for ever: classes and fields may only be added, with defaults.

Every event carries ``epoch`` (training epochs completed when it happened) and ``step`` (optimizer
steps taken). The stored name of each class is written out in the codec.
"""

from attrs import field, frozen

from kasmina.domain.evidence import (
    GateOutcome,
    HostDescription,
    Metric,
    Probe,
    SeedEvidence,
    Software,
)
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.objective import Objective
from kasmina.domain.policies import GatePolicy
from kasmina.domain.schedules import AlphaSchedule, BlendPlan
from kasmina.domain.stages import (
    CullCause,
    Health,
    Leak,
    SeedInput,
    Stage,
    Topology,
    Trigger,
)
from kasmina.domain.validators import not_blank, not_negative


@frozen(kw_only=True)
class Event:
    """A fact about a run."""

    epoch: int = field(validator=not_negative)
    step: int = field(validator=not_negative)


@frozen(kw_only=True)
class SlotEvent(Event):
    """A fact about one slot."""

    slot_id: str = field(validator=not_blank)


@frozen(kw_only=True)
class SeedEvent(SlotEvent):
    """A fact about one seed in its slot."""

    seed_id: str


@frozen(kw_only=True)
class UnknownEvent(Event):
    """An event of a newer release: of a type, or a version of one, that this release cannot read.

    It is kept, shown and verified, and takes its place in the run; what it changed is not known.
    ``payload`` is the JSON text that was stored. ``slot_id`` and ``seed_id`` are those it names.
    """

    type: str
    schema_version: int
    payload: str
    slot_id: str | None = None
    seed_id: str | None = None


@frozen(kw_only=True)
class RunOpened(Event):
    """The first event of a run: everything by which it is judged later."""

    run_id: str = field(validator=not_blank)
    name: str = field(validator=not_blank)
    objective: Objective
    policy: GatePolicy
    host: HostDescription
    random_seed: int
    software: tuple[Software, ...] = ()


@frozen(kw_only=True)
class RunForked(Event):
    """The first event of a run that goes on from another's state at ``parent_sequence``.

    ``parent_digest`` is the hexadecimal digest of the parent's event at that sequence.
    """

    run_id: str = field(validator=not_blank)
    name: str = field(validator=not_blank)
    parent_run_id: str
    parent_sequence: int
    parent_digest: str


@frozen(kw_only=True)
class RunRewound(Event):
    """The run went back to its state at ``to``; the fold leaves out ``to + 1`` up to ``head``."""

    to: int = field(validator=not_negative)
    head: int = field(validator=not_negative)


@frozen(kw_only=True)
class RunClosed(Event):
    """The training ended; ``objective`` is its last measured value."""

    objective: float | None = None


@frozen(kw_only=True)
class GatePolicyChanged(Event):
    """From here on the gates decide by other thresholds."""

    policy: GatePolicy


@frozen(kw_only=True)
class CheckpointSaved(Event):
    """The tensors were saved as they were after event ``sequence``."""

    path: str
    sequence: int = field(validator=not_negative)


@frozen(kw_only=True)
class EpochRecorded(Event):
    """The evidence of one training epoch; ``objective`` is ``None`` when it was not measured."""

    objective: float | None
    metrics: tuple[Metric, ...] = ()
    seeds: tuple[SeedEvidence, ...] = ()


@frozen(kw_only=True)
class SlotOpened(SlotEvent):
    """A place in the host where seeds may act; ``width`` is its number of channels."""

    topology: Topology
    width: int


@frozen(kw_only=True)
class SeedGerminated(SeedEvent):
    """A seed was made from a blueprint and probed. ``init_seed`` reproduces its first weights."""

    blueprint_id: str
    incubation: IncubationPlan
    seed_input: SeedInput
    blend: BlendPlan
    probe: Probe
    parameters: int
    init_seed: int
    learning_rate: float | None
    weight_decay: float | None


@frozen(kw_only=True)
class GateEvaluated(SeedEvent):
    """A gate was asked, and answered; nothing else changed by it."""

    outcome: GateOutcome


@frozen(kw_only=True)
class StageChanged(SeedEvent):
    """The slot moved along one edge of the machine. No other event changes a stage."""

    trigger: Trigger
    source: Stage
    target: Stage


@frozen(kw_only=True)
class BlendScheduled(SeedEvent):
    """From here on alpha follows ``schedule``, and where that ends above 0 it is to stay."""

    schedule: AlphaSchedule


@frozen(kw_only=True)
class AlphaOverridden(SeedEvent):
    """Alpha is held at ``alpha`` until a schedule or a change of stage replaces it."""

    alpha: float


@frozen(kw_only=True)
class ShadowEvaluated(SeedEvent):
    """The model was evaluated with the seed and without it, on the same batches.

    ``agreement`` is the Pearson correlation of the two outputs over ``values`` output elements.
    """

    agreement: float | None
    values: int
    objective_with: float | None
    objective_without: float | None


@frozen(kw_only=True)
class CounterfactualMeasured(SeedEvent):
    """The objective with the seed at ``alpha``, and without it, on the same held-out data.

    In TRAINING this is a rehearsal: the seed is not exposed yet, and ``alpha`` a possible target.
    """

    alpha: float
    objective_with: float | None
    objective_without: float | None


@frozen(kw_only=True)
class IsolationViolated(SeedEvent):
    """The seed was seen to touch the host ``count`` times in the way ``leak`` names."""

    leak: Leak
    count: int
    subject: str


@frozen(kw_only=True)
class HealthChanged(SeedEvent):
    """The seed's health in its present stage changed."""

    health: Health


@frozen(kw_only=True)
class CullScheduled(SeedEvent):
    """The seed will be culled when ``schedule`` has ramped it out."""

    reason: str
    schedule: AlphaSchedule
    cause: CullCause = CullCause.REQUESTED


@frozen(kw_only=True)
class SeedCulled(SeedEvent):
    """The seed was rejected and is out of the forward."""

    reason: str
    cause: CullCause


@frozen(kw_only=True)
class SeedFossilized(SeedEvent):
    """The seed is permanent. Figures are signed so that better is positive."""

    improvement: float | None
    contribution: float | None


@frozen(kw_only=True)
class SlotRecycled(SeedEvent):
    """The slot is clean and may be used again; ``seed_id`` is its last tenant."""


@frozen(kw_only=True)
class SeedPaused(SeedEvent):
    """The seed keeps its stage and alpha, and neither learns nor advances nor times out."""


@frozen(kw_only=True)
class SeedResumed(SeedEvent):
    """The seed goes on from where it was paused; its schedule is moved by the pause."""
