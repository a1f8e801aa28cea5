"""Putting a module after another for good, with nothing but torch, and no name of the host changed.

The module becomes a child of the target, called ``seed``. An ``nn.Sequential`` then runs it as its
last layer; any other target gets a forward hook. The hook is the generated code of an
``fx.GraphModule``, so it pickles as source, and finds the child by name, so that copies, replicas
and tools that replace children are right.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import partial, reduce
from itertools import chain, count
from typing import Any, cast

from attrs import frozen
from torch import nn

from kasmina.adapters.torch.outputs import features_in, items_in
from kasmina.adapters.torch.plain import generated

# Their forward runs over their children, or may.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_LAYER = "layer"


@frozen
class Step:
    """One container on the way to the features in an output."""

    kind: type
    key: Any


Way = tuple[Step, ...]
"""From an output to its features; empty where the output is the features."""


def way_in(output: object) -> Way:
    """The way to the features in ``output``, which must have some."""
    for key, item in items_in(output):
        if features_in(item) is not None:
            return (Step(type(output), key), *way_in(item))
    return ()


def stranger(way: Way) -> type | None:
    """A container on the way that plain operations cannot rebuild, ``None`` if there is none."""
    return next((step.kind for step in way if not _rebuildable(step.kind)), None)


def splice(target: nn.Module, series: Sequence[nn.Module], way: Way = ()) -> None:
    """Let the features that ``target`` returns, at the end of ``way``, go through ``series``.

    There must be no ``stranger`` on the way. What was spliced in earlier comes after ``series``,
    but in an ``nn.Sequential``, which runs its children in order, before.
    """
    if not way and type(target).forward is nn.Sequential.forward:
        for module in series:
            target.add_module(_free(target, "seed"), module)
        return
    home, path = target, []
    while isinstance(home, _CONTAINERS) and len(home):
        name, home = list(home.named_children())[-1]
        path.append(name)
    names = []
    for module in series:
        names.append(_free(home, "seed"))
        home.add_module(names[-1], module)
    hooked = target
    if isinstance(target, nn.TransformerEncoderLayer):
        hooked, path = _understudy(target), [_LAYER, *path]
    hook = generated(_hook(path, names, way), "Splice")
    handle = hooked.register_forward_hook(hook, prepend=True)
    # Pickled along, the handle keeps a new process from giving the hook's number away again.
    vars(hooked)[_free(hooked, "seed_hook")] = handle


def _free(module: nn.Module, name: str) -> str:
    """``name``, or with the first number from 2 that makes it new to ``module``."""
    taken = dir(module)
    numbered = (f"{name}{number}" for number in count(2))
    return next(each for each in chain((name,), numbered) if each not in taken)


def _understudy(layer: nn.TransformerEncoderLayer) -> nn.Module:
    """A module that runs the forward of ``layer``, now that ``layer`` asks it to.

    The layer leaves its fast path where it finds a hook on itself or a child: this is neither.
    """
    understudy = nn.Module()
    vars(understudy)[_LAYER] = layer
    vars(understudy)["forward"] = partial(type(layer).forward, layer)
    vars(layer)["forward"] = partial(understudy)
    return understudy


def _hook(path: Sequence[str], names: Sequence[str], way: Way) -> Callable[..., Any]:
    def hook(module, args, output):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, ARG001
        home = reduce(getattr, path, module)
        return _rebuilt(output, way, lambda features: _through(home, names, features))

    return hook


def _through(home: Any, names: Sequence[str], features: Any) -> Any:  # noqa: ANN401  # traced
    for name in names:
        features = getattr(home, name)(features)
    return features


def _rebuilt(output: Any, way: Way, grow: Callable[[Any], Any]) -> Any:  # noqa: ANN401
    """``output`` with its features grown. Traced, and again at each unpickling: proxies only."""
    if not way:
        return grow(output)
    step, *rest = way
    kind, key = step.kind, step.key
    if is_dataclass(kind) and not issubclass(kind, dict):
        values = {field.name: getattr(output, field.name) for field in fields(kind)}
        return kind(**{**values, key: _rebuilt(values[key], tuple(rest), grow)})
    item = _rebuilt(output[key], tuple(rest), grow)
    if issubclass(kind, dict):
        # Others are changed in place: no copy that the compiler knows keeps their type.
        mapping = output.copy() if kind is dict else output
        mapping.__setitem__(key, item)  # by the method: a proxy has no such operator
        return mapping
    if issubclass(kind, tuple) and kind is not tuple:
        return output._replace(**{cast("Any", kind)._fields[key]: item})
    # Added up, since a proxy cannot be unpacked.
    between: Any = (item,) if kind is tuple else [item]
    return output[:key] + between + output[key + 1 :]


def _rebuildable(kind: type) -> bool:
    if issubclass(kind, tuple):
        return kind is tuple or "_fields" in dir(kind)
    if is_dataclass(kind) and not issubclass(kind, dict):
        return all(field.init for field in fields(kind))
    return kind is list or issubclass(kind, dict)
