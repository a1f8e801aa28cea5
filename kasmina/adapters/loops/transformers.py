"""kasmina in the ``Trainer`` of Hugging Face Transformers: each evaluation is an epoch of the run.

Two things a callback alone cannot do. Seeds must be grown again before the ``Trainer`` loads the
optimizer's state, for which its hooks come too late; so the run is opened where the ``Trainer``
makes its scheduler. And no hook tells of an error; so ``train`` itself is the run's block.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import (
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from typing_extensions import Unpack, override

from kasmina.adapters.loops.accelerate import counted_steps
from kasmina.adapters.loops.opening import CHECKPOINT, Plan, RunOptions, UnfitLoop, opened, replaced
from kasmina.adapters.loops.trainers import (
    LOOP,
    PREFIX,
    mean_loss,
    measured_by,
    require_fit,
    resumed_from,
    saved_to,
)
from kasmina.adapters.torch.graft import Slots
from kasmina.adapters.torch.optimizer import SeedGroups, unwrapped
from kasmina.adapters.torch.randomness import RandomStreams, devices_of, undisturbed
from kasmina.run import Run


def attach(
    trainer: Trainer,
    url: str,
    *,
    slots: Slots,
    plan: Plan | None = None,
    **options: Unpack[RunOptions],
) -> "Growth":
    """Let the grafted model of ``trainer`` grow in each ``train()`` to come.

    An epoch of the run is an evaluation of the ``Trainer``, and its metrics go by the
    ``Trainer``'s names, such as ``eval_loss``. ``plan`` is asked when a new run begins and after
    every evaluation. Steps are counted when the optimizer takes one, seeds that learn by rehearsal
    are rehearsed on each batch, and each checkpoint of the ``Trainer`` holds the run too:
    ``train(resume_from_checkpoint=...)`` grows its seeds again and goes on with the same run,
    ``load_best_model_at_end`` goes back to the model and the seeds of that checkpoint, which the
    log records as a rewind. The other options are those of ``open_run``.

    Raises ``UnfitLoop`` for a ``Trainer`` in which seeds would be neglected.
    """
    require_fit(trainer)
    if any(isinstance(each, Growth) for each in trainer.callback_handler.callbacks):
        raise UnfitLoop(LOOP, "has a run attached already", "attach() once")
    growth = Growth(trainer, url, slots, plan, options)
    trainer.add_callback(growth)
    vars(trainer)["train"] = partial(growth.train, trainer.train)
    return growth


class Growth(TrainerCallback):
    """What ``attach`` puts into a ``Trainer``. ``run`` is the run of the last ``train()``."""

    def __init__(
        self, trainer: Trainer, url: str, slots: Slots, plan: Plan | None, options: RunOptions
    ) -> None:
        self._trainer = trainer
        self._url = url
        self._slots = slots
        self._plan = plan or (lambda _run: None)
        self._options = options
        self._run: Run | None = None
        self._began: RandomStreams | None = None
        self._measured: list[Mapping[str, float]] = []
        self._steps = self._steps_evaluated = 0

    @property
    def run(self) -> Run:
        """The run. Raises ``UnfitLoop`` before there is one."""
        if self._run is None:
            raise UnfitLoop(LOOP, "has opened no run yet", "train() first")
        return self._run

    def train(
        self,
        train: Callable[..., Any],
        resume_from_checkpoint: str | bool | None = None,  # noqa: FBT001 - the Trainer's own
        *args: Any,  # noqa: ANN401
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """``Trainer.train`` with a run around it, that an error leaves open."""
        folder = resumed_from(resume_from_checkpoint, self._trainer.args)
        self._run = None
        with ExitStack() as training:
            create = partial(self._create_scheduler, self._trainer.create_scheduler)
            learn = partial(self._training_step, self._trainer.training_step)
            for method, replacement in (
                ("create_scheduler", partial(create, training, folder)),
                ("training_step", learn),
            ):
                training.enter_context(replaced(self._trainer, method, replacement))
            training.push(self._end)
            output = train(None if folder is None else str(folder), *args, **options)
            self._return_to_best()
        return output

    def _create_scheduler(
        self,
        create: Callable[..., Any],
        training: ExitStack,
        folder: Path | None,
        *args: Any,  # noqa: ANN401 - the Trainer's own
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        scheduler = create(*args, **options)
        self._open(folder)
        training.enter_context(counted_steps(self._optimizer(), self._stepped))
        if folder is None:
            self._plan(self.run)
        return scheduler

    def _open(self, folder: Path | None) -> None:
        if self._slots.model is not self._trainer.model:
            raise UnfitLoop(
                LOOP,
                "trains another model than the one that was grafted",
                "graft trainer.model, and use no model_init",
            )
        self._run, self._steps = opened(
            self._url,
            slots=self._slots,
            optimizer=self._optimizer(),
            folder=folder,
            **self._options,
        )
        self._steps_evaluated = self._run.state.epoch_ended

    def _end(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._run is not None:
            self._run.__exit__(kind, error, traceback)

    def _optimizer(self) -> Optimizer:
        if self._trainer.optimizer is None:
            raise UnfitLoop(LOOP, "made no optimizer", "let create_optimizer() make one")
        return unwrapped(self._trainer.optimizer)

    def _stepped(self) -> None:
        self.run.step()
        self._steps += 1
        self._tell()

    def _training_step(
        self,
        step: Callable[..., Tensor],
        model: nn.Module,
        inputs: Mapping[str, Any],
        *args: Any,  # noqa: ANN401 - the Trainer's own
        **options: Any,  # noqa: ANN401
    ) -> Tensor:
        batch = dict(inputs)  # compute_loss may take the labels out of what it is given
        loss = step(model, inputs, *args, **options)
        self.run.rehearse(partial(mean_loss, self._trainer, model), batch)
        return loss

    @override
    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Remember with which random numbers an evaluation begins, if one comes next."""
        self._began = None
        if control.should_evaluate:
            self._began = RandomStreams.capture(devices_of(self._slots.model))

    on_epoch_end = on_step_end

    @override
    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """End the run's epoch, unless nothing was learned since the last one."""
        found = metrics or {}
        if not self._trainer.is_in_train or self._steps == self._steps_evaluated:
            return
        if not any(name.startswith(PREFIX) for name in found):  # of a callback's own evaluation
            return
        self._measured.append(found)
        data = self._trainer.eval_dataset
        if isinstance(data, dict) and len(self._measured) < len(data):
            return
        plain = {name: value for each in self._measured for name, value in each.items()}
        self._measured.clear()
        passes = iter([plain])
        with undisturbed(devices_of(self._slots.model)):
            if self._began is not None:
                self._began.restore()
            self.run.end_epoch(lambda: next(passes, None) or measured_by(self._trainer))
        self._steps_evaluated = self._steps
        self._plan(self.run)
        self._tell()

    @override
    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Put the run beside what the Trainer has saved."""
        self.run.checkpoint(saved_to(args, state) / CHECKPOINT)

    def _return_to_best(self) -> None:
        """Bring back the seeds, too, of the best model that the Trainer has just loaded."""
        state, args = self._trainer.state, self._trainer.args
        if not args.load_best_model_at_end or state.best_model_checkpoint is None:
            return
        _leave(self.run)
        for slot in self._slots.values():
            if slot.seed is not None:
                slot.detach()
        SeedGroups(self._optimizer()).close()
        with undisturbed(devices_of(self._slots.model)):
            self._open(Path(state.best_model_checkpoint))

    def _tell(self) -> None:
        for callback in self._trainer.callback_handler.callbacks:
            if isinstance(callback, ProgressCallback):
                bar: Any = callback.training_bar
                if bar is not None:  # as on every process but the first
                    bar.set_postfix_str(self.run.status(), refresh=False)


class _Left(Exception):
    """As if by an error: the run is let go of, and stays open."""


def _leave(run: Run) -> None:
    run.__exit__(_Left, _Left(), None)
