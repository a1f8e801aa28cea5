"""The same host in Lightning's ``Trainer``, and a small GPT-2 in that of Transformers."""
# ruff: noqa: INP001 - beside a script, which imports it

import logging
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from loops_plain import (
    BATCH,
    EPOCHS,
    PATIENT,
    RATE,
    STEPS,
    Arm,
    Span,
    Stopwatch,
    first_stage,
    host,
    images,
)
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from kasmina import Objective, Topology, graft
from kasmina.adapters.loops.lightning import Germination, Growth
from kasmina.adapters.loops.transformers import attach

__all__ = ["Arm", "Span", "lightning", "transformers"]

WORDS, LENGTH, BLOCK = 64, 32, "transformer.h.0"


class Lit(pl.LightningModule):
    """The host, with losses and metrics."""

    def __init__(self) -> None:
        super().__init__()
        self.net = host()

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The loss of a batch."""
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """The accuracy of a batch."""
        right = (self.net(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log("val_accuracy", 100 * right)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """As by hand."""
        return torch.optim.AdamW(self.parameters(), lr=RATE)


class LightningClock(pl.Callback):
    """Marks the epochs; last among the callbacks."""

    def __init__(self) -> None:
        self.watch = Stopwatch()

    def on_train_epoch_start(self, *_: object) -> None:
        """An epoch begins."""
        self.watch.mark()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """A step is over."""
        if trainer.global_step % STEPS == 0:
            self.watch.mark()

    def on_train_end(self, *_: object) -> None:
        """The last epoch is over."""
        self.watch.mark()


def lightning(arm: Arm, folder: Path) -> list[Span]:
    """Train in Lightning."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    module, (x, y), clock = Lit(), images(), LightningClock()
    callbacks: list[pl.Callback] = [clock]
    if arm.grows:
        slots = graft(module.net, first_stage(module.net))
        planted = [Germination(epoch=0, slot_id=next(iter(slots)), blueprint="conv_light")]
        growth = Growth(
            f"sqlite:///{folder / 'runs.db'}",
            plan=planted if arm is Arm.SEEDED else (),
            name="benchmark",
            objective=Objective.maximize("val_accuracy", unit="percent"),
            policy=PATIENT,
        )
        callbacks.insert(0, growth)
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(
        module,
        DataLoader(TensorDataset(x, y), BATCH, shuffle=True),
        DataLoader(TensorDataset(x[:256], y[:256]), 256),
    )
    return clock.watch.spans()


class Texts(Dataset[dict[str, Tensor]]):
    """Random words."""

    def __init__(self, count: int) -> None:
        draws = torch.Generator().manual_seed(1)
        self.words = torch.randint(0, WORDS, (count, LENGTH), generator=draws)

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.words[index], "labels": self.words[index]}


class TransformersClock(TrainerCallback):
    """Marks the epochs; last among the callbacks."""

    def __init__(self) -> None:
        self.watch = Stopwatch()

    def on_epoch_begin(self, *_: object, **__: object) -> None:
        """An epoch begins."""
        self.watch.mark()

    def on_step_end(self, _: object, state: Any, *__: object, **___: object) -> None:  # noqa: ANN401
        """A step is over."""
        if state.global_step % STEPS == 0:
            self.watch.mark()

    def on_train_end(self, *_: object, **__: object) -> None:
        """The last epoch is over."""
        self.watch.mark()


def transformers(arm: Arm, folder: Path) -> list[Span]:
    """Train in the ``Trainer`` of Transformers."""
    torch.manual_seed(0)
    shape = {"vocab_size": WORDS, "n_positions": LENGTH, "n_embd": 64, "n_layer": 4, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=1))
    slots = graft(model, {BLOCK: Topology.TRANSFORMER}) if arm.grows else None
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=8,
            per_device_eval_batch_size=32,
            learning_rate=RATE,
            eval_strategy="epoch",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=Texts(8 * STEPS),
        eval_dataset=Texts(64),
    )
    trainer.remove_callback(PrinterCallback)
    if slots is not None:

        def plan(run: Any) -> None:  # noqa: ANN401
            if arm is Arm.SEEDED and not run.state.slot(BLOCK).germinations:
                run.germinate(BLOCK, "mlp_small")

        attach(
            trainer,
            f"sqlite:///{folder / 'runs.db'}",
            slots=slots,
            plan=plan,
            name="benchmark",
            objective=Objective.minimize("eval_loss"),
            policy=PATIENT,
        )
    clock = TransformersClock()
    trainer.add_callback(clock)
    trainer.train()
    return clock.watch.spans()
