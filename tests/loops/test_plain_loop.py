"""The recipe for a loop of one's own: undisturbed, whole again after a kill, and as documented."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kasmina import IncubationPlan, Incubator, Objective, Stage, Topology, graft, open_run
from tests.journeys.loop import PATIENT
from tests.loops.scripts import EXAMPLES, germinated, killed_at, run, tensors

EXAMPLE = "plain_loop.py"
DOCUMENT = EXAMPLES.parent / "docs" / "loops.md"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plain_loop", EXAMPLES / EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trained(example: ModuleType, folder: Path, *, incubator: Incubator | None) -> dict[str, Tensor]:
    """Two epochs of the recipe, with a seed in TRAINING or, without an incubator, no kasmina."""
    torch.manual_seed(0)
    data, model = example.Digits(), example.build_host()
    slots = graft(model, {"1": Topology.CNN}) if incubator else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu")
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    if incubator:
        life = open_run(
            f"sqlite:///{folder}/runs.db",
            name="recipe",
            slots=slots,
            optimizer=optimizer,
            objective=Objective.maximize("val_accuracy"),
            policy=PATIENT,
        )
        optimizer.register_step_post_hook(lambda *_: life.step())
        plan = IncubationPlan(incubator=incubator)
        life.germinate("1", "conv_light", incubation=plan, learning_rate=0.1)
    for epoch in range(2):
        for number, batch in enumerate(data.batches(), start=1):
            scaler.scale(loss(model, *batch)).backward()
            if incubator:
                life.rehearse(lambda x, y: scaler.scale(loss(model, x, y)), *batch)
            if number % 2 == 0:
                if (epoch, number) == (1, 4):  # an overflow in the host
                    next(model.parameters()).grad.fill_(torch.inf)
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                average.update_parameters(model)
        if incubator:
            life.end_epoch(lambda: {"val_accuracy": data.accuracy(model)})
    if incubator:
        assert life.state.slot("1").stage is Stage.TRAINING
        assert life.state.step == 47  # what the scaler skipped is not counted
        life.close()
    return {
        **{name: each for name, each in model.state_dict().items() if "kasmina." not in name},
        **{f"average {k}": v for k, v in average.state_dict().items() if "kasmina." not in k},
        "scale": torch.tensor(scaler.get_scale()),
        "random": torch.get_rng_state(),
    }


def loss(model: torch.nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.cross_entropy(model(images), labels) / 2


@pytest.mark.parametrize("incubator", [Incubator.PROXIMAL, Incubator.REHEARSAL])
def test_host_scaler_and_average_are_those_of_a_training_without_kasmina(
    example: ModuleType, tmp_path: Path, incubator: Incubator
) -> None:
    alone = trained(example, tmp_path, incubator=None)
    grown = trained(example, tmp_path, incubator=incubator)
    assert grown.keys() == alone.keys()
    assert all(torch.equal(grown[name], value) for name, value in alone.items())


@pytest.mark.slow
def test_the_example_killed_and_resumed_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    told = run(EXAMPLE, whole, "--epochs", "4")
    assert "epoch 4: " in told
    assert germinated(whole / "kasmina.db")

    printed = killed_at(EXAMPLE, killed, "epoch 3: ", "--epochs", "4")
    (name,) = re.findall(r"run (\S+)", printed)
    run(EXAMPLE, killed, "--epochs", "4", "--resume", name)
    one, other = (tensors(folder / "plain-loop.pt") for folder in (whole, killed))
    assert any("average" in name and "seed" in name for name in one)
    torch.testing.assert_close(other, one, rtol=0, atol=0)


def test_the_documented_loop_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    scope: dict[str, object] = {}
    exec(compile(program, str(DOCUMENT), "exec"), scope)
    assert scope["run"].state.closed
    assert scope["run"].state.slot("layer2").germinations == 1
