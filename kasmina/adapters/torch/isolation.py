"""What is observed of seeds while they train: real leaks, gradients, and values not finite.

Sampled every so many steps, because looking has a cost (``benchmarks/results/isolation.md``); a
sampled step and another one leave the same bits in the host. A compiled forward cannot be watched,
so a seed that nobody saw run since the last evidence is tried on drawn features instead. Whatever
it does to the host meanwhile is undone, which takes a copy of the host's tensors: at that moment,
between two epochs, no activations are held, and nothing else can undo what a stranger's code did.
"""

from collections import Counter
from collections.abc import Iterator

import torch
from attrs import frozen
from torch import Tensor

from kasmina.adapters.torch import finite, leaks
from kasmina.adapters.torch.graft import Slots
from kasmina.adapters.torch.randomness import undisturbed
from kasmina.adapters.torch.sharding import whole
from kasmina.adapters.torch.slot import SeedSlot
from kasmina.adapters.torch.streams import Stream, aside
from kasmina.adapters.torch.surroundings import Copies, Habitat
from kasmina.domain.evidence import Violation
from kasmina.domain.projections import Behaviour

_HALVES = (torch.float16, torch.bfloat16)


@frozen(kw_only=True)
class SlotObservation:
    """What was observed of a slot's seed since the last reset.

    ``gradient_norm`` is the Euclidean norm over the seed's parameters at the last sampled step,
    ``None`` if none was sampled. Gradients are counted in every sample; outputs too while the host
    does not see them, and in every forward from then on.
    """

    gradient_norm: float | None = None
    nonfinite_outputs: int = 0
    nonfinite_gradients: int = 0
    violations: tuple[Violation, ...] = ()


class Monitor:
    """Observes the seeds in ``slots``, a sample every ``every`` steps.

    The first training step of a seed, and the first after each ``reset``, is always sampled.
    """

    def __init__(self, slots: Slots, *, every: int = 50) -> None:
        if every < 1:
            raise ValueError(f"a sample is taken every so many steps, at least 1, got {every}")
        self.slots = slots
        self.every = every
        self._steps = 0
        self._due = False
        self._habitat = Habitat(slots.model, slots.values())

    def resume(self, steps: int) -> None:
        """Go on after so many steps, with the samples that would have come next."""
        self._steps = steps
        self._due = steps % self.every == 0

    def step(self) -> None:
        """Count a training step; after every so many, the next one is sampled."""
        self._steps += 1
        self._due = self._steps % self.every == 0
        self._habitat.refresh()
        if self._due:
            for slot in self.slots.values():
                slot.watch()

    def observe_gradients(self) -> None:
        """Take the norm of each learning seed's gradient, if this step is sampled.

        Call it when gradients are final (unscaled, clipped), before the optimizer's step. Norms
        stay on the device.
        """
        for slot in self.slots.values():
            if slot.learning and (self._due or slot.gradient_norm is None):
                _take_norm(slot)

    def collect(self) -> dict[str, SlotObservation]:
        """Everything observed since the last ``reset``, by slot: one copy from each device."""
        self._habitat.refresh()
        self._look_aside()
        figures = _figures(self.slots)
        return {
            slot_id: SlotObservation(
                gradient_norm=None if slot.gradient_norm is None else figures[slot_id][0],
                nonfinite_outputs=int(figures[slot_id][1]),
                nonfinite_gradients=int(figures[slot_id][2]),
                violations=tuple(self._violations(slot)),
            )
            for slot_id, slot in self.slots.items()
        }

    def reset(self) -> None:
        """Begin anew: counters at zero, the next step sampled."""
        self._habitat.refresh()
        for slot in self.slots.values():
            slot.forget()

    def _look_aside(self) -> None:
        """Try the seeds that learn and that no watched forward has shown."""
        copies: Copies | None = None
        for slot in self.slots.values():
            # A fossil is part of its host.
            if slot.learning and not slot.seen and slot.view.behaviour is not Behaviour.SEED:
                copies = copies or Copies(self.slots.model)
                _try(slot, self._habitat, copies)

    def _violations(self, slot: SeedSlot) -> Iterator[Violation]:
        if slot.seed is None:
            return
        names = {id(tensor): name for name, tensor in leaks.tensors(self.slots.model)}
        counts = Counter((seen.leak, _name(seen.subject, names)) for seen in slot.sightings)
        for shared in leaks.sharing(slot.seed, self._habitat.around(slot.seed)):
            counts[shared.leak, _name(shared.subject, names)] = 1  # it lasts, and is one
        for (leak, subject), count in counts.items():
            yield Violation(leak=leak, count=count, subject=subject)


def _name(subject: Tensor | str, names: dict[int, str]) -> str:
    if isinstance(subject, str):
        return subject
    if id(subject) in names:
        return names[id(subject)]
    return f"a tensor of shape {tuple(subject.shape)}"


def _take_norm(slot: SeedSlot) -> None:
    gradients = [p.grad for p in slot.seed_parameters() if p.grad is not None]
    if gradients:
        # A norm in half precision would end at 65504.
        wide = [g.float() if g.dtype in _HALVES else g for g in gradients]
        slot.gradient_norm = whole(torch.nn.utils.get_total_norm(wide))
        finite.count_nonfinite(slot.gradient_norm, slot.nonfinite_gradients)


def _try(slot: SeedSlot, habitat: Habitat, copies: Copies) -> None:
    """Note what the seed does with drawn features; the model is left as it was copied."""
    if slot.seed is not None:
        with undisturbed(), aside(Stream(slot.step), slot.alpha.device):
            features = slot.inlet(slot.draw_features().requires_grad_())
            slot.note(leaks.examine(slot.seed, features, habitat, copies))
        slot.choose()


def _figures(slots: Slots) -> dict[str, tuple[float, ...]]:
    """Gradient norm and both counts of each slot."""
    by_device: dict[torch.device, list[SeedSlot]] = {}
    for slot in slots.values():
        by_device.setdefault(slot.alpha.device, []).append(slot)
    found: dict[str, tuple[float, ...]] = {}
    for together in by_device.values():
        # float32 holds every count up to 16 million, and exists on every device.
        table = torch.stack([figure.float() for slot in together for figure in _row(slot)])
        rows = table.view(len(together), 3).tolist()
        found.update({slot.slot_id: tuple(row) for slot, row in zip(together, rows, strict=True)})
    return found


def _row(slot: SeedSlot) -> tuple[Tensor, Tensor, Tensor]:
    norm = torch.zeros_like(slot.alpha) if slot.gradient_norm is None else slot.gradient_norm
    return norm, slot.nonfinite_outputs, slot.nonfinite_gradients
