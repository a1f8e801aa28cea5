"""What was measured, as numbers. These values are stored: they may only grow."""

import math
import operator
from collections.abc import Callable
from enum import Enum

from attrs import field, frozen

from kasmina.domain.stages import Gate, Leak
from kasmina.domain.validators import not_blank, not_negative, unit_interval


class Comparison(Enum):
    """How a measured value is held against a required one."""

    AT_LEAST = ">="
    AT_MOST = "<="
    ABOVE = ">"
    BELOW = "<"
    EQUAL = "=="
    FINITE = "finite"

    def holds(self, measured: float | None, required: float | None) -> bool:
        """Whether ``measured`` satisfies this against ``required``.

        Never for an unmeasured or non-finite value. ``required`` is ``None`` for FINITE alone.
        """
        if measured is None or not math.isfinite(measured):
            return False
        if self is Comparison.FINITE:
            return True
        if required is None:
            raise ValueError(f"a comparison by {self.value} needs a required value, got None")
        return _OPERATORS[self](measured, required)


_OPERATORS: dict[Comparison, Callable[[float, float], bool]] = {
    Comparison.AT_LEAST: operator.ge,
    Comparison.AT_MOST: operator.le,
    Comparison.ABOVE: operator.gt,
    Comparison.BELOW: operator.lt,
    Comparison.EQUAL: operator.eq,
}


@frozen(kw_only=True)
class Check:
    """One figure held against one bound. ``measured`` is ``None`` when it was not measured."""

    name: str = field(validator=not_blank)
    measured: float | None
    comparison: Comparison
    required: float | None
    passed: bool

    @classmethod
    def of(
        cls, name: str, measured: float | None, comparison: Comparison, required: float | None
    ) -> "Check":
        """The check with its verdict."""
        passed = comparison.holds(measured, required)
        return cls(
            name=name,
            measured=measured,
            comparison=comparison,
            required=required,
            passed=passed,
        )

    @property
    def margin(self) -> float | None:
        """How far the measured value lies on the passing side of the bound, in its own unit.

        Negative when it fails; ``None`` where there is no distance to speak of.
        """
        if self.measured is None or self.required is None:
            return None
        match self.comparison:
            case Comparison.AT_LEAST | Comparison.ABOVE:
                return self.measured - self.required
            case Comparison.AT_MOST | Comparison.BELOW:
                return self.required - self.measured
            case _:
                return None


@frozen(kw_only=True)
class GateOutcome:
    """What a gate decided, and every figure on which it did."""

    gate: Gate
    passed: bool
    score: float = field(validator=unit_interval)
    checks: tuple[Check, ...]

    @classmethod
    def of(cls, gate: Gate, checks: tuple[Check, ...], score: float) -> "GateOutcome":
        """The outcome that follows from ``checks``; ``score`` is clamped into [0, 1]."""
        bounded = min(max(score, 0.0), 1.0) if math.isfinite(score) else 0.0
        return cls(gate=gate, passed=all(c.passed for c in checks), score=bounded, checks=checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)


@frozen(kw_only=True)
class Metric:
    """A named figure of an epoch, finite or not."""

    name: str = field(validator=not_blank)
    value: float


@frozen(kw_only=True)
class Probe:
    """What one forward of the new seed showed, before it was attached.

    Shapes include the batch dimension; dtypes are the framework's names without its prefix
    (``"float32"``). ``None`` where the slot's features could not be had.
    """

    input_shape: tuple[int, ...] | None = None
    output_shape: tuple[int, ...] | None = None
    input_dtype: str | None = None
    output_dtype: str | None = None
    trainable_parameters: int = field(default=0, validator=not_negative)

    @property
    def preserves_shape(self) -> bool | None:
        """Whether the output has the input's shape; ``None`` when it was not probed."""
        if self.input_shape is None or self.output_shape is None:
            return None
        return self.input_shape == self.output_shape

    @property
    def preserves_dtype(self) -> bool | None:
        """Whether the output has the input's dtype; ``None`` when it was not probed."""
        if self.input_dtype is None or self.output_dtype is None:
            return None
        return self.input_dtype == self.output_dtype


@frozen(kw_only=True)
class Violation:
    """Leaks of one kind seen since the last evidence. ``subject`` names what leaked."""

    leak: Leak
    count: int = field(validator=not_negative)
    subject: str


@frozen(kw_only=True)
class SeedEvidence:
    """What was observed of one seed over one epoch.

    ``gradient_norm`` is the Euclidean norm over all of the seed's parameters at the last sampled
    step, ``None`` when none was sampled. The counts are of steps (outputs) and samples
    (gradients) that held a NaN or an infinity.
    """

    slot_id: str
    seed_id: str
    alpha: float = field(validator=unit_interval)
    gradient_norm: float | None = None
    nonfinite_outputs: int = field(default=0, validator=not_negative)
    nonfinite_gradients: int = field(default=0, validator=not_negative)


@frozen(kw_only=True)
class HostDescription:
    """What a resumed run's host must match. ``digest`` covers tensor names, shapes and dtypes."""

    kind: str
    parameters: int = field(validator=not_negative)
    digest: str


@frozen(kw_only=True)
class Software:
    """One package and its version at the time of recording."""

    name: str
    version: str
