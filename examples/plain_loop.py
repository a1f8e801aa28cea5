"""A loop of one's own with all that loops have: AMP, accumulation, clipping, a schedule, an EMA.

``python examples/plain_loop.py`` grows a small CNN on scikit-learn's digits, in about ten seconds.
Stop it, and ``python examples/plain_loop.py --resume RUN`` goes on, to the same bits.
"""

import argparse
from collections.abc import Iterator

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kasmina import Objective, Run, Stage, Topology, graft, open_run

BATCH, ACCUMULATED, RATE = 25, 2, 1e-2
HEAD_START = 2  # epochs that the host learns alone
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = torch.float16 if DEVICE == "cuda" else torch.bfloat16


def build_host() -> nn.Sequential:
    """A small CNN for images of 8×8 pixels in ten classes."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)),
    ).to(DEVICE)


class Digits:
    """1,200 images to train on and 597 to judge by."""

    def __init__(self) -> None:
        pixels, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        images = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8)[order] / 16
        self.images, self.labels = images.to(DEVICE), torch.as_tensor(labels)[order].to(DEVICE)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in random order."""
        for chosen in torch.randperm(1200).split(BATCH):
            yield self.images[chosen], self.labels[chosen]

    def accuracy(self, model: nn.Module) -> float:
        """Of the images that ``model`` does not learn from, in percent."""
        model.eval()
        with torch.no_grad(), torch.autocast(DEVICE, dtype=HALF):
            right = (model(self.images[1200:]).argmax(1) == self.labels[1200:]).double()
        model.train()
        return 100 * right.mean().item()


def grow(run: Run) -> None:
    """When the host has learned a little, let a seed try to help it."""
    slot = run.state.slot("1")
    if run.state.epoch >= HEAD_START and slot.stage is Stage.DORMANT and slot.germinations == 0:
        run.germinate("1", "conv_light")


def main() -> None:
    """Train, growing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", default="sqlite:///kasmina.db")
    parser.add_argument("--checkpoint", default="plain-loop.pt")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--resume", metavar="RUN")
    options = parser.parse_args()
    torch.set_num_threads(1)  # quicker, for tensors this small
    torch.manual_seed(0)
    data, model = Digits(), build_host()
    slots = graft(model, {"1": Topology.CNN})
    optimizer = torch.optim.AdamW(slots.host_parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
    scaler = torch.amp.GradScaler(DEVICE)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.98), use_buffers=True)
    with open_run(
        options.database,
        name="plain-loop",
        slots=slots,
        optimizer=optimizer,
        objective=Objective.maximize("val_accuracy", unit="percent"),
        resume=options.resume,
        extra={"schedule": schedule, "scaler": scaler, "average": average},
    ) as run:
        print(f"run {run.run_id}", flush=True)  # noqa: T201 - a script's output
        # The optimizer counts: a step that the scaler skips is none.
        optimizer.register_step_post_hook(lambda *_: run.step())
        while run.state.epoch < options.epochs:
            grow(run)
            for number, (images, labels) in enumerate(data.batches(), start=1):
                with torch.autocast(DEVICE, dtype=HALF):
                    loss = F.cross_entropy(model(images), labels) / ACCUMULATED
                scaler.scale(loss).backward()
                if number % ACCUMULATED == 0:
                    scaler.unscale_(optimizer)
                    slots.clip_grad_norm_(1.0)
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad()
                    average.update_parameters(model)
            schedule.step()
            report = run.end_epoch(lambda: {"val_accuracy": data.accuracy(model)})
            run.checkpoint(options.checkpoint)
            print(  # noqa: T201
                f"epoch {report.epoch}: {report.objective:.1f} %, "
                f"averaged {data.accuracy(average):.1f} %, {run.status()}",
                flush=True,
            )
    print(run.summary())  # noqa: T201


if __name__ == "__main__":
    main()
