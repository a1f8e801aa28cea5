"""The names of parameters, which a checkpoint knows them by, and where each belongs."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from kasmina.adapters.torch.checkpoints.contents import Occupant, Stateful
from kasmina.adapters.torch.graft import Slots
from kasmina.adapters.torch.grafted import BANK, child_name
from kasmina.adapters.torch.optimizer import Group

_NAMED = 3  # how many names of a long list an error tells
_SEED = "seed."


class Unnamed(Exception):
    """Parameters of an optimizer that are in nothing that a checkpoint holds."""

    def __init__(self, shapes: Iterable[tuple[int, ...]]) -> None:
        self.shapes = tuple(shapes)
        super().__init__(
            f"{len(self.shapes)} parameters of the optimizer, of shapes "
            f"{some(str(shape) for shape in self.shapes)}, are neither the model's nor in extra"
        )


def parameter_names(
    groups: Iterable[Group], slots: Slots, extra: Mapping[str, Stateful]
) -> dict[Tensor, str]:
    """The name of each parameter in ``groups``: the model's, or what ``extra`` calls it.

    Tied parameters are one, under the first of its names. Raises ``Unnamed``.
    """
    names: dict[Tensor, str] = {tensor: name for name, tensor in slots.model.named_parameters()}
    every = [parameter for group in groups for parameter in group["params"]]
    others = [parameter for parameter in every if parameter not in names]
    if others:
        states = {f"extra[{name!r}]": each.state_dict() for name, each in extra.items()}
        held = {_memory(tensor): name for name, tensor in _tensors("", states)}
        strangers = [tuple(other.shape) for other in others if _memory(other) not in held]
        if strangers:
            raise Unnamed(strangers)
        names |= {other: held[_memory(other)] for other in others}
    return {parameter: names[parameter] for parameter in every}


def names_or_numbers(groups: Iterable[Group], slots: Slots) -> dict[Tensor, str]:
    """As ``parameter_names``, for a state that knows positions; strangers have theirs."""
    names: dict[Tensor, str] = {tensor: name for name, tensor in slots.model.named_parameters()}
    every = [parameter for group in groups for parameter in group["params"]]
    called = {parameter: f"parameter {n}" for n, parameter in enumerate(every)} | names
    return {parameter: called[parameter] for parameter in every}


def occupants(slots: Slots) -> dict[str, Occupant]:
    """What each slot holds now."""
    return {
        slot_id: Occupant(seed_id=slot.view.seed_id, stage=slot.view.stage)
        for slot_id, slot in slots.items()
    }


def described(name: str, slots: Mapping[str, Occupant]) -> str:
    """``name`` of a tensor or parameter; a seed's with the seed, its slot and the slot's stage."""
    for slot_id, held in slots.items():
        prefix = f"{BANK}.{child_name(slot_id)}."
        if name.startswith(prefix):
            seed = "" if held.seed_id is None else f"seed {held.seed_id} of "
            rest = name.removeprefix(prefix).removeprefix(_SEED)
            return f"{seed}slot {slot_id}, {held.stage.value}: {rest}"
    return name


def some(texts: Iterable[str]) -> str:
    """``texts``, of which a long list is cut."""
    every = sorted(texts)
    rest = len(every) - _NAMED
    return "; ".join(every[:_NAMED]) + (f"; and {rest} more" if rest > 0 else "")


def _tensors(where: str, value: Any) -> Iterator[tuple[str, Tensor]]:  # noqa: ANN401
    """The tensors in the containers of a ``state_dict``, by the way that leads to each."""
    if isinstance(value, Tensor):
        yield where, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _tensors(f"{where}.{key}" if where else str(key), each)
    elif isinstance(value, list | tuple):
        for position, each in enumerate(value):
            yield from _tensors(f"{where}[{position}]", each)


def _memory(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    """Equal for a parameter and its entry in a ``state_dict``, which share their memory."""
    return tensor.data_ptr(), tuple(tensor.shape)
