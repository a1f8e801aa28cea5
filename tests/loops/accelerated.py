"""A host and its loop, as a user of Accelerate writes it, shared by tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DataLoaderConfiguration
from attrs import define, field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from kasmina import Run, Slots, Stage, Topology, graft
from kasmina.adapters.loops.accelerate import growing
from tests.journeys.loop import ACCURACY, LENIENT, build_host

SLOT = "2"


def fresh_accelerator(**settings: Any) -> Accelerator:
    """One as a new process would make it: these classes share their state."""
    for kind in (AcceleratorState, GradientState, PartialState):
        kind._reset_state()
    # The order of data is then a matter of seed and epoch, also in a resumed training.
    order = DataLoaderConfiguration(use_seedable_sampler=True)
    return Accelerator(cpu=True, dataloader_config=order, **settings)


@define
class Loop:
    """What a user of Accelerate has: everything prepared, and the loop over it."""

    accelerator: Accelerator
    slots: Slots | None
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    loader: DataLoader
    losses: list[float] = field(factory=list)

    @classmethod
    def made(cls, *, grafted: bool = True, **settings: Any) -> "Loop":
        accelerator = fresh_accelerator(**settings)
        torch.manual_seed(0)
        host = build_host()
        slots = graft(host, {"0": Topology.CNN, SLOT: Topology.CNN}) if grafted else None
        optimizer = torch.optim.AdamW(host.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
        draws = torch.Generator().manual_seed(1)
        images = torch.randn(60, 1, 6, 6, generator=draws)
        labels = torch.randint(0, 3, (60,), generator=draws)
        data = DataLoader(TensorDataset(images, labels), batch_size=12, shuffle=True)
        prepared = accelerator.prepare(host, optimizer, scheduler, data)
        return cls(accelerator, slots, *prepared)

    def growing(self, folder: Path, **options: Any) -> Any:
        settings = {"name": "accelerated", "objective": ACCURACY, "policy": LENIENT, **options}
        url = f"sqlite:///{folder}/runs.db"
        assert self.slots is not None
        return growing(
            self.accelerator,
            url,
            slots=self.slots,
            optimizer=self.optimizer,
            sample_every=2,
            **settings,
        )

    def train(self, rehearse: Callable[..., None] = lambda *_: None) -> None:
        """An epoch, as Accelerate's documentation writes it."""
        self.model.train()
        for images, labels in self.loader:
            with self.accelerator.accumulate(self.model):
                loss = self.loss(images, labels)
                self.accelerator.backward(loss)
                rehearse(self.loss, images, labels)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), 0.1)
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()
            self.losses.append(loss.item())

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.model(images), labels)

    def evaluate(self) -> dict[str, float]:
        images, labels = self.loader.dataset.tensors
        self.model.eval()
        with torch.no_grad():
            right = (self.model(images).argmax(1) == labels).double().mean().item()
        self.model.train()
        return {"val_accuracy": 100 * right}

    def epochs(self, run: Run, until: int, states: Path | None = None) -> None:
        while run.state.epoch < until:
            slot = run.state.slot(SLOT)
            if run.state.epoch >= 1 and slot.stage is Stage.DORMANT and not slot.germinations:
                run.germinate(SLOT, "conv_light")
            self.loader.set_epoch(run.state.epoch)
            self.train(run.rehearse)
            run.end_epoch(self.evaluate)
            if states is not None:
                self.accelerator.save_state(str(states / str(run.state.epoch)))


def tensors(loop: Loop, *, host_only: bool = False) -> dict[str, Tensor]:
    model = loop.accelerator.unwrap_model(loop.model)
    own = {name: each for name, each in model.named_parameters() if "kasmina." not in name}
    state = loop.optimizer.state
    moments = {
        f"{name}/{key}": value
        for name, parameter in (own if host_only else dict(model.named_parameters())).items()
        for key, value in state[parameter].items()
    }
    kept = {k: v for k, v in model.state_dict().items() if not (host_only and "kasmina." in k)}
    return {**kept, **moments, "random": torch.get_rng_state()}


def decisions(run: Run) -> dict[str, Any]:
    """Where each slot stands, and every figure on which its gates decided."""
    return {name: (slot.stage, slot.outcomes) for name, slot in run.state.slots.items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
