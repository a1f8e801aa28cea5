"""A small training that the journeys share: quick, deterministic, with everything in it."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from attrs import define, field
from torch import Tensor, nn
from torch.nn import functional as F

from kasmina import GatePolicy, Objective, Run, Slots, Topology, graft, open_run
from kasmina.domain.policies import G2Policy, G4Policy, G5Policy, Timeouts

ACCURACY = Objective.maximize("val_accuracy", unit="percent")

# Gates that a real seed passes within a few epochs; what they refuse is tested with the domain.
LENIENT = GatePolicy(
    g2=G2Policy(min_improvement=-100.0, min_epochs=1, min_rehearsed_contribution=-100.0),
    g4=G4Policy(min_agreement=-1.0),
    g5=G5Policy(min_improvement=-200.0, min_contribution=-200.0, min_stability=0.0),
    tolerance=100.0,
    embargo_epochs=1,
)
PATIENT = GatePolicy(g2=G2Policy(min_improvement=1000.0))
STRICT = GatePolicy(
    g2=G2Policy(min_improvement=1000.0), timeouts=Timeouts(training=2), embargo_epochs=1
)


def build_host() -> nn.Module:
    """Convolution, BatchNorm and dropout: whatever a careless seed could disturb."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Dropout(0.2),
        nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


@define
class Loop:
    """A host, its optimizer and scheduler, and a run once it is opened."""

    host: nn.Module
    slots: Slots
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    images: Tensor
    labels: Tensor
    losses: list[float] = field(factory=list)

    @classmethod
    def fresh(cls, *, targets: Mapping[str, Topology] | None = None, seed: int = 0) -> "Loop":
        torch.manual_seed(seed)
        host = build_host()
        optimizer = torch.optim.AdamW(host.parameters(), lr=1e-2)
        slots = graft(host, targets or {"0": Topology.CNN, "2": Topology.CNN})
        data = torch.Generator().manual_seed(1)
        return cls(
            host=host,
            slots=slots,
            optimizer=optimizer,
            scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100),
            images=torch.randn(48, 1, 6, 6, generator=data),
            labels=torch.randint(0, 3, (48,), generator=data),
        )

    def open(self, database: Path, **options: object) -> Run:
        settings = {"policy": LENIENT, "name": "journey", "objective": ACCURACY, **options}
        return open_run(
            f"sqlite:///{database}",
            slots=self.slots,
            optimizer=self.optimizer,
            extra={"scheduler": self.scheduler},
            sample_every=2,
            **settings,
        )

    def epoch(self, run: Run, evaluate: Callable[[], Mapping[str, float]] | None = None) -> object:
        self.train(run.step, run.rehearse)
        return run.end_epoch(evaluate or self.evaluate)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.host(images), labels)

    def train(
        self,
        step: Callable[[], None] = lambda: None,
        rehearse: Callable[..., None] = lambda *_: None,
    ) -> None:
        self.host.train()
        for chosen in torch.randperm(len(self.images)).split(12):
            batch = self.images[chosen], self.labels[chosen]
            self.optimizer.zero_grad()
            loss = self.loss(*batch)
            loss.backward()
            rehearse(self.loss, *batch)
            self.slots.clip_grad_norm_(1.0)
            self.optimizer.step()
            step()
            self.losses.append(loss.item())
        self.scheduler.step()

    def evaluate(self) -> Mapping[str, float]:
        self.host.eval()
        with torch.no_grad():
            right = (self.host(self.images).argmax(1) == self.labels).double().mean().item()
        self.host.train()
        return {"val_accuracy": 100 * right}


def tensors(loop: Loop) -> dict[str, torch.Tensor]:
    """Every tensor of a training, by name."""
    optimizer = loop.optimizer.state_dict()["state"]
    moments = {
        f"{number}.{key}": value
        for number, state in optimizer.items()
        for key, value in state.items()
    }
    return {**loop.host.state_dict(), **moments, "random": torch.get_rng_state()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether they agree bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
