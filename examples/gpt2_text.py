"""A tiny GPT-2, with random weights, that grows in the ``Trainer`` of Transformers.

``python examples/gpt2_text.py`` trains it on torch's own documentation, byte by byte, in about a
minute. Stop it, and ``python examples/gpt2_text.py --resume`` goes on, to the same bits.
``torchrun --nproc-per-node 2 examples/gpt2_text.py`` trains it in two processes, as one run.
"""

import argparse
import inspect

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from kasmina import G2Policy, GatePolicy, IncubationPlan, Incubator, Objective, Run, Topology, graft
from kasmina.adapters.loops.transformers import attach

CONTEXT, BYTES = 64, 256
HEAD_START = 2  # evaluations before the seed is planted
REHEARSED = IncubationPlan(incubator=Incubator.REHEARSAL)

# In nats for each byte: half a nat, the default tolerance, is very much for a language model.
POLICY = GatePolicy(g2=G2Policy(min_improvement=0.02), tolerance=0.02)


class Text(Dataset[dict[str, Tensor]]):
    """Every ``stride``-th stretch of a text, from the ``first`` on."""

    def __init__(self, text: bytes, first: int, stride: int) -> None:
        tokens = torch.tensor(list(text))
        self.stretches = tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)[first::stride]

    def __len__(self) -> int:
        return len(self.stretches)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.stretches[index], "labels": self.stretches[index]}


def documentation() -> bytes:
    """What torch says of its modules: English and Python, half a megabyte."""
    named = sorted((name, value) for name, value in vars(nn).items() if inspect.isclass(value))
    return "\n".join(inspect.getdoc(value) or "" for _, value in named).encode()


def build_host() -> GPT2LMHeadModel:
    """Two blocks of width 64, for bytes."""
    shape = {"n_positions": CONTEXT, "n_embd": 64, "n_layer": 2, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(vocab_size=BYTES, bos_token_id=0, eos_token_id=0, **shape))


def grow(run: Run) -> None:
    """When the host has learned a little, let a seed try to help its last block."""
    slot = run.state.slot("transformer.h.1")
    if run.state.epoch == HEAD_START and slot.germinations == 0:
        run.germinate(slot.slot_id, "mlp", incubation=REHEARSED)


def main() -> None:
    """Train, growing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="gpt2-text")
    parser.add_argument("--steps", type=int, default=640)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # quicker, for tensors this small
    text, model = documentation(), build_host()
    slots = graft(model, {"transformer.h.*": Topology.TRANSFORMER})
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.folder,
            max_steps=options.steps,
            per_device_train_batch_size=8,
            per_device_eval_batch_size=64,
            gradient_accumulation_steps=2,
            learning_rate=3e-3,
            warmup_steps=options.steps // 20,
            lr_scheduler_type="cosine",
            eval_strategy="steps",
            eval_steps=options.steps // 20,
            save_strategy="steps",
            save_steps=options.steps // 10,
            save_total_limit=2,
            logging_steps=options.steps // 20,
            report_to=[],
            use_cpu=True,
        ),
        train_dataset=Text(text, 0, 4),
        eval_dataset=Text(text, 1, 32),
    )
    growth = attach(
        trainer,
        f"sqlite:///{options.folder}/kasmina.db",
        name="gpt2-text",
        slots=slots,
        objective=Objective.minimize("eval_loss", unit="nats"),
        policy=POLICY,
        plan=grow,
    )
    trainer.train(resume_from_checkpoint=options.resume)
    print(growth.run.summary())  # noqa: T201 - a script's output


if __name__ == "__main__":
    main()
