"""Alpha as a pure function of a recorded schedule and the step."""

import math
from enum import Enum

from attrs import field, frozen
from attrs.validators import deep_iterable, optional

from kasmina.domain.stages import Blend
from kasmina.domain.validators import not_negative, of_type, positive, share, unit_interval


class Curve(Enum):
    """The shape of a ramp between its two ends."""

    SIGMOID = "sigmoid"
    LINEAR = "linear"
    COSINE = "cosine"


# tanh(6) is 1 - 1.2e-5: with this many temperatures between the ends the sigmoid meets each of
# them within 6.2e-6 of the ramp's height, below one step of half precision.
_TEMPERATURES_PER_RAMP = 12.0


@frozen(kw_only=True)
class AlphaSchedule:
    """A ramp of alpha from ``start`` to ``end`` over ``steps`` optimizer steps.

    Defined for every integer step: ``start`` up to and including ``start_step``, ``end`` from
    ``end_step`` on, monotone and inside the two between them. ``temperature`` (in steps) shapes
    the sigmoid alone: ``start + (end - start) * (0.5 + 0.5 * tanh((step - midpoint) /
    temperature))``; left out, it is a twelfth of the ramp.
    """

    curve: Curve = field(default=Curve.SIGMOID, validator=of_type(Curve))
    start_step: int = field(validator=not_negative)
    steps: int = field(validator=not_negative)
    start: float = field(default=0.0, validator=unit_interval)
    end: float = field(default=1.0, validator=unit_interval)
    temperature: float | None = field(default=None, validator=optional(positive))

    @property
    def end_step(self) -> int:
        """The first step at which alpha is exactly ``end``."""
        return self.start_step + self.steps

    def alpha(self, step: int) -> float:
        """Alpha at ``step``, in [min(start, end), max(start, end)]."""
        if step >= self.end_step:
            return self.end
        if step <= self.start_step:
            return self.start
        low, high = sorted((self.start, self.end))
        value = self.start + (self.end - self.start) * self._progress(step)
        return min(max(value, low), high)

    def _progress(self, step: int) -> float:
        elapsed = step - self.start_step
        if self.curve is Curve.LINEAR:
            return elapsed / self.steps
        if self.curve is Curve.COSINE:
            return 0.5 - 0.5 * math.cos(math.pi * elapsed / self.steps)
        temperature = self.temperature or self.steps / _TEMPERATURES_PER_RAMP
        return 0.5 + 0.5 * math.tanh((elapsed - self.steps / 2) / temperature)


@frozen(kw_only=True)
class BlendPlan:
    """How a seed is to be blended in, chosen at germination and turned into a schedule at G2.

    ``target`` is the alpha at which it stays, in (0, 1]. With ``search``, each of those alphas is
    rehearsed at the end of incubation and the best of them becomes the target (a line search).
    ``epochs`` is the ramp's length in epochs of the run itself, because the number of steps in an
    epoch is known only once epochs have been recorded.
    """

    blend: Blend = field(default=Blend.LERP, validator=of_type(Blend))
    target: float = field(default=1.0, validator=share)
    search: tuple[float, ...] = field(default=(), validator=deep_iterable(share, of_type(tuple)))
    epochs: float = field(default=3.0, validator=not_negative)
    curve: Curve = field(default=Curve.SIGMOID, validator=of_type(Curve))
    temperature: float | None = field(default=None, validator=optional(positive))


def held(alpha: float, *, step: int = 0) -> AlphaSchedule:
    """The schedule that is ``alpha`` at every step."""
    return AlphaSchedule(start_step=step, steps=0, start=alpha, end=alpha)
