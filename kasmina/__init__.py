"""Grow a PyTorch network while it trains, under gates, with every decision on record.

The names below load when they are first used: ``import kasmina`` itself loads neither torch nor
the database library.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kasmina.adapters.torch.averages import follow_growth as follow_growth
    from kasmina.adapters.torch.bake import Tensors as Tensors
    from kasmina.adapters.torch.bake import bake as bake
    from kasmina.adapters.torch.blueprints import blueprint as blueprint
    from kasmina.adapters.torch.distributed.ranks import RankPlan as RankPlan
    from kasmina.adapters.torch.distributed.ranks import Reading as Reading
    from kasmina.adapters.torch.graft import Slots as Slots
    from kasmina.adapters.torch.graft import graft as graft
    from kasmina.adapters.torch.graft import graft_host as graft_host
    from kasmina.adapters.torch.measurement import SlotNotEvaluated as SlotNotEvaluated
    from kasmina.adapters.torch.targets import Target as Target
    from kasmina.adapters.torch.targets import Targets as Targets
    from kasmina.adapters.torch.targets import targets as targets
    from kasmina.bootstrap import open_run as open_run
    from kasmina.domain.blueprints import BlueprintKind as BlueprintKind
    from kasmina.domain.errors import KasminaError as KasminaError
    from kasmina.domain.evidence import Comparison as Comparison
    from kasmina.domain.incubation import IncubationPlan as IncubationPlan
    from kasmina.domain.objective import Objective as Objective
    from kasmina.domain.policies import G2Policy as G2Policy
    from kasmina.domain.policies import G3Policy as G3Policy
    from kasmina.domain.policies import G4Policy as G4Policy
    from kasmina.domain.policies import G5Policy as G5Policy
    from kasmina.domain.policies import GatePolicy as GatePolicy
    from kasmina.domain.policies import MetricCheck as MetricCheck
    from kasmina.domain.policies import Timeouts as Timeouts
    from kasmina.domain.schedules import AlphaSchedule as AlphaSchedule
    from kasmina.domain.schedules import BlendPlan as BlendPlan
    from kasmina.domain.schedules import Curve as Curve
    from kasmina.domain.stages import Blend as Blend
    from kasmina.domain.stages import Gate as Gate
    from kasmina.domain.stages import Incubator as Incubator
    from kasmina.domain.stages import SeedInput as SeedInput
    from kasmina.domain.stages import Stage as Stage
    from kasmina.domain.stages import Topology as Topology
    from kasmina.infra.event_store import open_store as open_store
    from kasmina.infra.log import LogFormat as LogFormat
    from kasmina.run import EpochReport as EpochReport
    from kasmina.run import Run as Run
    from kasmina.silence import SilentRun as SilentRun
    from kasmina.summary import RunSummary as RunSummary

_HOMES = {
    "AlphaSchedule": "kasmina.domain.schedules",
    "Blend": "kasmina.domain.stages",
    "BlendPlan": "kasmina.domain.schedules",
    "BlueprintKind": "kasmina.domain.blueprints",
    "Comparison": "kasmina.domain.evidence",
    "Curve": "kasmina.domain.schedules",
    "EpochReport": "kasmina.run",
    "G2Policy": "kasmina.domain.policies",
    "G3Policy": "kasmina.domain.policies",
    "G4Policy": "kasmina.domain.policies",
    "G5Policy": "kasmina.domain.policies",
    "Gate": "kasmina.domain.stages",
    "GatePolicy": "kasmina.domain.policies",
    "IncubationPlan": "kasmina.domain.incubation",
    "Incubator": "kasmina.domain.stages",
    "KasminaError": "kasmina.domain.errors",
    "LogFormat": "kasmina.infra.log",
    "MetricCheck": "kasmina.domain.policies",
    "Objective": "kasmina.domain.objective",
    "RankPlan": "kasmina.adapters.torch.distributed.ranks",
    "Reading": "kasmina.adapters.torch.distributed.ranks",
    "Run": "kasmina.run",
    "RunSummary": "kasmina.summary",
    "SeedInput": "kasmina.domain.stages",
    "SilentRun": "kasmina.silence",
    "SlotNotEvaluated": "kasmina.adapters.torch.measurement",
    "Slots": "kasmina.adapters.torch.graft",
    "Stage": "kasmina.domain.stages",
    "Target": "kasmina.adapters.torch.targets",
    "Targets": "kasmina.adapters.torch.targets",
    "Tensors": "kasmina.adapters.torch.bake",
    "Timeouts": "kasmina.domain.policies",
    "Topology": "kasmina.domain.stages",
    "bake": "kasmina.adapters.torch.bake",
    "blueprint": "kasmina.adapters.torch.blueprints",
    "follow_growth": "kasmina.adapters.torch.averages",
    "graft": "kasmina.adapters.torch.graft",
    "graft_host": "kasmina.adapters.torch.graft",
    "open_run": "kasmina.bootstrap",
    "open_store": "kasmina.infra.event_store",
    "targets": "kasmina.adapters.torch.targets",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - one list of names, not two


def __getattr__(name: str) -> object:
    """The public name, from the module where it lives."""
    if name not in _HOMES:
        raise AttributeError(f"module 'kasmina' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
