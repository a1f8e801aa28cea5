"""What happened, an event a line."""

from collections.abc import Iterable

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.text import Text

from kasmina.adapters.cli.render.figures import plain_table
from kasmina.adapters.cli.render.sentences import sentence
from kasmina.domain import events as e
from kasmina.domain.ports import Recorded
from kasmina.domain.projections import Moment
from kasmina.domain.stages import Stage

_STRIKING = {
    e.SeedCulled: "red",
    e.SeedFossilized: "bold green",
    e.IsolationViolated: "yellow",
    e.HealthChanged: "yellow",
    e.RunRewound: "yellow",
    e.UnknownEvent: "yellow",
}


def render_timeline(moments: Iterable[Moment]) -> RenderableType:
    """The moments in order; those that a later rewind undid are struck through, and say so."""
    table = plain_table()
    table.add_column("event", justify="right", no_wrap=True)
    table.add_column("epoch", justify="right", no_wrap=True)
    table.add_column("slot", overflow="fold", max_width=20)
    table.add_column("what happened", overflow="fold")
    for moment in moments:
        table.add_row(
            f"#{moment.sequence}",
            f"{moment.epoch:,}",
            _slot_id(moment.event) or "",
            _said(moment),
            style="dim" if moment.undone else None,
        )
    return table


def _said(moment: Moment) -> Text:
    text = sentence(moment.event)
    if moment.undone:
        return Text.assemble((text, "strike"), " (undone)")
    return Text(text, style=_style(moment.event))


def _style(event: e.Event) -> str:
    if isinstance(event, e.StageChanged):
        return "red" if event.target is Stage.CULLED else "bold"
    if isinstance(event, e.GateEvaluated) and not event.outcome.passed:
        return "red"
    return _STRIKING.get(type(event), "")


def render_record(record: Recorded) -> RenderableType:
    """One event as it arrives, when a run is followed."""
    event = record.event
    return _line(record, Text(sentence(event), style=_style(event)))


def render_reversal(moments: Iterable[Moment]) -> RenderableType:
    """What a rewind, when a run is followed, made of moments that were shown before."""
    return Lines(*(_line(each, _turned(each)) for each in moments))


def _turned(moment: Moment) -> Text:
    if moment.undone:
        return _said(moment)
    return Text.assemble((sentence(moment.event), _style(moment.event)), " (counts again)")


def _line(entry: Moment | Recorded, said: Text) -> Text:
    slot_id = _slot_id(entry.event)
    place = f"#{entry.sequence:<6} epoch {entry.event.epoch:<5} "
    return Text.assemble((place, "dim"), f"{slot_id}  " if slot_id else "", said)


def _slot_id(event: e.Event) -> str | None:
    return event.slot_id if isinstance(event, e.SlotEvent | e.UnknownEvent) else None
