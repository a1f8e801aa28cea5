"""The pasts that the domain's tests start from.

The pasts are written out event by event and never made by ``decide``, which is what they test.
Every epoch has ten optimizer steps; in every past but the first the objective gets one better with
each epoch.
"""

from typing import TypeVar

from attrs import evolve as changed

from kasmina.domain import commands as c
from kasmina.domain import events as e
from kasmina.domain.evidence import (
    GateOutcome,
    HostDescription,
    Metric,
    Probe,
    SeedEvidence,
    Violation,
)
from kasmina.domain.evolve import replay
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.objective import Direction, Objective
from kasmina.domain.policies import GatePolicy
from kasmina.domain.schedules import AlphaSchedule, BlendPlan
from kasmina.domain.stages import CullCause, Gate, Incubator, SeedInput, Stage, Topology, Trigger
from kasmina.domain.state import RunState, SeedState, SlotState

RUN, SLOT, SEED, BLUEPRINT = "run-1", "layer2", "seed-1", "conv_light"
STEPS_PER_EPOCH = 10
ACCURACY = Objective.maximize("val_accuracy", unit="percent")
LOSS = Objective.minimize("val_loss", unit="nats")
POLICY = GatePolicy()
HOST = HostDescription(kind="tests.Host", parameters=1000, digest="ab" * 32)
PROBE = Probe(
    input_shape=(2, 8, 4, 4),
    output_shape=(2, 8, 4, 4),
    input_dtype="float32",
    output_dtype="float32",
    trainable_parameters=100,
)

Events = tuple[e.Event, ...]
Raised = TypeVar("Raised", bound=Exception)


def state_after(*events: e.Event) -> RunState:
    state = replay(events)
    assert state is not None
    return state


def slot_after(*events: e.Event) -> SlotState:
    return state_after(*events).slot(SLOT)


def seed_after(*events: e.Event) -> SeedState:
    seed = slot_after(*events).seed
    assert seed is not None
    return seed


# --- single events -------------------------------------------------------------------------


def step_of(epoch: int) -> int:
    return epoch * STEPS_PER_EPOCH


def opened(objective: Objective = ACCURACY, policy: GatePolicy = POLICY) -> e.RunOpened:
    return e.RunOpened(
        epoch=0,
        step=0,
        run_id=RUN,
        name="digits",
        objective=objective,
        policy=policy,
        host=HOST,
        random_seed=7,
    )


def slot_opened(slot_id: str = SLOT) -> e.SlotOpened:
    return e.SlotOpened(epoch=0, step=0, slot_id=slot_id, topology=Topology.CNN, width=8)


def quality(epoch: int, objective: Objective = ACCURACY) -> float:
    """What the pasts measure: one better with every epoch."""
    better = 49.0 + epoch
    return better if objective.direction is Direction.MAXIMIZE else 100.0 - better


def evidence(
    *,
    slot_id: str = SLOT,
    seed_id: str = SEED,
    alpha: float = 0.0,
    gradient_norm: float | None = 1.0,
    nonfinite_outputs: int = 0,
    nonfinite_gradients: int = 0,
) -> SeedEvidence:
    return SeedEvidence(
        slot_id=slot_id,
        seed_id=seed_id,
        alpha=alpha,
        gradient_norm=gradient_norm,
        nonfinite_outputs=nonfinite_outputs,
        nonfinite_gradients=nonfinite_gradients,
    )


def epoch(
    number: int,
    objective: float | None,
    *seeds: SeedEvidence,
    metrics: tuple[Metric, ...] = (),
) -> e.EpochRecorded:
    return e.EpochRecorded(
        epoch=number, step=step_of(number), objective=objective, metrics=metrics, seeds=seeds
    )


def passed(gate: Gate, *, at: int, slot_id: str = SLOT, seed_id: str = SEED) -> e.GateEvaluated:
    outcome = GateOutcome(gate=gate, passed=True, score=1.0, checks=())
    return e.GateEvaluated(
        epoch=at, step=step_of(at), slot_id=slot_id, seed_id=seed_id, outcome=outcome
    )


def moved(
    trigger: Trigger,
    source: Stage,
    target: Stage,
    *,
    at: int,
    slot_id: str = SLOT,
    seed_id: str = SEED,
) -> e.StageChanged:
    return e.StageChanged(
        epoch=at,
        step=step_of(at),
        slot_id=slot_id,
        seed_id=seed_id,
        trigger=trigger,
        source=source,
        target=target,
    )


def seed_germinated(
    *,
    at: int,
    slot_id: str = SLOT,
    seed_id: str = SEED,
    probe: Probe = PROBE,
    blend: BlendPlan | None = None,
    blueprint_id: str = BLUEPRINT,
) -> e.SeedGerminated:
    return e.SeedGerminated(
        epoch=at,
        step=step_of(at),
        slot_id=slot_id,
        seed_id=seed_id,
        blueprint_id=blueprint_id,
        incubation=IncubationPlan(),
        seed_input=SeedInput.OPEN,
        blend=blend or BlendPlan(),
        probe=probe,
        parameters=100,
        init_seed=3,
        learning_rate=None,
        weight_decay=None,
    )


def germinated(
    *, at: int, slot_id: str = SLOT, seed_id: str = SEED, probe: Probe = PROBE
) -> Events:
    """All that a germination records."""
    return (
        passed(Gate.G0, at=at, slot_id=slot_id, seed_id=seed_id),
        seed_germinated(at=at, slot_id=slot_id, seed_id=seed_id, probe=probe),
        moved(
            Trigger.GERMINATE,
            Stage.DORMANT,
            Stage.GERMINATED,
            at=at,
            slot_id=slot_id,
            seed_id=seed_id,
        ),
    )


def shadowed(
    *,
    at: int,
    agreement: float | None = 0.97,
    objective_with: float | None = 57.0,
    objective_without: float | None = 56.0,
) -> e.ShadowEvaluated:
    return e.ShadowEvaluated(
        epoch=at,
        step=step_of(at),
        slot_id=SLOT,
        seed_id=SEED,
        agreement=agreement,
        values=640,
        objective_with=objective_with,
        objective_without=objective_without,
    )


def contrasted(
    *,
    at: int,
    objective_with: float | None,
    objective_without: float | None,
    alpha: float = 1.0,
) -> e.CounterfactualMeasured:
    return e.CounterfactualMeasured(
        epoch=at,
        step=step_of(at),
        slot_id=SLOT,
        seed_id=SEED,
        alpha=alpha,
        objective_with=objective_with,
        objective_without=objective_without,
    )


def blend_scheduled(*, at: int, epochs: int = 3) -> e.BlendScheduled:
    schedule = AlphaSchedule(start_step=step_of(at), steps=step_of(epochs))
    return e.BlendScheduled(
        epoch=at, step=step_of(at), slot_id=SLOT, seed_id=SEED, schedule=schedule
    )


def seed_culled(
    *, at: int, reason: str = "too slow", cause: CullCause = CullCause.REQUESTED
) -> e.SeedCulled:
    return e.SeedCulled(
        epoch=at, step=step_of(at), slot_id=SLOT, seed_id=SEED, reason=reason, cause=cause
    )


def cull_scheduled(*, at: int, steps: int = 20, reason: str = "too slow") -> e.CullScheduled:
    return e.CullScheduled(
        epoch=at,
        step=step_of(at),
        slot_id=SLOT,
        seed_id=SEED,
        reason=reason,
        schedule=AlphaSchedule(start_step=step_of(at), steps=steps, start=1.0, end=0.0),
    )


def paused(*, at: int) -> e.SeedPaused:
    return e.SeedPaused(epoch=at, step=step_of(at), slot_id=SLOT, seed_id=SEED)


# --- pasts ---------------------------------------------------------------------------------

ENTERED_AT = {
    Stage.DORMANT: 0,
    Stage.GERMINATED: 1,
    Stage.TRAINING: 1,
    Stage.BLENDING: 4,
    Stage.SHADOWING: 7,
    Stage.PROBATIONARY: 8,
    Stage.FOSSILIZED: 11,
    Stage.CULLED: 4,
    Stage.EMBARGOED: 4,
    Stage.RESETTING: 9,
}
"""The epoch at which ``entered`` comes to each stage."""

READY_AT = {
    **ENTERED_AT,
    Stage.TRAINING: 4,
    Stage.BLENDING: 7,
    Stage.SHADOWING: 8,
    Stage.PROBATIONARY: 11,
    Stage.EMBARGOED: 9,
}
"""The epoch at which ``ready`` has lived through each stage."""


def entered(stage: Stage, objective: Objective = ACCURACY, policy: GatePolicy = POLICY) -> Events:
    """The past of a slot that has just come to ``stage`` by the shortest way."""
    now = ENTERED_AT[stage]
    if stage is Stage.DORMANT:
        return (opened(objective, policy), slot_opened())
    if stage is Stage.GERMINATED:
        empty = entered(Stage.DORMANT, objective, policy)
        return (*empty, epoch(1, quality(1, objective)), *germinated(at=1))
    trigger, source, before, after = _WAYS[stage]
    move = moved(trigger, source, stage, at=now)
    return (*ready(source, objective, policy), *before, move, *after)


_WAYS: dict[Stage, tuple[Trigger, Stage, Events, Events]] = {
    Stage.TRAINING: (Trigger.BEGIN_TRAINING, Stage.GERMINATED, (passed(Gate.G1, at=1),), ()),
    Stage.BLENDING: (
        Trigger.BEGIN_BLENDING,
        Stage.TRAINING,
        (passed(Gate.G2, at=4),),
        (blend_scheduled(at=4),),
    ),
    Stage.SHADOWING: (Trigger.BEGIN_SHADOWING, Stage.BLENDING, (passed(Gate.G3, at=7),), ()),
    Stage.PROBATIONARY: (Trigger.BEGIN_PROBATION, Stage.SHADOWING, (passed(Gate.G4, at=8),), ()),
    Stage.FOSSILIZED: (
        Trigger.FOSSILIZE,
        Stage.PROBATIONARY,
        (
            passed(Gate.G5, at=11),
            e.SeedFossilized(
                epoch=11, step=110, slot_id=SLOT, seed_id=SEED, improvement=10.0, contribution=1.0
            ),
        ),
        (),
    ),
    Stage.CULLED: (Trigger.CULL, Stage.TRAINING, (seed_culled(at=4),), ()),
    Stage.EMBARGOED: (Trigger.EMBARGO, Stage.CULLED, (), ()),
    Stage.RESETTING: (Trigger.RESET, Stage.EMBARGOED, (), ()),
}


def ready(stage: Stage, objective: Objective = ACCURACY, policy: GatePolicy = POLICY) -> Events:
    """The past of a slot whose forward gate, embargo or way to move is open in ``stage``."""
    lived = [
        epoch(
            number, quality(number, objective), *([] if stage is Stage.EMBARGOED else [evidence()])
        )
        for number in range(ENTERED_AT[stage] + 1, READY_AT[stage] + 1)
    ]
    now = READY_AT[stage]
    with_seed, without = quality(now, objective), quality(now - 1, objective)
    measured: Events = ()
    if stage is Stage.SHADOWING:
        measured = (shadowed(at=now, objective_with=with_seed, objective_without=without),)
    if stage is Stage.PROBATIONARY:
        measured = (contrasted(at=now, objective_with=with_seed, objective_without=without),)
    return (*entered(stage, objective, policy), *lived, *measured)


def planned(
    past: Events, *, incubator: Incubator | None = None, blend: BlendPlan | None = None
) -> Events:
    """The past with another incubator, or another blend for its ramp to follow."""

    def replanned(event: e.Event) -> e.Event:
        if incubator is not None and isinstance(event, e.SeedGerminated):
            event = changed(event, incubation=IncubationPlan(incubator=incubator))
        if blend is not None and isinstance(event, e.SeedGerminated):
            event = changed(event, blend=blend)
        if blend is not None and isinstance(event, e.BlendScheduled):
            event = changed(event, schedule=changed(event.schedule, end=blend.target))
        return event

    return tuple(map(replanned, past))


def recycled(*, at: int = 9) -> Events:
    """A slot that was used by a seed, culled, and cleaned."""
    return (
        *entered(Stage.RESETTING),
        moved(Trigger.RECYCLE, Stage.RESETTING, Stage.DORMANT, at=at),
        e.SlotRecycled(epoch=at, step=step_of(at), slot_id=SLOT, seed_id=SEED),
    )


# --- commands ------------------------------------------------------------------------------


def germinate(
    *,
    at: int,
    slot_id: str = SLOT,
    seed_id: str = SEED,
    blueprint_id: str = BLUEPRINT,
    probe: Probe = PROBE,
) -> c.Germinate:
    return c.Germinate(
        step=step_of(at),
        slot_id=slot_id,
        seed_id=seed_id,
        blueprint_id=blueprint_id,
        probe=probe,
        parameters=100,
        init_seed=3,
    )


def advance(*, at: int, slot_id: str = SLOT) -> c.Advance:
    return c.Advance(step=step_of(at), slot_id=slot_id)


def cull(*, at: int, reason: str = "too slow", ramp_steps: int = 0) -> c.Cull:
    return c.Cull(step=step_of(at), slot_id=SLOT, reason=reason, ramp_steps=ramp_steps)


def record_epoch(
    number: int,
    objective: float | None,
    *seeds: SeedEvidence,
    metrics: tuple[Metric, ...] = (),
    violations: tuple[tuple[str, Violation], ...] = (),
) -> c.RecordEpoch:
    return c.RecordEpoch(
        step=step_of(number),
        epoch=number,
        objective=objective,
        metrics=metrics,
        seeds=seeds,
        violations=violations,
    )
