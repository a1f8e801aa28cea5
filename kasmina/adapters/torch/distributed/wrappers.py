"""``DistributedDataParallel`` around a host: what it leaves alone, and when it averages.

The wrapper fixes its list of parameters when it is made, so a seed born later is averaged by
``gradients``, and one born earlier must be left out of that list: a parameter in it that is culled
would stop the training. Its buffers it looks up anew, and writes rank 0's over the others'; the
counters of a slot must be left out of that, or what another rank saw would be lost.
"""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kasmina.adapters.torch.births import Births
from kasmina.adapters.torch.graft import Slots
from kasmina.adapters.torch.slot import SeedSlot
from kasmina.domain.errors import KasminaError

_LEFT_ALONE = "_ddp_params_and_buffers_to_ignore"  # torch's own name for it, of a wrapped module

_WRAPPERS: Births[DistributedDataParallel] = Births(DistributedDataParallel)


class SeedInReducer(KasminaError):
    """A seed that a ``DistributedDataParallel`` has taken for a part of its host."""

    def __init__(self, slot_id: str) -> None:
        self.slot_id = slot_id
        super().__init__(
            f"DistributedDataParallel averages the gradient of the seed in slot {slot_id!r} with "
            f"the host's, and would wait for it for ever once the seed is culled; wrap the host "
            f"before the first germination, or wrap the very module that was grafted"
        )


class UnevenRanks(KasminaError):
    """``join()`` of a ``DistributedDataParallel``, in which ranks stop averaging one by one."""

    def __init__(self) -> None:
        super().__init__(
            "the seeds' gradients cannot be averaged inside DistributedDataParallel.join(): the "
            "ranks that are out of data would not take part; give every rank as many batches, "
            "as DistributedSampler does"
        )


class Wrappers:
    """The wrappers around the host of ``slots``, whenever they are made; of a copy, none."""

    def __init__(self, slots: Slots) -> None:
        _WRAPPERS.attend()
        self._slots = slots
        self._seen: tuple[int, ...] = ()
        self._around: tuple[DistributedDataParallel, ...] = ()
        # Looked at when a wrapper is made; set as torch's own setter does it.
        vars(slots.model)[_LEFT_ALONE] = _OfSlots(slots)

    def around(self) -> tuple[DistributedDataParallel, ...]:
        """Those that live now. Raises ``SeedInReducer``."""
        living = [each for each in _WRAPPERS.living() if "_modules" in vars(each)]
        seen = tuple(map(id, living))
        if seen != self._seen:
            self._around = tuple(each for each in living if self._holds(each))
            for each in self._around:
                self._set_apart(each)
            self._seen = seen
        return self._around

    @property
    def averaging(self) -> bool:
        """Whether a backward now ends with gradients that are averaged: not in ``no_sync()``.

        Raises ``UnevenRanks`` inside ``join()``.
        """
        around = self.around()
        if any(each._join_config.enable for each in around):  # noqa: SLF001  # no public name
            raise UnevenRanks
        return all(each.require_backward_grad_sync for each in around)

    @property
    def partial(self) -> bool:
        """Whether a backward may leave parts of the host out, on some ranks and not on others."""
        return any(each.find_unused_parameters for each in self.around())

    def close(self) -> None:
        """Leave the host as it was."""
        vars(self._slots.model).pop(_LEFT_ALONE, None)

    def _holds(self, wrapper: DistributedDataParallel) -> bool:
        return any(module is self._slots.model for module in wrapper.modules())

    def _set_apart(self, wrapper: DistributedDataParallel) -> None:
        averaged = {id(parameter) for parameter in wrapper._module_parameters}  # noqa: SLF001
        for slot_id, slot in self._slots.items():
            if any(id(parameter) in averaged for parameter in slot.seed_parameters()):
                raise SeedInReducer(slot_id)
        counters = {id(each) for slot in self._slots.values() for each in _counters(slot)}
        wrapper.parameters_to_ignore |= {
            name for name, buffer in wrapper.module.named_buffers() if id(buffer) in counters
        }
        # It looks anew before each forward only if the last look found any, and fails on none.
        wrapper._assign_modules_buffers()  # type: ignore[no-untyped-call]  # noqa: SLF001


class _OfSlots:
    """The names of what a wrapper shall leave alone, as they are when it asks."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots

    def __iter__(self) -> Iterator[str]:
        seeds = {id(parameter) for parameter in self._slots.seed_parameters()}
        counters = {id(each) for slot in self._slots.values() for each in _counters(slot)}
        model: nn.Module = self._slots.model
        for name, parameter in model.named_parameters():
            if id(parameter) in seeds:
                yield name
        for name, buffer in model.named_buffers():
            if id(buffer) in counters:
                yield name


def _counters(slot: SeedSlot) -> Iterator[Tensor]:
    """The slot's own buffers, which are none of its seed's."""
    return slot.buffers(recurse=False)
