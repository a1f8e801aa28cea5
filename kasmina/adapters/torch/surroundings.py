"""What surrounds a seed: the rest of its model, as it stands at a moment, and what has changed.

A write shows in a tensor's version, which every in-place operation raises, whoever does it. That
looks at no value and never waits for the device. It does not see a write through ``.data`` or
NumPy, nor one by a kernel that does not announce it: torch's BatchNorm raises the version of
``num_batches_tracked`` and not of its running statistics. ``Copies`` compare values, and see all.
Neither sees a changed mode, ``requires_grad`` or other attribute, nor hooks for ``state_dict``.
"""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import Any, NamedTuple, Self, TypeVar
from weakref import WeakKeyDictionary, ref

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from kasmina.adapters.torch.sharding import local
from kasmina.domain.stages import Leak

T = TypeVar("T")
_Registry = MutableMapping[Any, Any]
_HOOKS = ("forward_pre_hooks", "forward_hooks", "backward_pre_hooks", "backward_hooks")


@frozen(kw_only=True, eq=False)
class Sighting:
    """One leak, seen once: what leaked is a tensor, or something with only a name."""

    leak: Leak
    subject: Tensor | str


class _Place(NamedTuple):
    """A parameter or buffer, where it is registered, and the seed that it is in, if any."""

    name: str
    registry: _Registry
    key: str
    tensor: Tensor
    seed: nn.Module | None


class Extent(NamedTuple):
    """Where a tensor begins in memory, and its whole storage's device and addresses."""

    name: str
    tensor: Tensor
    begin: int
    memory: object
    start: int
    end: int

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Self:
        """The extent of ``tensor``; one without memory (empty, meta) has one of its own."""
        here = local(tensor)
        storage = here.untyped_storage()
        start = storage.data_ptr()
        if not start:
            return cls(name, tensor, 0, id(tensor), 0, 1)
        end = start + storage.nbytes()
        return cls(name, tensor, here.data_ptr(), tensor.device, start, end)

    def overlaps(self, other: "Extent") -> bool:
        """Whether the storages have a byte in common."""
        together = self.start < other.end and other.start < self.end
        return together and self.memory == other.memory


class _Look(NamedTuple):
    """Lists with an entry for each tensor or owner of hooks; all but the last, equal if nothing is.

    The last holds the gradients: while they live, no other has the identity of one of them.
    """

    versions: list[int]
    present: list[bool]
    gradients: list[int]
    gradient_versions: list[int]
    tensor_hooks: list[tuple[int, ...]]
    hooks: list[tuple[int, ...]]
    held: list[Tensor | None]


class _Inventory:
    """All that there is to look at in a model; made once for many looks, which must be cheap.

    ``groups`` are modules by name, for each seed and, under ``None``, the host.
    """

    def __init__(self, groups: Mapping[nn.Module | None, Mapping[str, nn.Module]]) -> None:
        self.modules = tuple((seed, *each) for seed in groups for each in groups[seed].items())
        self.places = tuple(place for seed in groups for place in _places(groups[seed], seed))
        self.holders: dict[int, set[nn.Module | None]] = {}
        for place in self.places:
            self.holders.setdefault(id(place.tensor), set()).add(place.seed)
        hooks = [(seed, *each) for seed in groups for each in _hooks(groups[seed])]
        self._owners = [(seed, owner) for seed, owner, _ in hooks]
        self._registries = [registry for _, _, registry in hooks]
        # A tensor made in inference mode has no version, and cannot be written to outside of it.
        self._versioned = [place for place in self.places if not place.tensor.is_inference()]
        self._tensors = [place.tensor for place in self._versioned]
        self._leaves = [place for place in self.places if place.tensor.is_leaf]
        self._parameters = [place.tensor for place in self._leaves]

    @cached_property
    def extents(self) -> tuple[tuple[nn.Module | None, Extent], ...]:
        return tuple((place.seed, Extent.of(place.name, place.tensor)) for place in self.places)

    def look(self) -> _Look:
        tensors, parameters = self._tensors, self._parameters
        gradients = [tensor.grad for tensor in parameters]
        hooks = [tensor._backward_hooks for tensor in parameters]  # noqa: SLF001
        hooks += [tensor._post_accumulate_grad_hooks for tensor in parameters]  # noqa: SLF001
        return _Look(
            versions=[tensor._version for tensor in tensors],  # noqa: SLF001
            present=[registry.get(key) is tensor for _, registry, key, tensor, _ in self.places],
            gradients=[id(each) for each in gradients],
            gradient_versions=[0 if each is None else each._version for each in gradients],  # noqa: SLF001
            tensor_hooks=[tuple(registry) if registry else () for registry in hooks],
            hooks=[tuple(registry) if registry else () for registry in self._registries],
            held=gradients,
        )

    def written(self, before: _Look, now: _Look) -> Iterator[tuple[nn.Module | None, str]]:
        """The tensors and gradients that differ, and the seeds that they are in."""
        for place in (
            *_differing(self._versioned, before.versions, now.versions),
            *_differing(self.places, before.present, now.present),
        ):
            yield place.seed, place.name
        for place in (
            *_differing(self._leaves, before.gradients, now.gradients),
            *_differing(self._leaves, before.gradient_versions, now.gradient_versions),
        ):
            if not _in_a_bucket(place.tensor):
                yield place.seed, f"gradient of {place.name}"

    def hooked(self, before: _Look, now: _Look) -> Iterator[tuple[nn.Module | None, str]]:
        """Whose hooks differ, and the seeds that they are in."""
        leaves = (*self._leaves, *self._leaves)
        for place in _differing(leaves, before.tensor_hooks, now.tensor_hooks):
            yield place.seed, f"hooks of {place.name}"
        for seed, owner in _differing(self._owners, before.hooks, now.hooks):
            yield seed, f"hooks of {owner}"


class Surroundings:
    """All of a model but one seed, as it is now; what they share is among it."""

    def __init__(self, inventory: _Inventory, seed: nn.Module | None) -> None:
        self._inventory = inventory
        self._seed = seed
        self._before = inventory.look()

    def __contains__(self, tensor: Tensor) -> bool:
        return bool(self._inventory.holders.get(id(tensor), frozenset()) - {self._seed})

    def again(self) -> Self:
        """The same, as it is now."""
        return type(self)(self._inventory, self._seed)

    def extents(self) -> list[Extent]:
        """All parameters and buffers, and where they lay when they were gathered."""
        return [extent for seed, extent in self._inventory.extents if seed is not self._seed]

    def changes(self) -> Iterator[Sighting]:
        """What was written to or replaced since, and where hooks came or went."""
        now = self._inventory.look()
        for leak, found in (
            (Leak.IN_PLACE_WRITE, self._inventory.written(self._before, now)),
            (Leak.HOOK, self._inventory.hooked(self._before, now)),
        ):
            for subject in dict.fromkeys(name for seed, name in found if seed is not self._seed):
                yield Sighting(leak=leak, subject=subject)

    @contextmanager
    def calls(self) -> Iterator[list[Sighting]]:
        """Gathers the modules whose forward hooks run meanwhile, because somebody calls them."""
        called: list[Sighting] = []
        with ExitStack() as listening:
            for seed, name, module in self._inventory.modules:
                hooks = module._forward_pre_hooks or module._forward_hooks  # noqa: SLF001
                if hooks and seed is not self._seed:
                    sighting = Sighting(leak=Leak.HOOK, subject=f"hooks of {_title(name)} ran")
                    handle = module.register_forward_pre_hook(partial(_hear, called, sighting))
                    listening.callback(handle.remove)
            yield called


NOTHING = Surroundings(_Inventory({}), None)


class Habitat:
    """A model in whose ``slots`` seeds grow, and what is around each of them.

    What the model consists of is gathered when first asked for, and held until ``refresh``.
    """

    def __init__(self, model: nn.Module, slots: Iterable[nn.Module]) -> None:
        self.model = model
        self._slots = frozenset(slots)
        self._seeds: frozenset[nn.Module] = frozenset()
        self._inventory = _Inventory({})
        for slot in self._slots:
            _HABITATS[slot] = ref(self)

    def refresh(self) -> None:
        """Let go of what was gathered: modules, parameters or buffers may come and go."""
        self._seeds = frozenset()
        self._inventory = _Inventory({})

    def around(self, seed: nn.Module) -> Surroundings:
        """Everything in the model but ``seed``; what the two share is among it."""
        if seed not in self._seeds:
            self._gather()
        return Surroundings(self._inventory, seed)

    def _gather(self) -> None:
        seeds = {
            seed: f"{path}.{name}"
            for path, module in self.model.named_modules()
            if module in self._slots
            for name, seed in module.named_children()
            if name == "seed"
        }
        # A module in the memo counts as visited, with what is below it and nowhere else.
        groups: dict[nn.Module | None, dict[str, nn.Module]] = {
            None: dict(self.model.named_modules(memo=set(seeds)))
        }
        for seed, path in seeds.items():
            groups[seed] = dict(seed.named_modules(prefix=path))
        self._inventory = _Inventory(groups)
        self._seeds = frozenset(seeds)


# Not an attribute of the slot: a copy of a model is observed by nobody yet.
_HABITATS: "WeakKeyDictionary[nn.Module, ref[Habitat]]" = WeakKeyDictionary()


def surroundings(slot: nn.Module, seed: nn.Module) -> Surroundings:
    """What is around the seed in ``slot``; nothing where nobody observes it."""
    habitat = _HABITATS[slot]() if slot in _HABITATS else None
    return NOTHING if habitat is None else habitat.around(seed)


class _Copy(NamedTuple):
    """A tensor's own memory, and a copy of what is in it."""

    place: _Place
    memory: Tensor
    values: Tensor
    hooks: tuple[int, ...]


class Copies:
    """The values of every tensor in ``model``, and its hooks: what differs from them, and undoing.

    Takes as much memory of the CPU as the model's tensors, and none of an accelerator.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = dict(model.named_modules())
        self._copies = {
            id(place.tensor): _Copy(
                place,
                local(place.tensor.detach()),
                _on_cpu(local(place.tensor.detach())),
                _hooks_of(place.tensor),
            )
            for place in _places(modules)
        }
        self._hooks = tuple((registry, dict(registry)) for _, registry in _hooks(modules))

    def differing(self, around: Surroundings) -> Iterator[Sighting]:
        """Those of the tensors ``around`` whose values are not as they were."""
        for extent in around.extents():
            if not _equal(local(extent.tensor), self._copies[id(extent.tensor)].values):
                yield Sighting(leak=Leak.IN_PLACE_WRITE, subject=extent.name)

    def restore(self) -> None:
        """Put tensors, values and hooks back; a tensor that did not change is not written to."""
        for place, memory, _, hooks in self._copies.values():
            place.registry[place.key] = place.tensor
            if _moved(local(place.tensor), memory):
                place.tensor.data = memory
            for registry in _hook_registries(place.tensor):
                for added in registry.keys() - set(hooks):
                    del registry[added]
        with torch.no_grad():  # only now: until here some may have shared their memory
            for place, _, values, _ in self._copies.values():
                if not _equal(local(place.tensor), values):
                    local(place.tensor).copy_(values)
        for registry, content in self._hooks:
            if registry.keys() != content.keys():
                registry.clear()
                registry.update(content)


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_meta else tensor.to("cpu", copy=True)


@contextmanager
def gradients_aside(model: nn.Module) -> Iterator[None]:
    """Take all gradients away meanwhile, so that nobody can write to them."""
    kept = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in kept:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient


def _places(modules: Mapping[str, nn.Module], seed: nn.Module | None = None) -> tuple[_Place, ...]:
    """Every tensor that is registered in ``modules``, once."""
    found: dict[int, _Place] = {}
    for path, module in modules.items():
        for registry in (module._parameters, module._buffers):  # noqa: SLF001
            for key, tensor in registry.items():
                if tensor is not None and id(tensor) not in found:
                    name = f"{path}.{key}" if path else key
                    found[id(tensor)] = _Place(name, registry, key, tensor, seed)
    return tuple(found.values())


def _hooks(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, _Registry]]:
    """The owner's title and the registry of all hooks of forwards and backwards."""
    for kind in _HOOKS if "" in modules else ():
        yield "all modules", vars(torch_module)[f"_global_{kind}"]
    for path, module in modules.items():
        attributes = vars(module)
        for kind in _HOOKS:
            yield _title(path), attributes[f"_{kind}"]


def _title(path: str) -> str:
    return path or "the model"


def _hear(called: list[Sighting], sighting: Sighting, *_call: object) -> None:
    called.append(sighting)


def _in_a_bucket(parameter: Tensor) -> bool:
    # The gradients that DDP keeps in one bucket are views of it, and have its one version.
    return parameter.grad is not None and parameter.grad._is_view()  # noqa: SLF001


def _hook_registries(tensor: Tensor) -> tuple[_Registry, ...]:
    found = (tensor._backward_hooks, tensor._post_accumulate_grad_hooks)  # noqa: SLF001
    return tuple(registry for registry in found if registry)


def _hooks_of(tensor: Tensor) -> tuple[int, ...]:
    return tuple(key for registry in _hook_registries(tensor) for key in registry)


def _differing(items: Sequence[T], before: Sequence[object], now: Sequence[object]) -> Iterator[T]:
    if before != now:
        for item, one, other in zip(items, before, now, strict=True):
            if one != other:
                yield item


def _moved(tensor: Tensor, memory: Tensor) -> bool:
    """Whether ``tensor`` does not lie any more where ``memory`` does."""
    return tensor.data_ptr() != memory.data_ptr() or tensor.stride() != memory.stride()


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether shape and values are equal, NaN to NaN; ``other`` may be on another device."""
    if one.shape != other.shape:
        return False
    other = other.to(one.device)
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())
