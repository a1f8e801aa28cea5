"""Every decision of the gates, with the figures on which it was taken."""

from collections.abc import Sequence

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kasmina.adapters.cli.render.figures import number, plain_table, plural, share, signed, verdict
from kasmina.adapters.cli.render.sentences import requirement
from kasmina.domain.evidence import Check
from kasmina.domain.projections import Decision

_WIDEST_NAME = 34


def render_ledger(decisions: Sequence[Decision]) -> RenderableType:
    """The decisions in order, then a line that counts them."""
    names = [len(check.name) for decision in decisions for check in decision.outcome.checks]
    width = min(max([len("check"), *names]), _WIDEST_NAME)
    blocks = [part for decision in decisions for part in (_block(decision, width), "")]
    return Lines(*blocks, render_summary(decisions))


def render_summary(decisions: Sequence[Decision]) -> Text:
    """How many decisions there are, and how they went."""
    passed = sum(decision.outcome.passed for decision in decisions)
    refused = len(decisions) - passed
    undone = sum(decision.undone for decision in decisions)
    return Text.assemble(
        (plural(len(decisions), "decision"), "bold"),
        ": ",
        (f"{passed:,} passed", "green" if passed else ""),
        ", ",
        (f"{refused:,} refused", "red" if refused else ""),
        f"; {undone:,} undone by a rewind" if undone else "",
    )


def _block(decision: Decision, width: int) -> RenderableType:
    return Lines(_heading(decision), _checks(decision.outcome.checks, width))


def _heading(decision: Decision) -> Text:
    outcome = decision.outcome
    said = (" PASSED", "bold green") if outcome.passed else (" REFUSED", "bold red")
    seed = f" {decision.seed_id}" if decision.seed_id.strip() else " (no seed)"
    return Text.assemble(
        (f"#{decision.sequence} ", "dim"),
        (outcome.gate.value, "bold"),
        said,
        f"  score {share(outcome.score)}  ",
        (decision.slot_id, "bold"),
        seed,
        (f"  epoch {decision.epoch:,}, step {decision.step:,}", "dim"),
        (" (undone)", "yellow") if decision.undone else "",
    )


def _checks(checks: Sequence[Check], width: int) -> Table:
    table = plain_table()
    table.add_column("", no_wrap=True, width=3, justify="right")
    table.add_column("check", width=width, overflow="fold")
    table.add_column("measured", justify="right", width=10, no_wrap=True)
    table.add_column("required", width=12, no_wrap=True)
    table.add_column("margin", justify="right", width=10, no_wrap=True)
    for check in checks:
        table.add_row(
            verdict(passed=check.passed),
            check.name,
            "unmeasured" if check.measured is None else number(check.measured),
            requirement(check),
            signed(check.margin),
            style="" if check.passed else "red",
        )
    return table
