"""Learning-rate schedulers that keep one value for each parameter group, in lists of fixed length.

``LambdaLR``, ``CosineAnnealingLR``, ``CyclicLR`` and others refuse a group that came later, and an
optimizer does not know its schedulers. Those of an optimizer are found among all that live, and
get an entry for each group that is added.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kasmina.adapters.torch.births import Births

# torch 2.6 to 2.13.
_SCALED_LISTS = frozenset({"_last_lr", "base_lrs", "max_lrs", "min_lrs"})
_COPIED_LISTS = frozenset({"base_momentums", "lr_lambdas", "max_momentums"})

_SCHEDULERS: Births[LRScheduler] = Births(LRScheduler)

Rate = float | Tensor


def attend() -> None:
    """Know of every scheduler from now on."""
    _SCHEDULERS.attend()


def admit(optimizer: Optimizer, ratio: float) -> None:
    """After a group was added: as the first one's, with rates times ``ratio``."""
    for name, values in _lists(optimizer, len(optimizer.param_groups) - 1):
        entry = values[0]
        values.append(scaled(entry, ratio) if name in _SCALED_LISTS else entry)


def dismiss(optimizer: Optimizer, index: int) -> None:
    """Before the group at ``index`` is taken away."""
    for _, values in _lists(optimizer, len(optimizer.param_groups)):
        del values[index]


def by_group(optimizer: Optimizer) -> tuple[list[Any], ...]:
    """The live lists of the optimizer's schedulers that have one value for each of its groups."""
    return tuple(values for _, values in _lists(optimizer, len(optimizer.param_groups)))


def scaled(value: Rate, ratio: float) -> Rate:
    """``value * ratio``, never the same tensor."""
    if isinstance(value, Tensor):
        return value.clone() if ratio == 1.0 else value * ratio
    return value if ratio == 1.0 else value * ratio


def _lists(optimizer: Optimizer, groups: int) -> Iterable[tuple[str, list[Any]]]:
    """The lists with one value for each of ``groups`` that the optimizer's schedulers keep."""
    # By identity: a SequentialLR shares one with its children.
    return {
        id(values): (name, values)
        for scheduler in _schedulers_of(optimizer)
        for name, values in vars(scheduler).items()
        if name in _SCALED_LISTS | _COPIED_LISTS
        if isinstance(values, list) and len(values) == groups
    }.values()


def _schedulers_of(optimizer: Optimizer) -> list[LRScheduler]:
    """Every live scheduler of ``optimizer``, also one that holds a wrapper of it."""
    # One whose constructor raised may still be alive in a traceback, without an optimizer.
    built = [each for each in _SCHEDULERS.living() if "optimizer" in vars(each)]
    return [each for each in built if each.optimizer.param_groups is optimizer.param_groups]
