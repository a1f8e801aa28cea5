"""An optimizer's state by the names of its parameters, and back."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, count
from typing import Any

from attrs import evolve as changed
from torch import Tensor
from torch.optim import Optimizer

from kasmina.adapters.torch.checkpoints.contents import Occupant, OptimizerState
from kasmina.adapters.torch.checkpoints.naming import described, some
from kasmina.adapters.torch.optimizer import SEED_KEY, Group, seed_order

Names = Mapping[Tensor, str]
Places = Mapping[str, Occupant]

_BY_PARAMETER = {"params", "param_names"}
_KNOWN = {"param_groups", "state"}
# What torch's optimizers keep in the parameter's shape; other entries have shapes of their own.
_SHAPED_AS_PARAMETER = frozenset(
    {"exp_avg", "exp_avg_sq", "exp_inf", "max_exp_avg_sq", "momentum_buffer", "square_avg", "sum"}
)


def named_state(optimizer: Optimizer, names: Names) -> OptimizerState:
    """The optimizer's state, in which ``names`` stand for the parameters."""
    state = optimizer.state_dict()
    numbers = chain.from_iterable(group["params"] for group in state["param_groups"])
    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    called = {
        number: names[parameter] for number, parameter in zip(numbers, parameters, strict=True)
    }
    return OptimizerState(
        kind=type(optimizer).__qualname__,
        groups=[
            _options(group) | {"params": [called[number] for number in group["params"]]}
            for group in state["param_groups"]
        ],
        state={called[key]: kept for key, kept in state["state"].items() if key in called},
        shared={key: kept for key, kept in state["state"].items() if key not in called},
        other={key: kept for key, kept in state.items() if key not in _KNOWN},
    )


def numbered_state(saved: OptimizerState, groups: Sequence[Group], names: Names) -> dict[str, Any]:
    """``saved`` as a ``state_dict`` for the parameters of ``groups``, which are in its order."""
    number = count()
    numbers = [[next(number) for _ in group["params"]] for group in groups]
    called = chain.from_iterable(_called(group, names) for group in groups)
    return {
        **saved.other,
        "state": {
            **saved.shared,
            **{n: saved.state[name] for n, name in enumerate(called) if name in saved.state},
        },
        "param_groups": [
            _options(group) | {"params": mine}
            for group, mine in zip(saved.groups, numbers, strict=True)
        ],
    }


def by_position(saved: OptimizerState, groups: Sequence[Group], names: Names) -> OptimizerState:
    """A state of version 1, that named parameters by position, with the names they have now.

    Host groups are taken to be in the order that was saved, which nothing in it can show. Raises
    ``ValueError`` for one of another structure.
    """
    ordered = _seeds_in_order(groups, seed_order(saved.groups))
    then, now = ([len(group["params"]) for group in each] for each in (saved.groups, ordered))
    if then != now:
        raise ValueError(f"its groups had {then} parameters, have {now}")
    positions = chain.from_iterable(group["params"] for group in saved.groups)
    every = chain.from_iterable(_called(group, names) for group in ordered)
    called = dict(zip(positions, every, strict=True))
    return changed(
        saved,
        groups=[
            _options(group) | {"params": [called[position] for position in group["params"]]}
            for group in saved.groups
        ],
        state={called[position]: kept for position, kept in saved.state.items()},
    )


def arrangement(saved: OptimizerState, groups: Sequence[Group], names: Names) -> list[int]:
    """For each group that was saved, the position of its like in ``groups``.

    Raises ``ValueError`` where they are not alike.
    """
    then = [_likeness(group, group["params"]) for group in saved.groups]
    now = [_likeness(group, _called(group, names)) for group in groups]
    lost = Counter(then) - Counter(now) or Counter(now) - Counter(then)
    if lost:
        seeds, *called = next(iter(lost))
        raise ValueError(
            f"its groups were others: one of {seeds or 'the host'} with {some(called)}"
        )
    waiting = {each: [n for n, other in enumerate(now) if other == each] for each in now}
    return [waiting[each].pop(0) for each in then]


def differences(
    saved: OptimizerState, groups: Sequence[Group], names: Names, before: Places, now: Places
) -> Iterator[str]:
    """Where the parameters that were saved, and the shapes of their state, are not those of now."""
    present = {names[parameter]: parameter for group in groups for parameter in group["params"]}
    known = dict.fromkeys(chain.from_iterable(group["params"] for group in saved.groups))
    for name in present.keys() - known.keys():
        yield f"it has no {described(name, now)}"
    for name in known.keys() - present.keys():
        yield f"its {described(name, before)} has no place"
    for name, moments in saved.state.items():
        if name not in known:
            yield f"its state of {name} is no parameter's"
        for entry in _SHAPED_AS_PARAMETER & moments.keys() if name in present else ():
            then, shape = moments[entry], present[name].shape
            if then is not None and (not isinstance(then, Tensor) or then.shape != shape):
                yield f"{entry} of {described(name, now)} was {kind(then)}, is of {tuple(shape)}"


def kind(value: object) -> str:
    """Dtype and shape of a tensor, the type's name of anything else."""
    if not isinstance(value, Tensor):
        return type(value).__qualname__
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def _called(group: Group, names: Names) -> list[str]:
    return [names[parameter] for parameter in group["params"]]


def _options(group: Group) -> Group:
    return {name: value for name, value in group.items() if name not in _BY_PARAMETER}


def _likeness(group: Group, names: Sequence[str]) -> tuple[str, ...]:
    """Equal for groups of the same seed, or of the host, with the same parameters."""
    return ("".join(seed_order([group])), *sorted(names))


def _seeds_in_order(groups: Sequence[Group], seeds: Sequence[str]) -> list[Group]:
    """The groups with the seeds' in the order of ``seeds``, the host's as they are."""
    by_seed = {group[SEED_KEY]: group for group in groups if SEED_KEY in group}
    if sorted(by_seed) != sorted(seeds):
        raise ValueError(f"it knew the seeds {sorted(seeds)}, there are {sorted(by_seed)}")
    waiting = iter(seeds)
    return [by_seed[next(waiting)] if SEED_KEY in group else group for group in groups]
