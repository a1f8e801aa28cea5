"""Letting a seed learn from the loss it would cause if it were blended in; the host stays."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from attrs import evolve as changed
from torch import Tensor
from torch.utils import _pytree as pytree

from kasmina.adapters.torch.buffers import buffers_kept
from kasmina.adapters.torch.graft import Slots
from kasmina.adapters.torch.measurement import SlotNotEvaluated, eagerly
from kasmina.adapters.torch.randomness import devices_of, undisturbed
from kasmina.adapters.torch.sharding import parameters_in_forward
from kasmina.adapters.torch.slot import SeedSlot
from kasmina.adapters.torch.streams import Stream
from kasmina.domain.errors import InvalidCommand
from kasmina.domain.projections import Behaviour, SlotView
from kasmina.domain.schedules import held
from kasmina.domain.stages import Incubator, SeedInput, Stage

Loss = Callable[..., Tensor]
"""The scalar loss of the model's forward on the batch that it is given."""


def shown_at(view: SlotView, alpha: float) -> SlotView:
    """How a slot acts in which an incubating seed is tried at ``alpha``."""
    return changed(view, behaviour=Behaviour.BLEND, schedule=held(alpha))


def rehearses(view: SlotView) -> bool:
    """Whether a seed acts as ``view`` says that learns by rehearsal now."""
    if view.stage is not Stage.TRAINING or not view.learning:
        return False
    return view.incubation.incubator is Incubator.REHEARSAL


class Attendance:
    """Who was rehearsed in a step: a seed that nobody rehearses would never learn, unnoticed."""

    def __init__(self) -> None:
        self._expected: tuple[str, ...] = ()
        self._present: set[str] = set()

    def came(self, slot_id: str) -> None:
        """Note that the seed in that slot was rehearsed."""
        self._present.add(slot_id)

    def end_step(self, *, expected: tuple[str, ...]) -> None:
        """Begin the next step, with the seeds in ``expected`` slots to be rehearsed.

        Raises ``InvalidCommand`` for one that was expected in this step too, and did not come.
        """
        absent = [s for s in self._expected if s in expected and s not in self._present]
        if absent:
            raise InvalidCommand(
                f"the seeds in {absent} learn by rehearsal, but run.rehearse() was not called in "
                f"this step; call run.rehearse(loss, *batch) before every optimizer.step(), or "
                f"germinate with another incubator"
            )
        self._expected = expected
        self._present.clear()


def rehearse(
    slots: Slots, view: SlotView, alpha: float, loss: Loss, batch: tuple[Any, ...], *, draws: int
) -> None:
    """Add to a seed's gradients those of ``loss(*part)`` with the seed blended in at ``alpha``.

    ``part`` is the first rows of ``batch``, ``view.incubation.share`` of them: of every tensor in
    it, also inside tuples, lists and dicts, whose first dimension is that of the first tensor. The
    gradient goes to the seed alone. Gradients, buffers (the statistics of BatchNorm) and random
    streams of the host and of other seeds are untouched; ``draws`` seeds the streams of torch that
    the host uses instead. Compiled models run eagerly here, since the part has a shape of its own.

    Raises ``SlotNotEvaluated`` when the slot was never run.
    """
    learner = slots[view.slot_id]
    others = [slot for slot in slots.values() if slot is not learner]
    trial = changed(shown_at(view, alpha), seed_input=SeedInput.DETACHED)
    with ExitStack() as stack:
        stack.enter_context(eagerly())
        stack.enter_context(_own_draws(slots, draws))
        own = set(learner.modules())  # its buffers go on
        stack.enter_context(buffers_kept(m for m in slots.model.modules() if m not in own))
        stack.enter_context(_streams_kept(others))
        for other in others:
            if other.view.behaviour is Behaviour.INCUBATE:
                stack.enter_context(slots.showing(other.slot_id, _resting(other.view)))
        visits = stack.enter_context(slots.showing(view.slot_id, trial))
        grown = (module for module in (learner.seed, learner.mixer) if module is not None)
        run = stack.enter_context(parameters_in_forward(*grown))
        with torch.enable_grad():
            value = loss(*part_of(batch, view.incubation.share))
        if visits.count == 0:
            raise SlotNotEvaluated(view.slot_id)
        learning = [parameter for parameter in dict.fromkeys(run) if parameter.requires_grad]
        torch.autograd.backward(value, inputs=learning)


def part_of(batch: tuple[Any, ...], share: float) -> tuple[Any, ...]:
    """The first rows of ``batch``, at least one: ``share`` of them, rounded up."""
    leaves, structure = pytree.tree_flatten(batch)
    rows = next((leaf.shape[0] for leaf in leaves if _has_rows(leaf)), 0)
    kept = math.ceil(share * rows)
    part = [leaf[:kept] if _has_rows(leaf) and leaf.shape[0] == rows else leaf for leaf in leaves]
    return tuple(pytree.tree_unflatten(part, structure))


def _has_rows(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0


def _resting(view: SlotView) -> SlotView:
    return changed(view, behaviour=Behaviour.IDENTITY)


@contextmanager
def _own_draws(slots: Slots, draws: int) -> Iterator[None]:
    devices = devices_of(slots.model)
    with undisturbed(devices), ExitStack() as stack:
        for device in devices:
            stack.enter_context(Stream(draws).entered(device))
        yield


@contextmanager
def _streams_kept(slots: Iterable[SeedSlot]) -> Iterator[None]:
    """Let the seeds' own random streams stand where they stood."""
    kept = [(slot.stream, slot.stream.state()) for slot in slots if slot.stream is not None]
    try:
        yield
    finally:
        for stream, state in kept:
            stream.set_state(state)
