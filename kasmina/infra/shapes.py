"""Structs with the fields and types of attrs classes, for asking whether bytes would be readable.

Decoding into them checks every type, as decoding into the attrs classes does, in a third of the
time: they are not the events themselves, and run no validator, which an event has passed already.
"""

import types
import typing
from typing import Any

import attrs
import msgspec


def shape(cls: type) -> type[msgspec.Struct]:
    """The struct that an instance of the attrs class ``cls`` is encoded as."""
    hints = typing.get_type_hints(cls)
    fields = [(field.name, _shaped(hints[field.name])) for field in attrs.fields(cls)]
    return msgspec.defstruct(cls.__name__, fields, gc=False)


def _shaped(hint: Any) -> Any:  # noqa: ANN401 - a type, or what stands for several
    if isinstance(hint, type) and attrs.has(hint):
        return shape(hint)
    within = tuple(_shaped(part) for part in typing.get_args(hint))
    match typing.get_origin(hint):
        case None:
            return hint
        case types.UnionType:
            return typing.Union[within]  # noqa: UP007 - X | Y takes no tuple
        case origin:
            return origin[within]
