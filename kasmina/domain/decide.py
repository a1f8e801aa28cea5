"""What follows from a command: pure rules that may change tomorrow, events that may not.

A refusal by a gate is an event. A command that makes no sense raises, and nothing happened.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

from kasmina.domain import commands as c
from kasmina.domain import events as e
from kasmina.domain import progress
from kasmina.domain.errors import (
    EpochWentBackwards,
    InvalidCommand,
    RunIsClosed,
    StepWentBackwards,
    WrongStage,
)
from kasmina.domain.evidence import SeedEvidence
from kasmina.domain.policies import GatePolicy
from kasmina.domain.stages import Health, Stage
from kasmina.domain.state import RunState

Events = tuple[e.Event, ...]

_CONTRASTED = (
    Stage.TRAINING,
    Stage.BLENDING,
    Stage.SHADOWING,
    Stage.PROBATIONARY,
    Stage.FOSSILIZED,
)


def decide(state: RunState | None, command: c.Command, policy: GatePolicy) -> Events:
    """The events that ``command`` leads to; before a run is opened ``state`` is ``None``.

    Raises ``InvalidCommand``, ``IllegalTransition``, ``EmbargoActive``, ``RunIsClosed`` or
    ``UnknownSlot`` for a command that cannot be meant.
    """
    if isinstance(command, c.OpenRun):
        if state is not None:
            raise InvalidCommand(f"run {state.run_id!r} is open already")
        return (_run_opened(command),)
    if state is None:
        raise InvalidCommand(f"open the run before {type(command).__name__}")
    if isinstance(command, c.Rewind):
        return _rewind(state, command)
    if state.closed:
        raise RunIsClosed(state.run_id)
    if command.step < state.step:
        raise StepWentBackwards(last=state.step, given=command.step)
    return _RULES[type(command)](state, command, policy)


def _run_opened(command: c.OpenRun) -> e.RunOpened:
    return e.RunOpened(
        epoch=0,
        step=command.step,
        run_id=command.run_id,
        name=command.name,
        objective=command.objective,
        policy=command.policy,
        host=command.host,
        random_seed=command.random_seed,
        software=command.software,
    )


def _rewind(state: RunState, command: c.Rewind) -> Events:
    if command.to > state.sequence:
        raise InvalidCommand(
            f"run {state.run_id!r} ends at sequence {state.sequence}; it cannot be rewound to "
            f"{command.to}"
        )
    return (
        e.RunRewound(epoch=command.epoch, step=command.step, to=command.to, head=state.sequence),
    )


def _open_slot(state: RunState, command: c.OpenSlot, _: GatePolicy) -> Events:
    if command.slot_id in state.slots:
        raise InvalidCommand(f"slot {command.slot_id!r} is open already")
    return (
        e.SlotOpened(
            epoch=state.epoch,
            step=command.step,
            slot_id=command.slot_id,
            topology=command.topology,
            width=command.width,
        ),
    )


def _record_epoch(state: RunState, command: c.RecordEpoch, policy: GatePolicy) -> Events:
    if command.epoch <= state.epoch:
        raise EpochWentBackwards(last=state.epoch, given=command.epoch)
    for seed in command.seeds:
        tenant = state.slot(seed.slot_id).seed
        if tenant is None or tenant.seed_id != seed.seed_id:
            raise InvalidCommand(f"slot {seed.slot_id!r} does not hold seed {seed.seed_id!r}")
    recorded = e.EpochRecorded(
        epoch=command.epoch,
        step=command.step,
        objective=command.objective,
        metrics=command.metrics,
        seeds=command.seeds,
    )
    return (recorded, *_violations(state, command), *_health_changes(state, command, policy))


def _violations(state: RunState, command: c.RecordEpoch) -> Iterator[e.IsolationViolated]:
    for slot_id, violation in command.violations:
        tenant = state.slot(slot_id).seed
        if tenant is None:
            raise InvalidCommand(f"slot {slot_id!r} holds no seed that could violate isolation")
        yield e.IsolationViolated(
            epoch=command.epoch,
            step=command.step,
            slot_id=slot_id,
            seed_id=tenant.seed_id,
            leak=violation.leak,
            count=violation.count,
            subject=violation.subject,
        )


def _health_changes(
    state: RunState, command: c.RecordEpoch, policy: GatePolicy
) -> Iterator[e.HealthChanged]:
    """The run's figures speak for every attached seed, also for one without evidence of its own."""
    figures = [metric.value for metric in command.metrics]
    if command.objective is not None:
        figures.append(command.objective)
    run_is_finite = all(math.isfinite(figure) for figure in figures)
    for slot in state.slots.values():
        seed = slot.seed
        if seed is None or not slot.stage.holds_seed or seed.health is Health.UNHEALTHY:
            continue
        leaks = seed.violations + sum(
            violation.count for slot_id, violation in command.violations if slot_id == slot.slot_id
        )
        contained = leaks <= policy.g2.max_isolation_violations
        observed = [evidence for evidence in command.seeds if evidence.slot_id == slot.slot_id]
        if not (run_is_finite and contained and all(map(_finite, observed))):
            yield e.HealthChanged(
                epoch=command.epoch,
                step=command.step,
                slot_id=slot.slot_id,
                seed_id=seed.seed_id,
                health=Health.UNHEALTHY,
            )


def _finite(evidence: SeedEvidence) -> bool:
    gradient = evidence.gradient_norm
    return (
        evidence.nonfinite_outputs == 0
        and evidence.nonfinite_gradients == 0
        and (gradient is None or math.isfinite(gradient))
    )


def _record_shadow(state: RunState, command: c.RecordShadow, _: GatePolicy) -> Events:
    slot = state.slot(command.slot_id)
    if slot.seed is None or slot.stage is not Stage.SHADOWING:
        raise WrongStage(
            slot.slot_id, "a shadow evaluation", stage=slot.stage, allowed=(Stage.SHADOWING,)
        )
    return (
        e.ShadowEvaluated(
            epoch=state.epoch,
            step=command.step,
            slot_id=slot.slot_id,
            seed_id=slot.seed.seed_id,
            agreement=command.agreement,
            values=command.values,
            objective_with=command.objective_with,
            objective_without=command.objective_without,
        ),
    )


def _record_counterfactual(
    state: RunState, command: c.RecordCounterfactual, _: GatePolicy
) -> Events:
    slot = state.slot(command.slot_id)
    if slot.seed is None or slot.stage not in _CONTRASTED:
        raise WrongStage(
            slot.slot_id, "a counterfactual measurement", stage=slot.stage, allowed=_CONTRASTED
        )
    return (
        e.CounterfactualMeasured(
            epoch=state.epoch,
            step=command.step,
            slot_id=slot.slot_id,
            seed_id=slot.seed.seed_id,
            alpha=command.alpha,
            objective_with=command.objective_with,
            objective_without=command.objective_without,
        ),
    )


def _change_policy(state: RunState, command: c.ChangePolicy, _: GatePolicy) -> Events:
    return (e.GatePolicyChanged(epoch=state.epoch, step=command.step, policy=command.policy),)


def _save_checkpoint(state: RunState, command: c.SaveCheckpoint, _: GatePolicy) -> Events:
    if command.sequence > state.sequence:
        raise InvalidCommand(
            f"a checkpoint as of sequence {command.sequence} cannot belong to a run that ends at "
            f"{state.sequence}"
        )
    return (
        e.CheckpointSaved(
            epoch=state.epoch, step=command.step, path=command.path, sequence=command.sequence
        ),
    )


def _close_run(state: RunState, command: c.CloseRun, _: GatePolicy) -> Events:
    objective = state.measured if state.latest is None else state.latest
    return (e.RunClosed(epoch=state.epoch, step=command.step, objective=objective),)


# Each rule takes the command class it stands beside, which a mapping's type cannot express.
_RULES: dict[type[c.Command], Callable[[RunState, Any, GatePolicy], Events]] = {
    c.OpenSlot: _open_slot,
    c.Germinate: progress.germinate,
    c.Advance: progress.advance,
    c.Cull: progress.cull,
    c.RecordEpoch: _record_epoch,
    c.RecordShadow: _record_shadow,
    c.RecordCounterfactual: _record_counterfactual,
    c.ScheduleAlpha: progress.schedule_alpha,
    c.OverrideAlpha: progress.override_alpha,
    c.PauseSeed: progress.pause,
    c.ResumeSeed: progress.resume,
    c.ChangePolicy: _change_policy,
    c.SaveCheckpoint: _save_checkpoint,
    c.CloseRun: _close_run,
}
