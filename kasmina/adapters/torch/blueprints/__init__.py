"""Seeds to plant: the default registry, filled with the shipped blueprints, and the decorator."""

from kasmina.adapters.torch.blueprints import cnn, transformer
from kasmina.adapters.torch.blueprints.registry import (
    Blueprint,
    BlueprintRegistry,
    Builder,
    blueprint,
    blueprints,
)
from kasmina.domain.blueprints import SHIPPED
from kasmina.domain.stages import Topology

__all__ = ["Blueprint", "BlueprintRegistry", "Builder", "blueprint", "blueprints"]

_BUILDERS = {Topology.CNN: cnn.BUILDERS, Topology.TRANSFORMER: transformer.BUILDERS}

for _spec in SHIPPED:
    blueprints.add(_spec, _BUILDERS[_spec.topology][_spec.name])
