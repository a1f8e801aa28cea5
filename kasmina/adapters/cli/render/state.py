"""A run at one point: what it is, where it stands, and every slot."""

from collections.abc import Iterable

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kasmina.adapters.cli.render.figures import (
    UNMEASURED,
    number,
    plain_table,
    plural,
    share,
    signed,
    stage_text,
)
from kasmina.adapters.cli.render.policies import policy_text
from kasmina.adapters.cli.render.sentences import goal, words
from kasmina.domain.events import RunForked
from kasmina.domain.evidence import GateOutcome
from kasmina.domain.stages import Gate, Health
from kasmina.domain.state import RunState, SeedState, SlotState


def render_state(state: RunState, *, head: int, forked: RunForked | None = None) -> RenderableType:
    """The run after ``state.sequence`` of its ``head`` events, ``forked`` being its first."""
    return Lines(_header(state, head, forked), "", *_body(state))


def _body(state: RunState) -> Iterable[RenderableType]:
    if not state.slots:
        return (Text("no slot has been opened yet", style="dim"),)
    slots = state.slots.values()
    plans = _plans(slots)
    seeds = (plans, "") if plans.row_count else ()
    return (_slots(state), "", *seeds, _gates(slots))


def _header(state: RunState, head: int, forked: RunForked | None) -> Table:
    objective, host = state.objective, state.host
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("run", Text.assemble((state.name, "bold"), f"  {state.run_id}  {_status(state)}"))
    if forked is not None:
        table.add_row("forked from", f"{forked.parent_run_id} at #{forked.parent_sequence:,}")
    latest = f"latest {number(state.latest)} {objective.unit}".rstrip()
    if state.latest is None:
        latest = "not measured yet"
    table.add_row("objective", f"{objective.direction.value} {objective.name}, {latest}")
    table.add_row(
        "host", f"{host.kind}, {plural(host.parameters, 'parameter')}, seed {state.random_seed}"
    )
    table.add_row("gates", policy_text(state.policy))
    place = f"epoch {state.epoch:,}, step {state.step:,}, event {state.sequence:,} of {head:,}"
    rewinds = f", {plural(state.rewinds, 'rewind')}" if state.rewinds else ""
    table.add_row("at", place + rewinds)
    if state.unknown_events:
        unread = plural(state.unknown_events, "event")
        table.add_row("not shown", Text(f"{unread} that only a newer release can read", "yellow"))
    if state.checkpoint is not None:
        table.add_row("checkpoint", f"{state.checkpoint.path}, event {state.checkpoint.sequence:,}")
    return table


def _status(state: RunState) -> str:
    return "closed" if state.closed else "open"


def _slots(state: RunState) -> Table:
    table = plain_table()
    table.add_column("slot", overflow="fold", style="bold")
    table.add_column("stage", no_wrap=True)
    table.add_column("epochs", justify="right")
    table.add_column("seed", overflow="fold")
    table.add_column("blueprint", overflow="fold")
    table.add_column("alpha", justify="right")
    table.add_column("notes", overflow="fold", style="yellow")
    for slot in state.slots.values():
        seed = slot.seed
        table.add_row(
            slot.slot_id,
            stage_text(slot.stage),
            f"{slot.epochs_in_stage:,}",
            UNMEASURED if seed is None else seed.seed_id,
            UNMEASURED if seed is None else seed.blueprint_id,
            UNMEASURED if seed is None else share(seed.alpha(state.step)),
            "; ".join(_notes(slot)),
        )
    return table


def _plans(slots: Iterable[SlotState]) -> Table:
    table = plain_table()
    table.add_column("seed", overflow="fold", style="bold")
    table.add_column("incubator", overflow="fold")
    table.add_column("blend", overflow="fold")
    table.add_column("best rehearsal", overflow="fold")
    for slot in slots:
        seed = slot.seed
        if seed is None:
            continue
        found = f"{words(seed.blend.blend)} to {number(seed.target)}"
        table.add_row(
            seed.seed_id,
            words(seed.incubation.incubator),
            found if slot.stage.exposed else goal(seed.blend),
            _rehearsal(seed),
        )
    return table


def _rehearsal(seed: SeedState) -> str:
    if seed.best_rehearsal is None:
        return UNMEASURED
    alpha, contribution = seed.best_rehearsal
    return f"{signed(contribution)} at alpha {number(alpha)}"


def _notes(slot: SlotState) -> Iterable[str]:
    seed = slot.seed
    if seed is None:
        return
    if seed.paused_at is not None:
        yield f"paused at step {seed.paused_at:,}"
    if seed.cull_reason is not None:
        yield f"cull scheduled ({words(seed.cull_cause)}): {seed.cull_reason}"
    if seed.health is Health.UNHEALTHY:
        yield "unhealthy"
    if seed.violations:
        yield plural(seed.violations, "isolation violation")


def _gates(slots: Iterable[SlotState]) -> Table:
    table = plain_table()
    table.add_column("latest scores", overflow="fold", style="bold")
    for gate in Gate:
        table.add_column(gate.value, no_wrap=True)
    for slot in slots:
        cells = (
            _score(slot.outcomes[gate]) if gate in slot.outcomes else Text(UNMEASURED, style="dim")
            for gate in Gate
        )
        table.add_row(slot.slot_id, *cells)
    return table


def _score(outcome: GateOutcome) -> Text:
    score = share(outcome.score)
    if outcome.passed:
        return Text(f"✓ {score}", style="green")
    return Text(f"✗ {score}", style="bold red")
