"""What a run tries to improve, and the one place where "better" gets its sign."""

import math
from enum import Enum

from attrs import field, frozen

from kasmina.domain.validators import not_blank, of_type


class Direction(Enum):
    """Whether a larger objective is better, or a smaller one."""

    MAXIMIZE = "maximize"
    MINIMIZE = "minimize"


@frozen(kw_only=True)
class Objective:
    """The held-out metric by which gates judge, its direction and its unit.

    Thresholds of the gates (0.5 for G2's improvement, for instance) are in this unit: choose a
    ``GatePolicy`` that fits it.
    """

    name: str = field(validator=not_blank)
    direction: Direction = field(validator=of_type(Direction))
    unit: str = ""

    @classmethod
    def maximize(cls, name: str, *, unit: str = "") -> "Objective":
        """An objective of which more is better, such as accuracy."""
        return cls(name=name, direction=Direction.MAXIMIZE, unit=unit)

    @classmethod
    def minimize(cls, name: str, *, unit: str = "") -> "Objective":
        """An objective of which less is better, such as a loss."""
        return cls(name=name, direction=Direction.MINIMIZE, unit=unit)

    def improvement(self, before: float | None, after: float | None) -> float | None:
        """How much better ``after`` is than ``before``; positive is better.

        ``None`` when either was not measured. A non-finite operand gives NaN, never an infinite
        "improvement".
        """
        if before is None or after is None:
            return None
        if not (math.isfinite(before) and math.isfinite(after)):
            return math.nan
        return after - before if self.direction is Direction.MAXIMIZE else before - after
