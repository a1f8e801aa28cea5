"""Slots and optimizer made to be what the log says, and kept so from step to step."""

from collections.abc import Iterator, Mapping

from kasmina.adapters.torch.germination import Sprout
from kasmina.adapters.torch.graft import Slots
from kasmina.adapters.torch.optimizer import SeedGroups
from kasmina.adapters.torch.rehearsal import rehearses
from kasmina.adapters.torch.slot import SeedSlot
from kasmina.domain.projections import Behaviour, SlotView, slot_view
from kasmina.domain.state import RunState, SlotState


class Showing:
    """What the slots were last shown. ``rehearsing`` are those whose seeds learn by rehearsal."""

    def __init__(self, slots: Slots, groups: SeedGroups) -> None:
        self._slots = slots
        self._groups = groups
        self.views = {slot_id: SlotView(slot_id=slot_id) for slot_id in slots}
        self.rehearsing: tuple[str, ...] = ()
        self._ramping: tuple[str, ...] = ()

    def show(self, state: RunState, step: int, grown: Mapping[str, Sprout]) -> None:
        """Make slots and optimizer what ``state`` says; ``grown`` holds the seeds new to them."""
        for slot_id, slot in self._slots.items():
            view, seen = slot_view(state, slot_id), self.views[slot_id]
            if view.seed_id != seen.seed_id:
                self._replace(slot, seen, state.slot(slot_id), grown)
            if view != seen:
                slot.follow(view, step)
                self._groups.shield(slot)
            self.views[slot_id] = view
        self._ramping = tuple(self._climbing(step))
        self.rehearsing = tuple(slot_id for slot_id, view in self.views.items() if rehearses(view))

    def set_alphas(self, step: int) -> None:
        """Move the alphas that are under way to where they are at ``step``."""
        for slot_id in self._ramping:
            self._slots[slot_id].set_alpha(step)

    def _climbing(self, step: int) -> Iterator[str]:
        for slot_id, view in self.views.items():
            under_way = view.behaviour is Behaviour.BLEND and view.paused_at is None
            if under_way and step < view.schedule.end_step:
                yield slot_id

    def _replace(
        self, slot: SeedSlot, seen: SlotView, now: SlotState, grown: Mapping[str, Sprout]
    ) -> None:
        if seen.seed_id is not None:
            slot.detach()
            self._groups.remove(seen.seed_id)
        if now.seed is not None and now.stage.holds_seed:
            slot.attach(grown[now.slot_id])
            self._groups.add(
                now.seed.seed_id,
                slot.seed_parameters(),
                learning_rate=now.seed.learning_rate,
                weight_decay=now.seed.weight_decay,
                warmup_steps=now.seed.incubation.warmup_steps,
            )
