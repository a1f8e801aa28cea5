"""Keeping from an AMP scaler what it must not learn of a seed that its host must not notice.

A ``GradScaler`` that finds one value that is not finite, in any gradient of the optimizer, skips
the whole step and halves its scale: a seed in TRAINING would thereby hold its host up. So, where a
scaler is in use, such a gradient is set to zero as soon as it is accumulated, parameter by
parameter, on the device. Without a scaler nothing is hooked and nothing computed.
"""

from collections.abc import Callable
from functools import partial
from weakref import WeakSet

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from kasmina.adapters.torch import finite
from kasmina.adapters.torch.births import Births
from kasmina.adapters.torch.slot import SeedSlot
from kasmina.domain.stages import Stage


class Shields:
    """The shields of one optimizer's seeds; raised for a seed that learns in TRAINING.

    They stand while an enabled ``torch.amp.GradScaler`` lives, whenever it was made; one made
    while a seed incubates counts as enabled until the seed is followed again. From BLENDING on a
    seed is part of the model, and the scaler sees all of it.
    """

    def __init__(self) -> None:
        _SCALERS.attend()
        self._incubating: dict[SeedSlot, _Shield | None] = {}
        _EVERY.add(self)

    def follow(self, slot: SeedSlot) -> None:
        """Raise or lower the shield of the slot's seed, as the slot's present view asks."""
        shield = self._incubating.pop(slot, None)
        if shield is not None:
            shield.lower()
        if slot.learning and slot.view.stage is Stage.TRAINING:
            self._incubating[slot] = _Shield(slot) if _scaling() else None

    def raise_all(self) -> None:
        """Raise those that are down, of seeds in incubation."""
        for slot, shield in self._incubating.items():
            self._incubating[slot] = shield or _Shield(slot)

    def count(self, optimizer: Optimizer) -> None:
        """Before a step of ``optimizer``: add to the evidence the seeds that take it in vain.

        One for each slot of which the last backward dropped a gradient. A step that the scaler
        skips never comes here, since an overflow that the host has too is no fault of the seed's;
        a fused optimizer skips on the device, where ``found_inf`` says so.
        """
        for slot, shield in self._incubating.items():
            if shield is not None and shield.dropped:
                dropped = torch.stack(list(shield.dropped.values())).any()
                if "found_inf" in vars(optimizer):
                    dropped &= (vars(optimizer)["found_inf"] == 0).to(dropped.device)
                slot.nonfinite_gradients.add_(dropped)
                shield.dropped.clear()

    def close(self) -> None:
        """Lower all."""
        for shield in self._incubating.values():
            if shield is not None:
                shield.lower()
        self._incubating.clear()


class _Shield:
    """Hooks on a seed's parameters. ``dropped`` says of which the last gradient was dropped."""

    def __init__(self, slot: SeedSlot) -> None:
        self.dropped: dict[int, Tensor] = {}
        self._handles = [
            _hook(parameter, partial(_drop, self.dropped, position))
            for position, parameter in enumerate(slot.seed_parameters())
            if parameter.requires_grad
        ]

    def lower(self) -> None:
        for handle in self._handles:
            handle.remove()


def _hook(parameter: Tensor, hook: Callable[[Tensor], None]) -> RemovableHandle:
    handle: RemovableHandle = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    return handle


def _drop(dropped: dict[int, Tensor], position: int, parameter: Tensor) -> None:
    if parameter.grad is not None:
        # All of it: what is left of a gradient that overflowed is not its direction.
        dropped[position] = ~finite.finite(parameter.grad)
        with torch.no_grad():
            parameter.grad.masked_fill_(dropped[position], 0.0)


def _raise_every() -> None:
    for shields in list(_EVERY):
        shields.raise_all()


def _scaling() -> bool:
    """Whether a scaler is in use. One whose constructor refused its arguments holds nothing."""
    return any(vars(each) and each.is_enabled() for each in _SCALERS.living())


_EVERY: "WeakSet[Shields]" = WeakSet()
_SCALERS: Births[GradScaler] = Births(GradScaler, told=_raise_every)
