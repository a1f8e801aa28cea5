"""What a run has come to, in a short table: what became of each slot, and why."""

from collections.abc import Iterator

from attrs import frozen

from kasmina.domain.evidence import GateOutcome
from kasmina.domain.stages import Gate, Stage
from kasmina.domain.state import RunState, SeedState, SlotState
from kasmina.status import fraction, pending, refusal

_UNMEASURED = "–"
_CHECKS_SHOWN = 4
_HEADINGS = ("slot", "stage", "epochs", "seeds", "α", "contribution", "last gate")
_TO_THE_RIGHT = frozenset({"epochs", "seeds", "α", "contribution"})


@frozen(kw_only=True)
class SlotSummary:
    """One slot. ``epochs`` are those in its present stage, ``seeds`` all that were planted in it.

    ``alpha`` is ``None`` where no seed acts. ``contribution`` is the objective with the seed minus
    without it, signed so that better is positive, by the latest kind of measurement: on probation,
    else in SHADOWING, else the best rehearsal. ``outcome`` is that of the last gate asked.
    """

    slot_id: str
    stage: Stage
    epochs: int
    seeds: int
    alpha: float | None
    contribution: float | None
    outcome: GateOutcome | None


@frozen(kw_only=True)
class RunSummary:
    """A run at one step; as text, a table of its slots and how to audit it."""

    run_id: str
    name: str
    epochs: int
    steps: int
    objective: str
    measured: float | None
    unit: str
    slots: tuple[SlotSummary, ...]

    def __str__(self) -> str:  # type: ignore[explicit-override]  # the decorator comes with torch
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        figure = "not measured" if self.measured is None else f"{self.measured:.4g} {self.unit}"
        yield (
            f"run {self.run_id}: {self.epochs:,} epochs, {self.steps:,} steps, {self.objective} "
            f"{figure}".rstrip()
        )
        yield ""
        yield from _table([_HEADINGS, *(_row(slot) for slot in self.slots)])
        yield ""
        if not any(slot.seeds for slot in self.slots):
            yield "no seed was planted: run.germinate(slot_id, blueprint) plants one"
        yield f"what each gate decided, and on which figures: kasmina audit {self.run_id}"


def summary(state: RunState, step: int) -> RunSummary:
    """The run at optimizer step ``step``, which may lie after the last event."""
    return RunSummary(
        run_id=state.run_id,
        name=state.name,
        epochs=state.epoch,
        steps=step,
        objective=state.objective.name,
        measured=state.latest if state.latest is not None else state.measured,
        unit=state.objective.unit,
        slots=tuple(_slot(slot, step) for slot in state.slots.values()),
    )


def _slot(slot: SlotState, step: int) -> SlotSummary:
    seed = slot.seed if slot.stage.holds_seed else None
    asked = [slot.outcomes[gate] for gate in Gate if gate in slot.outcomes]
    return SlotSummary(
        slot_id=slot.slot_id,
        stage=slot.stage,
        epochs=slot.epochs_in_stage,
        seeds=slot.germinations,
        alpha=None if seed is None or not slot.stage.exposed else seed.alpha(step),
        contribution=None if seed is None else _contribution(seed),
        outcome=pending(slot) or (asked[-1] if asked else None),
    )


def _contribution(seed: SeedState) -> float | None:
    if seed.contribution is not None:
        return seed.contribution
    if seed.shadow_contribution is not None:
        return seed.shadow_contribution
    return None if seed.best_rehearsal is None else seed.best_rehearsal[1]


def _row(slot: SlotSummary) -> tuple[str, ...]:
    return (
        slot.slot_id,
        slot.stage.value,
        f"{slot.epochs:,}",
        f"{slot.seeds:,}",
        _UNMEASURED if slot.alpha is None else fraction(slot.alpha),
        _UNMEASURED if slot.contribution is None else f"{slot.contribution:+.4g}",
        _UNMEASURED if slot.outcome is None else _answer(slot.outcome),
    )


def _answer(outcome: GateOutcome) -> str:
    if outcome.passed:
        return f"{outcome.gate.value} passed"
    return refusal(outcome, _CHECKS_SHOWN)


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.rjust(width) if heading in _TO_THE_RIGHT else cell.ljust(width)
            for heading, cell, width in zip(_HEADINGS, row, widths, strict=True)
        )
        yield "  ".join(cells).rstrip()
