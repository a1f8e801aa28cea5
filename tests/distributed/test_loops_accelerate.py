"""Many processes in a loop of Accelerate: one run, equal ranks, states that come back whole."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor

from kasmina import IncubationPlan, Incubator, Stage
from kasmina.domain import events as e
from tests.distributed.agents import torchrun
from tests.distributed.launch import launch, values
from tests.journeys.loop import PATIENT
from tests.loops import scripts
from tests.loops.accelerated import SLOT, Loop, decisions, tensors
from tests.loops.ranks import as_by_torchrun, history, same

EPOCHS = 5


class Sharing(Loop):
    """Each rank measures its part, by the prepared model, and all gather what they found."""

    def evaluate(self) -> dict[str, float]:
        state = self.accelerator
        images, labels = (
            each.chunk(state.num_processes)[state.process_index]
            for each in self.loader.dataset.tensors
        )
        self.model.eval()
        with torch.no_grad():
            right = (self.model(images).argmax(1) == labels).double()
        self.model.train()
        return {"val_accuracy": 100 * state.gather_for_metrics(right).mean().item()}


def learned(loop: Loop) -> dict[str, Tensor]:
    """Parameters and their moments; buffers of the host are each rank's until the next forward."""
    buffers = {name for name, _ in loop.accelerator.unwrap_model(loop.model).named_buffers()}
    return {k: v for k, v in tensors(loop).items() if k not in buffers | {"random"}}


def going_on(rank: int, folder: Path) -> dict[str, Any]:
    as_by_torchrun(rank)
    whole = Sharing.made(gradient_accumulation_steps=2)
    torch.manual_seed(rank)  # for dropout
    with whole.growing(folder) as run:
        whole.epochs(run, EPOCHS, folder)
    told = {
        "type": whole.accelerator.distributed_type.value,
        "learned": learned(whole),
        "losses": whole.losses,
        "state": (run.run_id, run.state.epoch, run.state.step, run.state.slot(SLOT).stage),
        "resumed": [],
    }
    for stopped_at in (1, 3):
        again = Sharing.made(gradient_accumulation_steps=2)
        torch.manual_seed(99)
        with again.growing(folder, resume=folder / str(stopped_at)) as resumed:
            again.epochs(resumed, EPOCHS)
        told["resumed"].append(
            same(tensors(again), tensors(whole))
            and decisions(resumed) == decisions(run)
            and resumed.run_id == run.run_id
        )
    return told


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return values(launch(going_on, folder))


def test_ranks_are_one_run_equal_to_the_bits_that_goes_on_from_any_saved_state(
    folder: Path, ranks: list[dict[str, Any]]
) -> None:
    first, second = ranks
    assert first["type"] == "MULTI_CPU"
    assert first["losses"] != second["losses"]  # they saw other data
    assert same(first["learned"], second["learned"])
    assert any("kasmina." in name for name in first["learned"])
    assert first["state"] == second["state"]
    run_id, epoch, step, _ = first["state"]
    assert (epoch, step) == (EPOCHS, 2 * EPOCHS)  # 3 batches for each rank, accumulated by twos
    assert first["resumed"] == second["resumed"] == [True, True]
    recorded = history(folder / "runs.db", run_id)
    assert sum(isinstance(each, e.RunRewound) for each in recorded) == 2


def test_one_process_goes_on_with_what_two_have_saved(
    folder: Path, ranks: list[dict[str, Any]], tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    alone = Sharing.made(gradient_accumulation_steps=2)
    with alone.growing(tmp_path, resume=tmp_path / "3") as run:
        alone.epochs(run, EPOCHS)
    run_id, epoch, *_ = ranks[0]["state"]
    assert (run.run_id, run.state.epoch) == (run_id, epoch)
    assert run.state.step > ranks[0]["state"][2]  # alone it sees every batch


def rehearsing(rank: int, folder: Path) -> list[dict[str, Tensor]]:
    as_by_torchrun(rank)
    learned_by = []
    for number, find in enumerate((False, True)):
        (folder / str(number)).mkdir(exist_ok=True)
        found = DistributedDataParallelKwargs(find_unused_parameters=find)
        loop = Sharing.made(gradient_accumulation_steps=2, kwargs_handlers=[found])
        with loop.growing(folder / str(number), policy=PATIENT) as run:
            plan = IncubationPlan(incubator=Incubator.REHEARSAL)
            run.germinate(SLOT, "conv_light", incubation=plan)
            loop.epochs(run, 2)
            assert run.state.slot(SLOT).stage is Stage.TRAINING
        learned_by.append(learned(loop))
    return learned_by


def test_a_seed_is_rehearsed_by_the_prepared_model_alike_on_all_ranks(tmp_path: Path) -> None:
    ranks = values(launch(rehearsing, tmp_path))
    for first, second in zip(*ranks, strict=True):
        moments = [v for k, v in first.items() if "kasmina." in k and k.endswith("/exp_avg")]
        assert moments
        assert all(each.any() for each in moments)
        assert same(first, second)


@pytest.mark.slow
def test_the_example_goes_on_under_torchrun_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # as accelerate launch --cpu has it
    arguments = ("examples/accelerate_digits.py", "--folder", tmp_path, "--epochs", 4)
    assert torchrun(*arguments).count("epoch 4: ") == 1
    assert scripts.germinated(tmp_path / "kasmina.db")
    expected = scripts.tensors(tmp_path / "4" / "kasmina.pt")
    shutil.rmtree(tmp_path / "4")
    torchrun(*arguments, "--resume", tmp_path / "3")
    again = scripts.tensors(tmp_path / "4" / "kasmina.pt")
    torch.testing.assert_close(again, expected, rtol=0, atol=0)
