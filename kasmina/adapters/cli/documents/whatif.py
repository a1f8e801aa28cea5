"""What ``kasmina audit --what-if`` and ``--sweep`` print with ``--json``."""

from collections.abc import Sequence

from kasmina.adapters.cli.documents import Document, values
from kasmina.domain.thresholds import Sweep
from kasmina.domain.verdicts import Change, Course, Tally, Verdict
from kasmina.domain.whatif import SweptRun, WhatIf


def what_if_document(
    result: WhatIf, verdicts: Sequence[Verdict], courses: Sequence[Course]
) -> Document:
    """One run: each chosen decision under the other thresholds, and each seed's course."""
    return {
        "run_id": result.run_id,
        "thresholds": [
            {
                "name": threshold.name,
                "value": values(threshold.value),
                "in_force": values(result.in_force[threshold.name]),
            }
            for threshold in result.thresholds
        ],
        "decisions": [_verdict(verdict) for verdict in verdicts],
        "courses": [_course(course) for course in courses],
        "summary": _tally(Tally.of(verdicts)),
    }


def what_ifs_document(runs: Sequence[Document], left_out: Sequence[str], total: Tally) -> Document:
    """Many runs: of each only the decisions that change, which is what does not fill memory."""
    return {"runs": list(runs), "left_out": list(left_out), "summary": _tally(total)}


def changes_document(
    result: WhatIf, verdicts: Sequence[Verdict], courses: Sequence[Course]
) -> Document:
    """As ``what_if_document``, without the decisions and courses that are as recorded."""
    return {
        **what_if_document(
            result,
            [verdict for verdict in verdicts if verdict.change is not Change.NONE],
            [course for course in courses if course.divergence is not None],
        ),
        "summary": _tally(Tally.of(verdicts)),
    }


def sweep_document(result: SweptRun) -> Document:
    """One run: how many decisions change at each value."""
    return {
        "run_id": result.run_id,
        "threshold": result.sweep.name,
        "in_force": values(result.in_force),
        "values": _points(result.sweep, result.tallies),
    }


def sweeps_document(
    over: Sweep, results: Sequence[SweptRun], left_out: Sequence[str], total: Sequence[Tally]
) -> Document:
    """Many runs: each by itself, and all together."""
    return {
        "threshold": over.name,
        "runs": [sweep_document(result) for result in results],
        "left_out": list(left_out),
        "values": _points(over, total),
    }


def _verdict(verdict: Verdict) -> Document:
    decision = verdict.decision
    return {
        "sequence": decision.sequence,
        "recorded_at": values(decision.recorded_at),
        "epoch": decision.epoch,
        "step": decision.step,
        "slot_id": decision.slot_id,
        "seed_id": decision.seed_id,
        "gate": decision.outcome.gate.value,
        "undone": decision.undone,
        "stage": verdict.stage.value,
        "epochs_in_stage": verdict.epochs_in_stage,
        "change": verdict.change.value,
        "certainty": verdict.certainty.value,
        "recorded": {"passed": decision.outcome.passed, "action": verdict.recorded.value},
        "what_if": {
            "passed": verdict.outcome.passed,
            "action": verdict.action.value,
            "leads_to": verdict.leads_to.value,
            "checks": [
                {**values(check), "margin": values(check.margin)}
                for check in verdict.outcome.checks
            ],
        },
    }


def _course(course: Course) -> Document:
    at = course.divergence
    return {
        "slot_id": course.slot_id,
        "seed_id": course.seed_id,
        "recorded": values(course.arrivals),
        "diverges_at": None
        if at is None
        else {
            "sequence": at.decision.sequence,
            "epoch": at.decision.epoch,
            "change": at.change.value,
            "certainty": at.certainty.value,
            "leads_to": at.leads_to.value,
        },
        "instead_of": values(course.instead_of),
        "foregone": values(course.foregone),
        "shifted_from": course.shifted_from,
        "untold_from": course.untold_from,
    }


def _points(over: Sweep, tallies: Sequence[Tally]) -> list[Document]:
    return [
        {"value": values(value), **_tally(tally)}
        for value, tally in zip(over.values, tallies, strict=True)
    ]


def _tally(tally: Tally) -> Document:
    return {**values(tally), "changes": tally.changes}
