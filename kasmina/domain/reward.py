"""What a policy that grows the host is paid, term by term."""

from attrs import asdict, field, frozen

from kasmina.domain import events as e
from kasmina.domain.observation import relative_parameters
from kasmina.domain.state import RunState
from kasmina.domain.validators import not_negative


@frozen(kw_only=True)
class RewardWeights:
    """How much each term weighs; a penalty's weight is positive and enters with a minus."""

    gate_passage: float = field(default=1.0, validator=not_negative)
    fossilization: float = field(default=10.0, validator=not_negative)
    culling: float = field(default=2.0, validator=not_negative)
    compute_rent: float = field(default=0.1, validator=not_negative)


@frozen(kw_only=True)
class Reward:
    """The terms, already weighted and signed; ``total`` is their sum."""

    gate_passage: float = 0.0
    fossilization: float = 0.0
    culling: float = 0.0
    compute_rent: float = 0.0

    @property
    def total(self) -> float:
        """The scalar reward."""
        return float(sum(asdict(self).values()))


def reward(before: RunState, event: e.Event, weights: RewardWeights) -> Reward:
    """What ``event``, coming after the state ``before``, is worth.

    Rent falls due once for every recorded epoch, in proportion to the parameters of all attached
    seeds over the host's.
    """
    match event:
        case e.GateEvaluated(outcome=outcome) if outcome.passed:
            return Reward(gate_passage=weights.gate_passage)
        case e.SeedFossilized():
            return Reward(fossilization=weights.fossilization)
        case e.SeedCulled():
            return Reward(culling=-weights.culling)
        case e.EpochRecorded():
            attached = sum(
                slot.seed.parameters
                for slot in before.slots.values()
                if slot.seed is not None and slot.stage.holds_seed
            )
            return Reward(
                compute_rent=-weights.compute_rent * relative_parameters(before, attached)
            )
        case _:
            return Reward()
