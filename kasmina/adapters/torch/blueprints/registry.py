"""The blueprints that a slot can be given, by topology and name."""

from collections.abc import Callable
from functools import cache
from typing import TypeAlias, TypeVar

import torch
from attrs import frozen
from torch import nn

from kasmina.adapters.torch.blueprints.prototypes import Prototypes
from kasmina.domain.blueprints import (
    BlueprintKind,
    BlueprintSpec,
    DuplicateBlueprint,
    ParameterFormula,
    at_least_one,
)
from kasmina.domain.errors import UnknownBlueprint
from kasmina.domain.stages import Topology

Builder: TypeAlias = Callable[[int], nn.Module]
"""From a slot's width to a new seed: a function, or a module class of one argument."""

BuilderT = TypeVar("BuilderT", bound=Builder)


@frozen(kw_only=True)
class Blueprint:
    """What is known of a blueprint, and how it is built."""

    spec: BlueprintSpec
    builder: Builder


class BlueprintRegistry:
    """Blueprints keyed by (topology, name)."""

    def __init__(self) -> None:
        self._blueprints: dict[tuple[Topology, str], Blueprint] = {}
        self._prototypes = Prototypes()

    def add(self, spec: BlueprintSpec, builder: Builder) -> None:
        """Offer ``builder`` under the spec's topology and name.

        Raises ``DuplicateBlueprint`` when they are taken.
        """
        key = (spec.topology, spec.name)
        if key in self._blueprints:
            raise DuplicateBlueprint(spec.topology, spec.name)
        self._blueprints[key] = Blueprint(spec=spec, builder=builder)

    def get(self, topology: Topology, name: str) -> Blueprint:
        """The blueprint of that name. Raises ``UnknownBlueprint``, with the nearest names."""
        if (topology, name) not in self._blueprints:
            raise UnknownBlueprint(name, self.names(topology))
        return self._blueprints[topology, name]

    def names(self, topology: Topology) -> tuple[str, ...]:
        """The names offered for a topology, sorted."""
        return tuple(sorted(name for layout, name in self._blueprints if layout is topology))

    def specs(self) -> tuple[BlueprintSpec, ...]:
        """All that is offered, by topology and name."""
        return tuple(
            self._blueprints[topology, name].spec
            for topology in Topology
            for name in self.names(topology)
        )

    def build(self, topology: Topology, name: str, width: int) -> nn.Module:
        """A new seed on the CPU, in torch's default dtype and in training mode.

        Its weights are drawn from torch's CPU generator: fork and seed that first, and the same
        seed gives the same bits, whatever was built before (see ``Prototypes``). Raises
        ``UnknownBlueprint``, and ``ValueError`` for a width below 1.
        """
        builder = self.get(topology, name).builder
        channels = at_least_one(width)
        key = (topology, name, channels, torch.get_default_dtype())
        return self._prototypes.draw(key, lambda: builder(channels))


blueprints = BlueprintRegistry()
"""The default registry: the shipped blueprints, and those added by ``@blueprint``."""


def counted(builder: Builder) -> ParameterFormula:
    """Parameter counts found by building once per width on the meta device: no memory, no draws."""

    @cache
    def formula(width: int) -> int:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return sum(parameter.numel() for parameter in builder(width).parameters())

    return formula


def blueprint(
    name: str,
    *,
    topology: Topology,
    kind: BlueprintKind,
    summary: str,
    parameters: ParameterFormula | None = None,
    registry: BlueprintRegistry = blueprints,
) -> Callable[[BuilderT], BuilderT]:
    """Offer the decorated function or module class, ``width -> nn.Module``, as a blueprint.

    Its seeds keep the features' shape and dtype, are the identity at birth, and neither work in
    place nor share parameters. ``parameters`` counts them for a width; without it they are
    counted by ``counted``. Raises ``DuplicateBlueprint`` when the name is taken.
    """

    def offer(builder: BuilderT) -> BuilderT:
        formula = counted(builder) if parameters is None else parameters
        spec = BlueprintSpec(
            name=name, topology=topology, kind=kind, summary=summary, formula=formula
        )
        registry.add(spec, builder)
        return builder

    return offer
