"""kasmina in a Lightning ``Trainer``: a callback opens a run, counts its steps, ends its epochs.

Lightning loads a checkpoint's weights before any of a callback's own hooks for that, and the
optimizer's state after ``on_fit_start``. So the seeds' tensors are taken out of what the model
loads, and the run, opened in ``on_fit_start``, grows the seeds again with all their state.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import torch
from attrs import frozen
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.precision import MixedPrecision
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Unpack, override

from kasmina.adapters.loops.lightning_fit import (
    callbacks_of,
    chosen_optimizer,
    require_fit,
    require_trained,
    trains_once,
)
from kasmina.adapters.loops.lightning_standing import Standing
from kasmina.adapters.loops.lightning_state import (
    ENTRY,
    as_file,
    empty,
    random_streams,
    regrow,
    saved,
    slots_in,
    without_seeds,
)
from kasmina.adapters.loops.lightning_validation import Evaluate, Validation, measured_by
from kasmina.adapters.loops.opening import RunOptions, UnfitLoop, replaced
from kasmina.adapters.torch.blueprints import blueprints
from kasmina.adapters.torch.distributed.ranks import TOGETHER, join
from kasmina.adapters.torch.graft import Slots, graft
from kasmina.adapters.torch.grafted import SlotBank
from kasmina.adapters.torch.randomness import RandomStreams
from kasmina.bootstrap import open_run
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.schedules import BlendPlan
from kasmina.domain.stages import Topology
from kasmina.run import Run
from kasmina.status import status_line

__all__ = ["Evaluate", "Germination", "Growth", "regrow"]

Plan: TypeAlias = Callable[[Run, int], object]
"""Called as each epoch begins, with its number as Lightning counts, from 0."""

RehearsalLoss: TypeAlias = Callable[..., Tensor]
"""The loss of a part of a batch: ``loss(module, *part)``, as ``training_step`` computes it."""


@frozen(kw_only=True)
class Germination:
    """A seed to be put into a slot as epoch ``epoch`` begins, counted from 0 as Lightning does."""

    epoch: int
    slot_id: str
    blueprint: str
    incubation: IncubationPlan | None = None
    blend: BlendPlan | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None


class Growth(Callback):
    """Grows seeds in a ``LightningModule`` while ``Trainer.fit`` trains it.

    The module is grafted in its ``__init__``, or here, at the paths in ``targets``. ``plan`` says
    what germinates when. Each epoch of Lightning is one of the run, measured by ``evaluate``, or
    else by Lightning's validation at its end, which must log the objective under its name. A
    step is what the optimizer takes, and Lightning's checkpoints hold the run too:
    ``fit(ckpt_path=...)`` of a fresh module goes on with it. ``rehearsal`` is the loss for seeds
    that learn by rehearsal. ``optimizer`` is the index of the one that trains the slots, where
    there are several. The other options are those of ``open_run``.

    With ``fast_dev_run`` the run is recorded in a place that is thrown away.
    """

    def __init__(
        self,
        url: str,
        *,
        plan: Plan | Sequence[Germination],
        evaluate: Evaluate | None = None,
        rehearsal: RehearsalLoss | None = None,
        targets: Mapping[str, Topology | tuple[Topology, ...]] | None = None,
        optimizer: int | None = None,
        **options: Unpack[RunOptions],
    ) -> None:
        super().__init__()
        self._url = self._open_at = url
        self._planned = () if callable(plan) else tuple(plan)
        self._plan: Plan = plan if callable(plan) else self._germinate
        self._evaluate = evaluate
        self._rehearsal = rehearsal
        self._targets = targets
        self._index = optimizer
        self._options = options
        self._fit = ExitStack()
        self._run: Run | None = None
        self._optimizer: Optimizer | None = None
        self._entry: Mapping[str, Any] | None = None
        self._standing: Standing | None = None
        self._batch: tuple[Any, ...] = ()
        self._step = 0
        self._ended = False
        self._random: RandomStreams | None = None

    @property
    def run(self) -> Run:
        """The run of the last ``fit``. Raises ``UnfitLoop`` before there is one."""
        if self._run is None:
            raise UnfitLoop("the Trainer", "has opened no run yet", "fit() first")
        return self._run

    # --- opening and closing ---

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Graft the module, and be there when a checkpoint is loaded."""
        if sum(isinstance(each, Growth) for each in callbacks_of(trainer)) > 1:
            raise UnfitLoop("the Trainer", "has Growth twice", "give it once, with one plan")
        self._fit, self._entry, self._open_at = ExitStack(), None, self._url
        grafted = any(isinstance(each, SlotBank) for each in pl_module.modules())
        if self._targets is not None and not grafted:
            graft(pl_module, self._targets)
        own = pl_module.on_load_checkpoint

        # Functions and no partials: copies of the module, as for averages, must not copy a run.
        def load(checkpoint: dict[str, Any]) -> None:
            own(checkpoint)
            self._load(trainer, pl_module, checkpoint)

        self._fit.enter_context(replaced(pl_module, "on_load_checkpoint", load))

    def _load(
        self,
        trainer: Trainer,
        module: LightningModule,
        checkpoint: dict[str, Any],
    ) -> None:
        """Before the module loads its weights."""
        slots = slots_in(module)
        host = without_seeds(module, checkpoint["state_dict"])
        if ENTRY not in checkpoint:
            if len(host) < len(checkpoint["state_dict"]):
                raise UnfitLoop(
                    "the checkpoint",
                    "holds tensors of seeds, but not the run to which they belong",
                    "save it with Growth among the callbacks, and not save_weights_only",
                )
        elif trainer.state.fn == TrainerFn.FITTING:
            empty(slots)
            self._entry = checkpoint[ENTRY]
            checkpoint["state_dict"] = host
        else:
            registry = self._options.get("registry", blueprints)
            regrow(module, checkpoint, self._url, registry=registry)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the run, or the one in the checkpoint again: the optimizer is there by now."""
        require_fit(trainer, evaluates=self._evaluate is not None)
        self._require_plannable(trainer, slots_in(pl_module))
        slots, optimizer = slots_in(pl_module), chosen_optimizer(trainer, self._index)
        require_trained(slots, optimizer, trainer.optimizers)
        fit = self._fit
        ranks = join(self._options.get("ranks", TOGETHER))
        if ranks is not None:
            fit.callback(ranks.close)
        self._run = fit.enter_context(self._opened(trainer, slots, optimizer))
        self._optimizer = optimizer
        self._standing = Standing(self._open_at, self._run, ranks)
        fit.callback(self._standing.part)
        self._step = 0 if self._entry is None else self._entry["step"]
        self._ended = self._entry is not None and self._step == self.run.state.epoch_ended
        rank = trainer.global_rank
        self._random = None if self._entry is None else random_streams(self._entry, rank=rank)
        self._entry = None
        fit.callback(optimizer.register_step_post_hook(self._stepped).remove)
        bar = trainer.progress_bar_callback
        if bar is not None:
            fit.enter_context(replaced(bar, "get_metrics", self._shown_by(bar.get_metrics)))

    def _opened(self, trainer: Trainer, slots: Slots, optimizer: Optimizer) -> Run:
        if trains_once(trainer):
            folder = self._fit.enter_context(TemporaryDirectory(prefix="kasmina-"))
            self._open_at = f"sqlite:///{Path(folder) / 'fast_dev_run.db'}"
        if self._entry is None:
            return open_run(self._open_at, slots=slots, optimizer=optimizer, **self._options)
        with as_file(self._entry) as path:
            return open_run(
                self._open_at,
                slots=slots,
                optimizer=optimizer,
                resume=self._entry["run_id"],
                checkpoint=path,
                **self._options,
            )

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise ``UnfitLoop`` where nothing was trained."""
        if self._step == 0:
            raise UnfitLoop(
                "Trainer.fit",
                "ended without a single step of the optimizer that trains the slots",
                "look at limit_train_batches, max_epochs and the index of the optimizer",
            )

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the run; what is saved later goes on from before its end."""
        if stage == TrainerFn.FITTING and not self.run.state.closed and self._standing is not None:
            self._standing.settle(self._step)
        self._fit.close()

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the run open, to be resumed."""
        self._fit.__exit__(type(exception), exception, exception.__traceback__)

    # --- steps ---

    def _stepped(self, _optimizer: Optimizer, _args: object, _kwargs: object) -> None:
        self.run.step()
        self._step += 1

    @override
    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keep the batch for a rehearsal."""
        self._batch = tuple(batch) if isinstance(batch, list | tuple) else (batch,)

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let seeds rehearse on the batch whose gradients are there now."""
        if self._rehearsal is not None:
            loss = partial(_weighed, self._rehearsal, trainer, pl_module)
            self.run.rehearse(loss, *self._batch)

    # --- epochs ---

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow the plan."""
        self._ended, self._random = False, None
        self._plan(self.run, trainer.current_epoch)

    def _germinate(self, run: Run, epoch: int) -> None:
        for each in self._planned:
            if each.epoch == epoch:
                run.germinate(
                    each.slot_id,
                    each.blueprint,
                    learning_rate=each.learning_rate,
                    weight_decay=each.weight_decay,
                    incubation=each.incubation,
                    blend=each.blend,
                )

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the epoch, if this validation is the one at its end: before checkpoints are saved."""
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if not fitting or not trainer.is_last_batch or self._ended:
            return
        measure: Callable[[], Mapping[str, float]]
        if self._evaluate is None:
            measure = Validation(trainer, pl_module, self.run.state.objective.name)
        else:
            measure = measured_by(self._evaluate, pl_module)
        # Lightning validates without gradients, and seeds are looked at with them.
        with torch.enable_grad():
            self._end_epoch(measure)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End an epoch in which no validation came last."""
        if self._ended and self._random is not None:
            # The epoch at whose end this fit goes on; Lightning has drawn for it, and will again.
            self._random.restore()
        if not self._ended:
            evaluate = self._evaluate
            self._end_epoch(None if evaluate is None else measured_by(evaluate, pl_module))

    def _end_epoch(self, measure: Callable[[], Mapping[str, float]] | None) -> None:
        if self._step == self.run.state.epoch_ended:
            raise UnfitLoop(
                "the Trainer",
                "has ended an epoch without a step of the optimizer that trains the slots",
                "step it at least once an epoch, or give Growth(optimizer=...) another index",
            )
        self.run.end_epoch(measure)
        self._ended = True

    def _require_plannable(self, trainer: Trainer, slots: Slots) -> None:
        registry, last = self._options.get("registry", blueprints), trainer.max_epochs
        for each in self._planned:
            registry.get(slots[each.slot_id].topology, each.blueprint)
            if last is not None and 0 <= last <= each.epoch and not trains_once(trainer):
                raise UnfitLoop(
                    "Trainer.fit",
                    f"ends after {last} epochs, before epoch {each.epoch} in which "
                    f"{each.blueprint!r} is to germinate in slot {each.slot_id!r}",
                    "plan it earlier (epochs count from 0), or raise max_epochs",
                )

    # --- what is shown and saved ---

    def _shown_by(self, own: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        def get_metrics(*args: object) -> dict[str, Any]:
            return {**own(*args), "seeds": status_line(self.run.state, self._step)}

        return get_metrics

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the run, too."""
        standing, optimizer = self._standing, self._optimizer
        if standing is None or optimizer is None or not standing.told:
            return
        place = standing.at(self._step)
        checkpoint[ENTRY] = saved(place, self.run.slots, optimizer, extra=standing.extra())


def _weighed(
    rehearsal: RehearsalLoss, trainer: Trainer, module: nn.Module, *part: object
) -> Tensor:
    """The loss of a part as the ``Trainer`` would weigh and scale it."""
    precision = trainer.precision_plugin
    with precision.train_step_context():
        loss = rehearsal(module, *part) / trainer.accumulate_grad_batches
    if isinstance(precision, MixedPrecision) and precision.scaler is not None:
        scaled: Tensor = precision.scaler.scale(loss)
        return scaled
    return loss
