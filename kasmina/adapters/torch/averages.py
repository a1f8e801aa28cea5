"""Averages of a grafted model that grow with it.

``AveragedModel`` copies a model once and then pairs both models' parameters by position, as far
as the shorter list goes: a seed that is born later would be left out, or averaged with another,
without a word. So before each ``update_parameters(model)`` the copy is given the seeds of ``model``
that it lacks, loses those that are gone, and acts as ``model`` does at that moment.
"""

from collections.abc import Iterator
from copy import deepcopy
from functools import wraps

from torch import nn
from torch.optim.swa_utils import AveragedModel

from kasmina.adapters.torch.grafted import SlotBank
from kasmina.adapters.torch.slot import SeedSlot
from kasmina.domain.errors import KasminaError


class NoCopy(KasminaError):
    """A model that is no copy of the grafted one, and so cannot grow as it did.

    ``expected`` and ``found`` are the slots of the two, bank by bank.
    """

    def __init__(
        self, expected: tuple[tuple[str, ...], ...], found: tuple[tuple[str, ...], ...]
    ) -> None:
        self.expected = expected
        self.found = found
        super().__init__(
            f"a copy of a model with slots {_named(expected)} was expected, got one with "
            f"{_named(found)}; copy the model after graft(), as AveragedModel and deepcopy do"
        )


def follow_growth(copy: nn.Module, model: nn.Module) -> None:
    """Make the seeds of ``copy``, a copy of the grafted ``model``, those that ``model`` has now.

    A seed that the copy lacks begins with the weights that it has in ``model``; one that it has is
    left as it is; one that is gone from ``model`` goes. All act as in ``model``, at the same
    alpha; new ones need no gradient. Both models may be wrapped.

    Raises ``NoCopy`` for a copy that has other slots, or none.
    """
    for copied, slot in _pairs(copy, model):
        if copied.view.seed_id != slot.view.seed_id or (copied.seed is None) != (slot.seed is None):
            _regrow(copied, slot)
        copied.show(slot.view, slot.step)


def attend() -> None:
    """Let every ``AveragedModel`` follow its model from now on; done once, as long as Python runs.

    One whose class overrides ``update_parameters`` follows where it calls the parent's.
    """
    original = AveragedModel.update_parameters
    if original in _OURS:
        return

    @wraps(original)
    def update_parameters(self: AveragedModel, model: nn.Module) -> None:
        if not any(_banks(model)):
            original(self, model)
            return
        follow_growth(self, model)
        original(self, model)
        if self.use_buffers:
            follow_growth(self, model)  # alpha, a buffer, was averaged too

    _OURS.add(update_parameters)
    AveragedModel.update_parameters = update_parameters  # type: ignore[method-assign]


_OURS: set[object] = set()


def _banks(model: nn.Module) -> Iterator[SlotBank]:
    return (each for each in model.modules() if isinstance(each, SlotBank))


def _pairs(copy: nn.Module, model: nn.Module) -> Iterator[tuple[SeedSlot, SeedSlot]]:
    copies, banks = tuple(_banks(copy)), tuple(_banks(model))
    expected, found = (tuple(tuple(bank.paths) for bank in each) for each in (banks, copies))
    if expected != found:
        raise NoCopy(expected, found)
    for copied, bank in zip(copies, banks, strict=True):
        for slot_id in bank.paths:
            yield copied.slot(slot_id), bank.slot(slot_id)


def _regrow(copied: SeedSlot, slot: SeedSlot) -> None:
    if copied.seed is not None:
        copied.detach()
    if slot.seed is not None:
        copied.stream, copied.mixer = deepcopy(slot.stream), deepcopy(slot.mixer)
        copied.attach(deepcopy(slot.seed))
        copied.to(copied.alpha.device)


def _named(banks: tuple[tuple[str, ...], ...]) -> str:
    return ", ".join(str(list(slots)) for slots in banks) or "none"
