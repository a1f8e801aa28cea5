"""A dry run: what a pattern or predicate would hit, and what stands in the way; no touching."""

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import frozen
from torch import nn
from typing_extensions import override

from kasmina.adapters.torch.features import Sight, judged, look, unseen
from kasmina.adapters.torch.places import Where, matching, modules_by_path, require_graftable
from kasmina.domain.errors import UngraftableModule
from kasmina.domain.stages import Topology


@frozen(kw_only=True)
class Target:
    """A module of a model, and what is known of its features.

    ``kind`` is the name of its class, ``parameters`` counts the entries of all its parameters,
    and ``other_names`` are further paths to it. ``calls`` says how often it was called in the
    forward of the example inputs and ``shape`` what its features were the first time; both are
    ``None`` where nobody looked. ``obstacle`` is what ``graft`` would raise, ``None`` for a module
    that can be grafted.
    """

    path: str
    kind: str
    topology: Topology
    parameters: int
    other_names: tuple[str, ...]
    width: int | None
    shape: tuple[int, ...] | None
    calls: int | None
    obstacle: str | None


@frozen(kw_only=True, repr=False, eq=False)
class Targets(Mapping[str, Topology]):
    """What ``targets()`` found: all of it in ``listed``, and a mapping of what can be grafted.

    So ``graft(model, found)`` gives a slot to each target without an obstacle. Printed, it is a
    table, and below it the obstacles.
    """

    listed: tuple[Target, ...]

    @override
    def __getitem__(self, path: str) -> Topology:
        return {target.path: target.topology for target in self._graftable()}[path]

    @override
    def __iter__(self) -> Iterator[str]:
        return (target.path for target in self._graftable())

    @override
    def __len__(self) -> int:
        return sum(1 for _ in self._graftable())

    def _graftable(self) -> Iterator[Target]:
        return (target for target in self.listed if target.obstacle is None)

    @override
    def __repr__(self) -> str:
        rows = [_HEADINGS, *map(_row, self.listed)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        aligned = [
            (*map(str.ljust, row[:_WORDS], widths), *map(str.rjust, row[_WORDS:], widths[_WORDS:]))
            for row in rows
        ]
        obstacles = [target.obstacle for target in self.listed if target.obstacle is not None]
        return "\n".join([*("  ".join(row) for row in aligned), *obstacles])


_HEADINGS = ("module", "class", "features", "shape", "width", "calls", "parameters")
_WORDS = 3  # columns of words, set flush left; figures are set flush right


def _row(target: Target) -> tuple[str, ...]:
    names = ", ".join((target.path, *target.other_names))
    shape = "" if target.shape is None else "×".join(map(str, target.shape))
    figures = ("" if each is None else str(each) for each in (target.width, target.calls))
    kind = target.topology.value if target.obstacle is None else "cannot be grafted"
    return (names, target.kind, kind, shape, *figures, f"{target.parameters:,}")


def targets(
    model: nn.Module,
    where: Where,
    topology: Topology,
    *,
    example_inputs: tuple[Any, ...] | None = None,
) -> Targets:
    """What ``graft`` would give a slot to, and what it would refuse; nothing is touched.

    ``where`` is a path, a pattern of paths (``"layers.*.mlp"``; ``*``, ``?`` and ``[...]`` match
    within one component), or a predicate on path and module. A module with several paths is
    listed once, by the first of them that matches. ``example_inputs`` are as in ``graft``, and
    with them calls and shapes are seen.

    Raises ``UnknownModule`` with the nearest paths where nothing matches, and
    ``UngraftableModule`` for a model that is wrapped, compiled, or grafted already.
    """
    hits, modules = matching(model, where), modules_by_path(model)
    obstacles = {path: _obstacle(path, modules) for path in hits}
    free = {path: module for path, module in hits.items() if obstacles[path] is None}
    sights = {} if example_inputs is None else look(model, free, example_inputs)
    return Targets(
        listed=tuple(
            _target(path, modules, topology, sights.get(path), obstacles[path]) for path in hits
        )
    )


def _obstacle(path: str, modules: Mapping[str, nn.Module]) -> str | None:
    try:
        require_graftable(path, modules)
    except UngraftableModule as error:
        return str(error)
    return None


def _target(
    path: str,
    modules: Mapping[str, nn.Module],
    topology: Topology,
    sight: Sight | None,
    obstacle: str | None,
) -> Target:
    width = None
    if obstacle is None:
        try:
            features = (
                unseen(path, modules, None) if sight is None else judged(path, topology, sight)
            )
            width = features.width
        except UngraftableModule as error:
            obstacle = str(error)
    module = modules[path]
    return Target(
        path=path,
        kind=type(module).__name__,
        topology=topology,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        other_names=tuple(
            name for name, other in modules.items() if other is module and name != path
        ),
        width=width,
        shape=None if sight is None else sight.shape,
        calls=None if sight is None else sight.calls,
        obstacle=obstacle,
    )
