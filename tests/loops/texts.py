"""A GPT-2 of two small blocks and the ``Trainer`` that trains it, shared by tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from attrs import define
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, Trainer, TrainingArguments

from kasmina import Objective, Run, Slots, Stage, Topology, graft, open_store
from kasmina.adapters.loops.transformers import Growth, attach
from kasmina.infra.engine import Access
from tests.journeys.loop import LENIENT

LOSS = Objective.minimize("eval_loss")
BLOCK = "transformer.h.1"
WORDS = 32


class Texts(Dataset):
    def __init__(self, count: int, seed: int) -> None:
        draws = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(0, WORDS, (count, 8), generator=draws)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    shape = {"vocab_size": WORDS, "n_positions": 8, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=1))


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    settings = {
        "output_dir": str(folder),
        "num_train_epochs": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-3,
        "warmup_steps": 3,
        "max_grad_norm": 0.3,  # less than most gradients here: clipping is at work
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return TrainingArguments(**(settings | changes))


def trainer(model: torch.nn.Module, folder: Path, **changes: Any) -> Trainer:
    parts = {"eval_dataset": Texts(16, 2), "train_dataset": Texts(40, 1)}
    given = {name: changes.pop(name) for name in TRAINER_PARTS & changes.keys()}
    made = Trainer(model=model, args=arguments(folder, **changes), **(parts | given))
    made.remove_callback(PrinterCallback)
    return made


TRAINER_PARTS = {
    "callbacks",
    "compute_metrics",
    "data_collator",
    "eval_dataset",
    "train_dataset",
    "optimizers",
}


def plant(after: int = 0, blueprint: str = "mlp_small", **options: Any) -> Callable[[Run], object]:
    """A plan: one seed in the second block, as soon as ``after`` evaluations are over."""

    def plan(run: Run) -> None:
        slot = run.state.slot(BLOCK)
        if run.state.epoch >= after and slot.stage is Stage.DORMANT and not slot.germinations:
            run.germinate(BLOCK, blueprint, **options)

    return plan


@define
class Grown:
    """A grafted model in a ``Trainer`` with a run attached."""

    model: GPT2LMHeadModel
    slots: Slots
    trainer: Trainer
    growth: Growth

    @classmethod
    def made(
        cls,
        folder: Path,
        plan: Callable[[Run], object] | None = None,
        run: dict[str, Any] | None = None,
        **changes: Any,
    ) -> "Grown":
        model = gpt2()
        slots = graft(model, {"transformer.h.*": Topology.TRANSFORMER})
        made = trainer(model, folder, **changes)
        options = {"name": "texts", "objective": LOSS, "policy": LENIENT, "sample_every": 2}
        url = f"sqlite:///{folder}/runs.db"
        growth = attach(made, url, slots=slots, plan=plan, **(options | (run or {})))
        return cls(model=model, slots=slots, trainer=made, growth=growth)


def tensors(model: torch.nn.Module, made: Trainer) -> dict[str, torch.Tensor]:
    """Everything that training has made: weights, the optimizer's state, random numbers."""
    states = made.optimizer.state_dict()["state"]
    moments = {f"{i}.{key}": value for i, state in states.items() for key, value in state.items()}
    return {**model.state_dict(), **moments, "random": torch.get_rng_state()}


def host_tensors(grown: Grown) -> dict[str, torch.Tensor]:
    """The same of the host alone, under the names that it has without the graft."""
    host = {id(each) for each in grown.slots.host_parameters()}
    optimizer = grown.trainer.optimizer
    held = [each for group in optimizer.param_groups for each in group["params"]]
    moments = {
        f"{i}.{key}": value
        for i, parameter in enumerate(held)
        if id(parameter) in host
        for key, value in optimizer.state[parameter].items()
    }
    weights = {k: v for k, v in grown.model.state_dict().items() if not k.startswith("kasmina.")}
    return {**weights, **moments, "random": torch.get_rng_state()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def losses(made: Trainer) -> list[float]:
    return [entry["loss"] for entry in made.state.log_history if "loss" in entry]


def recorded(folder: Path, grown: Grown) -> list[object]:
    with open_store(f"sqlite:///{folder}/runs.db", access=Access.READ) as store:
        assert store.verify(grown.growth.run.run_id).problems == ()
        return [record.event for record in store.read(grown.growth.run.run_id)]
