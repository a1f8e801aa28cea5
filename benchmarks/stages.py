"""A slot in each stage against the least code that does the same by hand, eager and compiled."""
# ruff: noqa: INP001 - beside a script, which imports it

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from timing import Line, Work
from torch import Tensor, nn
from torch.autograd import Function

from kasmina import IncubationPlan, Incubator, Topology, graft
from kasmina.adapters.torch.bake import bake
from kasmina.adapters.torch.blueprints import blueprints
from kasmina.adapters.torch.slot import SeedSlot
from kasmina.domain.projections import Behaviour, SlotView
from kasmina.domain.schedules import held
from kasmina.domain.stages import SeedInput, Stage

ALPHA = 0.5
SMALL, LARGE, SEQUENCE = (32, 64, 8, 8), (32, 64, 32, 32), (8, 128, 256)

Seed = tuple[str, Topology, tuple[int, ...]]

SEEDS: Sequence[Seed] = (
    ("norm", Topology.CNN, SMALL),
    ("depthwise", Topology.CNN, SMALL),
    ("conv_light", Topology.CNN, SMALL),
    ("conv_light", Topology.CNN, LARGE),
    ("lora", Topology.TRANSFORMER, SEQUENCE),
    ("mlp", Topology.TRANSFORMER, SEQUENCE),
)
COMPILED: Sequence[Seed] = (
    ("conv_light", Topology.CNN, SMALL),
    ("lora", Topology.TRANSFORMER, SEQUENCE),
    ("mlp", Topology.TRANSFORMER, SEQUENCE),
)


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


class Beside(nn.Module):
    """A module and a seed after it, joined by hand."""

    def __init__(self, module: nn.Module, seed: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.seed = seed


class Taught(Beside):
    """A seed in training."""

    def forward(self, x: Tensor) -> Tensor:
        """The cheapest exact straight-through."""
        features = self.module(x)
        return StraightThrough.apply(features, self.seed(features.detach()))


class TaughtTextbook(Beside):
    """The same as it is written everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        """``h + (s - s.detach())``."""
        features = self.module(x)
        out = self.seed(features.detach())
        return features + (out - out.detach())


class Blended(Beside):
    """A seed in the blend."""

    def forward(self, x: Tensor) -> Tensor:
        """``torch.lerp``."""
        features = self.module(x)
        return torch.lerp(features, self.seed(features), ALPHA)


class BlendedTextbook(Beside):
    """The same as it is written everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        """Two products and a sum."""
        features = self.module(x)
        return (1 - ALPHA) * features + ALPHA * self.seed(features)


class BlendedWhole(Beside):
    """A seed at the end of its blend."""

    def forward(self, x: Tensor) -> Tensor:
        """``torch.lerp``."""
        features = self.module(x)
        return torch.lerp(features, self.seed(features), 1.0)


class Kept(Beside):
    """A seed for ever."""

    def forward(self, x: Tensor) -> Tensor:
        """One after the other."""
        return self.seed(self.module(x))


class Case(NamedTuple):
    """A stage, and what is written by hand for it."""

    name: str
    kind: str
    stage: Stage
    behaviour: Behaviour
    alpha: float
    hand: type[Beside]
    textbook: type[Beside] | None
    against: str


CASES = (
    Case(
        "TRAINING",
        "incubate",
        Stage.TRAINING,
        Behaviour.INCUBATE,
        0.0,
        Taught,
        TaughtTextbook,
        "`StraightThrough`",
    ),
    Case(
        f"BLENDING at {ALPHA}",
        "blend",
        Stage.BLENDING,
        Behaviour.BLEND,
        ALPHA,
        Blended,
        BlendedTextbook,
        "`torch.lerp`",
    ),
    Case(
        "SHADOWING",
        "blend",
        Stage.SHADOWING,
        Behaviour.BLEND,
        1.0,
        BlendedWhole,
        None,
        "`torch.lerp`",
    ),
    Case(
        "FOSSILIZED",
        "fossilized",
        Stage.FOSSILIZED,
        Behaviour.SEED,
        1.0,
        Kept,
        None,
        "the seed alone",
    ),
)


def follow(slot: SeedSlot, case: Case, given: SeedInput = SeedInput.OPEN) -> None:
    """Let the slot act as the domain would have it in that stage."""
    view = SlotView(
        slot_id=slot.slot_id,
        stage=case.stage,
        behaviour=case.behaviour,
        seed_input=given,
        learning=True,
        incubation=IncubationPlan(incubator=Incubator.STRAIGHT_THROUGH),
        schedule=held(case.alpha),
    )
    slot.follow(view, 0)


def both_ways(forward: Callable[[], Tensor], inputs: Sequence[Tensor], grown: Tensor) -> Work:
    """A forward, and the gradients of ``inputs``."""
    return lambda: torch.autograd.grad(forward(), inputs, grown)


def control() -> Iterator[Line]:
    """Code by hand against the same code."""
    for name, topology, shape in SEEDS:
        x = torch.randn(shape, requires_grad=True)
        seed = blueprints.build(topology, name, _width(topology, shape))
        work = both_ways(partial(seed, x), (x, *seed.parameters()), torch.randn(shape))
        what = f"the seed alone, by hand, {name} on {_text(shape)}, against itself"
        yield Line(what, "by hand", limit=work, ours=work)


def stages() -> Iterator[Line]:
    """Every stage with a seed, forward and backward, for every seed and its features."""
    torch.manual_seed(0)
    for case in CASES:
        for seed in SEEDS:
            yield _line(case, seed, lambda model: model, "")


def compiled_stages() -> Iterator[Line]:
    """The same, both sides under ``torch.compile``."""
    torch.manual_seed(0)
    for case in CASES:
        for seed in COMPILED:
            yield _line(case, seed, partial(torch.compile, fullgraph=True), ", compiled")


def baked() -> Iterator[Line]:
    """A grown model baked into plain modules, against the same written by hand."""
    torch.manual_seed(0)
    for seed in SEEDS:
        model, x = _grown(CASES[-1], seed)
        plain, grafted = bake(model), model.get_submodule("kasmina.0")
        hand = Kept(nn.Identity(), grafted.get_submodule("seed"))
        works = [_work(each, x) for each in (hand, plain)]
        torch.testing.assert_close(hand(x), plain(x))
        what = f"baked, {seed[0]} on {_text(seed[2])}, against the seed alone"
        yield Line(what, "baked", limit=works[0], ours=works[1], wanted=1.00)


def _line(
    case: Case, seed: Seed, made: Callable[[nn.Module], Callable[[Tensor], Tensor]], how: str
) -> Line:
    model, x = _grown(case, seed)
    grown = model.get_submodule("kasmina.0").get_submodule("seed")
    by_hand = [case.hand(nn.Identity(), grown)]
    if case.textbook is not None:
        by_hand.append(case.textbook(nn.Identity(), grown))
    ways = [model, *by_hand]
    works = [_work(way, x, made) for way in ways]
    for way, work in zip(ways, works, strict=True):
        torch.testing.assert_close(way(x), ways[0](x), rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(work(), works[0](), rtol=1e-4, atol=1e-3)
    return Line(
        f"{case.name}, {seed[0]} on {_text(seed[2])}{how}, against {case.against}",
        f"{case.kind}{how}",
        limit=works[1],
        ours=works[0],
        textbook=None if case.textbook is None else works[2],
        wanted=1.02,
    )


def _grown(case: Case, seed: Seed) -> tuple[nn.Module, Tensor]:
    """A host without work of its own, which would hide what a slot costs; and its features."""
    name, topology, shape = seed
    x, model = torch.randn(shape, requires_grad=True), nn.Sequential(nn.Identity())
    slot = graft(model, {"0": topology}, example_inputs=(x,))["0"]
    slot.attach(blueprints.build(topology, name, slot.width))
    follow(slot, case)
    return model, x


def _work(
    model: nn.Module,
    x: Tensor,
    made: Callable[[nn.Module], Callable[[Tensor], Tensor]] = lambda model: model,
) -> Work:
    inputs = (x, *(p for p in model.parameters() if p.requires_grad))
    return both_ways(partial(made(model), x), inputs, torch.ones_like(x))


def _width(topology: Topology, shape: tuple[int, ...]) -> int:
    return shape[1] if topology is Topology.CNN else shape[-1]


def _text(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
