"""Seeds copied from a kept prototype, with the bits that building them anew would give."""

from collections.abc import Callable, Hashable
from copy import deepcopy
from itertools import chain
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

LARGEST_KEPT = 2**20
"""Parameters of the largest prototype that is kept: 4 MiB of float32."""


@runtime_checkable
class Redrawable(Protocol):
    """A module that knows its own birth, as torch's layers do (FSDP asks for the same)."""

    def reset_parameters(self) -> None:
        """Set the module's own parameters and buffers, not its children's."""


def redraw(module: nn.Module) -> None:
    """Give every part its birth again, in the order of ``modules()``, from torch's generator."""
    with torch.device("cpu"):
        for part in module.modules():
            if isinstance(part, Redrawable):
                part.reset_parameters()


class Prototypes:
    """Prototypes by key, each kept only if a redrawn copy of it has proved to equal a new build.

    So what ``draw`` returns, and how far it moves torch's CPU generator, never depends on what
    was drawn before; a builder whose parts cannot be redrawn (a bare parameter, zeros set from
    outside, loaded weights) is simply called each time.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, nn.Module | None] = {}

    def draw(self, key: Hashable, build: Callable[[], nn.Module]) -> nn.Module:
        """A new module, drawn on the CPU in the default dtype from torch's CPU generator."""
        if key not in self._kept:
            seed, self._kept[key] = _prove(build)
            return seed
        prototype = self._kept[key]
        if prototype is None:
            return _built(build)
        seed = deepcopy(prototype)
        redraw(seed)
        return seed


def _built(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("cpu"):
        return build()


def _prove(build: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module | None]:
    """A new seed; and a prototype that was drawn differently, but redraws to the same bits."""
    start = torch.get_rng_state()
    seed = _built(build)
    if sum(parameter.numel() for parameter in seed.parameters()) > LARGEST_KEPT:
        return seed, None
    end = torch.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        prototype = _built(build)
        torch.set_rng_state(start)
        copy = deepcopy(prototype)
        redraw(copy)
        proved = torch.equal(torch.get_rng_state(), end) and _equal(_tensors(copy), _tensors(seed))
    return seed, prototype if proved else None


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    parameters = module.named_parameters(remove_duplicate=False)
    buffers = module.named_buffers(remove_duplicate=False)
    return dict(chain(parameters, buffers))


def _equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )
