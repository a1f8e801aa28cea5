"""The two streams: what was asked for on stdout, what went wrong on stderr."""

import json
import sys
from io import StringIO
from typing import Any

from rich.console import Console, RenderableType
from rich.segment import Segment, Segments

from kasmina.adapters.cli.documents import Document

# A log may hold any text; none of it may steer the reader's terminal.
_VISIBLE = dict.fromkeys(
    [*range(10), *range(11, 32), *range(127, 160)], "\N{REPLACEMENT CHARACTER}"
)


def show(renderable: RenderableType) -> None:
    """Print for people: as wide as the terminal, in colour where there is one to see it."""
    sys.stdout.write(rendered(renderable, Console(**_PLAIN)))
    sys.stdout.flush()


def say(line: str) -> None:
    """Print text as it is, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def complain(line: str) -> None:
    """Print text as it is, on the stream of errors."""
    sys.stderr.write(f"{line.translate(_VISIBLE)}\n")


def show_document(document: Document) -> None:
    """Print for programs: one JSON document."""
    say(json.dumps(document, indent=2, allow_nan=False))


def show_line(document: Document) -> None:
    """Print for programs that follow: one JSON document on a line, at once."""
    say(json.dumps(document, allow_nan=False))


def rendered(renderable: RenderableType, console: Console) -> str:
    """What ``console`` would print, without printing it."""
    with console.capture() as capture:
        segments = [
            Segment(segment.text.translate(_VISIBLE), segment.style)
            for segment in console.render(renderable)
        ]
        console.print(Segments(segments), end="")
    text = capture.get()
    if console.color_system is None:
        return "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    return text


def plain(renderable: RenderableType, *, width: int) -> str:
    """The text alone, at a given width."""
    console = Console(file=StringIO(), width=width, color_system=None, **_PLAIN)
    return rendered(renderable, console)


# Text from a log is text: neither markup, nor emoji codes, nor something to highlight.
_PLAIN: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
