"""What is told in bytes, in graphs and piece by piece, beside the times."""
# ruff: noqa: INP001, S101 - beside a script, which imports it; it asserts what it measures

import statistics
from collections.abc import Callable, Sequence
from functools import partial

import torch
from stages import ALPHA, CASES, SEQUENCE, SMALL, Beside, Case, follow
from timing import Work, calls, sample
from torch import Tensor, nn

from kasmina import Topology, graft
from kasmina.adapters.torch import finite
from kasmina.adapters.torch.blueprints import blueprints
from kasmina.adapters.torch.graft import graft_host
from kasmina.adapters.torch.hosts import ConvHost
from kasmina.adapters.torch.slot import SeedSlot
from kasmina.domain.stages import SeedInput

PARTS = """Warm is a loop of the part alone; cold is right after the forward and backward of other
tensors, as in a training, when neither data nor code of the part are in the caches."""

GRAPHS = """Wanted: at most one each for a germination, a fossilization and a cull, none between."""


def kept(cases: Sequence[Case] = CASES) -> str:
    """Bytes kept for the backward, by hand and in kasmina: each storage once, parameters apart."""
    rows = ["| stage | by hand | kasmina |", "|---|---|---|"]
    for case in cases:
        x, model = torch.randn(SMALL, requires_grad=True), nn.Sequential(nn.Identity())
        slot = graft(model, {"0": Topology.CNN}, example_inputs=(x,))["0"]
        slot.attach(blueprints.build(Topology.CNN, "conv_light", slot.width))
        follow(slot, case)
        for _ in range(2):  # the first forward finds out what the host does with its features
            model(x)
        hand = case.hand(nn.Identity(), slot.get_submodule("seed"))
        sizes = [_bytes_kept(each, x) for each in (hand, model)]
        rows.append(f"| {case.name}, conv_light | {' | '.join(f'{n:,}' for n in sizes)} |")
    return "\n".join(rows)


def _bytes_kept(model: Beside | nn.Module, x: Tensor) -> int:
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        shown = model(x)
    assert shown.requires_grad
    return sum(seen.values())


def recompiles() -> str:
    """New graphs at each moment of a seed's life, for both ways in which it may see its input."""
    moments = ("first call", "germination", "exposure", "20 moves of alpha", "fossilization")
    moments += ("removal", "second germination", "cull")
    rows = [f"| seed input | {' | '.join(moments)} |", "|---" * (len(moments) + 1) + "|"]
    for given in SeedInput:
        found = _graphs(given)
        rows.append(f"| {given.value.lower()} | {' | '.join(map(str, found))} |")
    return "\n".join((*rows, "", GRAPHS))


def _graphs(given: SeedInput) -> list[int]:
    """Forward and backward, under aot_eager."""
    from torch._dynamo.utils import counters  # noqa: PLC0415 - a second's work, for this alone

    torch.compiler.reset()
    counters.clear()
    torch.manual_seed(0)
    x, host = torch.randn(8, 1, 8, 8), ConvHost()
    slot = graft_host(host)["stage0"]
    forward = torch.compile(host, fullgraph=True, backend="aot_eager")
    training, blending, _, fossilized = CASES
    found: list[int] = []

    def live(*cases: Case) -> None:
        before = counters["stats"]["unique_graphs"]
        for case in cases or (None,):
            _act(slot, case, given)
            forward(x).sum().backward()
        found.append(counters["stats"]["unique_graphs"] - before)

    live()
    for last in (False, True):
        slot.attach(blueprints.build(slot.topology, "conv_light", slot.width))
        live(training)
        if last:
            break
        live(blending._replace(alpha=0.0))
        live(*(blending._replace(alpha=n / 20) for n in range(21)))
        live(fossilized)
        slot.detach()
        live()
    slot.detach()
    live()
    assert not counters["graph_break"]
    return found


def _act(slot: SeedSlot, case: Case | None, given: SeedInput) -> None:
    if case is not None:
        follow(slot, case, given)


def parts() -> str:
    """What is paid for exactness, piece by piece, on both features."""
    shapes = ["×".join(map(str, shape)) for shape in (SMALL, SEQUENCE)]
    rows = [f"| part | {' | '.join(f'{s}, warm | {s}, cold' for s in shapes)} |", "|---" * 5 + "|"]
    columns: dict[str, list[float]] = {}
    for shape in (SMALL, SEQUENCE):
        for name, work in _parts(shape).items():
            columns.setdefault(name, []).extend((_warm(work), _cold(work)))
    for name, column in columns.items():
        rows.append(f"| {name} | {' | '.join(f'{each * 1e6:.0f} µs' for each in column)} |")
    return "\n".join((*rows, "", PARTS))


def _parts(shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    host, seed, alpha = torch.randn(shape), torch.randn(shape), torch.tensor(ALPHA)
    count = torch.zeros((), dtype=torch.int64)
    return {
        "see that the seed's output, or its gradient, is finite": partial(
            finite.count_nonfinite, seed, count
        ),
        "for scale: `torch.lerp`": partial(torch.lerp, host, seed, alpha),
        "for scale: a copy": host.clone,
        "elsewhere than on a CPU: `torch.where(alpha == 0, host, seed)`": partial(
            torch.where, alpha == 0, host, seed
        ),
        "elsewhere than on a CPU: clean a gradient (`nan_to_num`)": partial(
            torch.nan_to_num, seed, 0, 0, 0
        ),
    }


def _warm(work: Work) -> float:
    """CPU seconds in a loop of its own."""
    times = calls(work)
    return statistics.median(sample(work, times) for _ in range(15))


def _cold(work: Work) -> float:
    """CPU seconds right after a training pass of other tensors, as in a real step."""
    x, seed = torch.randn(SMALL), blueprints.build(Topology.CNN, "conv_light", SMALL[1])
    found = []
    for _ in range(25):
        seed(x).sum().backward()
        found.append(sample(work, 1))
    return statistics.median(found)
