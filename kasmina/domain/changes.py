"""Copies of the state's values at the speed of a dict: folding one event makes two or three."""

from typing import TYPE_CHECKING, TypeVar

__all__ = ["changed"]

if TYPE_CHECKING:
    from attrs import evolve as changed  # type checkers know the fields of what it copies
else:
    Value = TypeVar("Value")

    _new, _set = object.__new__, object.__setattr__

    def changed(value: Value, /, **changes: object) -> Value:
        """A copy of ``value``, of an attrs class without slots, validators and converters.

        Raises ``TypeError`` for a field that the class does not have. Takes 0.5 µs for the state
        of a run, where ``attrs.evolve``, which asks the class for its fields, takes 3.
        """
        before = value.__dict__
        after = before | changes
        if len(after) != len(before):
            unknown = ", ".join(sorted(changes.keys() - before.keys()))
            raise TypeError(f"{type(value).__name__} has no field {unknown}")
        copy = _new(type(value))
        _set(copy, "__dict__", after)  # what is frozen is set past the class's own __setattr__
        return copy
