"""The rules for one slot: germinate, advance, cull, pause, and the course of alpha."""

from typing import TypedDict

from attrs import frozen

from kasmina.domain import commands as c
from kasmina.domain import events as e
from kasmina.domain import machine
from kasmina.domain.errors import (
    CullPending,
    EmbargoActive,
    IllegalTransition,
    InvalidCommand,
    SeedIsPaused,
    SlotOccupied,
    WrongStage,
)
from kasmina.domain.evidence import GateOutcome
from kasmina.domain.gates import evaluate, evaluate_g0
from kasmina.domain.policies import GatePolicy
from kasmina.domain.schedules import AlphaSchedule, Curve
from kasmina.domain.stages import CullCause, Gate, Stage, Trigger
from kasmina.domain.state import RunState, SeedState, SlotState

Events = tuple[e.Event, ...]


class _Place(TypedDict):
    """The fields that every event about a seed shares."""

    epoch: int
    step: int
    slot_id: str
    seed_id: str


@frozen
class _Case:
    """A seed in its slot, at the moment of a decision."""

    state: RunState
    slot: SlotState
    seed: SeedState
    policy: GatePolicy
    step: int

    @property
    def place(self) -> _Place:
        return _Place(
            epoch=self.state.epoch,
            step=self.step,
            slot_id=self.slot.slot_id,
            seed_id=self.seed.seed_id,
        )

    def moves(self, trigger: Trigger) -> e.StageChanged:
        edge = machine.edge(self.slot.stage, trigger)
        return e.StageChanged(**self.place, trigger=trigger, source=edge.source, target=edge.target)


def advanceable(slot: SlotState, policy: GatePolicy, step: int) -> bool:
    """Whether ``Advance`` makes sense for ``slot`` now: it would ask a gate, or move."""
    if machine.forward(slot.stage) is None or slot.seed is None:
        return False
    if slot.stage is Stage.EMBARGOED:
        return slot.epochs_in_stage >= policy.embargo_epochs
    if slot.seed.cull_reason is not None:
        return step >= slot.seed.schedule.end_step
    return slot.seed.paused_at is None


def germinate(state: RunState, command: c.Germinate, policy: GatePolicy) -> Events:
    """G0, and if it passes the seed and its stage."""
    slot = state.slot(command.slot_id)
    legal = machine.legal_triggers(slot.stage)
    if Trigger.GERMINATE not in legal:
        raise SlotOccupied(slot.slot_id, slot.stage, Trigger.GERMINATE, legal)
    outcome = evaluate_g0(command.seed_id, command.blueprint_id, state, policy)
    place = _Place(
        epoch=state.epoch, step=command.step, slot_id=slot.slot_id, seed_id=command.seed_id
    )
    evaluated = e.GateEvaluated(**place, outcome=outcome)
    if not machine.permits(slot.stage, Trigger.GERMINATE, machine.Warrant(outcome=outcome)):
        return (evaluated,)
    germinated = e.SeedGerminated(
        **place,
        blueprint_id=command.blueprint_id,
        incubation=command.incubation,
        seed_input=command.seed_input,
        blend=command.blend,
        probe=command.probe,
        parameters=command.parameters,
        init_seed=command.init_seed,
        learning_rate=command.learning_rate,
        weight_decay=command.weight_decay,
    )
    edge = machine.edge(slot.stage, Trigger.GERMINATE)
    moved = e.StageChanged(**place, trigger=edge.trigger, source=edge.source, target=edge.target)
    return (evaluated, germinated, moved)


def advance(state: RunState, command: c.Advance, policy: GatePolicy) -> Events:
    """Ask the gate on the slot's forward edge and follow it if it passes."""
    slot = state.slot(command.slot_id)
    trigger = machine.forward(slot.stage)
    if trigger is None or slot.seed is None:
        raise IllegalTransition(
            slot.slot_id, slot.stage, trigger, machine.legal_triggers(slot.stage)
        )
    case = _Case(state, slot, slot.seed, policy, command.step)
    if case.seed.cull_reason is not None:
        return _ramped_out(case, case.seed.cull_reason)
    if case.seed.paused_at is not None:
        raise SeedIsPaused(slot.slot_id)
    gate = machine.edge(slot.stage, trigger).gate
    if gate is None:
        return _settled(case, trigger)
    return _judged(case, trigger, gate)


def _settled(case: _Case, trigger: Trigger) -> Events:
    """Follow an edge without a gate: embargo, reset, recycle."""
    slot, policy = case.slot, case.policy
    left = 0
    if trigger is Trigger.RESET:
        left = max(policy.embargo_epochs - slot.epochs_in_stage, 0)
    if not machine.permits(slot.stage, trigger, machine.Warrant(embargo_left=left)):
        raise EmbargoActive(
            slot.slot_id, epochs=slot.epochs_in_stage, required=policy.embargo_epochs
        )
    if trigger is Trigger.RECYCLE:
        return (case.moves(trigger), e.SlotRecycled(**case.place))
    return (case.moves(trigger),)


def _judged(case: _Case, trigger: Trigger, gate: Gate) -> Events:
    outcome = evaluate(gate, case.state, case.slot, case.policy, case.step)
    evaluated = e.GateEvaluated(**case.place, outcome=outcome)
    if not machine.permits(case.slot.stage, trigger, machine.Warrant(outcome=outcome)):
        return (evaluated, *_timed_out(case, outcome))
    if trigger is Trigger.BEGIN_BLENDING:
        return (evaluated, case.moves(trigger), _ramp_up(case))
    if trigger is Trigger.FOSSILIZE:
        return (evaluated, _fossilized(case), case.moves(trigger))
    return (evaluated, case.moves(trigger))


def _ramp_up(case: _Case) -> e.BlendScheduled:
    plan = case.seed.blend
    schedule = AlphaSchedule(
        curve=plan.curve,
        start_step=case.step,
        steps=round(plan.epochs * case.state.steps_per_epoch),
        end=plan.target if case.seed.best_rehearsal is None else case.seed.best_rehearsal[0],
        temperature=plan.temperature,
    )
    return e.BlendScheduled(**case.place, schedule=schedule)


def _fossilized(case: _Case) -> e.SeedFossilized:
    improvement = case.state.objective.improvement(case.seed.baseline, case.state.latest)
    return e.SeedFossilized(
        **case.place, improvement=improvement, contribution=case.seed.contribution
    )


def _timed_out(case: _Case, outcome: GateOutcome) -> Events:
    """The cull of a seed that its gate has refused for as long as its stage may last.

    A seed that the host sees is ramped out first.
    """
    limit = case.policy.timeouts.of(case.slot.stage)
    if limit is None or case.slot.epochs_in_stage < limit:
        return ()
    failing = ", ".join(check.name for check in outcome.failures)
    lasted = case.slot.epochs_in_stage
    reason = f"{outcome.gate.value} refused for {lasted} epochs, at last for: {failing}"
    ramp = round(case.policy.cull_ramp_epochs * case.state.steps_per_epoch)
    if ramp and case.slot.stage.exposed:
        return (_ramp_down(case, reason, ramp, Curve.SIGMOID, CullCause.TIMED_OUT),)
    return _culled(case, reason, CullCause.TIMED_OUT)


def _ramp_down(
    case: _Case, reason: str, steps: int, curve: Curve, cause: CullCause
) -> e.CullScheduled:
    schedule = AlphaSchedule(
        curve=curve,
        start_step=case.step,
        steps=steps,
        start=case.seed.alpha(case.step),
        end=0.0,
    )
    return e.CullScheduled(**case.place, reason=reason, schedule=schedule, cause=cause)


def _ramped_out(case: _Case, reason: str) -> Events:
    end_step = case.seed.schedule.end_step
    if case.step < end_step:
        raise CullPending(case.slot.slot_id, step=case.step, end_step=end_step)
    return _culled(case, reason, case.seed.cull_cause)


def _culled(case: _Case, reason: str, cause: CullCause) -> Events:
    if not machine.permits(case.slot.stage, Trigger.CULL, machine.Warrant(reason=reason)):
        raise InvalidCommand(f"culling slot {case.slot.slot_id!r} needs a reason, got {reason!r}")
    return (
        e.SeedCulled(**case.place, reason=reason, cause=cause),
        case.moves(Trigger.CULL),
    )


def cull(state: RunState, command: c.Cull, policy: GatePolicy) -> Events:
    """Reject the seed: at once, or over a ramp where it is exposed and the command asks for one."""
    slot = state.slot(command.slot_id)
    legal = machine.legal_triggers(slot.stage)
    if Trigger.CULL not in legal or slot.seed is None:
        raise IllegalTransition(slot.slot_id, slot.stage, Trigger.CULL, legal)
    case = _Case(state, slot, slot.seed, policy, command.step)
    culled = _culled(case, command.reason, CullCause.REQUESTED)
    if not (command.ramp_steps and slot.stage.exposed):
        return culled
    if slot.seed.paused_at is not None:
        raise SeedIsPaused(slot.slot_id)
    cause = CullCause.REQUESTED
    return (_ramp_down(case, command.reason, command.ramp_steps, command.curve, cause),)


def schedule_alpha(state: RunState, command: c.ScheduleAlpha, policy: GatePolicy) -> Events:
    """Replace the ramp of a blending seed."""
    case = _blending(state, command, policy, "a schedule for alpha")
    return (e.BlendScheduled(**case.place, schedule=command.schedule),)


def override_alpha(state: RunState, command: c.OverrideAlpha, policy: GatePolicy) -> Events:
    """Hold the alpha of a blending seed."""
    case = _blending(state, command, policy, "an override of alpha")
    return (e.AlphaOverridden(**case.place, alpha=command.alpha),)


def _blending(state: RunState, command: c.SlotCommand, policy: GatePolicy, wish: str) -> _Case:
    slot = state.slot(command.slot_id)
    if slot.seed is None or slot.stage is not Stage.BLENDING:
        raise WrongStage(slot.slot_id, wish, stage=slot.stage, allowed=(Stage.BLENDING,))
    if slot.seed.cull_reason is not None:
        end_step = slot.seed.schedule.end_step
        raise CullPending(slot.slot_id, step=command.step, end_step=end_step)
    if slot.seed.paused_at is not None:
        raise SeedIsPaused(slot.slot_id)
    return _Case(state, slot, slot.seed, policy, command.step)


def pause(state: RunState, command: c.PauseSeed, policy: GatePolicy) -> Events:
    """Stop the seed's learning, progress and clocks."""
    case = _cullable(state, command, policy, "a pause")
    if case.seed.cull_reason is not None:
        raise CullPending(
            case.slot.slot_id, step=command.step, end_step=case.seed.schedule.end_step
        )
    if case.seed.paused_at is not None:
        raise InvalidCommand(f"the seed in slot {command.slot_id!r} is paused already")
    return (e.SeedPaused(**case.place),)


def resume(state: RunState, command: c.ResumeSeed, policy: GatePolicy) -> Events:
    """Let a paused seed go on."""
    case = _cullable(state, command, policy, "a resumption")
    if case.seed.paused_at is None:
        raise InvalidCommand(f"the seed in slot {command.slot_id!r} is not paused")
    return (e.SeedResumed(**case.place),)


def _cullable(state: RunState, command: c.SlotCommand, policy: GatePolicy, wish: str) -> _Case:
    slot = state.slot(command.slot_id)
    if slot.seed is None or slot.stage not in machine.CULLABLE:
        raise WrongStage(slot.slot_id, wish, stage=slot.stage, allowed=machine.CULLABLE)
    return _Case(state, slot, slot.seed, policy, command.step)
