"""Two points side by side: what differs, and what happened since they parted."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import singledispatch

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kasmina.adapters.cli.render.figures import UNMEASURED, number, plain_table, plural
from kasmina.adapters.cli.render.sentences import judgement, requirement, words
from kasmina.adapters.cli.render.timeline import render_timeline
from kasmina.domain.comparison import ABSENT, Difference, Parting, Path, Stretch
from kasmina.domain.events import CheckpointSaved, RunForked
from kasmina.domain.evidence import Check, GateOutcome
from kasmina.domain.points import TensorsNotSaved
from kasmina.domain.policies import MetricCheck
from kasmina.domain.projections import Moment
from kasmina.domain.state import RunState, SeedState, SlotState

_LAST = 3  # how many figures of a long sequence are shown


def render_diff(
    before: RunState,
    after: RunState,
    found: Sequence[Difference],
    parting: Parting | None,
    histories: Mapping[Stretch, Sequence[Moment]],
) -> RenderableType:
    """Both points, the differences of their states, and each one's own history."""
    shown = list(_shown(found, before, after))
    blocks: list[RenderableType] = [_heading(before, after, parting), ""]
    if shown:
        blocks += [_table(shown), ""]
    blocks.append(Text(_summary(len(shown)), style="bold"))
    if parting is not None:
        for stretch in (*parting.before, *parting.after):
            blocks += ["", *_history(stretch, histories[stretch])]
    return Lines(*blocks)


def render_fork(
    state: RunState, forked: RunForked, tensors: CheckpointSaved | TensorsNotSaved | None
) -> RenderableType:
    """The new run's identifier first, then where it comes from, and how to train it."""
    place = f"forked from {forked.parent_run_id} at #{forked.parent_sequence:,}"
    resume = f"open_run(..., resume={state.run_id!r})"
    match tensors:
        case TensorsNotSaved():
            advice = Text(str(tensors), style="yellow")
        case CheckpointSaved():
            advice = Text(f"{resume} goes on from {tensors.path}")
        case _:
            advice = Text(f"{resume} begins with a new host, as its parent did")
    return Lines(Text.assemble((state.run_id, "bold"), f"  {place}, epoch {state.epoch:,}"), advice)


def _shown(found: Iterable[Difference], before: RunState, after: RunState) -> Iterator[Difference]:
    """The run's differences, then the slots'; of another seed in a slot only that it is another."""
    renewed = {each.path[1] for each in found if each.path[2:] == ("seed", "seed_id")}
    for each in sorted(found, key=lambda each: each.path[0] == "slots"):
        match each.path:
            case ("slots", slot_id, "seed", name, *_) if slot_id in renewed:
                if name == "seed_id":
                    one, other = before.slots[slot_id].seed, after.slots[slot_id].seed
                    yield Difference(path=each.path[:3], before=one, after=other)
            case ("run_id" | "name" | "sequence",):  # the heading tells these
                pass
            case _:
                yield each


def _heading(before: RunState, after: RunState, parting: Parting | None) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("before", _place(before))
    table.add_row("after", _place(after))
    table.add_row("history", _relation(before, after, parting))
    return table


def _place(state: RunState) -> Text:
    return Text.assemble(
        (state.run_id, "bold"),
        f" after #{state.sequence:,}, epoch {state.epoch:,}, step {state.step:,}",
    )


def _relation(before: RunState, after: RunState, parting: Parting | None) -> str:
    if parting is None:
        return "two runs with no history in common"
    if before.run_id == after.run_id:
        return "one run"
    return f"the same up to {parting.run_id} #{parting.sequence:,}"


def _summary(count: int) -> str:
    return plural(count, "difference") if count else "no differences"


def _history(stretch: Stretch, moments: Sequence[Moment]) -> Iterable[RenderableType]:
    first, last = f"#{stretch.after + 1:,}", f"#{stretch.until:,}"
    place = first if first == last else f"{first} to {last}"
    yield Text.assemble((stretch.run_id, "bold"), f" {place}")
    if moments:
        yield render_timeline(moments)
    else:
        yield Text("nothing but routine evidence", style="dim")


def _table(found: Iterable[Difference]) -> Table:
    table = plain_table()
    table.add_column("where", overflow="fold", style="bold", max_width=20)
    table.add_column("what", overflow="fold")
    table.add_column("before", overflow="fold")
    table.add_column("after", overflow="fold")
    where = ""
    for difference in found:
        place, name = _named(difference.path)
        before, after = _value(difference.before), _value(difference.after)
        if before == after:  # what differs must read as different
            before, after = repr(difference.before), repr(difference.after)
        table.add_row(
            "" if place == where else place,
            name,
            _cell(difference.before, before),
            _cell(difference.after, after),
        )
        where = place
    return table


def _named(path: Path) -> tuple[str, str]:
    """Whose value it is, and what: ``G2 improvement`` for the figure that a check measured."""
    match path:
        case ("slots", slot_id, "outcomes", gate, "checks", check, "measured"):
            return slot_id, f"{gate} {check}"
        case ("slots", slot_id, "outcomes", gate, "checks", *names):
            return slot_id, " ".join((gate, *names))
        case ("slots", slot_id, "outcomes", *names) | ("slots", slot_id, *names):
            return slot_id, " ".join(names) or "slot"
        case _:
            return "run", " ".join(path)


def _cell(value: object, text: str) -> Text:
    return Text(text, style="dim" if value is ABSENT or value is None else "")


@singledispatch
def _value(value: object) -> str:
    """A value on one line; of what has parts, what tells it from others of its kind."""
    return UNMEASURED if value is None else str(value)


@_value.register
def _(value: bool) -> str:  # noqa: FBT001 - it is the value that is shown
    return "yes" if value else "no"


@_value.register
def _(value: int | float) -> str:
    return number(value)


@_value.register
def _(value: Enum) -> str:
    return words(value)


@_value.register
def _(value: tuple) -> str:  # type: ignore[type-arg] # singledispatch takes plain classes only
    if not value:
        return "none"
    said = ", ".join(map(_value, value[-_LAST:]))
    return said if len(value) <= _LAST else f"{len(value):,} values, the last {said}"


@_value.register
def _(value: SlotState) -> str:
    return value.stage.value


@_value.register
def _(value: SeedState) -> str:
    return f"{value.seed_id} from {value.blueprint_id}"


@_value.register
def _(value: GateOutcome) -> str:
    return judgement(value)


@_value.register
def _(value: Check) -> str:
    return f"{number(value.measured)}, required {requirement(value)}"


@_value.register
def _(value: MetricCheck) -> str:
    return f"{value.gate.value} {value.metric} {value.comparison.value} {number(value.required)}"


@_value.register
def _(value: CheckpointSaved) -> str:
    return f"{value.path}, event {value.sequence:,}"
