"""The runs of a database, a run a line."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rich.console import RenderableType
from rich.text import Text

from kasmina.adapters.cli.render.figures import number, plain_table, stage_text
from kasmina.domain.events import RunForked
from kasmina.domain.stages import Stage
from kasmina.domain.state import RunState, SlotState

_WIDEST_ID = 30  # an identifier is there to be copied: other columns are folded first


def render_runs(
    states: Sequence[RunState], database: str, *, forks: Iterable[RunForked] = ()
) -> RenderableType:
    """Each run's present state; oldest first. ``forks`` say which of them were forked."""
    if not states:
        return Text(f"{database} holds no runs yet")
    origins = {each.run_id: f"↳ {each.parent_run_id}" for each in forks}
    longest = max(map(len, (*origins.values(), *(state.run_id for state in states))))
    table = plain_table(gap=1)
    table.add_column("run", overflow="fold", min_width=min(longest, _WIDEST_ID))
    # An identifier usually begins with the name: then a column of names tells nothing.
    named = any(not state.run_id.startswith(state.name) for state in states)
    if named:
        table.add_column("name", overflow="fold", style="bold")
    table.add_column("host", overflow="fold")
    table.add_column("slots", overflow="fold")
    table.add_column("epochs", justify="right", no_wrap=True)
    table.add_column("events", justify="right", no_wrap=True)
    table.add_column("objective", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for state in states:
        table.add_row(
            _identity(state.run_id, origins),
            *([state.name] if named else []),
            state.host.kind,
            _stages(state.slots.values()),
            f"{state.epoch:,}",
            f"{state.sequence:,}",
            number(state.latest),
            "closed" if state.closed else Text("open", style="green"),
        )
    return table


def _identity(run_id: str, origins: Mapping[str, str]) -> Text:
    if run_id not in origins:
        return Text(run_id)
    return Text.assemble(run_id, (f"\n{origins[run_id]}", "dim"))


def render_older(first: str) -> RenderableType:
    """Where the list goes on."""
    return Text(f"there are older ones: kasmina runs --before {first}", style="dim")


def _stages(slots: Iterable[SlotState]) -> Text:
    counts = Counter(slot.stage for slot in slots)
    said = [
        Text.assemble(f"{counts[stage]} ", stage_text(stage)) for stage in Stage if counts[stage]
    ]
    return Text("\n").join(said)
