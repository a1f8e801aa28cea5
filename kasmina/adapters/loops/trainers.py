"""What a run asks of a ``Trainer``: whether it is fit, what it measures, where it saves."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy, get_last_checkpoint

from kasmina.adapters.loops.accelerate import require_copies
from kasmina.adapters.loops.opening import UnfitLoop, replaced

LOOP = "the Trainer"
"""What errors call it."""

PREFIX = "eval"
"""How the names of what it measures in training begin."""


def require_fit(trainer: Trainer) -> None:
    """Raise ``UnfitLoop`` unless seeds would be looked after in ``trainer.train()``."""
    args = trainer.args
    require_copies(trainer.accelerator)
    for wrong, problem, mend in (
        (
            args.eval_strategy == IntervalStrategy.NO,
            "never evaluates, so no gate would ever decide",
            'set eval_strategy="epoch" or "steps" and give an eval_dataset',
        ),
        (
            args.n_gpu > 1,
            f"copies the model to {args.n_gpu} devices in each step, and no seed would learn",
            "let it see one device (CUDA_VISIBLE_DEVICES)",
        ),
        (
            args.world_size > 1 and args.save_on_each_node,
            "saves checkpoints on each node, and a run's file is written by rank 0 alone, for all",
            "set save_on_each_node=False, and an output_dir on storage that all nodes share",
        ),
        (
            trainer.is_distributed_loading_by_transformers,
            "trains a model that was split over processes when it was loaded",
            "load it whole, without tp_plan or a device mesh",
        ),
        (
            args.auto_find_batch_size,
            "may begin its training again with another batch size, in a model that has grown",
            "set auto_find_batch_size=False",
        ),
        (
            trainer.model_init is not None,
            "builds its model anew in train(), without the graft",
            "give it the grafted model instead of model_init",
        ),
    ):
        if wrong:
            raise UnfitLoop(LOOP, problem, mend)


def resumed_from(resume: object, args: TrainingArguments) -> Path | None:
    """The checkpoint's folder that ``resume_from_checkpoint`` means."""
    if resume is None or resume is False:
        return None
    if resume is not True:
        return Path(str(resume))
    last: str | None = get_last_checkpoint(str(args.output_dir))  # type: ignore[no-untyped-call]
    if last is None:
        raise UnfitLoop(
            LOOP, f"has no checkpoint in {args.output_dir!r}", "train without resuming first"
        )
    return Path(last)


def saved_to(args: TrainingArguments, state: TrainerState) -> Path:
    """The folder of the checkpoint that the ``Trainer`` has just written."""
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def measured_by(trainer: Trainer) -> dict[str, float]:
    """What ``trainer.evaluate()`` measures, without its logs and callbacks."""
    data = trainer.eval_dataset
    found: dict[str, float] = {}
    with replaced(trainer.callback_handler, "on_prediction_step", _unnoticed):
        for name in data if isinstance(data, dict) else (None,):
            output = trainer.evaluation_loop(
                trainer.get_eval_dataloader(name),
                description="Evaluation",
                prediction_loss_only=True if trainer.compute_metrics is None else None,
                metric_key_prefix=PREFIX if name is None else f"{PREFIX}_{name}",
            )
            found |= output.metrics or {}
    return found


def mean_loss(trainer: Trainer, model: nn.Module, part: dict[str, Any]) -> Tensor:
    """The mean loss on a part of a batch, divided and scaled as the host's was."""
    host = model.module if isinstance(model, DistributedDataParallel) else model
    with trainer.compute_loss_context_manager():
        found = trainer.compute_loss(host, part)
    mean = found if isinstance(found, Tensor) else found[0]
    loss = mean / trainer.current_gradient_accumulation_steps
    scaler = trainer.accelerator.scaler
    return loss if scaler is None else scaler.scale(loss)


def _unnoticed(
    _args: TrainingArguments, _state: TrainerState, control: TrainerControl
) -> TrainerControl:
    return control
