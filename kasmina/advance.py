"""What a run drafts beyond its loop's own wishes: every slot's next move, and a seed's numbers."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

from kasmina.domain import commands as c
from kasmina.domain import events as e
from kasmina.domain.ports import Recorded
from kasmina.domain.progress import advanceable
from kasmina.domain.state import RunState, SlotState
from kasmina.service import Draft

E = TypeVar("E", bound=e.Event)


def advance_all(draft: Draft, step: int) -> None:
    """Ask the gate of every slot that can move, and follow it where it passes."""
    for slot_id in draft.state.slots:
        if advanceable(draft.state.slot(slot_id), draft.state.policy, step):
            draft.decide(c.Advance(step=step, slot_id=slot_id))
            settle(draft, slot_id, step)


def settle(draft: Draft, slot_id: str, step: int) -> None:
    """Let a slot that lost its seed run through the stages that wait for no evidence."""
    while True:
        slot = draft.state.slot(slot_id)
        clearing = slot.seed is not None and not slot.stage.holds_seed
        if not (clearing and advanceable(slot, draft.state.policy, step)):
            return
        draft.decide(c.Advance(step=step, slot_id=slot_id))


def first_weights(state: RunState, slot: SlotState) -> int:
    """63 bits that depend on the run's random seed, the slot, and how often it was used."""
    text = f"{state.random_seed}/{slot.slot_id}/{slot.germinations}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def only(recorded: Sequence[Recorded], kind: type[E]) -> tuple[E, ...]:
    """The events of one kind."""
    return tuple(record.event for record in recorded if isinstance(record.event, kind))
