"""How a seed is to learn before its host depends on it, chosen at germination."""

from attrs import field, frozen

from kasmina.domain.stages import Incubator
from kasmina.domain.validators import not_negative, of_type, positive, share


@frozen(kw_only=True)
class IncubationPlan:
    """The incubator, and what each needs to know.

    ``penalty`` is that of ``PROXIMAL``, relative: the seed is drawn back with the strength of its
    gradient when it is ``1 / penalty`` of the host's features away from them. ``share`` is the part
    of each batch, in (0, 1], on which ``REHEARSAL`` tries the seed. Over its first
    ``warmup_steps`` steps of learning the seed's rate rises linearly.
    """

    incubator: Incubator = field(default=Incubator.PROXIMAL, validator=of_type(Incubator))
    penalty: float = field(default=3.0, validator=positive)
    share: float = field(default=0.25, validator=share)
    warmup_steps: int = field(default=50, validator=not_negative)

    @property
    def relative_rate(self) -> float:
        """The seed's learning rate relative to its host's, where none is given.

        Straight through, a seed at the host's own rate outgrows its host's features: see
        ``docs/incubators.md`` for what was measured.
        """
        return 0.1 if self.incubator is Incubator.STRAIGHT_THROUGH else 1.0
