"""The lifecycle as a picture, drawn from the machine's own edges."""

from collections.abc import Sequence

from attrs import frozen
from rich.text import Text

from kasmina.adapters.cli.render.figures import STAGE_STYLES
from kasmina.domain.machine import Edge
from kasmina.domain.stages import Gate, Stage

# Columns of the picture: the way up, the line along it by which seeds leave, the way back.
_UP, _LINE, _BACK = 2, 34, 50


@frozen
class _Ways:
    """A seed grows by the gated edges ``up``; a rejected one goes ``across``, then ``back``."""

    up: tuple[Edge, ...]
    across: tuple[Edge, ...]
    back: tuple[Edge, ...]

    @classmethod
    def of(cls, edges: Sequence[Edge]) -> "_Ways":
        up = tuple(edge for edge in edges if edge.gate is not None)
        climbing = {edge.source for edge in up}
        rest = [edge for edge in edges if edge.gate is None]
        return cls(
            up=up,
            across=tuple(edge for edge in rest if edge.source in climbing),
            back=tuple(edge for edge in rest if edge.source not in climbing),
        )


class _Canvas:
    """Lines of characters, written at any place."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def put(self, row: int, column: int, text: str) -> None:
        self._lines.extend([""] * (row + 1 - len(self._lines)))
        line = self._lines[row].ljust(column)
        self._lines[row] = line[:column] + text + line[column + len(text) :]

    def width(self, row: int) -> int:
        return len(self._lines[row])

    def text(self) -> str:
        return "\n".join(self._lines)


def render_stages(edges: Sequence[Edge]) -> Text:
    """Seeds grow downwards on the left, gate by gate; what is rejected comes back on the right."""
    ways, canvas = _Ways.of(edges), _Canvas()
    _draw_up(canvas, ways.up)
    _draw_exits(canvas, ways)
    _draw_back(canvas, ways)
    picture = Text(canvas.text())
    for stage in Stage:
        picture.highlight_words([stage.value], STAGE_STYLES[stage])
    picture.highlight_words([gate.value for gate in Gate], "bold")
    picture.highlight_regex(r"[│─┌┐└┘├┤┼◄►↓↑]+", "dim")
    return picture


def _draw_up(canvas: _Canvas, up: Sequence[Edge]) -> None:
    canvas.put(0, _UP, up[0].source.value)
    for row, edge in enumerate(up):
        gate = "" if edge.gate is None else edge.gate.value
        canvas.put(2 * row + 1, _UP, f"  ↓ {gate} {edge.trigger.value}")
        canvas.put(2 * row + 2, _UP, edge.target.value)


def _draw_exits(canvas: _Canvas, ways: _Ways) -> None:
    """One line along all stages that may be left, and the arrow that leads away from it."""
    leaving = {edge.source for edge in ways.across}
    rows = [2 * row for row, edge in enumerate(ways.up) if edge.source in leaving]
    first, last, arrow = rows[0], rows[-1], 2 * len(ways.back)
    for row in range(first, last + 1):
        canvas.put(row, _LINE, "│")
    for row in rows:
        start = len(_UP * " " + ways.up[row // 2].source.value) + 1
        corner = {first: "┐", last: "┘"}.get(row, "┤")
        canvas.put(row, start, "─" * (_LINE - start) + corner)
    trigger = ways.across[0].trigger.value
    canvas.put(arrow, _LINE, "┼" if arrow in rows else "├")
    canvas.put(arrow, _LINE + 1, f"─ {trigger} ".ljust(_BACK - _LINE - 3, "─") + "►")


def _draw_back(canvas: _Canvas, ways: _Ways) -> None:
    """From the bottom to the top, and over to where everything begins."""
    for step, edge in enumerate(ways.back):
        row = 2 * (len(ways.back) - step)
        canvas.put(row, _BACK, edge.source.value)
        canvas.put(row - 1, _BACK, f"  ↑ {edge.trigger.value}")
    start = canvas.width(0) + 1
    canvas.put(0, start, "◄" + "─" * (_BACK + 1 - start) + "┐")


def mermaid(edges: Sequence[Edge]) -> str:
    """The same edges as a Mermaid state diagram."""
    sources = {edge.source for edge in edges}
    last = [edge.target for edge in edges if edge.target not in sources]
    lines = ["stateDiagram-v2", f"    [*] --> {edges[0].source.value}"]
    for edge in edges:
        gate = f" [{edge.gate.value}]" if edge.gate else ""
        lines.append(f"    {edge.source.value} --> {edge.target.value}: {edge.trigger.value}{gate}")
    lines.extend(f"    {stage.value} --> [*]" for stage in last)
    return "\n".join(lines)
