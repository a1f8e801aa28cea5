"""Many processes in the ``Trainer``: one run, equal ranks, checkpoints that come back whole.

All is trained in one pair of processes, whose imports take longer than the trainings.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kasmina import IncubationPlan, Incubator, Objective
from kasmina.adapters.loops.opening import UnfitLoop
from kasmina.domain import events as e
from tests.distributed.agents import torchrun
from tests.distributed.launch import launch, values
from tests.loops import scripts
from tests.loops.ranks import as_by_torchrun, history, same
from tests.loops.texts import BLOCK, Grown, Texts, plant, tensors

pytestmark = pytest.mark.slow

Told = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Told]]:
    return values(launch(everything, folder))


def everything(rank: int, folder: Path) -> dict[str, Told]:
    as_by_torchrun(rank)
    told = {}
    for scenario in (going_on, rehearsing, returning, scattering):
        own = folder / scenario.__name__
        own.mkdir(exist_ok=True)
        told[scenario.__name__] = scenario(rank, own)
    return told


def learned(grown: Grown) -> dict[str, Tensor]:
    found = tensors(grown.model, grown.trainer)
    del found["random"]
    return found


def going_on(rank: int, folder: Path) -> Told:
    settings = {
        "num_train_epochs": 5,
        "save_strategy": "epoch",
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
    }
    whole = Grown.made(folder, plant(1, "attention"), **settings)
    torch.rand(rank + 1)  # so that dropout is each rank's own; the order of data is of the seed
    whole.trainer.train()
    run, resumed = whole.growth.run, []
    for stopped_at in (3, 9):
        again = Grown.made(folder, plant(1, "attention"), **settings)
        torch.rand(99)
        again.trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{stopped_at}"))
        resumed.append(
            same(tensors(again.model, again.trainer), tensors(whole.model, whole.trainer))
            and again.growth.run.state.slots == run.state.slots
            and again.growth.run.run_id == run.run_id
        )
    return {
        "type": whole.trainer.accelerator.distributed_type.value,
        "learned": learned(whole),
        "state": (run.run_id, run.state.epoch, run.state.step, run.state.slot(BLOCK).stage),
        "resumed": resumed,
    }


def test_ranks_are_one_run_equal_to_the_bits_that_goes_on_from_any_checkpoint(
    folder: Path, ranks: list[dict[str, Told]]
) -> None:
    first, second = (rank["going_on"] for rank in ranks)
    assert first["type"] == "MULTI_CPU"
    assert same(first["learned"], second["learned"])
    assert any("kasmina." in name for name in first["learned"])
    assert first["state"] == second["state"]
    run_id, epoch, step, _ = first["state"]
    assert (epoch, step) == (5, 15)  # 5 batches for each rank, accumulated by twos
    assert first["resumed"] == second["resumed"] == [True, True]
    recorded = history(folder / "going_on" / "runs.db", run_id)
    assert sum(isinstance(each, e.RunRewound) for each in recorded) == 2


def rehearsing(rank: int, folder: Path) -> Told:
    def right(found: Any) -> dict[str, float]:
        return {"right": float(np.mean(found.predictions.argmax(-1) == found.label_ids))}

    plan = plant(0, incubation=IncubationPlan(incubator=Incubator.REHEARSAL), learning_rate=0.1)
    objective = Objective.maximize("eval_right")
    grown = Grown.made(
        folder,
        plan,
        {"objective": objective},
        num_train_epochs=3,
        eval_dataset=Texts(10, 2),  # 5 for each rank
        per_device_eval_batch_size=2,
        compute_metrics=right,
    )
    grown.trainer.train()
    logs = grown.trainer.state.log_history
    return {
        "learned": learned(grown),
        "run_id": grown.growth.run.run_id,
        "measured": [log["eval_right"] for log in logs if "eval_right" in log],
    }


def test_a_rehearsed_seed_is_averaged_and_measured_as_the_trainer_measures(
    folder: Path, ranks: list[dict[str, Told]]
) -> None:
    first, second = (rank["rehearsing"] for rank in ranks)
    assert same(first["learned"], second["learned"])
    recorded = history(folder / "rehearsing" / "runs.db", first["run_id"])
    epochs = [each for each in recorded if isinstance(each, e.EpochRecorded)]
    assert [epoch.objective for epoch in epochs] == first["measured"] == second["measured"]
    assert all(seed.gradient_norm > 0 for epoch in epochs for seed in epoch.seeds)
    assert any(isinstance(each, e.CounterfactualMeasured) for each in recorded)


def returning(_rank: int, folder: Path) -> Told:
    grown = Grown.made(
        folder,
        plant(1),
        num_train_epochs=4,
        learning_rate=0.1,
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
    )
    grown.trainer.train()
    best = torch.load(
        Path(grown.trainer.state.best_model_checkpoint) / "kasmina.pt", weights_only=True
    )
    state = grown.growth.run.state
    return {
        "best": same(grown.model.state_dict(), best["model"]),
        "earlier": best["step"] < grown.trainer.state.global_step,
        "state": (state.run_id, state.epoch, state.rewinds, state.closed),
    }


def test_the_best_model_comes_back_on_every_rank(ranks: list[dict[str, Told]]) -> None:
    first, second = (rank["returning"] for rank in ranks)
    assert first == second
    assert first["best"]
    assert first["earlier"]
    assert first["state"][2:] == (1, True)


def scattering(_rank: int, folder: Path) -> Told:
    with pytest.raises(UnfitLoop) as refused:
        Grown.made(folder, save_on_each_node=True)
    return {"said": str(refused.value)}


def test_checkpoints_that_each_node_keeps_for_itself_are_refused(
    ranks: list[dict[str, Told]],
) -> None:
    for rank in ranks:
        assert "save_on_each_node=False" in rank["scattering"]["said"]


def test_the_example_is_one_run_under_torchrun(tmp_path: Path) -> None:
    said = torchrun("examples/gpt2_text.py", "--folder", tmp_path, "--steps", 20)
    assert said.count("20 epochs, 20 steps") == 2  # from each rank, of the one run there is
    assert scripts.germinated(tmp_path / "kasmina.db")
