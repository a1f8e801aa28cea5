"""Every threshold of the gates, in one frozen ``GatePolicy`` that is recorded with the run."""

from attrs import field, frozen
from attrs.validators import optional

from kasmina.domain.evidence import Comparison
from kasmina.domain.stages import Gate, Stage
from kasmina.domain.validators import (
    finite,
    not_blank,
    not_negative,
    of_type,
    positive,
    unit_interval,
)


@frozen(kw_only=True)
class G2Policy:
    """From TRAINING to BLENDING. Improvement and contribution are in the objective's unit."""

    min_improvement: float = field(default=0.5, validator=finite)
    max_isolation_violations: int = field(default=10, validator=not_negative)
    min_epochs: int = field(default=3, validator=not_negative)
    min_rehearsed_contribution: float = field(default=0.0, validator=finite)
    full_score_improvement: float = field(default=5.0, validator=positive)


@frozen(kw_only=True)
class G3Policy:
    """From BLENDING to SHADOWING. ``min_alpha`` is relative to the target of the seed's alpha."""

    min_alpha: float = field(default=0.95, validator=unit_interval)
    min_epochs: int = field(default=3, validator=not_negative)


@frozen(kw_only=True)
class G4Policy:
    """From SHADOWING to PROBATIONARY. ``min_agreement`` is a Pearson correlation."""

    min_shadow_evaluations: int = field(default=1, validator=not_negative)
    min_agreement: float = field(default=0.9, validator=finite)


@frozen(kw_only=True)
class G5Policy:
    """From PROBATIONARY to FOSSILIZED. Improvement and contribution must exceed their bounds.

    The contribution is the mean over the stage, and ``min_epochs`` keeps one lucky epoch from
    deciding: on scikit-learn's digits, asked each epoch for the latest figure alone, seeds whose
    contributions were -1, -0.75, 0, -2.25, -2 and then +2.25 points passed.
    """

    min_improvement: float = field(default=0.0, validator=finite)
    min_contribution: float = field(default=0.0, validator=finite)
    min_epochs: int = field(default=3, validator=not_negative)
    min_stability: float = field(default=0.95, validator=unit_interval)
    full_score_improvement: float = field(default=10.0, validator=positive)


@frozen(kw_only=True)
class Timeouts:
    """Epochs that a stage may last without a passing gate before the seed is culled."""

    germinated: int | None = field(default=None, validator=optional(positive))
    training: int | None = field(default=None, validator=optional(positive))
    blending: int | None = field(default=None, validator=optional(positive))
    shadowing: int | None = field(default=None, validator=optional(positive))
    probationary: int | None = field(default=None, validator=optional(positive))

    def of(self, stage: Stage) -> int | None:
        """The limit of ``stage`` in epochs, or ``None`` where it has none."""
        match stage:
            case Stage.GERMINATED:
                return self.germinated
            case Stage.TRAINING:
                return self.training
            case Stage.BLENDING:
                return self.blending
            case Stage.SHADOWING:
                return self.shadowing
            case Stage.PROBATIONARY:
                return self.probationary
            case _:
                return None


@frozen(kw_only=True)
class MetricCheck:
    """A user's own check: a metric of the latest epoch against a bound, at one gate.

    Data rather than a function, so that it is recorded with the run, audited like any built-in
    check, and re-evaluated under other bounds.
    """

    gate: Gate = field(validator=of_type(Gate))
    metric: str = field(validator=not_blank)
    comparison: Comparison = field(validator=of_type(Comparison))
    required: float


@frozen(kw_only=True)
class GatePolicy:
    """The thresholds by which G0 to G5 decide; see ``docs/lifecycle.md`` for each gate's checks.

    ``tolerance`` (in the objective's unit) is how much worse a seed may make the objective before
    G4, and the stability in G5, count it as worse. ``embargo_epochs`` is how
    long a slot rests after a cull. A seed that is culled by a time-out while its host sees it is
    ramped out over ``cull_ramp_epochs``, so that its removal does not shock the host.
    """

    g2: G2Policy = field(factory=G2Policy, validator=of_type(G2Policy))
    g3: G3Policy = field(factory=G3Policy, validator=of_type(G3Policy))
    g4: G4Policy = field(factory=G4Policy, validator=of_type(G4Policy))
    g5: G5Policy = field(factory=G5Policy, validator=of_type(G5Policy))
    tolerance: float = field(default=0.5, validator=not_negative)
    embargo_epochs: int = field(default=5, validator=not_negative)
    cull_ramp_epochs: float = field(default=1.0, validator=not_negative)
    timeouts: Timeouts = field(factory=Timeouts, validator=of_type(Timeouts))
    extra_checks: tuple[MetricCheck, ...] = ()
