"""What an event says, in one line of prose."""

from enum import Enum
from functools import singledispatch

from kasmina.adapters.cli.render.figures import number, plural, share, signed
from kasmina.adapters.cli.render.policies import policy_text
from kasmina.domain import events as e
from kasmina.domain.evidence import Check, Comparison, GateOutcome
from kasmina.domain.schedules import AlphaSchedule, BlendPlan


def requirement(check: Check) -> str:
    """The bound of a check: ``>= 0.5``."""
    if check.comparison is Comparison.FINITE:
        return "finite"
    return f"{check.comparison.value} {number(check.required)}"


def judgement(outcome: GateOutcome) -> str:
    """A gate's decision, and the checks that made it refuse."""
    if outcome.passed:
        return f"{outcome.gate.value} passed, score {share(outcome.score)}"
    failures = "; ".join(
        f"{check.name} {number(check.measured)}, required {requirement(check)}"
        for check in outcome.failures
    )
    return f"{outcome.gate.value} refused: {failures}"


def ramp(schedule: AlphaSchedule) -> str:
    """A schedule of alpha, with its ends and its steps."""
    if schedule.steps == 0:
        return f"alpha {number(schedule.end)} from step {schedule.start_step:,}"
    return (
        f"alpha {number(schedule.start)} to {number(schedule.end)}, {schedule.curve.value} over "
        f"steps {schedule.start_step:,} to {schedule.end_step:,}"
    )


def words(member: Enum) -> str:
    """An enum's stored value as people write it."""
    return str(member.value).replace("_", " ")


def goal(plan: BlendPlan) -> str:
    """How a seed is to be mixed in, and up to which alpha."""
    if plan.search:
        targets = ", ".join(map(number, plan.search))
        return f"{words(plan.blend)} to the best of {targets}"
    return f"{words(plan.blend)} to {number(plan.target)}"


@singledispatch
def sentence(event: e.Event) -> str:
    """What happened. An event without words of its own is called by its name."""
    return type(event).__name__


@sentence.register
def _(event: e.UnknownEvent) -> str:
    return f"{event.type} (version {event.schema_version}), of a newer release"


@sentence.register
def _(event: e.RunOpened) -> str:
    objective = event.objective
    return f"run {event.name} opened, to {objective.direction.value} {objective.name}"


@sentence.register
def _(event: e.RunForked) -> str:
    return f"run {event.name} forked from {event.parent_run_id} at #{event.parent_sequence}"


@sentence.register
def _(event: e.RunRewound) -> str:
    if event.head == event.to:
        return f"resumed at #{event.to}, nothing undone"
    first = event.to + 1
    undone = f"#{first}" if first == event.head else f"#{first} to #{event.head}"
    return f"rewound to #{event.to}; {undone} undone"


@sentence.register
def _(event: e.RunClosed) -> str:
    return f"run closed, objective {number(event.objective)}"


@sentence.register
def _(event: e.GatePolicyChanged) -> str:
    return f"gate policy changed: {policy_text(event.policy)}"


@sentence.register
def _(event: e.CheckpointSaved) -> str:
    return f"checkpoint of #{event.sequence} saved at {event.path}"


@sentence.register
def _(event: e.EpochRecorded) -> str:
    return f"epoch recorded, objective {number(event.objective)}"


@sentence.register
def _(event: e.SlotOpened) -> str:
    return f"slot opened, {event.topology.value}, width {event.width:,}"


@sentence.register
def _(event: e.SeedGerminated) -> str:
    parameters = plural(event.parameters, "parameter")
    return (
        f"seed {event.seed_id} from {event.blueprint_id}, {parameters}; "
        f"incubator {words(event.incubation.incubator)}, {goal(event.blend)}"
    )


@sentence.register
def _(event: e.GateEvaluated) -> str:
    return judgement(event.outcome)


@sentence.register
def _(event: e.StageChanged) -> str:
    return f"{event.source.value} → {event.target.value}"


@sentence.register
def _(event: e.BlendScheduled) -> str:
    return ramp(event.schedule)


@sentence.register
def _(event: e.AlphaOverridden) -> str:
    return f"alpha held at {number(event.alpha)}"


@sentence.register
def _(event: e.ShadowEvaluated) -> str:
    return (
        f"shadow evaluation: agreement {number(event.agreement)}, "
        f"{_contrast(event.objective_with, event.objective_without)}"
    )


@sentence.register
def _(event: e.CounterfactualMeasured) -> str:
    contrast = _contrast(event.objective_with, event.objective_without)
    return f"counterfactual at alpha {number(event.alpha)}: {contrast}"


def _contrast(objective_with: float | None, objective_without: float | None) -> str:
    return f"{number(objective_with)} with, {number(objective_without)} without"


@sentence.register
def _(event: e.IsolationViolated) -> str:
    return f"isolation violated: {words(event.leak)} × {event.count:,} ({event.subject})"


@sentence.register
def _(event: e.HealthChanged) -> str:
    return f"seed is {event.health.value}"


@sentence.register
def _(event: e.CullScheduled) -> str:
    return f"cull scheduled ({words(event.cause)}): {event.reason}; {ramp(event.schedule)}"


@sentence.register
def _(event: e.SeedCulled) -> str:
    return f"seed {event.seed_id} culled ({words(event.cause)}): {event.reason}"


@sentence.register
def _(event: e.SeedFossilized) -> str:
    return (
        f"seed {event.seed_id} fossilized: improvement {signed(event.improvement)}, "
        f"contribution {signed(event.contribution)}"
    )


@sentence.register
def _(event: e.SlotRecycled) -> str:
    return f"slot free again, after seed {event.seed_id}"


@sentence.register
def _(event: e.SeedPaused) -> str:
    return f"seed {event.seed_id} paused"


@sentence.register
def _(event: e.SeedResumed) -> str:
    return f"seed {event.seed_id} resumed"
