"""Checks that make a value valid when it is built."""

import math
from collections.abc import Callable
from enum import Enum
from typing import Any

from attrs import Attribute


def of_type(kind: type[object]) -> Callable[[object, "Attribute[Any]", object], None]:
    """Refuse anything but a ``kind``: stored text looks like an enum's value, and is not it."""

    def check(_: object, attribute: "Attribute[Any]", value: object) -> None:
        if not isinstance(value, kind):
            known = [member.name for member in kind] if issubclass(kind, Enum) else []
            options = f" ({', '.join(known)})" if known else ""
            raise TypeError(
                f"{attribute.name} must be of type {kind.__name__}{options}, got {value!r}"
            )

    return check


def finite(_: object, attribute: "Attribute[Any]", value: float) -> None:
    """Refuse NaN and infinity."""
    if not math.isfinite(value):
        raise ValueError(f"{attribute.name} must be finite, got {value!r}")


def not_blank(_: object, attribute: "Attribute[str]", value: str) -> None:
    """Refuse text that is empty or only white space."""
    if not value.strip():
        raise ValueError(f"{attribute.name} must not be blank, got {value!r}")


def not_negative(_: object, attribute: "Attribute[Any]", value: float) -> None:
    """Refuse a negative, NaN or infinite number."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{attribute.name} must be finite and at least 0, got {value!r}")


def positive(_: object, attribute: "Attribute[Any]", value: float) -> None:
    """Refuse zero and a negative, NaN or infinite number."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{attribute.name} must be finite and above 0, got {value!r}")


def share(_: object, attribute: "Attribute[Any]", value: float) -> None:
    """Refuse a number outside (0, 1]."""
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{attribute.name} must lie in (0, 1], got {value!r}")


def unit_interval(_: object, attribute: "Attribute[Any]", value: float) -> None:
    """Refuse a number outside [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{attribute.name} must lie in [0, 1], got {value!r}")
