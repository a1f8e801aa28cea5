"""How each event changes the state. ``evolve`` applies what was recorded and judges nothing."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import singledispatch

from attrs import evolve as changed

from kasmina.domain import events as e
from kasmina.domain.errors import CorruptHistory
from kasmina.domain.schedules import held
from kasmina.domain.stages import Gate, Health, Stage
from kasmina.domain.state import OBJECTIVES_KEPT, RunState, SeedState, SlotState


def evolve(state: RunState | None, event: e.Event) -> RunState:
    """The state after ``event``; before the first event the state is ``None``.

    For ``RunRewound`` and ``RunForked``, ``state`` is the one at the point they name. Raises
    ``CorruptHistory`` where no such event can follow.
    """
    if isinstance(event, e.RunOpened):
        if state is not None:
            raise CorruptHistory(f"run {state.run_id!r} is opened a second time")
        return _opened(event)
    if state is None:
        raise CorruptHistory(f"the first event is {type(event).__name__}, not RunOpened")
    if isinstance(event, e.RunRewound):
        return changed(state, sequence=event.head + 1, rewinds=state.rewinds + 1)
    if isinstance(event, e.RunForked):
        return changed(
            state, run_id=event.run_id, name=event.name, sequence=1, checkpoint=None, closed=False
        )
    after = _applied(event, state)
    return changed(after, sequence=state.sequence + 1, epoch=event.epoch, step=event.step)


def replay(events: Sequence[e.Event], origin: RunState | None = None) -> RunState | None:
    """The state after a run's ``events`` from its first to any later one; ``None`` for none.

    ``origin`` is the parent's state for a run that begins with ``RunForked``.
    """
    rewinds = [
        (n, event.to) for n, event in enumerate(events, 1) if isinstance(event, e.RunRewound)
    ]
    state = origin
    for after, until in surviving(rewinds, head=len(events)):
        for event in events[after:until]:
            state = evolve(state, event)
    return state


def surviving(rewinds: Iterable[tuple[int, int]], *, head: int) -> list[tuple[int, int]]:
    """The stretches ``(after, until]`` of sequences that a run's fold is made of, in order.

    ``rewinds`` are ``(sequence, to)`` of the run's ``RunRewound`` events. A rewind returns to the
    state as it was at ``to``, so what an earlier rewind took back can be returned to. Raises
    ``CorruptHistory`` for a rewind that does not lead back.
    """
    stretches = []
    until = head
    for sequence, to in sorted(rewinds, reverse=True):
        if not 0 < to < sequence:
            raise CorruptHistory(f"event {sequence} rewinds the run to event {to}")
        if sequence <= until:
            stretches.append((sequence - 1, until))
            until = to
    stretches.append((0, until))
    return stretches[::-1]


def _opened(event: e.RunOpened) -> RunState:
    return RunState(
        run_id=event.run_id,
        name=event.name,
        sequence=1,
        epoch=event.epoch,
        step=event.step,
        objective=event.objective,
        policy=event.policy,
        host=event.host,
        random_seed=event.random_seed,
    )


def _slot(state: RunState, event: e.SlotEvent) -> SlotState:
    if event.slot_id not in state.slots:
        raise CorruptHistory(f"{type(event).__name__} names slot {event.slot_id!r}, never opened")
    return state.slots[event.slot_id]


def _seed(slot: SlotState, seed_id: str, event: e.Event) -> SeedState:
    if slot.seed is None or slot.seed.seed_id != seed_id:
        raise CorruptHistory(
            f"{type(event).__name__} names seed {seed_id!r}, which is not in slot {slot.slot_id!r}"
        )
    return slot.seed


def _with_slot(state: RunState, slot: SlotState) -> RunState:
    return changed(state, slots={**state.slots, slot.slot_id: slot})


def _with_seed(
    state: RunState, event: e.SeedEvent, change: Callable[[SeedState], SeedState]
) -> RunState:
    slot = _slot(state, event)
    return _with_slot(state, changed(slot, seed=change(_seed(slot, event.seed_id, event))))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


@singledispatch
def _applied(event: e.Event, state: RunState) -> RunState:
    """What ``event`` changes beyond the run's sequence, epoch and step."""
    raise CorruptHistory(f"{type(event).__name__} is not an event of this version")


@_applied.register
def _(event: e.RunClosed, state: RunState) -> RunState:
    return changed(state, closed=True)


@_applied.register
def _(event: e.GatePolicyChanged, state: RunState) -> RunState:
    return changed(state, policy=event.policy)


@_applied.register
def _(event: e.CheckpointSaved, state: RunState) -> RunState:
    return changed(state, checkpoint=event)


@_applied.register
def _(event: e.EpochRecorded, state: RunState) -> RunState:
    objective = _finite(event.objective)
    slots = {slot.slot_id: _lived(slot, event.objective) for slot in state.slots.values()}
    for evidence in event.seeds:
        if evidence.slot_id not in slots:
            raise CorruptHistory(f"EpochRecorded names slot {evidence.slot_id!r}, never opened")
        slot = slots[evidence.slot_id]
        seed = _seed(slot, evidence.seed_id, event)
        slots[slot.slot_id] = changed(
            slot,
            seed=changed(
                seed,
                gradient_norm=evidence.gradient_norm,
                nonfinite=evidence.nonfinite_outputs + evidence.nonfinite_gradients,
            ),
        )
    return changed(
        state,
        latest=event.objective,
        epoch_ended=event.step,
        steps_per_epoch=event.step - state.epoch_ended,
        measured=state.measured if objective is None else objective,
        metrics={metric.name: metric.value for metric in event.metrics},
        slots=slots,
    )


def _lived(slot: SlotState, objective: float | None) -> SlotState:
    """The slot one epoch later; for a paused seed the epoch does not count."""
    seed = slot.seed
    if seed is not None and seed.paused_at is not None:
        return slot
    if seed is not None and seed.baseline is None:
        seed = changed(seed, baseline=_finite(objective))
    baseline = slot.stage_baseline
    return changed(
        slot,
        seed=seed,
        epochs_in_stage=slot.epochs_in_stage + 1,
        stage_baseline=_finite(objective) if baseline is None else baseline,
        objectives=(*slot.objectives, objective)[-OBJECTIVES_KEPT:],
    )


@_applied.register
def _(event: e.SlotOpened, state: RunState) -> RunState:
    if event.slot_id in state.slots:
        raise CorruptHistory(f"slot {event.slot_id!r} is opened a second time")
    slot = SlotState(slot_id=event.slot_id, topology=event.topology, width=event.width)
    return _with_slot(state, slot)


@_applied.register
def _(event: e.SeedGerminated, state: RunState) -> RunState:
    slot = _slot(state, event)
    seed = SeedState(
        seed_id=event.seed_id,
        blueprint_id=event.blueprint_id,
        incubation=event.incubation,
        seed_input=event.seed_input,
        blend=event.blend,
        probe=event.probe,
        parameters=event.parameters,
        init_seed=event.init_seed,
        learning_rate=event.learning_rate,
        weight_decay=event.weight_decay,
        baseline=state.measured,
        target=event.blend.target,
    )
    return _with_slot(state, changed(slot, seed=seed, germinations=slot.germinations + 1))


@_applied.register
def _(event: e.GateEvaluated, state: RunState) -> RunState:
    slot, outcome = _slot(state, event), event.outcome
    earlier = {} if outcome.gate is Gate.G0 else slot.outcomes
    return _with_slot(state, changed(slot, outcomes={**earlier, outcome.gate: outcome}))


# At these stages alpha is a constant, whatever the ramp or an override left behind.
_AT_TARGET = (Stage.SHADOWING, Stage.FOSSILIZED)


@_applied.register
def _(event: e.StageChanged, state: RunState) -> RunState:
    slot = _slot(state, event)
    if slot.stage is not event.source:
        raise CorruptHistory(
            f"slot {slot.slot_id!r} leaves {event.source.value}, but was {slot.stage.value}"
        )
    seed = changed(
        _seed(slot, event.seed_id, event), health=Health.HEALTHY, cull_reason=None, paused_at=None
    )
    if event.target in _AT_TARGET:
        seed = changed(seed, schedule=held(seed.target, step=event.step))
    if event.target is Stage.CULLED:
        seed = changed(seed, schedule=held(0.0, step=event.step))
    if event.target is Stage.PROBATIONARY:
        # G5 judges what was measured on probation, not at some alpha of the ramp.
        seed = changed(seed, contribution=None, contributions=0)
    return _with_slot(
        state,
        changed(
            slot,
            stage=event.target,
            seed=seed,
            epochs_in_stage=0,
            stage_baseline=state.measured,
            objectives=(),
        ),
    )


@_applied.register
def _(event: e.BlendScheduled, state: RunState) -> RunState:
    end = event.schedule.end
    return _with_seed(
        state,
        event,
        lambda seed: changed(seed, schedule=event.schedule, target=end or seed.target),
    )


@_applied.register
def _(event: e.AlphaOverridden, state: RunState) -> RunState:
    schedule = held(event.alpha, step=event.step)
    return _with_seed(state, event, lambda seed: changed(seed, schedule=schedule))


@_applied.register
def _(event: e.ShadowEvaluated, state: RunState) -> RunState:
    contribution = state.objective.improvement(event.objective_without, event.objective_with)
    return _with_seed(
        state,
        event,
        lambda seed: changed(
            seed,
            shadow_evaluations=seed.shadow_evaluations + 1,
            agreement=event.agreement,
            shadow_contribution=contribution,
        ),
    )


@_applied.register
def _(event: e.CounterfactualMeasured, state: RunState) -> RunState:
    contribution = state.objective.improvement(event.objective_without, event.objective_with)
    if contribution is None:  # nothing was measured, and it must not erase what had been
        return _with_seed(state, event, lambda seed: seed)
    if _slot(state, event).stage.exposed:
        return _with_seed(state, event, lambda seed: _contributed(seed, contribution))
    return _with_seed(
        state,
        event,
        lambda seed: changed(seed, rehearsals={**seed.rehearsals, event.alpha: contribution}),
    )


def _contributed(seed: SeedState, contribution: float) -> SeedState:
    earlier = seed.contribution or 0.0
    count = seed.contributions + 1
    mean = earlier + (contribution - earlier) / count
    return changed(seed, contribution=mean, contributions=count)


@_applied.register
def _(event: e.IsolationViolated, state: RunState) -> RunState:
    return _with_seed(
        state, event, lambda seed: changed(seed, violations=seed.violations + event.count)
    )


@_applied.register
def _(event: e.HealthChanged, state: RunState) -> RunState:
    return _with_seed(state, event, lambda seed: changed(seed, health=event.health))


@_applied.register
def _(event: e.CullScheduled, state: RunState) -> RunState:
    return _with_seed(
        state,
        event,
        lambda seed: changed(
            seed, schedule=event.schedule, cull_reason=event.reason, cull_cause=event.cause
        ),
    )


@_applied.register(e.SeedCulled)
@_applied.register(e.SeedFossilized)
def _(event: e.SeedEvent, state: RunState) -> RunState:
    return _with_seed(state, event, lambda seed: seed)


@_applied.register
def _(event: e.SlotRecycled, state: RunState) -> RunState:
    slot = _slot(state, event)
    _seed(slot, event.seed_id, event)
    return _with_slot(state, changed(slot, seed=None))


@_applied.register
def _(event: e.SeedPaused, state: RunState) -> RunState:
    return _with_seed(state, event, lambda seed: changed(seed, paused_at=event.step))


@_applied.register
def _(event: e.SeedResumed, state: RunState) -> RunState:
    def resume(seed: SeedState) -> SeedState:
        pause = event.step - (event.step if seed.paused_at is None else seed.paused_at)
        moved = changed(seed.schedule, start_step=seed.schedule.start_step + pause)
        return changed(seed, paused_at=None, schedule=moved)

    return _with_seed(state, event, resume)
