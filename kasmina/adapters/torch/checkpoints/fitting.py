"""Whether a checkpoint fits host, optimizer and the rest, and what in it does not."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from attrs import frozen
from torch import Tensor
from torch.optim import Optimizer

from kasmina.adapters.torch.checkpoints.contents import (
    Checkpoint,
    Occupant,
    OptimizerState,
    Stateful,
)
from kasmina.adapters.torch.checkpoints.moments import (
    Names,
    arrangement,
    by_position,
    differences,
    kind,
)
from kasmina.adapters.torch.checkpoints.naming import (
    Unnamed,
    described,
    names_or_numbers,
    occupants,
    parameter_names,
    some,
)
from kasmina.adapters.torch.graft import Slots
from kasmina.domain.errors import CheckpointError

_REGROW = "build the host as it was and resume the run, which grows its seeds again first"


@frozen(kw_only=True, eq=False)
class Fit:
    """How a checkpoint's optimizer state comes to lie on an optimizer.

    ``state`` has the names of the present parameters, ``names``. ``order`` are the positions that
    the groups which it knows have now.
    """

    state: OptimizerState
    names: Names
    order: tuple[int, ...]


def fitted(
    checkpoint: Checkpoint, slots: Slots, optimizer: Optimizer, extra: Mapping[str, Stateful]
) -> Fit:
    """How the checkpoint fits. Raises ``CheckpointError`` unless all has the structure saved."""
    path, now = checkpoint.path, occupants(slots)
    before = checkpoint.slots or now
    if checkpoint.slots:
        _require(path, "the slots", _moved(before, now), _REGROW)
    present = slots.model.state_dict()
    _require(path, "the model", _model_problems(checkpoint.model, present, before, now), _REGROW)
    _require(path, "the random streams", _homeless(checkpoint.seed_streams, slots), _REGROW)
    unlike = _unlike(checkpoint.extra, extra)
    _require(path, "extra", unlike, "give the same names as extra={...}")
    return _optimizer_fit(checkpoint, slots, optimizer, extra)


def _optimizer_fit(
    checkpoint: Checkpoint, slots: Slots, optimizer: Optimizer, extra: Mapping[str, Stateful]
) -> Fit:
    saved, groups, now = checkpoint.optimizer, optimizer.param_groups, occupants(slots)
    what, mend = "the optimizer", f"build it as it was, for the same parameters; {_REGROW}"
    kind_now = type(optimizer).__qualname__
    if saved.kind != kind_now:
        raise _misfit(checkpoint.path, what, f"it was {saved.kind}, is {kind_now}", mend)
    try:
        if checkpoint.version == 1:
            names = names_or_numbers(groups, slots)
            state = by_position(saved, groups, names)
        else:
            names, state = parameter_names(groups, slots, extra), saved
        problems = differences(state, groups, names, checkpoint.slots or now, now)
        _require(checkpoint.path, what, problems, mend)
        order = arrangement(state, groups, names)
    except (ValueError, Unnamed) as error:
        raise _misfit(checkpoint.path, what, str(error), mend) from error
    return Fit(state=state, names=names, order=tuple(order))


def _moved(before: Mapping[str, Occupant], now: Mapping[str, Occupant]) -> Iterator[str]:
    yield from _unlike(before, now, what="slot ")
    for slot_id in before.keys() & now.keys():
        then, present = before[slot_id], now[slot_id]
        if then.seed_id != present.seed_id:
            yield f"slot {slot_id} held {_occupant(then)}, holds {_occupant(present)}"


def _occupant(occupant: Occupant) -> str:
    seed = "no seed" if occupant.seed_id is None else f"seed {occupant.seed_id}"
    return f"{seed} ({occupant.stage.value})"


def _model_problems(
    saved: Mapping[str, Any],
    present: Mapping[str, Any],
    before: Mapping[str, Occupant],
    now: Mapping[str, Occupant],
) -> Iterator[str]:
    for name in present.keys() - saved.keys():
        yield f"it has no {described(name, now)}"
    for name in saved.keys() - present.keys():
        yield f"its {described(name, before)} has no place"
    for name in saved.keys() & present.keys():
        if kind(saved[name]) != kind(present[name]):
            yield f"{described(name, now)} was {kind(saved[name])}, is {kind(present[name])}"
        elif isinstance(present[name], Tensor) and present[name].is_meta:
            yield f"{described(name, now)} is on the meta device, and would stay without values"


def _homeless(streams: Iterable[str], slots: Slots) -> list[str]:
    seeded = {slot_id for slot_id, slot in slots.items() if slot.seed is not None}
    return [f"its slot {slot_id} holds no seed" for slot_id in streams if slot_id not in seeded]


def _unlike(before: Iterable[str], now: Iterable[str], *, what: str = "") -> list[str]:
    then, present = dict.fromkeys(before), dict.fromkeys(now)
    return [f"it has no {what}{name}" for name in present if name not in then] + [
        f"its {what}{name} has no place" for name in then if name not in present
    ]


def _require(path: str, what: str, problems: Iterable[str], mend: str) -> None:
    found = tuple(problems)
    if found:
        raise _misfit(path, what, some(found), mend)


def _misfit(path: str, what: str, problem: str, mend: str) -> CheckpointError:
    return CheckpointError(path, f"does not fit {what}: {problem}", mend)
