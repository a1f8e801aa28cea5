"""What can be found of a run that silently does nothing: a warning, or ``None`` if all is well.

No correct loop should ever read one of these. So the bounds are wide, and a fact that has an honest
explanation (an AMP scaler that skips steps, a warm-up from zero, training in eval mode) is none.
"""

import math
from collections.abc import Iterator, Sequence

from torch import nn

from kasmina.adapters.torch.slot import SeedSlot
from kasmina.domain.projections import Behaviour
from kasmina.domain.stages import Stage
from kasmina.domain.state import RunState, SlotState
from kasmina.silence import Silence, SilentRun

LONG_EPOCH = 100_000
"""Steps; longer than any epoch between two evaluations."""

UNCOUNTED_STEPS = 100
"""Optimizer steps in a row without one that is counted."""

WINDOW = 128
"""Steps over which the optimizer's and the run's are held against each other."""

_IDLE_STEPS = 20  # a scaler that skips so many in a row has come down from 65536 to a sixteenth
_AGREEMENT = 0.7  # of them; an accumulation over two batches leaves a half
_TRIAL_STEPS = 20  # of a loop that is only being tried out, fewer
_UNMEASURED_EPOCHS = 10
_ALPHA_SLACK = 0.01  # half precision rounds to 0.0005


def endless_epoch(state: RunState) -> SilentRun | None:
    """Of an epoch that has lasted for ``LONG_EPOCH`` steps."""
    if not list(_waiting(state)):
        return None
    return SilentRun(
        Silence.NO_EPOCH,
        state.run_id,
        f"{LONG_EPOCH:,} steps were counted since the last end_epoch(), and no gate was asked "
        f"about the seeds meanwhile",
        "call run.end_epoch(evaluate) whenever you evaluate the model",
    )


def no_epoch(state: RunState, steps: int) -> SilentRun | None:
    """Of a run that was closed ``steps`` after its last epoch."""
    if not list(_waiting(state)) or state.epoch or steps < _TRIAL_STEPS:
        return None
    return SilentRun(
        Silence.NO_EPOCH,
        state.run_id,
        f"the run was closed after {steps:,} steps without a single end_epoch(), so no gate was "
        f"asked about the seeds that wait for one",
        "call run.end_epoch(evaluate) after each epoch",
    )


def steps_apart(run_id: str, *, counted: int, taken: int) -> SilentRun | None:
    """Of steps that the run ``counted`` and those that its optimizer has ``taken``."""
    fewer, more = sorted((counted, taken))
    idle = taken == 0 and counted >= _IDLE_STEPS
    if not idle and (more < WINDOW or fewer >= _AGREEMENT * more):
        return None
    if taken == more:
        return uncounted(run_id, counted=counted, taken=taken)
    return SilentRun(
        Silence.OPTIMIZER_IDLE,
        run_id,
        f"run.step() was called {counted} times, but the optimizer that the run was given took "
        f"{taken} steps",
        "call run.step() once after each optimizer.step(), not after each batch that is "
        "accumulated, and train with the very optimizer that open_run() was given: to go on with "
        "another one, checkpoint, and resume with that",
    )


def uncounted(run_id: str, *, counted: int, taken: int) -> SilentRun:
    """Of optimizer steps that were not counted."""
    return SilentRun(
        Silence.STEPS_UNCOUNTED,
        run_id,
        f"the optimizer took {taken} steps, but run.step() was called {counted} times, so alpha "
        f"does not move as scheduled and evidence is sampled too rarely",
        "call run.step() after every optimizer.step()",
    )


def never_measured(state: RunState, *, measuring: bool) -> SilentRun | None:
    """Of an objective that no epoch has had, the present one neither unless it is ``measuring``."""
    about_to_be = measuring and state.latest is None
    waited = max(_waiting(state), default=0)
    if state.measured is not None or about_to_be or waited < _UNMEASURED_EPOCHS:
        return None
    what = "was never measured" if state.latest is None else "was never a finite number"
    return SilentRun(
        Silence.NEVER_MEASURED,
        state.run_id,
        f"the objective {state.objective.name!r} {what}, and a seed has waited for its gate for "
        f"{waited} epochs; without that figure it cannot pass",
        "give end_epoch() a function that measures it on held-out data",
    )


def no_ramp(slot: SlotState, steps: int) -> SilentRun | None:
    """Of a seed that may be blended in at the end of an epoch of so many ``steps``."""
    if slot.seed is None or slot.stage is not Stage.TRAINING:
        return None
    epochs = slot.seed.blend.epochs
    if epochs == 0.0 or round(epochs * steps):
        return None
    return SilentRun(
        Silence.NO_RAMP,
        slot.slot_id,
        f"a ramp of {epochs:g} epochs comes to no step at all where an epoch has {steps}: the "
        f"seed in slot {slot.slot_id!r} would act at full alpha at once",
        "give its BlendPlan more epochs, or 0 where that is meant",
    )


def alpha_lost(slot: SeedSlot) -> SilentRun | None:
    """Of a slot whose alpha is not what its schedule says. Waits for the slot's device."""
    if slot.view.behaviour is not Behaviour.BLEND:
        return None
    due, found = slot.view.alpha(slot.step), float(slot.alpha)
    if math.isclose(due, found, abs_tol=_ALPHA_SLACK):
        return None
    return SilentRun(
        Silence.ALPHA_LOST,
        slot.slot_id,
        f"alpha of slot {slot.slot_id!r} is {due:.3f} by its schedule, but its buffer holds "
        f"{found:.3f}",
        "re-initialise, average and load no buffers below the model's child 'kasmina'",
    )


def learns_nothing(slot: SeedSlot, wanted: Sequence[nn.Parameter]) -> SilentRun | None:
    """Of a seed whose ``wanted`` parameters were to learn since the last epoch."""
    name = slot.slot_id
    frozen = sum(not parameter.requires_grad for parameter in wanted)
    if frozen:
        return SilentRun(
            Silence.SEED_FROZEN,
            name,
            f"{frozen} of the {len(wanted)} parameters that the seed in slot {name!r} is to learn "
            f"have requires_grad=False",
            "freeze slots.host_parameters() instead of model.parameters(), or run.pause() the seed",
        )
    if slot.gradient_norm is not None:
        return None
    if slot.seen:
        return SilentRun(
            Silence.NO_GRADIENT,
            name,
            f"the seed in slot {name!r} ran, but had a gradient at no optimizer step since the "
            f"last epoch",
            "see that the loss is computed from the model's output, outside torch.no_grad(), and "
            "that gradients are not cleared before optimizer.step()",
        )
    return SilentRun(
        Silence.SLOT_NOT_RUN,
        name,
        f"no training forward of slot {name!r} was seen since the last epoch, and no gradient "
        f"came to its seed",
        "train the model that was grafted, not a copy of it, and graft before it is compiled or "
        "wrapped",
    )


def rate_zero(slot_id: str) -> SilentRun:
    """Of a seed that was to learn and had no rate at any step since the last epoch."""
    return SilentRun(
        Silence.RATE_ZERO,
        slot_id,
        f"every step since the last epoch was taken at a learning rate of 0 for the seed in slot "
        f"{slot_id!r}",
        "its rate follows that of the optimizer's first group: see what your scheduler sets there",
    )


def _waiting(state: RunState) -> Iterator[int]:
    """The epochs that each seed which waits for a gate has spent in its stage."""
    for slot in state.slots.values():
        waits = slot.stage.holds_seed and slot.stage is not Stage.FOSSILIZED
        if slot.seed is not None and waits and slot.seed.paused_at is None:
            yield slot.epochs_in_stage
