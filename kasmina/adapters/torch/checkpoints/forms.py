"""The form of what a file holds, checked before anything relies on it."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from enum import Enum
from typing import cast

Form = Callable[[object, str], None]
"""Raises ``Malformed`` for a value, which is at a place in the file, that has another form."""


class Malformed(Exception):
    """A value in a file that is not what belongs there."""

    def __init__(self, where: str, *, expected: str, found: object) -> None:
        self.where = where
        self.expected = expected
        self.found = type(found).__qualname__
        super().__init__(f"{where} should be {expected}, is {self.found}")


def anything(_value: object, _where: str) -> None:
    """What is another's to judge."""


def a(kind: type) -> Form:
    """Exactly that type: ``True`` is no number, and no subclass has a say."""

    def check(value: object, where: str) -> None:
        if type(value) is not kind:
            raise Malformed(where, expected=kind.__qualname__, found=value)

    return check


def at_least_zero(value: object, where: str) -> None:
    """A whole number that counts something."""
    if type(value) is not int or value < 0:
        raise Malformed(where, expected="a count", found=value)


def member(kind: type[Enum]) -> Form:
    """The value of a member of ``kind``."""
    values = {each.value for each in kind}

    def check(value: object, where: str) -> None:
        if type(value) is not str or value not in values:
            raise Malformed(where, expected=f"the value of a {kind.__qualname__}", found=value)

    return check


def hexadecimal(length: int) -> Form:
    """So many bytes, as text."""

    def check(value: object, where: str) -> None:
        if type(value) is not str or len(value) != 2 * length or set(value) - set(_DIGITS):
            raise Malformed(where, expected=f"{length} bytes in hexadecimal", found=value)

    return check


_DIGITS = "0123456789abcdef"


def absent_or(form: Form) -> Form:
    """``None``, or of that form."""

    def check(value: object, where: str) -> None:
        if value is not None:
            form(value, where)

    return check


def each(form: Form) -> Form:
    """A list of such values."""

    def check(value: object, where: str) -> None:
        a(list)(value, where)
        for position, item in enumerate(_items(value)):
            form(item, f"{where}[{position}]")

    return check


def row(*forms: Form) -> Form:
    """A tuple of so many values, each of its own form."""

    def check(value: object, where: str) -> None:
        if not isinstance(value, tuple) or len(value) != len(forms):
            raise Malformed(where, expected=f"a tuple of {len(forms)}", found=value)
        for position, (form, item) in enumerate(zip(forms, value, strict=True)):
            form(item, f"{where}[{position}]")

    return check


def by(key: Form, form: Form) -> Form:
    """A dict of such keys and values."""

    def check(value: object, where: str) -> None:
        if type(value) not in (dict, OrderedDict):
            raise Malformed(where, expected="dict", found=value)
        for name, item in _entries(value):
            key(name, f"a key of {where}")
            form(item, f"{where}[{name!r}]")

    return check


def record(**fields: Form) -> Form:
    """A dict with those keys; others are let be."""

    def check(value: object, where: str) -> None:
        if type(value) is not dict:
            raise Malformed(where, expected="dict", found=value)
        for name, form in fields.items():
            if name not in value:
                raise Malformed(f"{where}[{name!r}]", expected="there", found=None)
            form(value[name], f"{where}[{name!r}]")

    return check


def _items(value: object) -> Iterable[object]:
    return list.__iter__(cast("list[object]", value))


def _entries(value: object) -> Iterable[tuple[object, object]]:
    # Not its own method: an OrderedDict from a file may have an attribute in the place of it.
    return dict.items(cast("dict[object, object]", value))
