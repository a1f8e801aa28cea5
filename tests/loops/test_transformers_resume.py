"""In the real ``Trainer``: trainings that were stopped, and models that were the best."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from kasmina import Topology, graft
from kasmina.adapters.loops.transformers import attach
from kasmina.domain import events as e
from kasmina.domain.errors import CheckpointError, HostMismatch
from tests.loops import scripts
from tests.loops.texts import LOSS, Grown, gpt2, plant, recorded, same, tensors, trainer


@pytest.mark.parametrize("save", [{"save_strategy": "epoch"}, {"save_steps": 4}])
def test_a_resumed_training_ends_with_the_bits_of_one_that_was_never_stopped(
    tmp_path: Path, save: dict[str, object]
) -> None:
    settings = {"num_train_epochs": 7, "save_strategy": "steps", **save}
    settings["gradient_accumulation_steps"] = 2
    whole = Grown.made(tmp_path, plant(1, "attention"), **settings)
    whole.trainer.train()
    expected, stages = tensors(whole.model, whole.trainer), whole.growth.run.state.slots
    folders = sorted(tmp_path.glob("checkpoint-*"), key=lambda each: int(each.name[11:]))
    assert len(folders) > 3
    stops = (folders[0], folders[len(folders) // 2], folders[-2])
    for folder in stops:
        torch.manual_seed(99)
        again = Grown.made(tmp_path, plant(1, "attention"), **settings)
        again.trainer.train(resume_from_checkpoint=str(folder))
        assert again.growth.run.run_id == whole.growth.run.run_id
        assert same(tensors(again.model, again.trainer), expected)
        assert again.growth.run.state.slots == stages
    rewinds = [ev for ev in recorded(tmp_path, whole) if isinstance(ev, e.RunRewound)]
    assert len(rewinds) == len(stops)


def test_the_last_checkpoint_is_found_as_the_trainer_finds_it(tmp_path: Path) -> None:
    first = Grown.made(tmp_path, plant(1), num_train_epochs=2, save_strategy="epoch")
    first.trainer.train()
    again = Grown.made(tmp_path, plant(1), num_train_epochs=3, save_strategy="epoch")
    again.trainer.train(resume_from_checkpoint=True)
    assert again.growth.run.run_id == first.growth.run.run_id
    assert again.growth.run.state.epoch == 3


def test_a_checkpoint_without_a_run_is_refused_and_not_only_warned_of(tmp_path: Path) -> None:
    trainer(gpt2(), tmp_path, save_strategy="epoch", num_train_epochs=1).train()
    grown = Grown.made(tmp_path, plant(1), save_strategy="epoch")
    with pytest.raises(CheckpointError, match=r"kasmina\.pt.*missing"):
        grown.trainer.train(resume_from_checkpoint=True)


def test_a_checkpoint_of_another_graft_is_refused(tmp_path: Path) -> None:
    Grown.made(tmp_path, plant(), num_train_epochs=1, save_strategy="epoch").trainer.train()
    model = gpt2()
    slots = graft(model, {"transformer.h.0": Topology.TRANSFORMER})
    other = trainer(model, tmp_path)
    attach(other, f"sqlite:///{tmp_path}/runs.db", slots=slots, name="texts", objective=LOSS)
    with pytest.raises(HostMismatch):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))


class Stumbles(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 12:
            raise KeyboardInterrupt


def test_an_error_leaves_the_run_open_to_be_resumed(tmp_path: Path) -> None:
    whole = Grown.made(tmp_path / "whole", plant(1))
    whole.trainer.train()
    first = Grown.made(tmp_path, plant(1), save_strategy="epoch", callbacks=[Stumbles()])
    with pytest.raises(KeyboardInterrupt):
        first.trainer.train()
    assert not first.growth.run.state.closed
    again = Grown.made(tmp_path, plant(1), save_strategy="epoch")
    again.trainer.train(resume_from_checkpoint=True)
    assert again.growth.run.state.closed
    assert same(tensors(again.model, again.trainer), tensors(whole.model, whole.trainer))


def test_the_best_model_comes_back_with_the_seeds_that_it_had(tmp_path: Path) -> None:
    # Rates so high that the best epoch is an early one, of another structure than the last.
    grown = Grown.made(
        tmp_path,
        plant(1),
        num_train_epochs=6,
        learning_rate=0.1,
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
    )
    grown.trainer.train()
    best = Path(grown.trainer.state.best_model_checkpoint)
    saved = torch.load(best / "kasmina.pt", weights_only=True)
    assert saved["step"] < grown.trainer.state.global_step
    present = grown.model.state_dict()
    assert present.keys() == saved["model"].keys()
    assert all(torch.equal(present[name], value) for name, value in saved["model"].items())
    state = grown.growth.run.state
    assert (state.epoch, state.rewinds, state.closed) == (saved["epoch"], 1, True)
    score = grown.trainer.evaluate()["eval_loss"]
    assert score == pytest.approx(grown.trainer.state.best_metric)


@pytest.mark.slow
def test_the_example_goes_on_from_its_last_checkpoint_to_the_same_bits(tmp_path: Path) -> None:
    example, folder = "gpt2_text.py", tmp_path / "gpt2-text"
    told = scripts.run(example, tmp_path, "--steps", "40")
    assert "20 epochs, 40 steps" in told
    assert scripts.germinated(folder / "kasmina.db")
    expected = scripts.tensors(folder / "checkpoint-40" / "kasmina.pt")
    shutil.rmtree(folder / "checkpoint-40")
    scripts.run(example, tmp_path, "--steps", "40", "--resume")
    again = scripts.tensors(folder / "checkpoint-40" / "kasmina.pt")
    torch.testing.assert_close(again, expected, rtol=0, atol=0)
