"""Four seeds for one CNN, each grown by a trial of Ray Tune, with all runs in one database.

    python examples/ray_digits.py [--folder DIR] [--url postgresql://user@host/database]

Needs ray[tune] and scikit-learn. Tune starts a trial that dies again, and its run goes on from
the trial's last checkpoint. Without a URL the runs are in kasmina.db in the folder.
"""

import argparse
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent; read when ray is loaded

import ray
import torch
from ray import tune
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from kasmina import IncubationPlan, Incubator, Objective, Run, Slots, Topology, graft, open_run

SEEDS = (
    {"slot": "stage0", "blueprint": "conv_light", "incubator": "REHEARSAL"},
    {"slot": "stage1", "blueprint": "conv_light", "incubator": "REHEARSAL"},
    {"slot": "stage1", "blueprint": "depthwise", "incubator": "REHEARSAL"},
    {"slot": "stage1", "blueprint": "conv_inline", "incubator": "STRAIGHT_THROUGH"},
)
Trainable = Callable[[dict[str, Any]], None]
HEAD_START = 2  # epochs that the host learns alone
ACCURACY = Objective.maximize("val_accuracy", unit="percent")


class Digits:
    """1,200 images to train on and 597 to judge by."""

    def __init__(self) -> None:
        pixels, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        self.images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8)[order] / 16
        self.labels = torch.tensor(labels)[order]

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in random order."""
        for chosen in torch.randperm(1200).split(50):
            yield self.images[chosen], self.labels[chosen]

    def accuracy(self, model: nn.Module) -> float:
        """Of the images that ``model`` does not learn from, in percent."""
        model.eval()
        with torch.no_grad():
            right = (model(self.images[1200:]).argmax(1) == self.labels[1200:]).double()
        model.train()
        return 100 * right.mean().item()


def build_host() -> nn.Module:
    """A CNN that is too small for the task."""
    host = nn.Sequential()
    host.add_module("stage0", nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()))
    host.add_module("pool", nn.MaxPool2d(2))
    host.add_module("stage1", nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()))
    host.add_module("head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)))
    return host


def train(config: Mapping[str, Any], *, url: str, epochs: int) -> None:
    """One trial: a run of its own, or what a retry has left of it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    seed, data, host = config["seed"], Digits(), build_host()
    slots = graft(host, {"stage0": Topology.CNN, "stage1": Topology.CNN})
    optimizer = torch.optim.AdamW(slots.host_parameters(), lr=1e-2)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(host(images), labels)

    name = f"{seed['slot']}-{seed['blueprint']}"
    with begun_or_resumed(url, name, slots, optimizer) as run:
        if run.state.epoch == 0:
            report(run, data.accuracy(host))  # from here on Tune knows which run to resume
        while run.state.epoch < epochs:
            if run.state.epoch == HEAD_START:
                plan = IncubationPlan(incubator=Incubator[seed["incubator"]])
                run.germinate(seed["slot"], seed["blueprint"], incubation=plan)
            for batch in data.batches():
                optimizer.zero_grad()
                loss(*batch).backward()
                run.rehearse(loss, *batch)
                slots.clip_grad_norm_(1.0)
                optimizer.step()
                run.step()
            accuracy = run.end_epoch(lambda: {ACCURACY.name: data.accuracy(host)}).objective
            report(run, accuracy)


def begun_or_resumed(url: str, name: str, slots: Slots, optimizer: torch.optim.Optimizer) -> Run:
    """A new run, or that of the trial's checkpoint, where Tune has started the trial again."""
    saved = tune.get_checkpoint()
    given = {"name": name, "slots": slots, "optimizer": optimizer, "objective": ACCURACY}
    if saved is None:
        return open_run(url, **given)
    with saved.as_directory() as folder:
        run_id = Path(folder, "run_id").read_text()
        return open_run(url, **given, resume=run_id, checkpoint=Path(folder, "run.pt"))


def report(run: Run, accuracy: float | None) -> None:
    """Tell Tune where the run stands, with all that another process needs to go on from here."""
    with TemporaryDirectory() as folder:
        Path(folder, "run_id").write_text(run.run_id)
        run.checkpoint(Path(folder, "run.pt"))
        tune.report(
            {
                "run_id": run.run_id,
                "epoch": run.state.epoch,
                ACCURACY.name: accuracy,
                "stages": {slot_id: slot.stage.value for slot_id, slot in run.state.slots.items()},
            },
            checkpoint=tune.Checkpoint.from_directory(folder),
        )


def compare(trainable: Trainable, folder: Path, *, trials: int) -> tune.ResultGrid:
    """Run the trials, all at once, on a cluster of this machine that ends with them."""
    ray.init(address="local", include_dashboard=False, num_cpus=trials, log_to_driver=False)
    try:
        tuner = tune.Tuner(
            trainable,
            param_space={"seed": tune.grid_search(list(SEEDS[:trials]))},
            run_config=tune.RunConfig(
                name="trials",
                storage_path=str(folder),
                failure_config=tune.FailureConfig(max_failures=3),
                verbose=0,
            ),
        )
        return tuner.fit()
    finally:
        ray.shutdown()


def main() -> None:
    """Compare the seeds, and say which did best and how to find out why."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("ray-digits"))
    parser.add_argument("--url", help="the database; by default a SQLite file in the folder")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--trials", type=int, choices=range(1, len(SEEDS) + 1), default=len(SEEDS))
    options = parser.parse_args()
    folder = options.folder.resolve()  # a trial works in a folder of its own
    folder.mkdir(parents=True, exist_ok=True)
    url = options.url or f"sqlite:///{folder / 'kasmina.db'}"
    # Not in the trials' configuration: Tune writes that to disk, and a URL may hold a password.
    trainable = tune.with_parameters(train, url=url, epochs=options.epochs)
    results = compare(trainable, folder, trials=options.trials)
    if results.errors:
        raise SystemExit(f"{results.num_errors} trials failed: {results.errors[0]}")
    ranked = sorted(results, key=lambda each: -each.metrics[ACCURACY.name])
    for each in ranked:
        print(f"{each.metrics[ACCURACY.name]:.1f} %  {each.metrics['run_id']}")  # noqa: T201
    best, last = ranked[0].metrics["run_id"], ranked[-1].metrics["run_id"]
    print(  # noqa: T201
        f"\nthe best trial is that of run {best}; with KASMINA_DATABASE set to the database's URL,"
        f"\ncompare them by\n    kasmina runs\n    kasmina diff {last} {best}"
    )


if __name__ == "__main__":
    main()
