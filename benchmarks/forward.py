"""What a slot costs in the forward, against the least code that does the same by hand, in one run.

    python benchmarks/forward.py            # prints the tables, in less than two minutes
    python benchmarks/forward.py --write    # and keeps them in benchmarks/results/forward.md
    python benchmarks/forward.py --quick    # fewer rounds, nothing timed under torch.compile

One thread, CPU time. Each round takes every line once, and within a line by hand, kasmina and
textbook in turns, so that a busy moment of the machine hits all of them. A time is the median over
the rounds, a ratio the median of the rounds' own ratios, with their quartiles. The first line
compares the same code with itself: what it is off 1 is what this run cannot tell apart.

By hand and in kasmina the very same seed runs, and before anything is timed their outputs and
gradients are compared. The host is ``nn.Identity``, so no work of its own hides what a slot costs.
"""
# ruff: noqa: INP001, S101, T201 - a script: it asserts what it measures, its output is the terminal

import argparse
import copy
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.autograd import Function
from torch.nn import functional as F

from kasmina import GatePolicy, Objective, Topology, graft, open_run
from kasmina.adapters.torch import ops
from kasmina.adapters.torch.blueprints import blueprints
from kasmina.adapters.torch.graft import Slots, graft_host
from kasmina.adapters.torch.hosts import ConvHost
from kasmina.adapters.torch.slot import SeedSlot
from kasmina.domain.projections import Behaviour, SlotView
from kasmina.domain.schedules import held
from kasmina.domain.stages import SeedInput
from kasmina.run import RELATIVE_RATE

SAMPLE = 0.006
"""Seconds of CPU time that a sample lasts, in as many calls as it takes."""

EPOCH = 20
RATE = 1e-3
ALPHA = 0.5
RESULTS = Path(__file__).parent / "results" / "forward.md"

CNN, TRANSFORMER = (32, 64, 8, 8), (8, 128, 256)
SEEDS = (
    ("depthwise", Topology.CNN, CNN),
    ("conv_light", Topology.CNN, CNN),
    ("mlp", Topology.TRANSFORMER, TRANSFORMER),
)

Work = Callable[[], object]

# Why a wanted figure is missed, by kind of line; printed only where one is.
WHY = {
    "incubate": "Incubation counts, in every forward, whether the seed's output is finite (the "
    "parts below say what that costs alone), looks at its shape and dtype, and goes through two "
    "more Python calls. By hand nothing of this is done. Counting on sampled steps alone would "
    "close it, and would see a seed that is not finite later.",
    "blend": "A blend guards: it counts non-finite outputs; it picks the host at weight 0 with "
    "`torch.where` and a 0-dim condition, which has no fast path on a CPU; and it cleans the "
    "gradient that comes back from the seed with `nan_to_num`. By hand a NaN in the seed reaches "
    "host and loss. A kernel that chooses once per tensor, not per entry, would close most of it.",
    "blend at 1": "At alpha 1 the stage is still a blend, with all its guards, because a seed "
    "that stops being finite must give way to the host before it is fossilized; and its backward "
    "writes the host's gradient, which is zero, and the seed's. The seed alone has none of that.",
    "fossilized": "Nothing of the blend is left. What remains is the way from the host's module "
    "through the slot to the seed: three Python calls.",
    "empty": "An empty slot is two Python calls more for each call of its host module.",
    "compiled": "The graph is that of the host alone; what differs is the guards that are checked "
    "before it runs.",
    "step": "Each step sets the seeds' learning rates and asks the monitor; the first step of an "
    "epoch is watched; each forward has the cost of incubation above; and `end_epoch` folds, "
    "decides, encodes and writes. All this is the same for every host, so it shows the more the "
    "smaller the host is.",
}


class Line(NamedTuple):
    """One comparison. ``wanted`` bounds the ratio, ``within`` the microseconds on top."""

    name: str
    kind: str
    limit: Work
    ours: Work
    textbook: Work | None = None
    wanted: float | None = None
    within: float | None = None
    units: int = 1
    """How many forwards or steps one call does."""


class Row(NamedTuple):
    """What a line came to: seconds a unit, and ratios with their quartiles."""

    line: Line
    limit: float
    ours: float
    ratios: tuple[float, float, float]
    textbook: float | None

    @property
    def missed(self) -> bool:
        """Whether the wanted figure, to the digits that are printed, was not reached."""
        if self.line.within is not None:
            return round((self.ours - self.limit) * 1e6, 1) > self.line.within
        return self.line.wanted is not None and round(self.ratios[1], 2) > self.line.wanted

    @property
    def wanted(self) -> str:
        """The wanted figure as text."""
        if self.line.within is not None:
            return f"+{self.line.within:.0f} µs"
        return "–" if self.line.wanted is None else f"{self.line.wanted:.2f}"


# --- by hand ---


class StraightThrough(Function):
    """The cheapest that is exact: no look at the seed, no arithmetic, no copy."""

    @staticmethod
    def forward(_context: object, host: Tensor, _seed: Tensor) -> Tensor:
        """The host."""
        return host.detach()

    @staticmethod
    def backward(_context: object, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient, to both."""
        return gradients[0], gradients[0]


def straight_through(host: nn.Module, seed: nn.Module, x: Tensor) -> Tensor:
    """By hand."""
    features = host(x)
    return StraightThrough.apply(features, seed(features.detach()))


def straight_through_textbook(host: nn.Module, seed: nn.Module, x: Tensor) -> Tensor:
    """As it is written everywhere."""
    features = host(x)
    out = seed(features.detach())
    return features + (out - out.detach())


def lerp(host: nn.Module, seed: nn.Module, x: Tensor) -> Tensor:
    """By hand."""
    features = host(x)
    return torch.lerp(features, seed(features), ALPHA)


def lerp_textbook(host: nn.Module, seed: nn.Module, x: Tensor) -> Tensor:
    """As it is written everywhere."""
    features = host(x)
    return (1 - ALPHA) * features + ALPHA * seed(features)


def seed_alone(host: nn.Module, seed: nn.Module, x: Tensor) -> Tensor:
    """By hand."""
    return seed(host(x))


class GrownByHand(nn.Module):
    """``ConvHost`` with a seed in training after each stage."""

    def __init__(self, host: ConvHost, seeds: Sequence[nn.Module]) -> None:
        super().__init__()
        self.host = host
        self.seeds = nn.ModuleList(seeds)

    def forward(self, features: Tensor) -> Tensor:
        """As ``ConvHost.forward``."""
        for stage, seed in zip(self.host.stages, self.seeds, strict=True):
            features = stage(features)
            features = StraightThrough.apply(features, seed(features.detach()))
        return self.host.head(self.host.dropout(features.mean(dim=(2, 3))))


# --- a slot in each of its stages ---


def follow(slot: SeedSlot, behaviour: Behaviour, alpha: float, given: SeedInput) -> None:
    """Let the slot act as the domain would have it in that stage."""
    incubating = behaviour is Behaviour.INCUBATE
    view = SlotView(
        slot_id=slot.slot_id,
        behaviour=behaviour,
        seed_input=SeedInput.DETACHED if incubating else given,
        learning=behaviour is not Behaviour.IDENTITY,
        schedule=held(alpha),
    )
    slot.follow(view, 0)


def both_ways(forward: Callable[[], Tensor], inputs: Sequence[Tensor], grown: Tensor) -> Work:
    """A forward, and the gradients of ``inputs``."""
    return lambda: torch.autograd.grad(forward(), inputs, grown)


def stages() -> Iterator[Line]:
    """Every stage with a seed, forward and backward, for every seed and its features."""
    torch.manual_seed(0)
    for kind, behaviour, alpha, hand, textbook, against in (
        ("incubate", Behaviour.INCUBATE, 0.0, straight_through, straight_through_textbook, "hand"),
        ("blend", Behaviour.BLEND, ALPHA, lerp, lerp_textbook, "`torch.lerp`"),
        ("blend at 1", Behaviour.BLEND, 1.0, seed_alone, None, "the seed alone"),
        ("fossilized", Behaviour.SEED, 1.0, seed_alone, None, "the seed alone"),
    ):
        for name, topology, shape in SEEDS:
            x = torch.randn(shape, requires_grad=True)
            model, plain = nn.Sequential(nn.Identity()), nn.Identity()
            slot = graft(model, {"0": topology}, example_inputs=(x,))["0"]
            seed = blueprints.build(topology, name, slot.width)
            slot.attach(seed)
            follow(slot, behaviour, alpha, SeedInput.OPEN)
            inputs, grown = (x, *seed.parameters()), torch.randn(shape)
            ways = [partial(model[0], x), partial(hand, plain, seed, x)]
            ways += [] if textbook is None else [partial(textbook, plain, seed, x)]
            for way in ways:
                agree((way(), *both_ways(way, inputs, grown)()), (ways[0](),))
            works = [both_ways(way, inputs, grown) for way in ways]
            expected = works[0]()
            for work in works:
                agree(work(), expected)
            label = f"{kind.upper()}{' 0.5' if kind == 'blend' else ''}, {name}"
            yield Line(
                f"{label} on {'×'.join(map(str, shape))}, against {against}",
                kind,
                limit=works[1],
                ours=works[0],
                textbook=works[2] if textbook is not None else None,
                wanted=1.02,
            )


def agree(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Assert that the first tensors of ``found`` are those expected."""
    for one, other in zip(found, expected, strict=False):
        torch.testing.assert_close(one, other)
