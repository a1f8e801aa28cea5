"""A small training on several ranks, whose batches join to those of one process."""

from collections.abc import Mapping
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from attrs import define
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from kasmina import GatePolicy, Objective, Run, Slots, Topology, graft, open_run
from kasmina.adapters.torch.distributed.ranks import RankPlan
from tests.journeys.loop import LENIENT

ACCURACY = Objective.maximize("val_accuracy", unit="percent")
PLAN = RankPlan(timeout=timedelta(seconds=60))
BATCH = 8


def build_host() -> nn.Module:
    """No BatchNorm: its statistics are each rank's own, and no joined batch would equal them."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


@define
class Training:
    """One rank's part of it; ``model`` is what its forward goes through."""

    host: nn.Module
    model: nn.Module
    slots: Slots
    optimizer: torch.optim.Optimizer
    images: Tensor
    labels: Tensor

    @classmethod
    def fresh(
        cls,
        *,
        wrapper: Mapping[str, Any] | None = None,
        host: nn.Module | None = None,
        adam: bool = False,
    ) -> "Training":
        torch.manual_seed(0)
        host = host or build_host()
        slots = graft(host, {"0": Topology.CNN, "1": Topology.CNN})
        parameters = list(host.parameters())
        data = torch.Generator().manual_seed(1)
        return cls(
            host=host,
            model=host if wrapper is None else DistributedDataParallel(host, **wrapper),
            slots=slots,
            optimizer=torch.optim.AdamW(parameters, lr=1e-2)
            if adam
            else torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
            images=torch.randn(4 * BATCH, 1, 6, 6, generator=data),
            labels=torch.randint(0, 3, (4 * BATCH,), generator=data),
        )

    def open(self, folder: Path, *, policy: GatePolicy = LENIENT, **options: Any) -> Run:
        settings = {"name": "ranks", "objective": ACCURACY, "ranks": PLAN, **options}
        return open_run(
            f"sqlite:///{folder / 'runs.db'}",
            slots=self.slots,
            optimizer=self.optimizer,
            policy=policy,
            sample_every=2,
            **settings,
        )

    def share(self, batch: Tensor) -> Tensor:
        """This rank's part of ``batch``."""
        return batch.chunk(size())[rank()]

    def backward(self, images: Tensor, labels: Tensor, *, parts: int = 1) -> None:
        """The gradients of this rank's share of a batch, in so many parts."""
        self.optimizer.zero_grad()
        pieces = list(
            zip(self.share(images).chunk(parts), self.share(labels).chunk(parts), strict=True)
        )
        for number, (x, y) in enumerate(pieces):
            last = number == len(pieces) - 1
            waiting = isinstance(self.model, DistributedDataParallel) and not last
            with self.model.no_sync() if waiting else nullcontext():
                (F.cross_entropy(self.model(x), y) / len(pieces)).backward()

    def epoch(self, run: Run, *, parts: int = 1) -> object:
        self.host.train()
        for x, y in zip(self.images.split(BATCH), self.labels.split(BATCH), strict=True):
            self.backward(x, y, parts=parts)
            self.slots.clip_grad_norm_(1.0)
            self.optimizer.step()
            run.step()
        return run.end_epoch(self.evaluate)

    def evaluate(self) -> Mapping[str, float]:
        self.host.eval()
        with torch.no_grad():
            right = self.host(self.share(self.images)).argmax(1) == self.share(self.labels)
        self.host.train()
        return {"val_accuracy": 100 * right.double().mean().item()}

    def tensors(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.host.state_dict().items()}

    def gradients(self) -> list[Tensor]:
        return [p.grad.clone() for p in self.slots.seed_parameters() if p.grad is not None]


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def close(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Equal but for the order in which floats were added."""
    return left.keys() == right.keys() and all(
        torch.allclose(left[k], right[k], rtol=1e-4, atol=1e-6) for k in left
    )
