"""The class swap: a target keeps its name, its attributes and its place, and gains a slot."""

import types
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, Protocol, SupportsIndex, cast
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn
from typing_extensions import override

from kasmina.adapters.torch.slot import SeedSlot

BANK = "kasmina"
_SLOT = "_kasmina_slot"


class Passage(Protocol):
    """What a grafted module's output goes through."""

    def forward(self, output: object, /) -> object:
        """What comes out in its place."""


class Series:
    """Several passages at one place, one after the other."""

    def __init__(self, passages: Iterable[Passage]) -> None:
        self.passages = tuple(passages)

    def forward(self, output: object, /) -> object:
        """What comes out of the last."""
        for passage in self.passages:
            output = passage.forward(output)
        return output


class _Nowhere:
    """The passage of a grafted class's other instances, such as a slice of an ``nn.Sequential``."""

    def forward(self, output: object, /) -> object:
        return output


_NOWHERE = _Nowhere()

# One class for each base: compiled code guards on it, and layers of one class share one graph.
_made: "WeakKeyDictionary[type[nn.Module], ref[type[nn.Module]]]" = WeakKeyDictionary()
_bases: "WeakKeyDictionary[type[nn.Module], type[nn.Module]]" = WeakKeyDictionary()


def _grafted_class(base: type[nn.Module]) -> type[nn.Module]:
    made = _made[base]() if base in _made else None
    if made is None:
        made = _make(base)
        _made[base] = ref(made)
        _bases[made] = base
    return made


def _make(base: type[nn.Module]) -> type[nn.Module]:
    def forward(self: Any, *args: object, **kwargs: object) -> object:  # noqa: ANN401
        return self._kasmina_slot.forward(base.forward(self, *args, **kwargs))

    # Code of its own for each class: compiled graphs are kept with the code, and up to a limit.
    forward.__code__ = forward.__code__.replace()

    def reduce(self: nn.Module, protocol: SupportsIndex) -> tuple[object, ...]:
        # The class was made at run time: copies and pickles name the original and graft it again.
        make, arguments, *rest = cast("tuple[Any, ...]", base.__reduce_ex__(self, protocol))
        plain = tuple(base if each is type(self) else each for each in arguments)
        return (_revive, (base, make, plain), *rest)

    def fill(namespace: dict[str, object]) -> None:
        namespace.update(
            __module__=base.__module__,
            __qualname__=base.__qualname__,
            __doc__=base.__doc__,
            __reduce_ex__=reduce,
            forward=wraps(base.forward)(forward),
            _kasmina_slot=_NOWHERE,
        )

    made: type[nn.Module] = types.new_class(base.__name__, (base,), {}, fill)
    return made


def _revive(
    base: type[nn.Module], make: Callable[..., nn.Module], arguments: tuple[object, ...]
) -> nn.Module:
    module = make(*arguments)
    module.__class__ = _grafted_class(base)
    return module


def swap_in(module: nn.Module, passage: Passage) -> None:
    """Let the output of ``module`` go through ``passage``."""
    module.__class__ = _grafted_class(type(module))
    vars(module)[_SLOT] = passage  # not setattr: the bank owns the slot, this is a reference


def is_grafted(module: nn.Module) -> bool:
    """Whether the output of ``module`` goes through a passage."""
    return any(kind in _bases for kind in type(module).__mro__)


def is_untouched(module: nn.Module) -> bool:
    """Whether the class of ``module`` is the one ``swap_in`` gave it, and not one on top of it."""
    return type(module) in _bases


def swap_out(module: nn.Module) -> None:
    """Give ``module`` its own class back. Raises ``KeyError`` for one that is not untouched."""
    module.__class__ = _bases[type(module)]
    del vars(module)[_SLOT]


class SlotBank(nn.Module):
    """Holds the slots of a model, as its child ``kasmina``; ``paths`` says where each one acts.

    Its forward is the identity, so that a root ``nn.Sequential`` computes what it did.
    """

    def __init__(self, slots: Mapping[str, SeedSlot], paths: Mapping[str, str]) -> None:
        super().__init__()
        self.paths = dict(paths)
        for slot_id, slot in slots.items():
            self.add_module(child_name(slot_id), slot)

    @override
    def forward(self, features: Tensor) -> Tensor:
        return features

    def slot(self, slot_id: str) -> SeedSlot:
        """The slot of that name, which must be among ``paths``."""
        return cast("SeedSlot", self.get_submodule(child_name(slot_id)))


def child_name(slot_id: str) -> str:
    """The slot's name as a child module: a module's own name may not contain dots."""
    return slot_id.replace(".", "/")
