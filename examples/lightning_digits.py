"""A small CNN on scikit-learn's digits in Lightning, with a seed planted in mid-training.

    python examples/lightning_digits.py [--fast] [--folder DIR] [--devices NUMBER]

Needs pytorch-lightning and scikit-learn. The run is in kasmina.db in the folder; stopped at any
moment, the same command goes on from the last checkpoint. With two devices or more, which are
processes here, all of them are one run.
"""

import argparse
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from kasmina import IncubationPlan, Incubator, Objective, Topology, graft
from kasmina.adapters.loops.lightning import Germination, Growth

Batch = tuple[Tensor, Tensor]


class Digits(pl.LightningModule):
    """Two convolutions and a linear layer, with a slot after each convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stage0 = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.stage1 = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 10)
        graft(self, {"stage0": Topology.CNN, "stage1": Topology.CNN})

    def forward(self, images: Tensor) -> Tensor:
        """Ten scores for each image."""
        features = self.stage1(F.max_pool2d(self.stage0(images), 2))
        return self.head(features.mean((2, 3)))

    def training_step(self, batch: Batch) -> Tensor:
        """The loss."""
        return loss(self, *batch)

    def validation_step(self, batch: Batch) -> None:
        """The accuracy, in percent."""
        images, labels = batch
        right = (self(images).argmax(1) == labels).float().mean()
        self.log("val_accuracy", 100 * right, prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> dict[str, object]:
        """AdamW, with a rate that decays."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 24, eta_min=1e-3)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def loss(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy: what the host learns by, and the seed rehearses."""
    return F.cross_entropy(module(images), labels)


def loaders() -> tuple[DataLoader[Batch], DataLoader[Batch]]:
    """Images to learn from, and others to judge by."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    data = TensorDataset(images, torch.tensor(digits.target))
    training, held_out = torch.utils.data.random_split(
        data, [1397, 400], generator=torch.Generator().manual_seed(0)
    )
    return DataLoader(training, 64, shuffle=True), DataLoader(held_out, 400)


def main() -> None:
    """Train, and say what became of the seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="a few steps, to see that it works")
    parser.add_argument("--folder", type=Path, default=Path("lightning-digits"))
    parser.add_argument("--devices", type=int, default=1)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)

    torch.set_num_threads(1)  # more would only wait for each other, on tensors this small
    pl.seed_everything(0, verbose=False)
    growth = Growth(
        f"sqlite:///{options.folder}/kasmina.db",
        name="lightning-digits",
        objective=Objective.maximize("val_accuracy", unit="percent"),
        plan=[
            Germination(
                epoch=2 if options.fast else 8,
                slot_id="stage1",
                blueprint="conv_inline",
                incubation=IncubationPlan(incubator=Incubator.REHEARSAL),
            )
        ],
        rehearsal=loss,
    )
    last = ModelCheckpoint(options.folder, save_last=True)
    trainer = pl.Trainer(
        max_epochs=4 if options.fast else 24,
        limit_train_batches=4 if options.fast else None,
        callbacks=[growth, last],
        accelerator="cpu",
        devices=options.devices,
        strategy="auto" if options.devices == 1 else "ddp",
        gradient_clip_val=1.0,
        logger=False,
        enable_model_summary=False,
    )
    resume = options.folder / "last.ckpt"
    trainer.fit(Digits(), *loaders(), ckpt_path=resume if resume.exists() else None)

    slot = growth.run.state.slot("stage1")
    accuracy = trainer.callback_metrics.get("val_accuracy")
    reached = "nothing left to train" if accuracy is None else f"accuracy {accuracy:.1f} %"
    print(f"{reached}, stage1 {slot.stage.value}, run {growth.run.run_id}")  # noqa: T201


if __name__ == "__main__":
    main()
