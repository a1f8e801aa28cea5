"""What differs between two states, and where two histories part."""

import math
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import TypeAlias

import attrs
from attrs import frozen

from kasmina.domain.evidence import Check
from kasmina.domain.state import RunState

Path: TypeAlias = tuple[str, ...]
Parts: TypeAlias = Mapping[str, object]


class Missing(Enum):
    """The value of what is on one side only; ``None`` is a value, "not measured" or "none"."""

    ABSENT = "absent"


ABSENT = Missing.ABSENT


@frozen(kw_only=True)
class Difference:
    """One value that is not the same on both sides.

    ``path`` leads to it by the names of fields, slots, gates and checks:
    ``("slots", "body", "seed", "target")``. What is there on one side only is one difference,
    whole, and ``ABSENT`` on the other.
    """

    path: Path
    before: object
    after: object


def differences(before: RunState, after: RunState) -> tuple[Difference, ...]:
    """Every value in which the two states differ. NaN is the same as NaN."""
    return tuple(_compared((), before, after))


# What a fork, another policy, a checkpoint, a rewind and the end of a run change.
_BESIDE_TENSORS = frozenset(
    {"run_id", "name", "sequence", "policy", "checkpoint", "rewinds", "closed"}
)


def same_tensors(state: RunState, other: RunState) -> bool:
    """Whether the tensors of two points of a history, or of a fork and its origin, are the same.

    They are where the states differ in nothing that training or a decision about a seed changes.
    """
    return all(each.path[0] in _BESIDE_TENSORS for each in differences(state, other))


def _compared(path: Path, before: object, after: object) -> Iterator[Difference]:
    if before is after:
        return
    sides = _sides(before, after)
    if sides is None:
        if not _same(before, after):
            yield Difference(path=path, before=before, after=after)
        return
    left, right = sides
    for name in dict.fromkeys([*left, *right]):
        yield from _compared((*path, name), left.get(name, ABSENT), right.get(name, ABSENT))


def _sides(before: object, after: object) -> tuple[Parts, Parts] | None:
    """What two values of one kind are made of, by name; ``None`` where they are compared whole."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        return _items(before), _items(after)
    if isinstance(before, tuple) and isinstance(after, tuple):
        return _entries(before, after)
    kind = type(before)
    if attrs.has(kind) and kind is type(after):
        names = [each.name for each in attrs.fields(kind)]
        return _fields(before, names), _fields(after, names)
    return None


def _items(mapping: Mapping[object, object]) -> Parts:
    return {
        str(key.value if isinstance(key, Enum) else key): value for key, value in mapping.items()
    }


def _fields(value: object, names: Sequence[str]) -> Parts:
    return {name: getattr(value, name) for name in names}


def _entries(before: tuple[object, ...], after: tuple[object, ...]) -> tuple[Parts, Parts] | None:
    """Checks by name, other attrs values by place; a sequence of plain figures is one value."""
    if not all(attrs.has(type(entry)) for entry in before + after):
        return None
    one, other = _by_name(before), _by_name(after)
    named = len(one) == len(before) and len(other) == len(after)
    if named and _ordered(one, other):
        return one, other
    return _by_place(before), _by_place(after)


def _ordered(one: Parts, other: Parts) -> bool:
    """Whether what is in both is in both in the same order."""
    return [name for name in one if name in other] == [name for name in other if name in one]


def _by_name(entries: Sequence[object]) -> Parts:
    return {entry.name: entry for entry in entries if isinstance(entry, Check)}


def _by_place(entries: Sequence[object]) -> Parts:
    return {str(place): entry for place, entry in enumerate(entries, 1)}


def _same(before: object, after: object) -> bool:
    if isinstance(before, float) and isinstance(after, float) and math.isnan(before):
        return math.isnan(after)
    if isinstance(before, tuple) and isinstance(after, tuple):
        return len(before) == len(after) and all(map(_same, before, after))
    return before == after


@frozen(kw_only=True)
class Stretch:
    """The events ``after + 1`` to ``until`` of a run."""

    run_id: str
    after: int
    until: int


@frozen(kw_only=True)
class Parting:
    """Where two histories, which are one up to event ``sequence`` of ``run_id``, part.

    ``before`` and ``after`` are what each of the two has of its own since then, oldest first; of
    two points in one run the earlier one has nothing.
    """

    run_id: str
    sequence: int
    before: tuple[Stretch, ...]
    after: tuple[Stretch, ...]


def parting(before: Sequence[Stretch], after: Sequence[Stretch]) -> Parting | None:
    """Where two lineages part; ``None`` for runs that have nothing in common.

    A lineage is a run and those from which it was forked, the oldest first, each up to the point
    at which the next one was forked from it.
    """
    limits = {stretch.run_id: stretch.until for stretch in before}
    shared = [stretch for stretch in after if stretch.run_id in limits]
    if not shared:
        return None
    run_id = shared[-1].run_id
    sequence = min(shared[-1].until, limits[run_id])
    own = [tuple(_beyond(lineage, run_id, sequence)) for lineage in (before, after)]
    return Parting(run_id=run_id, sequence=sequence, before=own[0], after=own[1])


def _beyond(lineage: Sequence[Stretch], run_id: str, sequence: int) -> Iterator[Stretch]:
    """What of ``lineage`` lies after that event of that run."""
    place = [stretch.run_id for stretch in lineage].index(run_id)
    if lineage[place].until > sequence:
        yield attrs.evolve(lineage[place], after=sequence)
    yield from lineage[place + 1 :]
