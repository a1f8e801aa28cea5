"""Clipping a whole model's gradient as if the seeds in incubation were not in it.

A loop, and every trainer, clips ``model.parameters()`` by one norm. With a seed's gradient in that
norm, the seed would shrink its host's steps. It cannot be seen afterwards that this has happened,
so it is kept from happening, in the two functions through which torch clips: a seed in TRAINING
counts neither in the norm nor in what is scaled by it, and is clipped by its own norm to the same
bound. From BLENDING on a seed is part of the model, and clipped with it. Without a seed in
TRAINING torch's own functions get what they were given.
"""

from collections.abc import Callable, Iterable, MutableMapping, Sequence
from functools import wraps
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn
from torch.nn.utils import clip_grad
from torch.utils.weak import WeakTensorKeyDictionary

from kasmina.adapters.torch.slot import SeedSlot
from kasmina.domain.stages import Stage

Norm = Callable[..., Tensor]
Scale = Callable[..., None]

_INCUBATING: "WeakSet[SeedSlot]" = WeakSet()
_EUCLIDEAN = 2.0

# The kind of each norm that was taken: what scales by one is not told.
_KINDS: MutableMapping[Tensor, float] = WeakTensorKeyDictionary()


def follow(slot: SeedSlot) -> None:
    """Clip the slot's seed apart if its present view is of TRAINING, else with its host."""
    if slot.learning and slot.view.stage is Stage.TRAINING:
        _INCUBATING.add(slot)
    else:
        _INCUBATING.discard(slot)


def attend() -> None:
    """Take part in torch's clipping from now on; done once, for as long as Python runs.

    ``clip_grad_norm_`` is reached however it was imported, and so is what calls it. A name for
    ``get_total_norm`` or ``clip_grads_with_norm_`` that was bound before still means torch's.
    """
    if clip_grad._get_total_norm in _OURS:  # noqa: SLF001  # where clip_grad_norm_ looks it up
        return
    norm = _apart_norm(clip_grad._get_total_norm)  # noqa: SLF001
    scale = _apart_scale(clip_grad._clip_grads_with_norm_, norm)
    _OURS.update((norm, scale))
    clip_grad._get_total_norm = norm  # noqa: SLF001
    clip_grad._clip_grads_with_norm_ = scale
    nn.utils.get_total_norm = norm
    nn.utils.clip_grads_with_norm_ = scale


_OURS: set[Callable[..., Any]] = set()


def _apart_norm(original: Norm) -> Norm:
    @wraps(original)
    def get_total_norm(
        tensors: Tensor | Iterable[Tensor],
        norm_type: float = _EUCLIDEAN,
        *args: Any,  # noqa: ANN401  # torch's own, also those to come
        **kwargs: Any,  # noqa: ANN401
    ) -> Tensor:
        if not _INCUBATING:
            return original(tensors, norm_type, *args, **kwargs)
        given = _listed(tensors)
        seeds = {id(p.grad) for slot in _INCUBATING for p in slot.seed_parameters()}
        host = [each for each in given if id(each) not in seeds]
        norm = original(host or given, norm_type, *args, **kwargs)
        _KINDS[norm] = norm_type
        return norm

    return get_total_norm


def _apart_scale(original: Scale, norm: Norm) -> Scale:
    @wraps(original)
    def clip_grads_with_norm_(
        parameters: Tensor | Iterable[Tensor],
        max_norm: float,
        total_norm: Tensor,
        foreach: bool | None = None,  # noqa: FBT001  # torch's own
    ) -> None:
        given = _listed(parameters)
        host, seeds = _told_apart(given)
        if not host or not seeds:
            original(given, max_norm, total_norm, foreach)
            return
        kind = _KINDS.get(total_norm, _EUCLIDEAN)
        original(host, max_norm, total_norm, foreach)
        for seed in seeds:
            gradients = [p.grad for p in seed if p.grad is not None]
            original(seed, max_norm, norm(gradients, kind, foreach=foreach), foreach)

    return clip_grads_with_norm_


def _listed(tensors: Tensor | Iterable[Tensor]) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def _told_apart(given: Sequence[Tensor]) -> tuple[list[Tensor], list[list[nn.Parameter]]]:
    """Those that are no incubating seed's, and the others by seed."""
    there = {id(each) for each in given}
    seeds = [[p for p in slot.seed_parameters() if id(p) in there] for slot in _INCUBATING]
    apart = {id(each) for seed in seeds for each in seed}
    return [each for each in given if id(each) not in apart], [seed for seed in seeds if seed]
