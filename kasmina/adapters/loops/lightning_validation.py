"""Lightning's own validation as a run's evaluation: its figures, and passes with and without seeds.

The figures of the model as it is are those that the ``Trainer`` has just measured. For a contrast
the model's ``validation_step`` runs over the same batches once more, and what it logs under the
objective's name is caught, and averaged as Lightning does.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from itertools import islice
from typing import Any, TypeAlias, cast

import torch
from attrs import define
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.strategies import Strategy
from pytorch_lightning.utilities.data import extract_batch_size
from pytorch_lightning.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from kasmina.adapters.loops.opening import UnfitLoop, replaced

Evaluate: TypeAlias = Callable[[LightningModule], Mapping[str, float]]
"""From the model, in eval mode and without gradient, to its metrics on held-out data by name."""


@contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Evaluate meanwhile, without gradient; each module's mode is afterwards what it was."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for each, training in modes:
            each.training = training


def measured_by(evaluate: Evaluate, module: LightningModule) -> Callable[[], Mapping[str, float]]:
    """``evaluate`` of ``module``, as a run calls it."""

    def measure() -> Mapping[str, float]:
        with in_eval_mode(module):
            return evaluate(module)

    return measure


class Validation:
    """The ``Trainer``'s validation: at the first call the one that is over, from then on another.

    Raises ``UnfitLoop`` where it could not be done again like for like.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, objective: str) -> None:
        self._trainer = trainer
        self._module = module
        self._objective = objective
        self._loader = _only_loader(trainer)
        self._over: Mapping[str, Tensor] | None = dict(trainer.callback_metrics)

    def __call__(self) -> Mapping[str, float]:
        """The metrics by name; of a further pass, the objective alone."""
        if self._over is not None:
            over, self._over = self._over, None
            return {name: float(value) for name, value in over.items()}
        return {self._objective: self._again()}

    def _again(self) -> float:
        module = self._module
        caught = _Caught(objective=self._objective, strategy=self._trainer.strategy)
        with ExitStack() as stack:
            stack.enter_context(in_eval_mode(module))
            stack.enter_context(_own_metrics(module))
            stack.enter_context(replaced(module, "log", caught.log))
            module.on_validation_epoch_start()
            for number, batch in self._batches():
                caught.batch = batch
                self._step(batch, number)
            caught.batch = None
            module.on_validation_epoch_end()
            return caught.value()

    def _batches(self) -> Iterator[tuple[int, Any]]:
        (limit,) = self._trainer.num_val_batches
        batches = islice(self._loader, None if limit == float("inf") else int(limit))
        for number, batch in enumerate(batches):
            converted = self._trainer.precision_plugin.convert_input(batch)
            # The Trainer's own way: it lets a datamodule take the module's part in it.
            ready = self._module._on_before_batch_transfer(converted)  # noqa: SLF001
            yield number, self._trainer.strategy.batch_to_device(ready, dataloader_idx=0)

    def _step(self, batch: object, number: int) -> None:
        step = self._module.validation_step
        with self._trainer.precision_plugin.val_step_context():
            if is_param_in_hook_signature(step, "batch_idx", min_args=2):
                step(batch, number)
            else:
                step(batch)


def _only_loader(trainer: Trainer) -> Any:  # noqa: ANN401 - whatever can be iterated
    """The held-out data of ``trainer``. Raises ``UnfitLoop`` where there are several."""
    loaders = trainer.val_dataloaders
    if isinstance(loaders, list | tuple) and len(loaders) == 1:
        return loaders[0]
    if isinstance(loaders, list | tuple | dict):
        raise UnfitLoop(
            "the Trainer",
            f"validates on {len(loaders)} dataloaders, whose figures have names of their own",
            "give Growth(evaluate=...) a function that measures the objective",
        )
    return loaders


@define
class _Caught:
    """What is logged under the objective's name, summed as Lightning does it."""

    objective: str
    strategy: Strategy
    batch: Any = None
    total: Tensor | None = None
    weight: int = 0
    metric: Metric | None = None
    synced: bool = False
    group: Any = None

    def log(
        self,
        name: str,
        value: object,
        *_: object,
        batch_size: int | None = None,
        reduce_fx: object = "mean",
        sync_dist: bool = False,
        sync_dist_group: object = None,
        **__: object,
    ) -> None:
        """In the place of ``LightningModule.log``."""
        if self.objective not in (name, f"{name}_epoch"):
            return
        if isinstance(value, Metric):
            self.metric = value
            return
        if reduce_fx not in ("mean", torch.mean):
            raise UnfitLoop(
                "validation_step",
                f"logs {name!r} reduced by {reduce_fx!r}, not as a mean",
                "give Growth(evaluate=...) a function that measures the objective",
            )
        weight = batch_size or (1 if self.batch is None else extract_batch_size(self.batch))
        # In Lightning's order and dtype, so that equal models have equal figures.
        added = torch.as_tensor(value).detach().to(torch.get_default_dtype()) * weight
        self.total = added if self.total is None else self.total + added
        self.weight += weight
        self.synced, self.group = sync_dist, sync_dist_group

    def value(self) -> float:
        """The mean. Raises ``UnfitLoop`` where nothing was caught."""
        if self.metric is not None:
            return float(cast("Tensor", self.metric.compute()))
        if self.total is None:
            raise UnfitLoop(
                "the validation",
                f"does not log {self.objective!r} when it is done again for a contrast",
                "log it in validation_step or on_validation_epoch_end, or give "
                "Growth(evaluate=...) a function that measures it",
            )
        if not self.synced:
            return float(self.total / self.weight)
        # Both as means over the ranks, the weight's rounded down: so Lightning has it.
        device = self.strategy.root_device
        total, weight = (
            cast("Tensor", self.strategy.reduce(each.to(device), self.group, "mean"))
            for each in (self.total, torch.tensor(self.weight))
        )
        return float(total / weight)


@contextmanager
def _own_metrics(module: nn.Module) -> Iterator[None]:
    """Let torchmetrics in ``module`` count in copies, begun anew."""
    found = [
        (parent, name, child)
        for parent in module.modules()
        if not isinstance(parent, Metric | MetricCollection)
        for name, child in parent.named_children()
        if isinstance(child, Metric | MetricCollection)
    ]
    try:
        for parent, name, child in found:
            copy = deepcopy(child)
            copy.reset()
            parent.register_module(name, copy)
        yield
    finally:
        for parent, name, child in found:
            parent.register_module(name, child)
