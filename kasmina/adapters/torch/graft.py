"""Giving a host slots, on unmodified modules by path, and taking them away without a trace.

A target's class is swapped for a subclass whose forward hands the output through the slot. No
forward hook: one registered after ``torch.compile`` is silently ignored, and a hook slows every
eager call. The slots live in a bank below the root, so that ``.to()``, ``train()``,
``parameters()``, ``state_dict()`` and ``deepcopy`` reach a seed's tensors, each once.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn
from typing_extensions import override

from kasmina.adapters.torch import leaks
from kasmina.adapters.torch.acts import Visits
from kasmina.adapters.torch.features import Features, inferred, seen
from kasmina.adapters.torch.grafted import BANK, SlotBank, is_untouched, swap_in, swap_out
from kasmina.adapters.torch.hosts import HostProtocol
from kasmina.adapters.torch.places import resolve
from kasmina.adapters.torch.slot import SeedSlot
from kasmina.domain.errors import KasminaError, UngraftableModule, UnknownSlot
from kasmina.domain.evidence import HostDescription
from kasmina.domain.projections import SlotView
from kasmina.domain.stages import Topology

_OF_BANK = f"{BANK}."

# Not an attribute of the bank: a copy of a grafted model is nobody's yet.
_CLAIMED: "WeakSet[SlotBank]" = WeakSet()


class SlotsInUse(KasminaError):
    """Slots that an open run of this process acts on."""

    def __init__(self, slot_ids: tuple[str, ...]) -> None:
        self.slot_ids = slot_ids
        super().__init__(
            f"slots {list(slot_ids)} belong to a run that is open; close() that run first, or "
            f"build the host anew and graft it for another"
        )


class Slots(Mapping[str, SeedSlot]):
    """The slots of a grafted model by name, and the model's tensors told apart.

    Made by ``graft``; for a copy of a grafted model, by ``Slots(copy)``. Raises
    ``UngraftableModule`` for a model without slots.
    """

    def __init__(self, model: nn.Module) -> None:
        bank = dict(model.named_children()).get(BANK)
        if not isinstance(bank, SlotBank):
            raise UngraftableModule("", "the model has no slots", "graft() it first")
        self.model = model
        self._bank = bank
        self._slots = {slot_id: bank.slot(slot_id) for slot_id in bank.paths}

    @override
    def __getitem__(self, slot_id: str) -> SeedSlot:
        if slot_id not in self._slots:
            raise UnknownSlot(slot_id, self._slots)
        return self._slots[slot_id]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    @override
    def __len__(self) -> int:
        return len(self._slots)

    @override
    def __contains__(self, slot_id: object) -> bool:
        return slot_id in self._slots

    def host_named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The host's own parameters, under the names they have without the graft."""
        return (
            (name, parameter)
            for name, parameter in self.model.named_parameters()
            if not name.startswith(_OF_BANK)
        )

    def host_parameters(self) -> Iterator[nn.Parameter]:
        """The host's own parameters: what its optimizer should be built from."""
        return (parameter for _, parameter in self.host_named_parameters())

    def host_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The host's own parameters and buffers, by name."""
        return (
            (name, tensor)
            for name, tensor in leaks.tensors(self.model)
            if not name.startswith(_OF_BANK)
        )

    def seed_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of all seeds."""
        return (parameter for slot in self.values() for parameter in slot.seed_parameters())

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> Tensor:
        """Clip the host's gradient, and each seed's apart; returns the host's norm, 0-dim.

        Clipped together, a seed's gradient would shrink the host's.
        """
        for slot in self.values():
            if slot.seed is not None:
                nn.utils.clip_grad_norm_(slot.seed_parameters(), max_norm, norm_type)
        return nn.utils.clip_grad_norm_(tuple(self.host_parameters()), max_norm, norm_type)

    def describe(self) -> HostDescription:
        """What a resumed run's host must match: class, parameter count, digest of its layout."""
        lines = sorted(
            f"{name} {tuple(value.shape)} {value.dtype}"
            for name, value in self.model.state_dict().items()
            if isinstance(value, Tensor) and not name.startswith(_OF_BANK)
        )
        return HostDescription(
            kind=type(self.model).__qualname__,
            parameters=sum(parameter.numel() for parameter in self.host_parameters()),
            digest=hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        )

    @contextmanager
    def showing(self, slot_id: str, view: SlotView) -> Iterator[Visits]:
        """Let one slot act as ``view`` says for a while; what learns is left as it is.

        ``IDENTITY`` is the model without the seed, ``BLEND`` at alpha 1 a rehearsal. The forwards
        that really went through the slot are counted.
        """
        slot = self[slot_id]
        before, visits = (slot.view, slot.visits), Visits()
        slot.show(view, slot.step, visits)
        try:
            yield visits
        finally:
            slot.show(before[0], slot.step, before[1])

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """For one run alone: two would act on each other's seeds. Raises ``SlotsInUse``."""
        if self._bank in _CLAIMED:
            raise SlotsInUse(tuple(self))
        _CLAIMED.add(self._bank)
        try:
            yield
        finally:
            _CLAIMED.discard(self._bank)

    def ungraft(self) -> None:
        """Restore the model exactly; seeds go with their slots.

        Raises ``UngraftableModule``, with nothing changed, if the class of a grafted module was
        changed again, as ``parametrize`` and ``fully_shard`` do.
        """
        targets = {path: self.model.get_submodule(path) for path in self._bank.paths.values()}
        for path, target in targets.items():
            if not is_untouched(target):
                raise UngraftableModule(
                    path,
                    f"its class was changed after the graft, to {type(target).__name__}",
                    "undo that first, then ungraft()",
                )
        for target in targets.values():
            swap_out(target)
        delattr(self.model, BANK)


def graft(
    model: nn.Module,
    targets: Mapping[str, Topology],
    *,
    example_inputs: tuple[Any, ...] | None = None,
) -> Slots:
    """Give ``model`` a slot after each module in ``targets``, named by its path.

    With ``example_inputs``, the positional arguments of one small forward, widths and shapes are
    looked at, in eval mode and without a trace; without, the width is that of the last layer in
    the module. Graft before compiling or wrapping the model. A target must return features, or a
    tuple or list that begins with them. While grafted, the model has one more child, ``kasmina``;
    in an ``nn.Sequential`` that is the last layer, and passes its input on.

    Raises ``UnknownModule`` and ``UngraftableModule``, with nothing changed.
    """
    points = {path: _Point(path, topology, None) for path, topology in targets.items()}
    return _graft(model, points, example_inputs)


def graft_host(host: HostProtocol, *, example_inputs: tuple[Any, ...] | None = None) -> Slots:
    """``graft`` at the injection points that ``host``, a module, names itself."""
    if not isinstance(host, nn.Module):
        raise TypeError(f"a host must be an nn.Module, got {type(host).__name__}")
    points = {
        slot_id: _Point(point.path, point.topology, point.width)
        for slot_id, point in host.injection_points().items()
    }
    return _graft(host, points, example_inputs)


class _Point(NamedTuple):
    path: str
    topology: Topology
    width: int | None


def _graft(
    model: nn.Module, points: Mapping[str, _Point], example_inputs: tuple[Any, ...] | None
) -> Slots:
    for point in points.values():
        _require_topology(point.path, point.topology)
    modules = resolve(model, {slot_id: point.path for slot_id, point in points.items()})
    features = _features(model, points, modules, example_inputs)
    slots = {
        slot_id: SeedSlot(
            slot_id,
            topology=point.topology,
            width=features[slot_id].width,
            feature_shape=features[slot_id].shape,
            device=_reference(model, modules[slot_id]).device,
            dtype=_reference(model, modules[slot_id]).dtype,
        )
        for slot_id, point in points.items()
    }
    bank = SlotBank(slots, {slot_id: point.path for slot_id, point in points.items()})
    model.add_module(BANK, bank.train(model.training))
    for slot_id, module in modules.items():
        swap_in(module, slots[slot_id])
    return Slots(model)


def _require_topology(path: str, topology: object) -> None:
    if not isinstance(topology, Topology):
        known = " or ".join(f"Topology.{each.name}" for each in Topology)
        raise UngraftableModule(path, f"{topology!r} is no topology", f"give {known}")


def _features(
    model: nn.Module,
    points: Mapping[str, _Point],
    modules: Mapping[str, nn.Module],
    example_inputs: tuple[Any, ...] | None,
) -> dict[str, Features]:
    if example_inputs is not None:
        found = seen(
            model,
            {slot_id: (modules[slot_id], point.topology) for slot_id, point in points.items()},
            example_inputs,
        )
        for slot_id, point in points.items():
            if point.width not in (None, found[slot_id].width):
                raise UngraftableModule(
                    point.path,
                    f"its features are {found[slot_id].width} wide, not {point.width} as the "
                    f"host's injection point says",
                    "mend injection_points()",
                )
        return found
    return {
        slot_id: inferred(point.path, modules[slot_id])
        if point.width is None
        else Features(width=point.width)
        for slot_id, point in points.items()
    }


def _reference(model: nn.Module, module: nn.Module) -> Tensor:
    """A tensor on the device and of the dtype that the features of ``module`` will have."""
    for each in (module, model):
        for parameter in each.parameters():
            if parameter.is_floating_point():
                return parameter
    return torch.empty(())
