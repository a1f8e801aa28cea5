"""Events to stored bytes and back. Names and versions here are promises to every stored log.

A payload is canonical JSON: fields sorted, no white space. NaN and infinities, which JSON lacks
and msgspec would write as ``null`` ("not measured"), are written as ``{"$float": "nan"}``.
"""

import math
import re
from typing import Annotated, Any, NamedTuple

import msgspec

from kasmina.domain import events as e
from kasmina.domain.errors import StoreError, UnreadableEvent
from kasmina.infra.shapes import shape
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
_PRESENT = {
    name.encode(): (version, _DECODERS[name].decode) for name, (_, version) in TYPES.items()
}
_WRITTEN = {
    cls: (name, version, msgspec.json.Decoder(shape(cls)).decode)
    for name, (cls, version) in TYPES.items()
}

_MARK = "$float"
_MARK_BYTES = b'"$float"'
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_LARGEST = 2**63 - 1

_PACKER = msgspec.msgpack.Encoder()
_NON_FINITE = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")
"""A float in MessagePack whose exponent is all ones. Where text looks so, time is lost, no more."""

_FAILURES = (
    msgspec.MsgspecError,
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    RecursionError,
)


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
    if type(event) not in _WRITTEN:
        raise UnwritableEvent(event, "this class has no stored name")
    name, version, check = _WRITTEN[type(event)]
    try:
        payload = _ENCODER.encode(event)
        if b"null" in payload and _may_hold_non_finite(event):
            payload = _ENCODER.encode(_marked(msgspec.to_builtins(event)))
            _decoded(name, payload)
        else:
            check(payload)
        slot_id, seed_id = places(event)
    except _FAILURES as error:
        raise UnwritableEvent(event, str(error)) from error
    if event.epoch > _LARGEST:
        raise UnwritableEvent(event, f"epoch {event.epoch} does not fit in 64 bits")
    return Encoded(slot_id, seed_id, name.encode(), version, event.epoch, payload)


def _may_hold_non_finite(event: e.Event) -> bool:
    """Whether a ``null`` in the JSON might stand for a float that JSON lacks."""
    try:
        return _NON_FINITE.search(_PACKER.encode(event)) is not None
    except OverflowError:  # MessagePack's integers are of 64 bits, those of JSON are not
        return True


class _Unknown(msgspec.Struct):
    """What events of every type and version have in common."""

    epoch: Annotated[int, msgspec.Meta(ge=0)]
    step: Annotated[int, msgspec.Meta(ge=0)]
    slot_id: str | None = None
    seed_id: str | None = None


_UNKNOWN = msgspec.json.Decoder(_Unknown)


def decode(name: str, version: int, payload: bytes) -> e.Event:
    """The event that was stored so: an ``UnknownEvent`` where only a newer release can read it.

    Raises ``UnreadableEvent``.
    """
    if version < 1:
        raise UnreadableEvent(name, version, "versions begin at 1")
    present = TYPES[name][1] if name in TYPES else 0
    try:
        if version > present:
            return _unknown(name, version, payload)
        if version == present:
            return _decoded(name, payload)
        plain: Any = _unmarked(msgspec.json.decode(payload))
        plain = upcast(name, version, plain, to=present, upcasters=UPCASTERS)
        return msgspec.convert(plain, TYPES[name][0])
    except _FAILURES as error:
        raise UnreadableEvent(name, version, str(error)) from error


def read(kind: bytes, version: int, payload: bytes) -> e.Event:
    """As ``decode``, from the name as it is stored; the usual way is one look-up and one decode."""
    if kind in _PRESENT and _PRESENT[kind][0] == version and _MARK_BYTES not in payload:
        try:
            return _PRESENT[kind][1](payload)
        except _FAILURES as error:
            raise UnreadableEvent(kind.decode(), version, str(error)) from error
    return decode(kind.decode(errors="replace"), version, payload)


def places(event: e.Event) -> tuple[bytes | None, bytes | None]:
    """The slot and the seed that the event is about, as stored."""
    if isinstance(event, e.SeedEvent):
        return event.slot_id.encode(), event.seed_id.encode()
    if isinstance(event, e.SlotEvent):
        return event.slot_id.encode(), None
    if isinstance(event, e.UnknownEvent):
        return _bytes(event.slot_id), _bytes(event.seed_id)
    return None, None


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _unknown(name: str, version: int, payload: bytes) -> e.UnknownEvent:
    common = _UNKNOWN.decode(payload)
    return e.UnknownEvent(
        epoch=common.epoch,
        step=common.step,
        type=name,
        schema_version=version,
        payload=payload.decode(),
        slot_id=common.slot_id,
        seed_id=common.seed_id,
    )


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
