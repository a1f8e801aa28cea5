"""Features in what a module returns: found, and put back into a container of the same type.

The features of an output are its first floating-point tensor: the output itself, or the first one
in a tuple, list, dict or dataclass, depth first and in the container's own order. All of it can be
traced, so compiled code sees only the tensors; a container that has to be copied as a stranger (a
subclass of ``list``, a dataclass both frozen and slotted) is for eager code alone.
"""

import copy
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

# Tuples, since the dynamo of torch 2.6 does not trace a union.
_ASSIGNABLE = (list, dict)
_SEQUENCES = (tuple, list)


def features_in(output: object) -> Tensor | None:
    """The first floating-point tensor in ``output``, ``None`` if there is none."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    for _, item in items_in(output):
        found = features_in(item)
        if found is not None:
            return found
    return None


def with_features(output: object, features: Tensor) -> object:
    """``output`` with ``features`` in place of its own, which it must have.

    Containers on the way to them are new and of the same types; all else in them is the very same
    objects, and ``output`` stays as it is.
    """
    for key, item in items_in(output):
        if features_in(item) is not None:
            return _with_item(output, key, with_features(item, features))
    return features


def items_in(output: object) -> Iterable[tuple[Any, object]]:
    """Keys and values of a container, none for what is not one."""
    if isinstance(output, _SEQUENCES):
        return enumerate(output)
    if isinstance(output, dict):  # the ModelOutput of transformers, which is a dataclass too
        return output.items()
    if is_dataclass(output):
        return [(field.name, getattr(output, field.name)) for field in fields(output)]
    return ()


def _with_item(container: object, key: Any, item: object) -> object:  # noqa: ANN401  # index, name
    kind = type(container)
    if isinstance(container, tuple):
        return _as(kind, (*container[:key], item, *container[key + 1 :]))
    if isinstance(container, list) and kind is list:
        return [*container[:key], item, *container[key + 1 :]]
    if isinstance(container, dict) and kind is dict:
        return {**container, key: item}
    copied: Any = copy.copy(container)
    if isinstance(container, _ASSIGNABLE):
        copied[key] = item
    else:
        object.__setattr__(copied, key, item)  # it may be frozen
    return copied


def _as(kind: Any, items: tuple[object, ...]) -> object:  # noqa: ANN401  # any kind of tuple
    if kind is tuple:
        return items
    if kind.__module__ == "torch.return_types":
        return kind(items)
    return tuple.__new__(kind, items)  # the constructor of a named tuple may take anything
