"""Whether runs are as they were written."""

from collections.abc import Iterator, Sequence

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kasmina.adapters.cli.render.figures import plural, verdict
from kasmina.infra.integrity import Problem, Verification

_LISTED = 10


def render_verifications(found: Sequence[Verification]) -> RenderableType:
    """What was found of each run, and of a broken one where it breaks first."""
    if not found:
        return Text("there are no runs to verify")
    return Lines(*(part for verification in found for part in _parts(verification)))


def _parts(verification: Verification) -> Iterator[RenderableType]:
    name = (verification.run_id, "bold")
    mark = verdict(passed=verification.sound)
    events = plural(verification.events, "event")
    if verification.sound:
        digest = verification.head.digest.hex()[:16]
        yield Text.assemble(mark, " ", name, f"  intact, {events}, head digest {digest}")
        return
    first = verification.problems[0].sequence
    yield Text.assemble(mark, " ", name, (f"  broken at event #{first}, {events}", "red"))
    yield _problems(verification.problems[:_LISTED])
    if len(verification.problems) > _LISTED:
        yield Text(f"  and {plural(len(verification.problems) - _LISTED, 'more problem')}")


def _problems(problems: Sequence[Problem]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for problem in problems:
        detail = f" ({problem.detail})" if problem.detail else ""
        table.add_row(f"  #{problem.sequence}", problem.flaw.value + detail)
    return table
