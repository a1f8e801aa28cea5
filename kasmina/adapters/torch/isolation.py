"""What is observed of seeds while they train: real leaks, gradients, and values not finite.

Sampled every so many steps, because looking has a cost; a sampled step and another one leave the
same bits in the host. A compiled forward cannot be watched, so a seed that nobody saw run since
the last evidence is tried on drawn features instead, aside from the host.
"""

from collections import Counter
from collections.abc import Iterator

import torch
from attrs import frozen
from torch import Tensor

from kasmina.adapters.torch import leaks, ops
from kasmina.adapters.torch.graft import Slots
from kasmina.adapters.torch.slot import SeedSlot
from kasmina.adapters.torch.streams import Stream, aside
from kasmina.domain.evidence import Violation
from kasmina.domain.projections import Behaviour
from kasmina.domain.stages import Leak

_HALVES = (torch.float16, torch.bfloat16)


@frozen(kw_only=True)
class SlotObservation:
    """What was observed of a slot's seed since the last reset.

    ``gradient_norm`` is the Euclidean norm over the seed's parameters at the last sampled step,
    ``None`` if none was sampled. Outputs are counted in every forward, gradients in every sample.
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

    def resume(self, steps: int) -> None:
        """Go on after so many steps, with the samples that would have come next."""
        self._steps = steps
        self._due = steps % self.every == 0

    def step(self) -> None:
        """Count a training step; after every so many, the next one is sampled."""
        self._steps += 1
        self._due = self._steps % self.every == 0
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
        for slot in self.slots.values():
            if slot.learning and not slot.seen:
                _look_aside(slot)
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
        for slot in self.slots.values():
            slot.forget()

    def _violations(self, slot: SeedSlot) -> Iterator[Violation]:
        if slot.seed is None:
            return
        names = {id(tensor): name for name, tensor in leaks.tensors(self.slots.model)}
        counts = Counter((seen.leak, _name(seen.subject, names)) for seen in slot.sightings)
        for (leak, subject), count in counts.items():
            yield Violation(leak=leak, count=count, subject=subject)
        for own, host, _ in leaks.shared(slot.seed, self.slots.host_tensors()):
            yield Violation(leak=Leak.SHARED_PARAMETER, count=1, subject=f"{own} is {host}")


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
        slot.gradient_norm = torch.nn.utils.get_total_norm(wide)
        ops.count_nonfinite(slot.gradient_norm, slot.nonfinite_gradients)


def _look_aside(slot: SeedSlot) -> None:
    """Try the seed on drawn features, where no watched forward showed what it does."""
    if slot.seed is None or slot.view.behaviour not in (Behaviour.INCUBATE, Behaviour.BLEND):
        return
    with aside(Stream(slot.step), slot.alpha.device), leaks.buffers_kept(slot.seed):
        glimpse = leaks.watch(slot.seed, slot.seed, slot.draw_features())
    slot.note(glimpse)


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
