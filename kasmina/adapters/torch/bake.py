"""Leaving: a grown model as plain PyTorch, which needs kasmina neither to load nor to run."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from enum import Enum
from itertools import chain
from typing import Any, TypeVar, cast

import torch
from attrs import define, field, frozen
from torch import Tensor, fx, nn

from kasmina.adapters.torch.features import undisturbed
from kasmina.adapters.torch.graft import Slots
from kasmina.adapters.torch.grafted import BANK, SlotBank, is_grafted, swap_in, swap_out
from kasmina.adapters.torch.outputs import features_in, items_in
from kasmina.adapters.torch.plain import grown
from kasmina.adapters.torch.slot import SeedSlot
from kasmina.adapters.torch.splice import Way, splice, stranger, way_in
from kasmina.domain.errors import KasminaError
from kasmina.domain.stages import Stage

Model = TypeVar("Model", bound=nn.Module)


class Tensors(Enum):
    """Whose memory the parameters and buffers of a baked model are."""

    COPIED = "copied"
    SHARED = "shared"


class Unbakeable(KasminaError):
    """A grafted model, or the target at ``path`` in it, that plain modules cannot stand in for."""

    def __init__(self, path: str, problem: str, mend: str) -> None:
        self.path = path
        self.problem = problem
        self.mend = mend
        subject = f"module {path!r}" if path else "the model"
        super().__init__(f"{subject} cannot be baked: {problem}; {mend}")


class BakeTooEarly(KasminaError):
    """Slots whose seeds their gates have not let in for good; ``stages`` by slot."""

    def __init__(self, stages: Mapping[str, Stage]) -> None:
        self.stages = dict(stages)
        named = ", ".join(f"{slot_id!r} ({stage.value})" for slot_id, stage in stages.items())
        super().__init__(
            f"seeds that are not FOSSILIZED cannot be baked: slots {named}; let their gates "
            f"decide, or cull them, then bake()"
        )


class BakedDiffers(KasminaError):
    """A baked model that computed something else on the example inputs; it is not handed out."""

    def __init__(self, difference: str) -> None:
        self.difference = difference
        super().__init__(
            f"the baked model does not compute on the example inputs what the grafted one does: "
            f"{difference}; a host that calls a target's forward() itself, or runs its children "
            f"one by one, passes by what is baked in: graft another module, or bake() without "
            f"example_inputs to look at it"
        )


def bake(
    model: Model,
    *,
    example_inputs: tuple[Any, ...] | None = None,
    tensors: Tensors = Tensors.COPIED,
) -> Model:
    """A new model of torch's modules and the host's own, with every fossilized seed built in.

    ``model`` is a grafted one, as it was given to ``graft``; it is left untouched. Empty slots
    vanish; a seed becomes the child ``seed`` of its target, and the host's own names stay. The
    result equals ``model`` bit for bit, and trains, copies, pickles, compiles and exports like
    any other. With ``Tensors.SHARED`` its parameters and buffers are those of ``model``: no
    memory is needed, and training one trains the other.

    ``example_inputs``, the positional arguments of one forward, are needed where a target returns
    its features in a container, and show which. They also prove the equality, in eval mode.

    Raises ``BakeTooEarly``, ``Unbakeable`` and ``BakedDiffers``; and ``UngraftableModule`` where
    the class of a target was changed after the graft.
    """
    _require_bakeable(model)
    shared = {id(each): each for each in chain(model.parameters(), model.buffers())}
    baked = deepcopy(model, shared if tensors is Tensors.SHARED else {})
    places = [place for slots in _grafts(baked) for place in _ungrafted(slots)]
    ways = {} if example_inputs is None else _ways(baked, places, example_inputs)
    for place in places:
        splice(place.target, [grown(slot) for slot in place.series], ways.get(place.target, ()))
    if example_inputs is not None:
        _prove(model, baked, example_inputs)
    return baked


@frozen(kw_only=True, eq=False)
class _Place:
    """A target with a class of its own again, and the slots there that hold seeds."""

    path: str
    target: nn.Module
    series: tuple[SeedSlot, ...]


def _grafts(model: nn.Module) -> list[Slots]:
    """The slots of ``model``, and of models in it that were grafted before."""
    parents = [module for module in model.modules() if BANK in dict(module.named_children())]
    return [Slots(parent) for parent in parents]


def _require_bakeable(model: nn.Module) -> None:
    if BANK not in dict(model.named_children()):
        raise Unbakeable(
            "",
            "it has no slots of its own",
            "bake() the model that graft() was given, not one around it or one ungrafted",
        )
    for path, module in model.named_modules():
        if isinstance(module, fx.GraphModule) and any(map(is_grafted, module.modules())):
            raise Unbakeable(
                path,
                "it is an fx.GraphModule, whose copies and pickles keep nothing that is added",
                "graft and bake the model it was traced from",
            )
    seeds = [slot for slots in _grafts(model) for slot in slots.values() if slot.seed is not None]
    early = {each.slot_id: each.view.stage for each in seeds}
    early = {slot_id: stage for slot_id, stage in early.items() if stage is not Stage.FOSSILIZED}
    if early:
        raise BakeTooEarly(early)


def _ungrafted(slots: Slots) -> list[_Place]:
    paths = cast("SlotBank", slots.model.get_submodule(BANK)).paths
    series: dict[str, list[SeedSlot]] = {}
    for slot_id, slot in slots.items():
        if slot.seed is not None:
            series.setdefault(paths[slot_id], []).append(slot)
    slots.ungraft()
    return [
        _Place(path=path, target=slots.model.get_submodule(path), series=tuple(grown_there))
        for path, grown_there in series.items()
    ]


@define
class _Lookout:
    """A passage that notes the ways to the features in what comes through."""

    ways: set[Way] = field(factory=set)

    def forward(self, output: object, /) -> object:
        if features_in(output) is not None:
            self.ways.add(way_in(output))
        return output


def _ways(
    model: nn.Module, places: Sequence[_Place], example_inputs: tuple[Any, ...]
) -> dict[nn.Module, Way]:
    lookouts = {place: _Lookout() for place in places}
    with ExitStack() as swapped:
        for place in places:
            swap_in(place.target, lookouts[place])
            swapped.callback(swap_out, place.target)
        _run(model, example_inputs)
    return {each.target: _only_way(each.path, lookouts[each].ways) for each in places}


def _only_way(path: str, ways: set[Way]) -> Way:
    if len(ways) > 1:
        raise Unbakeable(
            path,
            "it returns its features now in one place, now in another",
            "graft a module that returns a tensor",
        )
    way = next(iter(ways), ())
    container = stranger(way)
    if container is not None:
        raise Unbakeable(
            path,
            f"it returns its features in a {container.__qualname__}, which plain operations "
            f"cannot rebuild",
            "graft a module that returns a tensor, or a tuple, list, dict or dataclass",
        )
    return way


def _run(model: nn.Module, example_inputs: tuple[Any, ...]) -> object:
    """What ``model`` returns in eval mode; it and the inputs stay as they were."""
    inputs = [each.clone() if isinstance(each, Tensor) else each for each in example_inputs]
    with undisturbed(model), torch.no_grad():
        return model.eval()(*inputs)


def _prove(model: nn.Module, baked: nn.Module, example_inputs: tuple[Any, ...]) -> None:
    expected, found = (_tensors(_run(each, example_inputs)) for each in (model, baked))
    try:
        torch.testing.assert_close(list(found), list(expected), rtol=0, atol=0, equal_nan=True)
    except AssertionError as error:
        raise BakedDiffers(" ".join(str(error).split())) from None


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    for _, item in items_in(output):
        yield from _tensors(item)
