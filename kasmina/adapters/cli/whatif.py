"""One run or every run under other thresholds, for people and for programs."""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from attrs import field, frozen
from rich.text import Text

from kasmina.adapters.cli.documents import Document
from kasmina.adapters.cli.documents.whatif import (
    changes_document,
    sweep_document,
    sweeps_document,
    what_if_document,
    what_ifs_document,
)
from kasmina.adapters.cli.output import show, show_document
from kasmina.adapters.cli.render.figures import plural
from kasmina.adapters.cli.render.sweep import render_sweep
from kasmina.adapters.cli.render.whatif import (
    left_out_text,
    render_run,
    render_tally,
    render_what_if,
)
from kasmina.domain.events import RunForked
from kasmina.domain.ports import EventStore, Recorded
from kasmina.domain.projections import Decision
from kasmina.domain.stages import Gate
from kasmina.domain.state import RunState
from kasmina.domain.thresholds import Sweep, Threshold, UnknownThreshold
from kasmina.domain.verdicts import Course, Tally, Verdict
from kasmina.domain.whatif import SweptRun, WhatIf, sweep, what_if
from kasmina.history import load

Answer = TypeVar("Answer")


@frozen
class Chosen:
    """Which decisions to show."""

    slot: str | None
    gate: Gate | None
    refused: bool

    def decision(self, decision: Decision) -> bool:
        """Whether to show a decision as it was recorded."""
        return self._concerns(decision) and not (self.refused and decision.outcome.passed)

    def verdict(self, verdict: Verdict) -> bool:
        """Whether to show a decision under other thresholds, which then do the refusing."""
        return self._concerns(verdict.decision) and not (self.refused and verdict.outcome.passed)

    def course(self, course: Course) -> bool:
        """Whether to show a course: that of a chosen decision, and not of one left out."""
        at = course.divergence
        return any(map(self.verdict, course.verdicts)) and (at is None or self.verdict(at))

    def _concerns(self, decision: Decision) -> bool:
        return (self.slot is None or decision.slot_id == self.slot) and (
            self.gate is None or decision.outcome.gate is self.gate
        )


def show_what_if(
    store: EventStore,
    run_id: str | None,
    thresholds: Sequence[Threshold],
    chosen: Chosen,
    *,
    json: bool,
) -> None:
    """What other thresholds would have decided in one run, or in each of a store."""
    asked = _Asked(store, lambda history, origin: what_if(history, thresholds, origin=origin))
    if run_id is None:
        _show_each(asked, [threshold.name for threshold in thresholds], chosen, json=json)
        return
    result = asked.of(run_id)
    if json:
        show_document(what_if_document(*_narrowed(result, chosen)))
    else:
        show(render_what_if(*_narrowed(result, chosen)))


def _show_each(
    asked: "_Asked[WhatIf]", names: Sequence[str], chosen: Chosen, *, json: bool
) -> None:
    """Run by run, of which one at a time is in memory."""
    total, runs = Tally(), 0
    documents: list[Document] = []
    for result in asked.of_every():
        narrowed = _narrowed(result, chosen)
        total, runs = total.plus(Tally.of(narrowed[1])), runs + 1
        if json:
            documents.append(changes_document(*narrowed))
        else:
            show(render_run(*narrowed))
    if json:
        show_document(what_ifs_document(documents, asked.left_out, total))
        return
    show(Text.assemble((f"{plural(runs, 'run')}, ", "bold"), render_tally(total)))
    if asked.left_out:
        show(left_out_text(asked.left_out, names))


def _narrowed(result: WhatIf, chosen: Chosen) -> tuple[WhatIf, list[Verdict], list[Course]]:
    verdicts = [verdict for verdict in result.verdicts if chosen.verdict(verdict)]
    return result, verdicts, [course for course in result.courses if chosen.course(course)]


def show_sweep(
    store: EventStore, run_id: str | None, over: Sweep, chosen: Chosen, *, json: bool
) -> None:
    """How many decisions change at each value, in one run or in all runs of a store."""
    asked = _Asked(
        store,
        lambda history, origin: sweep(history, over, origin=origin, among=chosen.verdict),
    )
    if run_id is not None:
        result = asked.of(run_id)
        if json:
            show_document(sweep_document(result))
        else:
            show(render_sweep(over, result.in_force, result.tallies, subject=run_id))
        return
    results = list(asked.of_every())
    total = _total(over, results)
    if json:
        show_document(sweeps_document(over, results, asked.left_out, total))
        return
    in_force = list(dict.fromkeys(value for result in results for value in result.in_force))
    show(render_sweep(over, in_force, total, subject=plural(len(results), "run")))
    if asked.left_out:
        show(left_out_text(asked.left_out, [over.name]))


def _total(over: Sweep, results: Sequence[SweptRun]) -> list[Tally]:
    total = [Tally() for _ in over.values]
    for result in results:
        total = [before.plus(tally) for before, tally in zip(total, result.tallies, strict=True)]
    return total


@frozen
class _Asked(Generic[Answer]):
    """A question put to runs. Those whose gates ask for none of its thresholds are left out."""

    store: EventStore
    question: Callable[[Sequence[Recorded], RunState | None], Answer]
    left_out: list[str] = field(factory=list)

    def of(self, run_id: str) -> Answer:
        """What it is of one run."""
        history = list(self.store.read(run_id))
        return self.question(history, self._origin(history[0]))

    def of_every(self) -> Iterator[Answer]:
        """What it is of each run. Raises ``UnknownThreshold`` where it makes sense in none."""
        answered, unknown = False, None
        for run_id in [first.run_id for first in self.store.runs()]:
            try:
                answer = self.of(run_id)
            except UnknownThreshold as error:
                self.left_out.append(run_id)
                unknown = error
            else:
                answered = True
                yield answer
        if unknown is not None and not answered:
            raise unknown

    def _origin(self, first: Recorded) -> RunState | None:
        event = first.event
        if not isinstance(event, RunForked):
            return None
        return load(self.store, event.parent_run_id, until=event.parent_sequence)
