"""In the real ``Trainer`` with a compiled model, and with activations that are computed twice."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kasmina import IncubationPlan, Incubator, Stage
from tests.journeys.loop import PATIENT
from tests.loops.texts import (
    BLOCK,
    Grown,
    gpt2,
    host_tensors,
    losses,
    plant,
    same,
    tensors,
    trainer,
)

pytestmark = [
    # Of torch's own, where it traces.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

SETTINGS = {
    "compiled": {"torch_compile": True, "torch_compile_backend": "aot_eager"},
    "activations checkpointed": {"activation_checkpointing": True},
}


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("incubator", [Incubator.PROXIMAL, Incubator.REHEARSAL])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_host_does_not_notice_a_seed_in_training(
    tmp_path: Path, settings: dict[str, object], incubator: Incubator
) -> None:
    model = gpt2()
    alone = trainer(model, tmp_path / "alone", num_train_epochs=3, **settings)
    alone.train()
    plan = plant(1, incubation=IncubationPlan(incubator=incubator), learning_rate=0.1)
    grown = Grown.made(tmp_path, plan, run={"policy": PATIENT}, num_train_epochs=3, **settings)
    grown.trainer.train()
    assert grown.growth.run.state.slot(BLOCK).stage is Stage.TRAINING
    assert any(each.any() for each in moments_of_seeds(grown))
    assert same(host_tensors(grown), tensors(model, alone))
    assert losses(grown.trainer) == losses(alone)


def moments_of_seeds(grown: Grown) -> list[torch.Tensor]:
    state = grown.trainer.optimizer.state
    return [state[each]["exp_avg"] for each in grown.slots.seed_parameters()]


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_resumed_training_ends_with_the_bits_of_one_that_was_never_stopped(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    settings = {"num_train_epochs": 6, "save_strategy": "epoch", **settings}
    whole = Grown.made(tmp_path, plant(1, "attention"), **settings)
    whole.trainer.train()
    assert whole.growth.run.state.slot(BLOCK).stage.exposed
    again = Grown.made(tmp_path, plant(1, "attention"), **settings)
    again.trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-15"))
    assert same(tensors(again.model, again.trainer), tensors(whole.model, whole.trainer))
    assert again.growth.run.state.slots == whole.growth.run.state.slots
