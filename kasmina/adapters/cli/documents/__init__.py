"""What ``--json`` prints, as plain values. Keys are a promise: they may be added, not changed.

Events and their parts carry the field names of the domain, which are stored for ever. Non-finite
numbers, which JSON lacks, are the strings "NaN", "Infinity" and "-Infinity"; ``null`` is "not
measured", or "none".
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any, TypeAlias

import attrs

from kasmina.domain import events as e
from kasmina.domain.blueprints import BlueprintSpec
from kasmina.domain.evidence import Check
from kasmina.domain.machine import Edge
from kasmina.domain.ports import Recorded
from kasmina.domain.projections import Decision, Moment
from kasmina.domain.stages import Gate, Stage
from kasmina.domain.state import RunState, SlotState
from kasmina.infra.codec import TYPES
from kasmina.infra.integrity import Verification

Document: TypeAlias = dict[str, Any]

_NAMES = {cls: name for name, (cls, _) in TYPES.items()}


def values(thing: object) -> Any:  # noqa: ANN401 - JSON has no type of its own
    """An attrs value, or anything inside one, as what JSON can hold."""
    if isinstance(thing, float) and not math.isfinite(thing):
        return "NaN" if math.isnan(thing) else "Infinity" if thing > 0 else "-Infinity"
    if isinstance(thing, Enum):
        return thing.value
    if isinstance(thing, datetime):
        return thing.astimezone(UTC).isoformat(timespec="microseconds")
    if isinstance(thing, Mapping):
        return {values(key): values(item) for key, item in thing.items()}
    if isinstance(thing, list | tuple):
        return [values(item) for item in thing]
    kind = type(thing)
    if attrs.has(kind):
        return {field.name: values(getattr(thing, field.name)) for field in attrs.fields(kind)}
    return thing


def runs_document(runs: Iterable[tuple[Recorded, RunState]], *, older_than: str | None) -> Document:
    """``kasmina runs``: each run's first event and its state.

    ``older_than`` is the run before which the next page ends, ``None`` on the last page.
    """
    return {
        "runs": [
            {
                "run_id": state.run_id,
                "name": state.name,
                "opened_at": values(first.recorded_at),
                "host": values(state.host),
                "objective": {**values(state.objective), "latest": values(state.latest)},
                "epochs": state.epoch,
                "events": state.sequence,
                "slots": {slot.slot_id: slot.stage.value for slot in state.slots.values()},
                "closed": state.closed,
                "forked_from": origin_document(first.event),
            }
            for first, state in runs
        ],
        "older_than": older_than,
    }


def origin_document(first: e.Event | None) -> Document | None:
    """Where the run that ``first`` began was forked from; ``null`` for one opened anew."""
    if not isinstance(first, e.RunForked):
        return None
    return {
        "run_id": first.parent_run_id,
        "sequence": first.parent_sequence,
        "digest": first.parent_digest,
    }


def replay_document(state: RunState, moments: Sequence[Moment], *, head: int) -> Document:
    """``kasmina replay``: the state at a point, and what led to it."""
    return {
        "run_id": state.run_id,
        "name": state.name,
        "sequence": state.sequence,
        "head": head,
        "epoch": state.epoch,
        "step": state.step,
        "closed": state.closed,
        "rewinds": state.rewinds,
        "random_seed": state.random_seed,
        "host": values(state.host),
        "objective": {**values(state.objective), "latest": values(state.latest)},
        "metrics": values(state.metrics),
        "policy": values(state.policy),
        "checkpoint": None if state.checkpoint is None else values(state.checkpoint),
        "slots": [_slot(slot, state.step) for slot in state.slots.values()],
        "timeline": [
            {**_event(moment), "undone": moment.undone, "event": values(moment.event)}
            for moment in moments
        ],
    }


def _slot(slot: SlotState, step: int) -> Document:
    seed = None
    if slot.seed is not None:
        best = slot.seed.best_rehearsal
        seed = {
            **values(slot.seed),
            "alpha": slot.seed.alpha(step),
            "rehearsals": [_rehearsal(*tried) for tried in slot.seed.rehearsals.items()],
            "best_rehearsal": None if best is None else _rehearsal(*best),
        }
    return {
        "slot_id": slot.slot_id,
        "topology": slot.topology.value,
        "width": slot.width,
        "stage": slot.stage.value,
        "stage_code": slot.stage.code,
        "epochs_in_stage": slot.epochs_in_stage,
        "stage_baseline": values(slot.stage_baseline),
        "germinations": slot.germinations,
        "seed": seed,
        "gates": {
            gate.value: {"passed": outcome.passed, "score": outcome.score}
            for gate, outcome in slot.outcomes.items()
        },
    }


def _rehearsal(alpha: float, contribution: float) -> Document:
    return {"alpha": alpha, "contribution": values(contribution)}


def record_document(record: Recorded) -> Document:
    """A line of ``kasmina replay --follow``: an event as it was stored."""
    return {
        **_event(record),
        "run_id": record.run_id,
        "position": record.position,
        "digest": record.digest.hex(),
        "event": values(record.event),
    }


def _event(entry: Moment | Recorded) -> Document:
    event = entry.event
    return {
        "sequence": entry.sequence,
        "recorded_at": values(entry.recorded_at),
        "epoch": event.epoch,
        "step": event.step,
        "slot_id": event.slot_id if isinstance(event, e.SlotEvent) else None,
        "seed_id": event.seed_id if isinstance(event, e.SeedEvent) else None,
        "type": stored_name(event),
    }


def stored_name(event: e.Event) -> str:
    """The name under which events of this class are stored."""
    return event.type if isinstance(event, e.UnknownEvent) else _NAMES[type(event)]


def audit_document(run_id: str, decisions: Sequence[Decision]) -> Document:
    """``kasmina audit``: every decision with its checks, and how many there are."""
    passed = sum(decision.outcome.passed for decision in decisions)
    return {
        "run_id": run_id,
        "decisions": [
            {
                "sequence": decision.sequence,
                "recorded_at": values(decision.recorded_at),
                "epoch": decision.epoch,
                "step": decision.step,
                "slot_id": decision.slot_id,
                "seed_id": decision.seed_id,
                "gate": decision.outcome.gate.value,
                "passed": decision.outcome.passed,
                "score": decision.outcome.score,
                "undone": decision.undone,
                "checks": [_check(check) for check in decision.outcome.checks],
            }
            for decision in decisions
        ],
        "summary": {
            "decisions": len(decisions),
            "passed": passed,
            "refused": len(decisions) - passed,
            "undone": sum(decision.undone for decision in decisions),
        },
    }


def _check(check: Check) -> Document:
    return {**values(check), "margin": values(check.margin)}


def stages_document(edges: Sequence[Edge]) -> Document:
    """``kasmina stages``: the stages with their codes, and the machine's edges."""
    return {
        "stages": [{"stage": stage.value, "code": stage.code} for stage in Stage],
        "gates": [gate.value for gate in Gate],
        "edges": [values(edge) for edge in edges],
    }


def blueprints_document(specs: Sequence[BlueprintSpec], *, width: int) -> Document:
    """``kasmina blueprints``: the catalogue, counted at one width."""
    return {
        "width": width,
        "blueprints": [
            {
                "name": spec.name,
                "topology": spec.topology.value,
                "kind": spec.kind.value,
                "summary": spec.summary,
                "parameters": spec.parameters(width),
            }
            for spec in specs
        ],
    }


def verification_document(found: Sequence[Verification]) -> Document:
    """``kasmina verify``: what was found of each run."""
    return {
        "sound": all(verification.sound for verification in found),
        "runs": [
            {
                "run_id": verification.run_id,
                "events": verification.events,
                "sound": verification.sound,
                "unjudged": verification.unjudged,
                "head": {
                    "sequence": verification.head.sequence,
                    "digest": verification.head.digest.hex(),
                },
                "problems": [
                    {
                        "sequence": problem.sequence,
                        "flaw": problem.flaw.name.lower(),
                        "detail": problem.detail,
                    }
                    for problem in verification.problems
                ],
            }
            for verification in found
        ],
    }
