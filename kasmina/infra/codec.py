"""Events to stored bytes and back. Names and versions here are promises to every stored log.

A payload is canonical JSON: fields sorted, no white space. NaN and infinities, which JSON lacks
and msgspec would write as ``null`` ("not measured"), are written as ``{"$float": "nan"}``.
"""

import math
from typing import Any, NamedTuple

import msgspec

from kasmina.domain import events as e
from kasmina.domain.errors import StoreError, UnreadableEvent
from kasmina.infra.upcasters import UPCASTERS, upcast

TYPES: dict[str, tuple[type[e.Event], int]] = {
    "RunOpened": (e.RunOpened, 1),
    "RunForked": (e.RunForked, 1),
    "RunRewound": (e.RunRewound, 1),
    "RunClosed": (e.RunClosed, 1),
    "GatePolicyChanged": (e.GatePolicyChanged, 1),
    "CheckpointSaved": (e.CheckpointSaved, 1),
    "EpochRecorded": (e.EpochRecorded, 1),
    "SlotOpened": (e.SlotOpened, 1),
    "SeedGerminated": (e.SeedGerminated, 1),
    "GateEvaluated": (e.GateEvaluated, 1),
    "StageChanged": (e.StageChanged, 1),
    "BlendScheduled": (e.BlendScheduled, 1),
    "AlphaOverridden": (e.AlphaOverridden, 1),
    "ShadowEvaluated": (e.ShadowEvaluated, 1),
    "CounterfactualMeasured": (e.CounterfactualMeasured, 1),
    "IsolationViolated": (e.IsolationViolated, 1),
    "HealthChanged": (e.HealthChanged, 1),
    "CullScheduled": (e.CullScheduled, 1),
    "SeedCulled": (e.SeedCulled, 1),
    "SeedFossilized": (e.SeedFossilized, 1),
    "SlotRecycled": (e.SlotRecycled, 1),
    "SeedPaused": (e.SeedPaused, 1),
    "SeedResumed": (e.SeedResumed, 1),
}
"""Stored name: its class, and the version that is written."""

_ENCODER = msgspec.json.Encoder(order="sorted")
_DECODERS = {name: msgspec.json.Decoder(cls, strict=True) for name, (cls, _) in TYPES.items()}
_NAMES = {cls: name for name, (cls, _) in TYPES.items()}

_MARK = "$float"
_MARK_BYTES = b'"$float"'
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_LARGEST = 2**63 - 1

_READING = (msgspec.MsgspecError, ValueError, TypeError, LookupError, RecursionError)
_WRITING = (*_READING, OverflowError)


class UnwritableEvent(StoreError):
    """An event that could not be read back if it were stored; nothing was written."""

    def __init__(self, event: e.Event, problem: str) -> None:
        self.event = event
        self.problem = problem
        super().__init__(
            f"{type(event).__name__} cannot be stored: {problem}; nothing was written; give each "
            f"field plain Python values of its own type (a tensor's .item(), a list's tuple)"
        )


class Encoded(NamedTuple):
    """What a row holds of its event alone, as stored bytes and integers."""

    slot_id: bytes | None
    seed_id: bytes | None
    type: bytes
    schema_version: int
    epoch: int
    payload: bytes


def encode(event: e.Event) -> Encoded:
    """The event as it is stored. Raises ``UnwritableEvent`` for what could not be read back."""
    if type(event) not in _NAMES:
        raise UnwritableEvent(event, "this class has no stored name")
    name = _NAMES[type(event)]
    try:
        payload = _ENCODER.encode(event)
        if b"null" in payload:
            payload = _ENCODER.encode(_marked(msgspec.to_builtins(event)))
        _decoded(name, payload)
        slot_id, seed_id = places(event)
    except _WRITING as error:
        raise UnwritableEvent(event, str(error)) from error
    if event.epoch > _LARGEST:
        raise UnwritableEvent(event, f"epoch {event.epoch} does not fit in 64 bits")
    return Encoded(slot_id, seed_id, name.encode(), TYPES[name][1], event.epoch, payload)


def decode(name: str, version: int, payload: bytes) -> e.Event:
    """The event that was stored so. Raises ``UnreadableEvent``."""
    if name not in TYPES:
        raise UnreadableEvent(name, version, "this release of kasmina knows no event of that name")
    present = TYPES[name][1]
    if not 1 <= version <= present:
        raise UnreadableEvent(name, version, f"this release of kasmina knows 1 to {present}")
    try:
        if version == present:
            return _decoded(name, payload)
        plain: Any = _unmarked(msgspec.json.decode(payload))
        plain = upcast(name, version, plain, to=present, upcasters=UPCASTERS)
        return msgspec.convert(plain, TYPES[name][0])
    except _READING as error:
        raise UnreadableEvent(name, version, str(error)) from error


def places(event: e.Event) -> tuple[bytes | None, bytes | None]:
    """The slot and the seed that the event is about, as stored."""
    if isinstance(event, e.SeedEvent):
        return event.slot_id.encode(), event.seed_id.encode()
    if isinstance(event, e.SlotEvent):
        return event.slot_id.encode(), None
    return None, None


def _decoded(name: str, payload: bytes) -> e.Event:
    if _MARK_BYTES in payload:
        return msgspec.convert(_unmarked(msgspec.json.decode(payload)), TYPES[name][0])
    return _DECODERS[name].decode(payload)


def _marked(value: object) -> object:
    """Plain values with every non-finite float replaced by its mark."""
    if isinstance(value, float) and not math.isfinite(value):
        return {_MARK: repr(value)}
    if isinstance(value, dict):
        return {key: _marked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(item) for item in value]
    return value


def _unmarked(value: object) -> object:
    """The inverse of ``_marked``. Events hold no mappings, so a mark is never a user's."""
    if isinstance(value, dict):
        if value.keys() == {_MARK}:
            return _FLOATS[value[_MARK]]
        return {key: _unmarked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unmarked(item) for item in value]
    return value
