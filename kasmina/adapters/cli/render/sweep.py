"""How many decisions change as one threshold moves, as a table and a plot."""

from collections.abc import Sequence

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.text import Text

from kasmina.adapters.cli.render.figures import plain_table, plural
from kasmina.adapters.cli.render.whatif import bound
from kasmina.domain.thresholds import Sweep
from kasmina.domain.verdicts import Tally

_WIDEST = 20
_GAINED, _LOST = "█", "░"


def render_sweep(
    over: Sweep, in_force: Sequence[float | None], tallies: Sequence[Tally], *, subject: str
) -> RenderableType:
    """A line for each value; ``subject`` is the run, or how many of them."""
    recorded = " and ".join(map(bound, in_force)) or "nowhere"
    heading = Text.assemble((over.name, "bold"), f" of {subject}, in force {recorded}")
    most = max(tally.changes for tally in tallies)
    decisions = plural(tallies[0].decisions - tallies[0].undone, "decision")
    if not most:
        return Lines(heading, f"none of {decisions} changes at any of {len(tallies)} values")
    culls = any(tally.timed_out or tally.spared for tally in tallies)
    table = plain_table()
    timed = ("now culled", "spared") if culls else ()
    for name in ("value", "now pass", "now refused", *timed, "seeds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for value, tally in zip(over.values, tallies, strict=True):
        table.add_row(
            bound(value),
            *_counts(tally, culls=culls),
            Text.assemble(_bar(tally, most), "◄ in force" if value in in_force else ""),
        )
    legend = (
        f"{_GAINED} now pass, or spared by time-out  {_LOST} now refused or culled, "
        f"of {decisions}\nseeds: how many would have gone another way"
    )
    return Lines(heading, "", table, "", Text(legend, style="dim"))


def _counts(tally: Tally, *, culls: bool) -> list[str]:
    timed = [tally.timed_out, tally.spared] if culls else []
    leaving = tally.changes - tally.moot
    return [f"{count:,}" for count in (tally.to_passing, tally.to_refused, *timed, leaving)]


def _bar(tally: Tally, most: int) -> Text:
    gained, lost = tally.to_passing + tally.spared, tally.to_refused + tally.timed_out
    return Text.assemble(
        (_GAINED * _length(gained, most), "green"), (_LOST * _length(lost, most), "red")
    )


def _length(count: int, most: int) -> int:
    """Characters for ``count`` where ``most`` fill the plot; whatever there is can be seen."""
    return max(round(_WIDEST * count / most), min(count, 1))
