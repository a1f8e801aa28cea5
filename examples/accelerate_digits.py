"""A small CNN that grows in a loop of Accelerate, on scikit-learn's digits.

``python examples/accelerate_digits.py`` takes about ten seconds. Stop it, and
``python examples/accelerate_digits.py --resume accelerate-digits/7`` goes on from the state that
was saved after epoch 7, to the same bits. ``accelerate launch --cpu --num_processes 2
examples/accelerate_digits.py`` trains it in two processes, as one run.
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

from kasmina import Objective, Run, Topology, graft
from kasmina.adapters.loops.accelerate import growing

HEAD_START = 2  # epochs that the host learns alone


def build_host() -> nn.Sequential:
    """A small CNN for images of 8×8 pixels in ten classes."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)),
    )


def loaders() -> tuple[DataLoader, DataLoader]:
    """1,200 images to train on and 597 to judge by."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    data = TensorDataset(images, torch.as_tensor(labels))
    training, held_out = random_split(data, [1200, 597], torch.Generator().manual_seed(0))
    return DataLoader(training, batch_size=25, shuffle=True), DataLoader(held_out, batch_size=597)


def accuracy(accelerator: Accelerator, model: nn.Module, data: DataLoader) -> float:
    """In percent, over what all processes have judged."""
    model.eval()
    with torch.no_grad():
        right = [
            accelerator.gather_for_metrics(model(images).argmax(1) == labels)
            for images, labels in data
        ]
    model.train()
    return 100 * torch.cat(right).double().mean().item()


def grow(run: Run) -> None:
    """When the host has learned a little, let a seed try to help it."""
    slot = run.state.slot("1")
    if run.state.epoch == HEAD_START and slot.germinations == 0:
        run.germinate("1", "conv_light")


def main() -> None:
    """Train, growing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default="accelerate-digits")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--resume", metavar="FOLDER")
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # quicker, for tensors this small
    accelerator = Accelerator(
        gradient_accumulation_steps=2,
        # The order of data is then a matter of seed and epoch, also after a resume.
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
    )
    host, (training, held_out) = build_host(), loaders()
    slots = graft(host, {"1": Topology.CNN})  # before prepare()
    optimizer = torch.optim.AdamW(slots.host_parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * 24)
    model, optimizer, schedule, training, held_out = accelerator.prepare(
        host, optimizer, schedule, training, held_out
    )
    with growing(
        accelerator,
        f"sqlite:///{options.folder}/kasmina.db",
        slots=slots,
        optimizer=optimizer,
        resume=options.resume,
        name="accelerate-digits",
        objective=Objective.maximize("val_accuracy", unit="percent"),
    ) as run:
        while run.state.epoch < options.epochs:
            grow(run)
            training.set_epoch(run.state.epoch)
            for images, labels in training:
                with accelerator.accumulate(model):
                    accelerator.backward(F.cross_entropy(model(images), labels))
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()  # counts, where it takes a step
                    schedule.step()
                    optimizer.zero_grad()
            report = run.end_epoch(lambda: {"val_accuracy": accuracy(accelerator, model, held_out)})
            accelerator.save_state(options.folder / str(report.epoch))
            accelerator.print(f"epoch {report.epoch}: {report.objective:.1f} %, {run.status()}")
    accelerator.print(run.summary())


if __name__ == "__main__":
    main()
