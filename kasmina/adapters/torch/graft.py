"""Giving a host slots, on unmodified modules by path, and taking them away without a trace.

A target's class is swapped for a subclass whose forward hands the output through the slot. No
forward hook: one registered after ``torch.compile`` is silently ignored, and a hook slows every
eager call. The slots live in a bank below the root, so that ``.to()``, ``train()``,
``parameters()``, ``state_dict()`` and ``deepcopy`` reach a seed's tensors, each once.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn
from typing_extensions import override

from kasmina.adapters.torch import leaks
from kasmina.adapters.torch.acts import Visits
from kasmina.adapters.torch.features import Features, judged, look, unseen
from kasmina.adapters.torch.grafted import (
    BANK,
    Series,
    SlotBank,
    child_name,
    is_untouched,
    swap_in,
    swap_out,
)
from kasmina.adapters.torch.hosts import HostProtocol
from kasmina.adapters.torch.places import matching, resolve
from kasmina.adapters.torch.sharding import own_class, whole
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
        return whole(nn.utils.clip_grad_norm_(tuple(self.host_parameters()), max_norm, norm_type))

    def describe(self) -> HostDescription:
        """What a resumed run's host must match: class, parameter count, digest of its layout."""
        lines = sorted(
            f"{name} {tuple(value.shape)} {value.dtype}"
            for name, value in self.model.state_dict().items()
            if isinstance(value, Tensor) and not name.startswith(_OF_BANK)
        )
        return HostDescription(
            kind=own_class(self.model).__qualname__,
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
    targets: Mapping[str, Topology | tuple[Topology, ...]],
    *,
    example_inputs: tuple[Any, ...] | None = None,
) -> Slots:
    """Give ``model`` a slot after each module in ``targets``, named by its path.

    A key is a path, or a pattern of paths as ``targets()`` takes it, which lists what a pattern
    would hit and what stands in the way; that list is a mapping for ``graft`` too. A tuple of
    topologies puts several slots in series at the place: ``"layer2"``, ``"layer2:2"``, and so on,
    each receiving what the one before it returned.

    With ``example_inputs``, the positional arguments of one small forward, widths and shapes are
    looked at, in eval mode and without a trace; without, the width is that of the last layer in
    the module. Graft before compiling or wrapping the model. The features of a target are the
    first floating-point tensor it returns, alone or in a tuple, list, dict or dataclass. While
    grafted, the model has one more child, ``kasmina``; in an ``nn.Sequential`` that is the last
    layer, and passes its input on.

    Raises ``UnknownModule`` and ``UngraftableModule``, with nothing changed.
    """
    return _graft(model, tuple(_points(model, targets)), example_inputs)


def graft_host(host: HostProtocol, *, example_inputs: tuple[Any, ...] | None = None) -> Slots:
    """``graft`` at the injection points that ``host``, a module, names itself.

    Points with the same path are in series, in the order in which they are named.
    """
    if not isinstance(host, nn.Module):
        raise TypeError(f"a host must be an nn.Module, got {type(host).__name__}")
    points = tuple(
        _Point(slot_id, point.path, point.topology, point.width)
        for slot_id, point in host.injection_points().items()
    )
    return _graft(host, points, example_inputs)


class _Point(NamedTuple):
    slot_id: str
    path: str
    topology: Topology
    width: int | None


def _points(
    model: nn.Module, targets: Mapping[str, Topology | tuple[Topology, ...]]
) -> Iterator[_Point]:
    named: dict[str, str] = {}
    for where, topologies in targets.items():
        series = topologies if isinstance(topologies, tuple) else (topologies,)
        if not series:
            raise UngraftableModule(where, "no topology is given", "give one for each slot")
        for path in matching(model, where):
            if path in named:
                raise UngraftableModule(
                    path,
                    f"both {named[path]!r} and {where!r} name it",
                    "name it once; for several slots there, give a tuple of topologies",
                )
            named[path] = where
            for number, topology in enumerate(series, start=1):
                slot_id = path if number == 1 else f"{path}:{number}"
                yield _Point(slot_id, path, topology, None)


def _graft(
    model: nn.Module, points: tuple[_Point, ...], example_inputs: tuple[Any, ...] | None
) -> Slots:
    at = _by_path(points)
    _require_nameable(points)
    modules = resolve(model, at)
    features = _features(model, at, example_inputs)
    slots = {
        point.slot_id: SeedSlot(
            point.slot_id,
            topology=point.topology,
            width=features[point.path].width,
            feature_shape=features[point.path].shape,
            device=_reference(model, modules[point.path]).device,
            dtype=_reference(model, modules[point.path]).dtype,
        )
        for point in points
    }
    bank = SlotBank(slots, {point.slot_id: point.path for point in points}).train(model.training)
    with ExitStack() as undo:
        for path, module in modules.items():
            series = [slots[point.slot_id] for point in at[path]]
            swap_in(module, series[0] if len(series) == 1 else Series(series))
            undo.callback(swap_out, module)
        model.add_module(BANK, bank)
        undo.pop_all()
    return Slots(model)


def _by_path(points: Iterable[_Point]) -> dict[str, list[_Point]]:
    """The points at each path, all of which agree on its features."""
    at: dict[str, list[_Point]] = {}
    for point in points:
        _require_topology(point.path, point.topology)
        series = at.setdefault(point.path, [])
        series.append(point)
        first = series[0]
        if (first.topology, first.width) != (point.topology, point.width):
            raise UngraftableModule(
                point.path,
                f"its slots {first.slot_id!r} and {point.slot_id!r} disagree on its features",
                "give all slots at one place the same topology and width",
            )
    return at


def _require_nameable(points: Iterable[_Point]) -> None:
    """Each slot becomes a child of the bank, of which there is one of each name."""
    taken = dict.fromkeys(dir(SlotBank({}, {})), "an attribute of every bank of slots")
    for point in points:
        name = child_name(point.slot_id)
        if name in taken:
            raise UngraftableModule(
                point.path,
                f"its slot would be called {name!r}, as is {taken[name]}",
                "rename the module, or name its slot in injection_points()",
            )
        taken[name] = f"the slot {point.slot_id!r}"


def _require_topology(path: str, topology: object) -> None:
    if not isinstance(topology, Topology):
        known = " or ".join(f"Topology.{each.name}" for each in Topology)
        raise UngraftableModule(path, f"{topology!r} is no topology", f"give {known}")


def _features(
    model: nn.Module,
    at: Mapping[str, list[_Point]],
    example_inputs: tuple[Any, ...] | None,
) -> dict[str, Features]:
    modules = dict(model.named_modules(remove_duplicate=False))
    if example_inputs is None:
        return {path: unseen(path, modules, points[0].width) for path, points in at.items()}
    sights = look(model, {path: modules[path] for path in at}, example_inputs)
    found = {path: judged(path, at[path][0].topology, sight) for path, sight in sights.items()}
    for path, points in at.items():
        if points[0].width not in (None, found[path].width):
            raise UngraftableModule(
                path,
                f"its features are {found[path].width} wide, not {points[0].width} as the "
                f"host's injection point says",
                "mend injection_points()",
            )
    return found


def _reference(model: nn.Module, module: nn.Module) -> Tensor:
    """A tensor on the device and of the dtype that the features of ``module`` will have."""
    for each in (module, model):
        for parameter in each.parameters():
            if parameter.is_floating_point():
                return parameter
    return torch.empty(())
