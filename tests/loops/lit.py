"""A small LightningModule, and ``fit``, which trains it with a seed or without."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)
from torch.utils.data import DataLoader, TensorDataset

from kasmina import Objective, Topology, graft
from kasmina.adapters.loops.lightning import Germination, Growth
from tests.journeys.loop import LENIENT

ACCURACY = Objective.maximize("val_accuracy", unit="percent")
SLOT = "0"


class Net(pl.LightningModule):
    """Convolution, BatchNorm and dropout: whatever a careless seed could disturb."""

    def __init__(self, scheduler=None, *, grafted=True):
        super().__init__()
        self.net = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
            nn.Dropout(0.2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        )
        if grafted:
            graft(self.net, {SLOT: Topology.CNN})
        self.make_scheduler = scheduler
        self.losses = []

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch):
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        right = (self(images).argmax(1) == labels).float().mean()
        self.log("val_accuracy", 100 * right)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        if self.make_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(optimizer)}


def cosine(optimizer):
    return CosineAnnealingLR(optimizer, 10)


def one_cycle(optimizer):
    return {
        "scheduler": OneCycleLR(optimizer, 2e-2, total_steps=50),
        "interval": "step",
    }


def plateau(optimizer):
    scheduler = ReduceLROnPlateau(optimizer, mode="max", patience=0, factor=0.5)
    return {"scheduler": scheduler, "monitor": "val_accuracy"}


def lambdas(optimizer):
    return LambdaLR(optimizer, lambda epoch: 0.9**epoch)


def sequence(optimizer):
    parts = [LambdaLR(optimizer, lambda n: (n + 1) / 4), CosineAnnealingLR(optimizer, 8)]
    return {"scheduler": SequentialLR(optimizer, parts, [4]), "interval": "step"}


def loaders(rows=60, size=12):
    data = torch.Generator().manual_seed(1)
    images = torch.randn(rows, 1, 6, 6, generator=data)
    labels = torch.randint(0, 3, (rows,), generator=data)
    training = TensorDataset(images, labels)
    return DataLoader(training, size, shuffle=True), DataLoader(training, 25)


def planted(epoch=1, blueprint="conv_light", **options):
    return [Germination(epoch=epoch, slot_id=SLOT, blueprint=blueprint, **options)]


def growth(folder, plan=(), **options):
    settings = {"name": "lit", "objective": ACCURACY, "policy": LENIENT, "sample_every": 2}
    return Growth(database(folder), plan=plan, **{**settings, **options})


def database(folder: Path) -> str:
    return f"sqlite:///{folder}/runs.db"


def trainer(*callbacks, epochs=3, saving=False, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_checkpointing=saving,
        **{**quiet, **options},
    )


def fit(*callbacks, model=None, ckpt_path=None, **options):
    """The trainer after ``fit``, begun at the same random numbers each time."""
    torch.manual_seed(7)
    fitted = trainer(*callbacks, **options)
    fitted.fit(Net() if model is None else model, *loaders(), ckpt_path=ckpt_path)
    return fitted


def fresh(**options):
    torch.manual_seed(0)
    return Net(**options)


def host_of(model):
    """The host's tensors: what a seed in TRAINING must not change."""
    return {k: v.clone() for k, v in model.state_dict().items() if ".kasmina." not in f".{k}"}


def everything_of(fitted):
    """Each tensor of model and optimizer, and where the random numbers stand."""
    state = fitted.optimizers[0].state_dict()["state"]
    moments = {f"{n}.{key}": value for n, each in state.items() for key, value in each.items()}
    return {**fitted.lightning_module.state_dict(), **moments, "random": torch.get_rng_state()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
