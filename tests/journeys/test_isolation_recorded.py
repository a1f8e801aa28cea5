"""What a seed does to its host is in the log of the run, and counts at its gate."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from attrs import evolve as changed
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

from kasmina import IncubationPlan, Incubator, Run, Topology, open_store
from kasmina.adapters.torch.blueprints import BlueprintRegistry, blueprint
from kasmina.domain import events as e
from kasmina.domain.blueprints import BlueprintKind
from kasmina.domain.stages import Health
from kasmina.infra.engine import Access
from tests.journeys.loop import PATIENT, Loop
from tests.torch import leaky

WITHOUT_A_LEAK = changed(PATIENT, g2=changed(PATIENT.g2, max_isolation_violations=0))
EACH = pytest.mark.parametrize("kind", leaky.SEEN, ids=lambda kind: kind.__name__)


@pytest.fixture(autouse=True)
def hooks_for_all_modules_end_with_the_test() -> Iterator[None]:
    registries = [each for name, each in vars(torch_module).items() if name.endswith("_hooks")]
    before = [dict(each) for each in registries]
    yield
    for registry, content in zip(registries, before, strict=True):
        registry.clear()
        registry.update(content)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


class Leaking:
    """A training with a seed that begins to leak after its birth."""

    def __init__(self, kind: type[leaky.Leaky]) -> None:
        self.place = kind.place
        self.loop = Loop.fresh(targets={kind.place: Topology.CNN})
        self.victim = leaky.Victim(self.loop.host)
        self.registry = BlueprintRegistry()
        offer = blueprint(
            "leaky",
            topology=Topology.CNN,
            kind=BlueprintKind.RESIDUAL,
            summary="Leaks.",
            parameters=lambda _width: 0,
            registry=self.registry,
        )
        offer(lambda width: kind(width, self.victim))

    def open(self, database: Path, incubator: Incubator) -> Run:
        run = self.loop.open(database, policy=WITHOUT_A_LEAK, registry=self.registry)
        run.germinate(self.place, "leaky", incubation=IncubationPlan(incubator=incubator))
        return run

    def epoch(self, run: Run) -> None:
        loop = self.loop
        for chosen in torch.randperm(len(loop.images)).split(12):
            loop.optimizer.zero_grad()
            self.loss(loop.images[chosen], loop.labels[chosen]).backward()
            run.rehearse(self.loss, loop.images[chosen], loop.labels[chosen])
            loop.slots.clip_grad_norm_(1.0)
            loop.optimizer.step()
            run.step()
        run.end_epoch(loop.evaluate)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.loop.host(images), labels)


def violations(database: Path, run_id: str) -> list[e.IsolationViolated]:
    with open_store(f"sqlite:///{database}", access=Access.READ) as store:
        history = [record.event for record in store.read(run_id)]
    return [event for event in history if isinstance(event, e.IsolationViolated)]


@EACH
@pytest.mark.parametrize("incubator", [Incubator.STRAIGHT_THROUGH, Incubator.REHEARSAL])
def test_a_leak_is_recorded_and_makes_its_seed_unhealthy(
    database: Path, kind: type[leaky.Leaky], incubator: Incubator
) -> None:
    leaking = Leaking(kind)
    with leaking.open(database, incubator) as run:
        leaking.epoch(run)
        assert violations(database, run.run_id) == []
        leaking.victim.leaking = True
        leaking.epoch(run)
        seed = run.state.slot(kind.place).seed
    recorded = violations(database, run.run_id)
    assert {(event.leak, event.subject) for event in recorded} == kind.sights
    assert {event.slot_id for event in recorded} == {kind.place}
    assert seed.violations == sum(event.count for event in recorded)
    assert seed.health is Health.UNHEALTHY
