"""What receivers of figures are told of an event: numbers by name, and what is worth words."""

import json
from collections.abc import Callable, Iterator
from enum import Enum
from functools import singledispatch

import attrs
from attrs import frozen

from kasmina.adapters.sinks.follower import Entry
from kasmina.domain import events as e
from kasmina.domain.ports import Recorded
from kasmina.domain.state import RunState, SlotState

Words = Callable[[e.Event], str]
"""What happened, as a line of prose."""

Plain = str | int | float | bool

_ROUTINE = (e.EpochRecorded, e.CheckpointSaved)


@frozen(kw_only=True)
class Figure:
    """A number at the event's step. ``name`` is a path whose parts are divided by slashes."""

    name: str
    value: float


def figures(entry: Entry) -> tuple[Figure, ...]:
    """Everything that was measured or decided by the event, as numbers; unmeasured ones not."""
    found = _measured(entry.record.event, entry.state)
    return tuple(Figure(name=name, value=value) for name, value in found if value is not None)


def topic(event: e.Event) -> str | None:
    """Where words about the event belong: ``body/G2``; ``None`` for routine, which has none."""
    if isinstance(event, _ROUTINE):
        return None
    kind = type(event).__name__
    if isinstance(event, e.GateEvaluated):
        kind = event.outcome.gate.value
    if isinstance(event, e.StageChanged):
        kind = event.target.value
    return f"{event.slot_id}/{kind}" if isinstance(event, e.SlotEvent) else kind


def line(record: Recorded, words: Words) -> str:
    """What happened, with its place in the log and the epoch."""
    return f"#{record.sequence}, epoch {record.event.epoch}: {words(record.event)}"


def description(entry: Entry) -> dict[str, Plain]:
    """What a run is at its first event, by name: objective, host, every threshold, software."""
    state, event = entry.state, entry.record.event
    told = dict(_described(state))
    if isinstance(event, e.RunForked):
        told |= {"parent/run_id": event.parent_run_id, "parent/sequence": event.parent_sequence}
    if isinstance(event, e.RunOpened):
        told |= {f"software/{package.name}": package.version for package in event.software}
    return told


def _described(state: RunState) -> Iterator[tuple[str, Plain]]:
    yield "run_id", state.run_id
    yield "name", state.name
    yield "random_seed", state.random_seed
    parts: tuple[tuple[str, attrs.AttrsInstance], ...] = (
        ("objective", state.objective),
        ("host", state.host),
        ("policy", state.policy),
    )
    for name, part in parts:
        yield from _flat(name, attrs.asdict(part, value_serializer=_plain))


def _plain(_instance: object, _field: object, value: object) -> object:
    return value.value if isinstance(value, Enum) else value


def _flat(name: str, value: object) -> Iterator[tuple[str, Plain]]:
    """Leaves by path; a list is one text, and what is not set is left out."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{name}/{key}", inner)
    elif isinstance(value, str | int | float):
        yield name, value
    elif value:
        yield name, json.dumps(value)


_Measured = Iterator[tuple[str, float | None]]


@singledispatch
def _measured(_event: e.Event, _state: RunState) -> _Measured:
    yield from ()


@_measured.register
def _(event: e.EpochRecorded, state: RunState) -> _Measured:
    yield "epoch", float(event.epoch)
    yield f"objective/{state.objective.name}", event.objective
    for metric in event.metrics:
        yield f"metrics/{metric.name}", metric.value
    for slot in state.slots.values():
        yield from _standing(slot, event.step)
    for evidence in event.seeds:
        yield f"slots/{evidence.slot_id}/gradient_norm", evidence.gradient_norm


@_measured.register(e.StageChanged)
@_measured.register(e.AlphaOverridden)
@_measured.register(e.BlendScheduled)
@_measured.register(e.CullScheduled)
def _(event: e.SlotEvent, state: RunState) -> _Measured:
    yield from _standing(state.slot(event.slot_id), event.step)


def _standing(slot: SlotState, step: int) -> _Measured:
    """The slot's stage by its code, and its alpha: a pure function of the recorded schedule."""
    attached = slot.seed is not None and slot.stage.holds_seed
    yield f"slots/{slot.slot_id}/stage", float(slot.stage.code)
    yield f"slots/{slot.slot_id}/alpha", slot.seed.alpha(step) if slot.seed and attached else 0.0


@_measured.register
def _(event: e.GateEvaluated, _state: RunState) -> _Measured:
    place, outcome = f"slots/{event.slot_id}/{event.outcome.gate.value}", event.outcome
    yield f"{place}/passed", float(outcome.passed)
    yield f"{place}/score", outcome.score
    for check in outcome.checks:
        yield f"{place}/margin/{check.name}", check.margin


@_measured.register
def _(event: e.ShadowEvaluated, state: RunState) -> _Measured:
    gain = state.objective.improvement(event.objective_without, event.objective_with)
    yield f"slots/{event.slot_id}/agreement", event.agreement
    yield f"slots/{event.slot_id}/shadow_contribution", gain


@_measured.register
def _(event: e.CounterfactualMeasured, state: RunState) -> _Measured:
    gain = state.objective.improvement(event.objective_without, event.objective_with)
    exposed = state.slot(event.slot_id).stage.exposed
    what = "contribution" if exposed else f"rehearsal/{event.alpha:g}"
    yield f"slots/{event.slot_id}/{what}", gain
