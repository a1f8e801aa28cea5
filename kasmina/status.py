"""One short line that says where a run's seeds stand: for progress bars and logs.

``layer2 BLENDING α 0.42 · G3 refused: alpha``
"""

from kasmina.domain.evidence import GateOutcome
from kasmina.domain.machine import EDGES
from kasmina.domain.stages import Stage
from kasmina.domain.state import RunState, SlotState

_AHEAD = {edge.source: edge.gate for edge in EDGES if edge.gate is not None}
_SLOTS_SHOWN = 3
_CHECKS_SHOWN = 2


def status_line(state: RunState, step: int) -> str:
    """Where the run stands at optimizer step ``step``, which may lie after the last event.

    Slots in which something goes on are told of one by one, the first three of them; fossils are
    counted, and empty slots mentioned only where there is nothing else.
    """
    told = [_slot(slot, step) for slot in state.slots.values() if _in_motion(slot)]
    fossils = sum(slot.stage is Stage.FOSSILIZED for slot in state.slots.values())
    parts = told[:_SLOTS_SHOWN]
    if len(told) > _SLOTS_SHOWN:
        parts.append(f"{len(told) - _SLOTS_SHOWN} more")
    if fossils:
        parts.append(f"{fossils} fossilized")
    empty = "1 slot" if len(state.slots) == 1 else f"{len(state.slots)} slots"
    return " | ".join(parts) or f"no seed in {empty}"


def pending(slot: SlotState) -> GateOutcome | None:
    """The refusal by which the slot is still where it is, if its gate was asked and refused."""
    if slot.stage not in _AHEAD or _AHEAD[slot.stage] not in slot.outcomes:
        return None
    outcome = slot.outcomes[_AHEAD[slot.stage]]
    # An empty slot remembers its last seed's G0, which passed.
    return None if outcome.passed else outcome


def refusal(outcome: GateOutcome, shown: int) -> str:
    """Which gate refused, the first checks for which it did, and how many more there are."""
    names = [check.name for check in outcome.failures]
    more = f" +{len(names) - shown}" if len(names) > shown else ""
    return f"{outcome.gate.value} refused: {', '.join(names[:shown])}{more}"


def fraction(alpha: float) -> str:
    """Alpha with two digits; 0.00 and 1.00 are said of exactly these alone."""
    return f"{min(max(alpha, 0.01), 0.99) if 0.0 < alpha < 1.0 else alpha:.2f}"


def _in_motion(slot: SlotState) -> bool:
    if slot.stage is Stage.DORMANT:
        return pending(slot) is not None
    return slot.stage is not Stage.FOSSILIZED


def _slot(slot: SlotState, step: int) -> str:
    seed, text = slot.seed, f"{slot.slot_id} {slot.stage.value}"
    if seed is not None and slot.stage.exposed:
        text += f" α {fraction(seed.alpha(step))}"
    if seed is not None and slot.stage.holds_seed and seed.cull_reason is not None:
        return f"{text} · being ramped out"
    if seed is not None and seed.paused_at is not None:
        return f"{text} · paused"
    refused = pending(slot)
    return text if refused is None else f"{text} · {refusal(refused, _CHECKS_SHOWN)}"
