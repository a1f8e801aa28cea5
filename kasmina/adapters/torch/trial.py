"""Trying an optimizer with a seed's parameters before its host depends on it.

A throw-away optimizer of the same class and options takes a few steps on a stand-in for the host,
alone and again beside copies of the seed's parameters. So an optimizer that mixes its groups (one
norm over all gradients, one estimate for all), that cannot step such parameters, or that never
steps a group that came later, shows itself at germination and not in mid-training.
"""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.optim import Adagrad, Optimizer

from kasmina.adapters.torch.randomness import undisturbed
from kasmina.adapters.torch.streams import Stream, aside

_STEPS = 3
_RATE = 1e-3
_BORN = 2.0**-8  # so small that a small step shows, and not the zero at which norms are divided by
_LOUD = 1e3  # a seed's gradient beside the stand-in's, which is of about 1


@frozen(kw_only=True, eq=False)
class Flaw:
    """Why an optimizer cannot serve a seed, and what to do about it."""

    problem: str
    mend: str
    error: Exception | None = None


def join(optimizer: Optimizer, group: Mapping[str, Any]) -> None:
    """Add ``group``, with whatever state its parameters must have from the start."""
    optimizer.add_param_group(dict(group))
    if isinstance(optimizer, Adagrad):
        # Up to some torch after 2.6 its state is made with it, and for no later group.
        parameters = optimizer.param_groups[-1]["params"]
        begun = group["initial_accumulator_value"]
        made = Adagrad(parameters, initial_accumulator_value=begun, fused=group["fused"])
        optimizer.state.update(made.state)


def flaw(
    optimizer: Optimizer, options: Mapping[str, Any], parameters: Sequence[Tensor]
) -> Flaw | None:
    """What is wrong with a group of ``options`` and such parameters, if that can be tried.

    It cannot where the class wants more than its groups' options, or steps with a closure, or on
    the meta device.
    ``optimizer`` and its tensors are not touched, nor are random streams.
    """
    device = next(iter(parameters), torch.empty(0, device="meta")).device
    if device.type == "meta":
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the real optimizer are the user's to see
        try:
            alone = _tried(optimizer, options, (), device)
        except Exception:  # noqa: BLE001  # a stranger's class: it cannot be tried like this
            return None
        try:
            beside = _tried(optimizer, options, parameters, device)
        except Exception as error:  # noqa: BLE001
            return _fails(error)
    if not bool(alone.host.isfinite().all()):
        return None
    if not torch.equal(alone.host, beside.host):
        return _MIXES
    return None if beside.moved else _IDLE


@frozen(kw_only=True, eq=False)
class _Tried:
    host: Tensor
    moved: bool


def _tried(
    optimizer: Optimizer,
    options: Mapping[str, Any],
    parameters: Sequence[Tensor],
    device: torch.device,
) -> _Tried:
    host = _stand_in((2, 2), device)
    seed = [_stand_in(tuple(each.shape), device) for each in parameters]
    with undisturbed(), aside(Stream(0), device):
        trial = _built(type(optimizer), {**_fresh(options), "params": [host]})
        if seed:
            join(trial, {**_fresh(options), "params": seed})
        for _ in range(_STEPS):
            host.grad = torch.tensor([[1.0, -0.5], [0.25, 2.0]], device=device)
            for each in seed:
                each.grad = torch.full_like(each, _LOUD)
            trial.step()
    return _Tried(host=host.detach(), moved=any(bool((each != _BORN).any()) for each in seed))


def _stand_in(shape: tuple[int, ...], device: torch.device) -> nn.Parameter:
    # In float32, where every step shows; and seeds are of the host's dtype.
    return nn.Parameter(torch.full(shape, _BORN, device=device, dtype=torch.float32))


def _built(kind: type[Optimizer], group: Mapping[str, Any]) -> Optimizer:
    _, *others = inspect.signature(kind).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    needed = [each.name for each in others if each.kind in named and each.default is each.empty]
    return kind([dict(group)], **{name: group[name] for name in needed})


def _fresh(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with a learning rate that moves, of the same kind; a schedule's may be 0."""
    rate = options["lr"]
    if isinstance(rate, Tensor):
        return {**options, "lr": torch.full_like(rate, _RATE)}
    return {**options, "lr": rate if rate is None else _RATE}


def _fails(error: Exception) -> Flaw:
    return Flaw(
        problem=f"cannot step the parameters of such a seed ({type(error).__name__}: {error})",
        mend="give kasmina an optimizer for parameters of any shape, such as AdamW",
        error=error,
    )


_MIXES = Flaw(
    problem="lets parameter groups act on each other, so a seed would change its host's steps",
    mend="turn off what it does over all gradients at once (its own clipping, one estimate for "
    "all groups), or use another optimizer",
)
_IDLE = Flaw(
    problem="does not step a parameter group that was added later, so the seed would never learn",
    mend="use an optimizer that does, such as AdamW or SGD",
)
