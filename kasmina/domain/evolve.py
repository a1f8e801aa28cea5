"""How each event changes the state. ``evolve`` applies what was recorded and judges nothing."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs

from kasmina.domain import events as e
from kasmina.domain.changes import changed
from kasmina.domain.errors import CorruptHistory
from kasmina.domain.schedules import held
from kasmina.domain.stages import Gate, Health, Stage
from kasmina.domain.state import OBJECTIVES_KEPT, RunState, SeedState, SlotState


def evolve(state: RunState | None, event: e.Event) -> RunState:
    """The state after ``event``; before the first event the state is ``None``.

    For ``RunRewound`` and ``RunForked``, ``state`` is the one at the point they name. Raises
    ``CorruptHistory`` where no such event can follow.
    """
    if state is None:
        return _opened(event)
    try:
        fold = _FOLDS[type(event)]
    except KeyError:
        problem = f"{type(event).__name__} is not an event of this version"
        raise CorruptHistory(problem) from None
    return fold(state, event)


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


def _opened(event: e.Event) -> RunState:
    if not isinstance(event, e.RunOpened):
        raise CorruptHistory(f"the first event is {type(event).__name__}, not RunOpened")
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


def _seed(state: RunState, event: e.SeedEvent) -> SeedState:
    return _tenant(_slot(state, event), event.seed_id, event)


def _tenant(slot: SlotState, seed_id: str, event: e.Event) -> SeedState:
    if slot.seed is None or slot.seed.seed_id != seed_id:
        raise CorruptHistory(
            f"{type(event).__name__} names seed {seed_id!r}, which is not in slot {slot.slot_id!r}"
        )
    return slot.seed


# Replay is as fast as its copies are few: each fold below copies the run once, where it ends.


def _with_slot(state: RunState, event: e.SlotEvent, slot: SlotState) -> RunState:
    return changed(
        state,
        sequence=state.sequence + 1,
        epoch=event.epoch,
        step=event.step,
        slots={**state.slots, slot.slot_id: slot},
    )


def _with_seed(state: RunState, event: e.SeedEvent, seed: SeedState | None) -> RunState:
    return _with_slot(state, event, changed(state.slots[event.slot_id], seed=seed))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _run_opened(state: RunState, _: e.RunOpened) -> RunState:
    raise CorruptHistory(f"run {state.run_id!r} is opened a second time")


def _run_forked(state: RunState, event: e.RunForked) -> RunState:
    return changed(
        state, run_id=event.run_id, name=event.name, sequence=1, checkpoint=None, closed=False
    )


def _run_rewound(state: RunState, event: e.RunRewound) -> RunState:
    return changed(state, sequence=event.head + 1, rewinds=state.rewinds + 1)


def _run_closed(state: RunState, event: e.RunClosed) -> RunState:
    return changed(
        state, sequence=state.sequence + 1, epoch=event.epoch, step=event.step, closed=True
    )


def _unknown(state: RunState, event: e.UnknownEvent) -> RunState:
    return changed(
        state,
        sequence=state.sequence + 1,
        epoch=max(state.epoch, event.epoch),
        step=max(state.step, event.step),
        unknown_events=state.unknown_events + 1,
    )


def _policy_changed(state: RunState, event: e.GatePolicyChanged) -> RunState:
    return changed(
        state, sequence=state.sequence + 1, epoch=event.epoch, step=event.step, policy=event.policy
    )


def _checkpoint_saved(state: RunState, event: e.CheckpointSaved) -> RunState:
    return changed(
        state, sequence=state.sequence + 1, epoch=event.epoch, step=event.step, checkpoint=event
    )


def _epoch_recorded(state: RunState, event: e.EpochRecorded) -> RunState:
    objective = _finite(event.objective)
    seeds = {slot_id: slot.seed for slot_id, slot in state.slots.items()}
    for evidence in event.seeds:
        if evidence.slot_id not in seeds:
            raise CorruptHistory(f"EpochRecorded names slot {evidence.slot_id!r}, never opened")
        seeds[evidence.slot_id] = changed(
            _tenant(state.slots[evidence.slot_id], evidence.seed_id, event),
            gradient_norm=evidence.gradient_norm,
            nonfinite=evidence.nonfinite_outputs + evidence.nonfinite_gradients,
        )
    return changed(
        state,
        sequence=state.sequence + 1,
        epoch=event.epoch,
        step=event.step,
        latest=event.objective,
        epoch_ended=event.step,
        steps_per_epoch=event.step - state.epoch_ended,
        measured=state.measured if objective is None else objective,
        metrics={metric.name: metric.value for metric in event.metrics},
        slots={
            slot_id: _lived(slot, seeds[slot_id], event.objective)
            for slot_id, slot in state.slots.items()
        },
    )


def _lived(slot: SlotState, seed: SeedState | None, objective: float | None) -> SlotState:
    """The slot with ``seed`` one epoch later; for a paused seed the epoch does not count."""
    if seed is not None and seed.paused_at is not None:
        return changed(slot, seed=seed)
    if seed is not None and seed.baseline is None:
        seed = changed(seed, baseline=_finite(objective))
    baseline = slot.stage_baseline
    return changed(
        slot,
        seed=seed,
        epochs_in_stage=slot.epochs_in_stage + 1,
        stage_baseline=_finite(objective) if baseline is None else baseline,
        # Half the time of (*objectives, objective), and the dearest step of a long stage's epochs.
        objectives=slot.objectives[1 - OBJECTIVES_KEPT :] + (objective,),  # noqa: RUF005
    )


def _slot_opened(state: RunState, event: e.SlotOpened) -> RunState:
    if event.slot_id in state.slots:
        raise CorruptHistory(f"slot {event.slot_id!r} is opened a second time")
    slot = SlotState(slot_id=event.slot_id, topology=event.topology, width=event.width)
    return _with_slot(state, event, slot)


def _seed_germinated(state: RunState, event: e.SeedGerminated) -> RunState:
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
    return _with_slot(state, event, changed(slot, seed=seed, germinations=slot.germinations + 1))


def _gate_evaluated(state: RunState, event: e.GateEvaluated) -> RunState:
    slot, outcome = _slot(state, event), event.outcome
    earlier = {} if outcome.gate is Gate.G0 else slot.outcomes
    return _with_slot(state, event, changed(slot, outcomes={**earlier, outcome.gate: outcome}))


# At these stages alpha is a constant, whatever the ramp or an override left behind.
_AT_TARGET = (Stage.SHADOWING, Stage.FOSSILIZED)


def _stage_changed(state: RunState, event: e.StageChanged) -> RunState:
    slot = _slot(state, event)
    if slot.stage is not event.source:
        raise CorruptHistory(
            f"slot {slot.slot_id!r} leaves {event.source.value}, but was {slot.stage.value}"
        )
    seed = changed(_seed(state, event), health=Health.HEALTHY, cull_reason=None, paused_at=None)
    if event.target in _AT_TARGET:
        seed = changed(seed, schedule=held(seed.target, step=event.step))
    if event.target is Stage.CULLED:
        seed = changed(seed, schedule=held(0.0, step=event.step))
    if event.target is Stage.PROBATIONARY:
        # G5 judges what was measured on probation, not at some alpha of the ramp.
        seed = changed(seed, contribution=None, contributions=0)
    moved = changed(
        slot,
        stage=event.target,
        seed=seed,
        epochs_in_stage=0,
        stage_baseline=state.measured,
        objectives=(),
    )
    return _with_slot(state, event, moved)


def _blend_scheduled(state: RunState, event: e.BlendScheduled) -> RunState:
    seed = _seed(state, event)
    target = event.schedule.end or seed.target
    return _with_seed(state, event, changed(seed, schedule=event.schedule, target=target))


def _alpha_overridden(state: RunState, event: e.AlphaOverridden) -> RunState:
    schedule = held(event.alpha, step=event.step)
    return _with_seed(state, event, changed(_seed(state, event), schedule=schedule))


def _shadow_evaluated(state: RunState, event: e.ShadowEvaluated) -> RunState:
    seed = _seed(state, event)
    judged = changed(
        seed,
        shadow_evaluations=seed.shadow_evaluations + 1,
        agreement=event.agreement,
        shadow_contribution=state.objective.improvement(
            event.objective_without, event.objective_with
        ),
    )
    return _with_seed(state, event, judged)


def _counterfactual_measured(state: RunState, event: e.CounterfactualMeasured) -> RunState:
    seed = _seed(state, event)
    contribution = state.objective.improvement(event.objective_without, event.objective_with)
    if contribution is None:  # nothing was measured, and it must not erase what had been
        return _with_seed(state, event, seed)
    if _slot(state, event).stage.exposed:
        return _with_seed(state, event, _contributed(seed, contribution))
    rehearsals = {**seed.rehearsals, event.alpha: contribution}
    return _with_seed(state, event, changed(seed, rehearsals=rehearsals))


def _contributed(seed: SeedState, contribution: float) -> SeedState:
    earlier = seed.contribution or 0.0
    count = seed.contributions + 1
    mean = earlier + (contribution - earlier) / count
    return changed(seed, contribution=mean, contributions=count)


def _isolation_violated(state: RunState, event: e.IsolationViolated) -> RunState:
    seed = _seed(state, event)
    return _with_seed(state, event, changed(seed, violations=seed.violations + event.count))


def _health_changed(state: RunState, event: e.HealthChanged) -> RunState:
    return _with_seed(state, event, changed(_seed(state, event), health=event.health))


def _cull_scheduled(state: RunState, event: e.CullScheduled) -> RunState:
    seed = changed(
        _seed(state, event),
        schedule=event.schedule,
        cull_reason=event.reason,
        cull_cause=event.cause,
    )
    return _with_seed(state, event, seed)


def _seed_ended(state: RunState, event: e.SeedCulled | e.SeedFossilized) -> RunState:
    return _with_seed(state, event, _seed(state, event))


def _slot_recycled(state: RunState, event: e.SlotRecycled) -> RunState:
    _seed(state, event)
    return _with_seed(state, event, None)


def _seed_paused(state: RunState, event: e.SeedPaused) -> RunState:
    return _with_seed(state, event, changed(_seed(state, event), paused_at=event.step))


def _seed_resumed(state: RunState, event: e.SeedResumed) -> RunState:
    seed = _seed(state, event)
    pause = event.step - (event.step if seed.paused_at is None else seed.paused_at)
    schedule = attrs.evolve(seed.schedule, start_step=seed.schedule.start_step + pause)
    return _with_seed(state, event, changed(seed, paused_at=None, schedule=schedule))


# Each fold takes the event class it stands beside, which a mapping's type cannot express.
_FOLDS: dict[type[e.Event], Callable[[RunState, Any], RunState]] = {
    e.RunOpened: _run_opened,
    e.RunForked: _run_forked,
    e.RunRewound: _run_rewound,
    e.RunClosed: _run_closed,
    e.UnknownEvent: _unknown,
    e.GatePolicyChanged: _policy_changed,
    e.CheckpointSaved: _checkpoint_saved,
    e.EpochRecorded: _epoch_recorded,
    e.SlotOpened: _slot_opened,
    e.SeedGerminated: _seed_germinated,
    e.GateEvaluated: _gate_evaluated,
    e.StageChanged: _stage_changed,
    e.BlendScheduled: _blend_scheduled,
    e.AlphaOverridden: _alpha_overridden,
    e.ShadowEvaluated: _shadow_evaluated,
    e.CounterfactualMeasured: _counterfactual_measured,
    e.IsolationViolated: _isolation_violated,
    e.HealthChanged: _health_changed,
    e.CullScheduled: _cull_scheduled,
    e.SeedCulled: _seed_ended,
    e.SeedFossilized: _seed_ended,
    e.SlotRecycled: _slot_recycled,
    e.SeedPaused: _seed_paused,
    e.SeedResumed: _seed_resumed,
}
