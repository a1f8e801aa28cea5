"""The demonstration as people see it."""

import shlex
from collections.abc import Sequence
from statistics import mean, stdev
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, RenderableType
from rich.console import Group as Lines
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from kasmina.adapters.cli.render.figures import number, plain_table, plural, stage_text
from kasmina.adapters.cli.render.ledger import render_summary
from kasmina.adapters.cli.render.sentences import judgement
from kasmina.domain.projections import Decision

if TYPE_CHECKING:
    from kasmina.demo.study import Progress as Epoch
    from kasmina.demo.study import Result, Study


class Bars:
    """Bars that fill as arms are trained; above them, what becomes of each seed."""

    def __init__(self, study: "Study", console: Console) -> None:
        self._epochs = study.epochs
        self._bars: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[accuracy]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def show(self, epoch: "Epoch") -> None:
        """Draw one more epoch."""
        if epoch.name not in self._bars:
            self._bars[epoch.name] = self._progress.add_task(
                epoch.name, total=self._epochs, accuracy=""
            )
        accuracy = f"{number(epoch.report.objective)} % on validation"
        bar = self._bars[epoch.name]
        self._progress.update(bar, completed=epoch.report.epoch, accuracy=accuracy)
        for change in epoch.report.changes:
            self._progress.console.print(
                Text.assemble(
                    (f"{epoch.name} epoch {epoch.report.epoch:>2}  ", "dim"),
                    f"{change.slot_id} ",
                    stage_text(change.source),
                    " → ",
                    stage_text(change.target),
                )
            )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()


def render_welcome(study: "Study") -> RenderableType:
    """What is about to happen."""
    seeds = ", ".join(str(seed) for seed in study.random_seeds)
    return Text(
        f"A small CNN learns scikit-learn's digits, alone and with seeds, {study.epochs} epochs "
        f"each, random seeds {seeds}. Every decision goes to {study.url}.\n"
    )


def render_growth(name: str, ledger: Sequence[Decision]) -> RenderableType:
    """What the gates decided about each seed of one run; a gate's refusals are one line."""
    table = plain_table()
    for column in ("epochs", "slot", "seed"):
        table.add_column(column, no_wrap=True)
    table.add_column("decision")
    grouped: dict[tuple[str, str, bool], list[Decision]] = {}
    for decision in ledger:
        outcome = decision.outcome
        key = (decision.seed_id, outcome.gate.value, outcome.passed)
        grouped.setdefault(key, []).append(decision)
    for decisions in grouped.values():
        first, last = decisions[0], decisions[-1]
        several = "" if first is last else f" ({len(decisions)} times, this the last)"
        table.add_row(
            str(first.epoch) if first is last else f"{first.epoch}-{last.epoch}",
            last.slot_id,
            last.seed_id,
            Text(judgement(last.outcome) + several, style="" if last.outcome.passed else "red"),
        )
    heading = Text(f"\nWhat the gates decided in {name}\n", style="bold")
    return Lines(heading, table, render_summary(ledger), "")


def render_results(results: "Sequence[Result]") -> RenderableType:
    """Host alone against host with seeds, run by run and on average."""
    table = plain_table()
    table.add_column("run", no_wrap=True)
    for column in ("steps", "parameters", "fossilized", "culled", "accuracy %"):
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        table.add_row(
            result.name,
            f"{result.steps:,}",
            f"{result.parameters:,}",
            str(result.fossilized),
            str(result.culled),
            f"{result.accuracy:.1f}",
        )
    heading = Text("Accuracy on 397 images that neither training nor gates have seen\n", "bold")
    return Lines(heading, table, _comparison(results), "")


def _comparison(results: "Sequence[Result]") -> Text:
    """The means of both arms, and the paired differences."""
    accuracies: dict[str, list[float]] = {}
    for result in results:
        accuracies.setdefault(result.arm.value, []).append(result.accuracy)
    alone, grown = accuracies.values()
    gains = [after - before for before, after in zip(alone, grown, strict=True)]
    spread = f" ± {stdev(gains):.1f}" if len(gains) > 1 else ""
    return Text(
        f"\nHost alone {mean(alone):.1f} %, with seeds {mean(grown):.1f} %: {mean(gains):+.1f}"
        f"{spread} points over {plural(len(gains), 'pair')} with the same steps and data order."
    )


def farewell(program: str, run_id: str, database: str) -> str:
    """What to try next, with ``program`` as the command's name.

    Text for the shell, to be printed as it is: a command that was wrapped cannot be copied.
    """
    commands = (
        f"export KASMINA_DATABASE={shlex.quote(database)}",
        f"{shlex.quote(program)} replay {run_id}",
        f"{shlex.quote(program)} audit {run_id} --refused",
        f"{shlex.quote(program)} verify --all",
    )
    return "\n".join(("Next:", *(f"  {command}" for command in commands)))
