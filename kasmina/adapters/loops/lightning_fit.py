"""What a ``Trainer`` must be like so that seeds are trained, measured and kept."""

from collections.abc import Sequence

from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from pytorch_lightning.strategies.xla import XLAStrategy
from torch.optim import Optimizer

from kasmina.adapters.loops.opening import UnfitLoop
from kasmina.adapters.torch.graft import Slots
from kasmina.adapters.torch.grafted import SlotBank

_LOOP = "the Trainer"


def require_fit(trainer: Trainer, *, evaluates: bool) -> None:
    """Raise ``UnfitLoop`` where seeds would be neglected. ``evaluates``: with a function for it."""
    _require_copies(trainer.strategy)
    if any(isinstance(each, WeightAveraging) for each in callbacks_of(trainer)):
        raise UnfitLoop(
            _LOOP,
            "averages weights by a callback that pairs parameters by their position, and would mix "
            "up those of a model that grows",
            "take WeightAveraging away; average by name, in a callback of your own",
        )
    if not evaluates and not (
        trainer.enable_validation and trainer.check_val_every_n_epoch is not None
    ):
        raise UnfitLoop(
            _LOOP,
            "validates at no epoch's end, so no gate could ever decide",
            "give val_dataloaders and a validation_step that logs the objective, with "
            "check_val_every_n_epoch set, or Growth(evaluate=...) a function that measures it",
        )


def _require_copies(strategy: Strategy) -> None:
    """Raise ``UnfitLoop`` unless each process holds the whole model, and keeps it."""
    name = type(strategy).__name__
    copies = isinstance(strategy, SingleDeviceStrategy | DDPStrategy)
    if not copies or isinstance(strategy, DeepSpeedStrategy | XLAStrategy):  # DDP's by name alone
        raise UnfitLoop(
            _LOOP,
            f"trains by {name}, which splits the model over processes or steps it in an engine of "
            f"its own, where a seed that is born later would not be trained with its host",
            'train with strategy="ddp", or on one device',
        )
    if isinstance(strategy.launcher, _MultiProcessingLauncher):
        raise UnfitLoop(
            _LOOP,
            f"trains by {name} in processes that end with fit(), and of the model that grew in "
            f"them Lightning brings only the host back, without a word",
            'train with strategy="ddp", which starts the script again in each process, or torchrun',
        )


def trains_once(trainer: Trainer) -> bool:
    """Whether the ``Trainer`` only tries out a batch or a few (``fast_dev_run``)."""
    batches: int | bool = trainer.fast_dev_run  # type: ignore[attr-defined]  # set, not declared
    return bool(batches)


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The callbacks of ``trainer``."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set, not declared
    return callbacks


def chosen_optimizer(trainer: Trainer, index: int | None) -> Optimizer:
    """The optimizer at ``index``, or the only one. Raises ``UnfitLoop``."""
    optimizers = trainer.optimizers
    if index is None and len(optimizers) > 1:
        raise UnfitLoop(
            _LOOP,
            f"has {len(optimizers)} optimizers, and seeds belong to one",
            "give Growth(optimizer=...) the index of the one that trains the slots' modules",
        )
    if index is not None and not 0 <= index < len(optimizers):
        raise UnfitLoop(
            _LOOP,
            f"has {len(optimizers)} optimizers, none at index {index}",
            "indices count from 0, in the order that configure_optimizers returns",
        )
    return optimizers[index or 0]


def require_trained(slots: Slots, optimizer: Optimizer, optimizers: Sequence[Optimizer]) -> None:
    """Raise ``UnfitLoop`` for a slot whose module is another optimizer's."""
    held = [{id(p) for g in each.param_groups for p in g["params"]} for each in optimizers]
    chosen = next(n for n, each in enumerate(optimizers) if each is optimizer)
    (bank,) = (child for child in slots.model.children() if isinstance(child, SlotBank))
    for slot_id, path in bank.paths.items():
        own = {id(parameter) for parameter in slots.model.get_submodule(path).parameters()}
        at = [number for number, parameters in enumerate(held) if own & parameters]
        if at and chosen not in at:
            raise UnfitLoop(
                f"optimizer {chosen}",
                f"does not train the module of slot {slot_id!r}, which optimizer {at[0]} does",
                f"give Growth(optimizer={at[0]})",
            )
