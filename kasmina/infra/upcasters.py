"""Changes of meaning, applied to old payloads on the way in; what is stored is never rewritten.

An upcaster is a pure function from the payload of one version of an event type, as decoded JSON
(floats already floats), to that of the next version. Every version but an event's present one
needs one: where only a field with a default was added, that is ``unchanged``.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from kasmina.domain.errors import UnreadableEvent

Payload = dict[str, Any]
Upcaster = Callable[[Payload], Payload]

UPCASTERS: Mapping[tuple[str, int], Upcaster] = MappingProxyType({})
"""By event type and the version it upgrades from."""


def unchanged(payload: Payload) -> Payload:
    """The upcaster of a version that reads as the next one."""
    return payload


def upcast(
    name: str,
    version: int,
    payload: Payload,
    *,
    to: int,
    upcasters: Mapping[tuple[str, int], Upcaster],
) -> Payload:
    """The payload as version ``to`` of its type. Raises ``UnreadableEvent`` where no way leads."""
    for step in range(version, to):
        if (name, step) not in upcasters:
            raise UnreadableEvent(name, version, f"nothing upgrades version {step} to {step + 1}")
        payload = upcasters[name, step](payload)
    return payload
