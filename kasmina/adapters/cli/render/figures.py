"""Numbers and names as people read them."""

import math

from rich.table import Table
from rich.text import Text

from kasmina.domain.stages import Stage

UNMEASURED = "–"

_WHOLE = 1e15  # beyond it not every whole number is a float
_SMALL, _LARGE = 1e-3, 1e9  # outside of them powers of ten read better

STAGE_STYLES = {
    Stage.DORMANT: "dim",
    Stage.GERMINATED: "cyan",
    Stage.TRAINING: "cyan",
    Stage.BLENDING: "blue",
    Stage.SHADOWING: "blue",
    Stage.PROBATIONARY: "magenta",
    Stage.FOSSILIZED: "bold green",
    Stage.CULLED: "red",
    Stage.EMBARGOED: "yellow",
    Stage.RESETTING: "yellow",
}


def number(value: float | None) -> str:
    """``value`` to four significant digits, whole numbers in full, unmeasured ones as a dash."""
    if value is None:
        return UNMEASURED
    if not math.isfinite(value):
        return str(value)
    if value == round(value) and abs(value) < _WHOLE:
        return f"{value:,.0f}"
    if not _SMALL <= abs(value) < _LARGE:
        return f"{value:.3g}"
    decimals = max(0, 3 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if decimals else text


def signed(value: float | None) -> str:
    """As ``number``, with its sign."""
    if value is None or not math.isfinite(value):
        return number(value)
    return f"+{number(value)}" if value >= 0 else number(value)


def share(value: float) -> str:
    """A figure in [0, 1] to two decimals; only 1 itself reads as 1.00."""
    return f"{value if value == 1 else min(value, 0.99):.2f}"


def plural(count: int, noun: str) -> str:
    """``count`` and its noun."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def stage_text(stage: Stage) -> Text:
    """The stage's name in its colour."""
    return Text(stage.value, style=STAGE_STYLES[stage])


def verdict(*, passed: bool) -> Text:
    """A mark that reads without colour."""
    return Text("✓", style="green") if passed else Text("✗", style="bold red")


def plain_table(*, gap: int = 2) -> Table:
    """A table without lines, its columns ``gap`` characters apart."""
    return Table(box=None, header_style="dim", pad_edge=False, padding=(0, gap, 0, 0))
