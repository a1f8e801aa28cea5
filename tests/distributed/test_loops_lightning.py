"""Many processes in Lightning: one run, equal ranks, checkpoints that come back whole.

All is trained in one pair of processes, whose imports take longer than the trainings.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn import functional as F

from kasmina import IncubationPlan, Incubator
from kasmina.adapters.loops import lightning_standing
from kasmina.domain import events as e
from tests.distributed.launch import launch, values
from tests.loops import scripts
from tests.loops.lit import SLOT, Net, everything_of, growth, loaders, planted, trainer
from tests.loops.ranks import as_by_torchrun, history, same

Told = dict[str, Any]
EPOCHS = 8

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Told]]:
    return values(launch(everything, folder))


def everything(rank: int, folder: Path) -> dict[str, Told]:
    as_by_torchrun(rank)
    if rank != 0:
        lightning_standing.open_store = None  # as on a machine without the log
    told = {}
    for scenario in (going_on, comparing):
        own = folder / scenario.__name__
        own.mkdir(exist_ok=True)
        told[scenario.__name__] = scenario(rank, own)
    return told


class Synced(Net):
    """Logs what Lightning averages over all ranks."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = batch
        right = (self(images).argmax(1) == labels).float().mean()
        self.log("val_accuracy", 100 * right, sync_dist=True)


def built(kind: type[Net] = Synced) -> Net:
    torch.manual_seed(0)
    return kind()


def fit(
    model: Net, *callbacks: Any, draws: int, ckpt_path: Path | None = None, **options: Any
) -> Any:
    torch.manual_seed(draws)  # for dropout, by rank
    fitted = trainer(*callbacks, devices=2, strategy="ddp", **options)
    fitted.fit(model, *loaders(), ckpt_path=ckpt_path)
    return fitted


def learned(fitted: Any) -> dict[str, Tensor]:
    """Parameters and their moments; buffers of the host are each rank's until the next forward."""
    buffers = {name for name, _ in fitted.lightning_module.named_buffers()} | {"random"}
    return {k: v for k, v in everything_of(fitted).items() if k not in buffers}


def going_on(rank: int, folder: Path) -> Told:
    keep = {"save_top_k": -1, "filename": "{epoch}", "save_on_train_epoch_end": False}
    saving = ModelCheckpoint(folder, **keep)
    options = {"epochs": EPOCHS, "gradient_clip_val": 0.5, "accumulate_grad_batches": 2}
    whole = growth(folder, planted())
    fitted = fit(built(), whole, saving, draws=rank, saving=True, **options)
    fitted.save_checkpoint(folder / "after.ckpt")
    expected, run, resumed = everything_of(fitted), whole.run, []
    for epoch in (0, 3, 6):
        again = growth(folder, planted())
        path = folder / f"epoch={epoch}.ckpt"
        goes_on = fit(built(), again, draws=99, ckpt_path=path, **options)
        resumed.append(
            same(everything_of(goes_on), expected)
            and again.run.run_id == run.run_id
            and again.run.state.slot(SLOT).outcomes == run.state.slot(SLOT).outcomes
        )
    return {
        "strategy": type(fitted.strategy).__name__,
        "learned": learned(fitted),
        "losses": fitted.lightning_module.losses,
        "state": (run.run_id, run.state.epoch, run.state.step, run.state.slot(SLOT).stage),
        "resumed": resumed,
    }


def test_ranks_are_one_run_equal_to_the_bits_that_goes_on_from_any_epoch(
    folder: Path, ranks: list[dict[str, Told]]
) -> None:
    first, second = (rank["going_on"] for rank in ranks)
    assert first["strategy"] == "DDPStrategy"
    assert first["losses"] != second["losses"]  # they saw other data
    assert same(first["learned"], second["learned"])
    assert any("kasmina." in name for name in first["learned"])
    assert first["state"] == second["state"]
    run_id, epoch, step, _ = first["state"]
    assert (epoch, step) == (EPOCHS, 2 * EPOCHS)  # 3 batches for each rank, accumulated by twos
    assert first["resumed"] == second["resumed"] == [True, True, True]
    recorded = history(folder / "going_on" / "runs.db", run_id)
    assert sum(isinstance(each, e.RunRewound) for each in recorded) == 3


def comparing(rank: int, folder: Path) -> Told:
    """With a seed that stays as it was born, as the identity, though it is rehearsed."""
    told = {}
    rehearsed = IncubationPlan(incubator=Incubator.REHEARSAL)
    for kind in (Net, Synced):
        own = folder / kind.__name__
        own.mkdir(exist_ok=True)
        plan = planted(epoch=0, incubation=rehearsed, learning_rate=1e-30)
        grown = growth(own, plan, rehearsal=mean_loss)
        fitted = fit(built(kind), grown, draws=rank, epochs=EPOCHS)
        told[kind.__name__] = {
            "learned": learned(fitted),
            "run_id": grown.run.run_id,
            "measured": fitted.callback_metrics["val_accuracy"].item(),
        }
    return told


def mean_loss(module: Net, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(module(images), labels)


@pytest.mark.parametrize("kind", ["Net", "Synced"])
def test_a_contrast_measures_on_all_ranks_as_the_validation_does(
    folder: Path, ranks: list[dict[str, Told]], kind: str
) -> None:
    first, second = (rank["comparing"][kind] for rank in ranks)
    assert same(first["learned"], second["learned"])
    recorded = history(folder / "comparing" / kind / "runs.db", first["run_id"])
    epochs = [each for each in recorded if isinstance(each, e.EpochRecorded)]
    measured = [first["measured"], second["measured"]]
    assert (measured[0] == measured[1]) == (kind == "Synced")
    assert epochs[-1].objective == sum(measured) / 2
    assert all(seed.gradient_norm > 0 for seed in epochs[0].seeds)
    contrasts = [each for each in recorded if isinstance(each, e.CounterfactualMeasured)]
    assert len(contrasts) > 1
    assert all(each.objective_with == each.objective_without for each in contrasts)


def test_the_example_is_one_run_in_the_processes_that_lightning_starts(tmp_path: Path) -> None:
    said = scripts.run("lightning_digits.py", tmp_path, "--fast", "--devices", "2")
    assert said.count("stage1 TRAINING, run lightning-digits") == 2
    assert scripts.germinated(tmp_path / "lightning-digits" / "kasmina.db")
