"""What a slot costs in the forward, against the least code that does the same by hand, in one run.

    python benchmarks/forward.py            # prints the tables, in less than two minutes
    python benchmarks/forward.py --write    # and keeps them in benchmarks/results/forward.md
    python benchmarks/forward.py --quick    # fewer rounds, nothing timed under torch.compile

One thread, CPU time. Each round takes every line once, and within a line by hand, kasmina and
textbook in turns, so that a busy moment of the machine hits all of them. A time is the median over
the rounds, a ratio the median of the rounds' own ratios, with their quartiles. Lines "against
itself" compare code by hand with the same code: what they are off 1 this run cannot tell apart.

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
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from timing import Line, Row, Work, calls, compare, sample, table
from torch import Tensor, nn
from training import EPOCH, StraightThrough, latencies, sizes, trainings

from kasmina import Topology, graft
from kasmina.adapters.torch import ops
from kasmina.adapters.torch.blueprints import blueprints
from kasmina.adapters.torch.graft import graft_host
from kasmina.adapters.torch.hosts import ConvHost
from kasmina.adapters.torch.slot import SeedSlot
from kasmina.domain.projections import Behaviour, SlotView
from kasmina.domain.schedules import held
from kasmina.domain.stages import SeedInput

ALPHA = 0.5
RESULTS = Path(__file__).parent / "results" / "forward.md"

CNN, TRANSFORMER = (32, 64, 8, 8), (8, 128, 256)
SEEDS = (
    ("depthwise", Topology.CNN, CNN),
    ("conv_light", Topology.CNN, CNN),
    ("mlp", Topology.TRANSFORMER, TRANSFORMER),
)

LABELS = {
    "by hand": "the seed alone, by hand",
    "incubate": "INCUBATE",
    "blend": f"BLEND at {ALPHA}",
    "blend at 1": "BLEND at 1",
    "fossilized": "FOSSILIZED",
}

# Why a wanted figure is missed, by kind of line; printed only where one is.
WHY = {
    "incubate": "Every forward counts whether the seed's output is finite, looks at its shape and "
    "dtype, and goes through a few more Python calls; by hand nothing of this is done. The count "
    "is most of it: little in a loop of its own, several times as much between other work (warm "
    "and cold below). Counting on sampled steps alone would close it, and see a seed that is not "
    "finite later.",
    "blend": "Forward: count non-finite outputs, and pick the host at weight 0 by `torch.where`, "
    "slow on a CPU where its condition is 0-dim. Backward: clean what comes back from the seed "
    "with `nan_to_num`, in two functions written in Python. By hand a NaN in the seed reaches host "
    "and loss. One kernel that chooses per tensor and not per entry would close most of it.",
    "blend at 1": "It is still a blend with all its guards, because a seed that stops being finite "
    "must give way to the host until it is fossilized: `torch.where`, the count, `nan_to_num`, and "
    "a backward that multiplies the gradient for host and seed and adds them up. The seed alone "
    "does none of it.",
    "fossilized": "Nothing of the blend is left. What remains is the way through the slot to the "
    "seed, a few Python calls; anything beyond some microseconds is this run's noise.",
    "empty": "The slot adds Python calls alone, about those on `nn.Identity` above for each slot; "
    "anything beyond is this run's noise.",
    "compiled": "The graph is that of the host alone. What differs is the guards that are checked "
    "before it runs.",
    "step": "Each forward has the cost of INCUBATE, each step sets the seeds' rates and asks the "
    "monitor, an epoch's first step is watched, and `end_epoch` decides, encodes and writes (its "
    f"cost is told below, and shared by {EPOCH} steps here). Most of it does not grow with the "
    "host, so it shows the more the smaller the host is.",
}

PARTS = """Warm is a loop of the part alone; cold is right after the forward and backward of other
tensors, as in a training, when neither data nor code of the part are in the caches."""


GRAPHS = """Wanted: at most one each for a germination, a fossilization and a cull, none between. An
open input costs one more at its exposure: in TRAINING the seed's input is detached, and the graph
in which its gradient reaches the host is another one. A seed with a detached input has none."""

NOT_YET = """Not measured yet: features of 32×64×32×32, stages with a seed under `torch.compile`,
`bake`, twelve slots at once, peak memory, an accelerator."""


# --- by hand ---


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
        ("by hand", Behaviour.SEED, 1.0, seed_alone, None, "itself"),
        (
            "incubate",
            Behaviour.INCUBATE,
            0.0,
            straight_through,
            straight_through_textbook,
            "`StraightThrough`",
        ),
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
            by_hand = partial(hand, plain, seed, x)
            ways = [by_hand if kind == "by hand" else partial(model[0], x), by_hand]
            if textbook is not None:
                ways.append(partial(textbook, plain, seed, x))
            works = [both_ways(way, inputs, grown) for way in ways]
            for way, work in zip(ways, works, strict=True):
                torch.testing.assert_close(way(), ways[0]())
                torch.testing.assert_close(work(), works[0]())
            label = f"{LABELS[kind]}, {name}"
            yield Line(
                f"{label} on {'×'.join(map(str, shape))}, against {against}",
                kind,
                limit=works[1],
                ours=works[0],
                textbook=None if textbook is None else works[2],
                wanted=None if kind == "by hand" else 1.02,
            )


def empty(*, compiled: bool) -> Iterator[Line]:
    """A host with empty slots, and the host."""
    x, images = torch.randn(CNN), torch.randn(32, 1, 16, 16)
    plain, model = nn.Identity(), nn.Sequential(nn.Identity())
    graft(model, {"0": Topology.CNN}, example_inputs=(x,))
    yield Line(
        "empty slot on `nn.Identity`, forward",
        "empty",
        limit=partial(plain, x),
        ours=partial(model[0], x),
        within=1.0,
    )
    host = ConvHost()
    grafted = copy.deepcopy(host)
    graft_host(grafted)
    for kind, limit, ours in (
        ("empty", host, grafted),
        ("compiled", torch.compile(host, fullgraph=True), torch.compile(grafted, fullgraph=True)),
    )[: 1 + compiled]:
        grown = torch.ones_like(limit(images))
        works = [
            both_ways(partial(model, images), tuple(host_parameters), grown)
            for model, host_parameters in ((limit, host.parameters()), (ours, grafted.parameters()))
        ]
        torch.testing.assert_close(works[0](), works[1]())
        yield Line(
            f"two empty slots in ConvHost{', compiled' * (kind == 'compiled')}",
            kind,
            limit=works[0],
            ours=works[1],
            wanted=1.00,
        )


# --- a training with its run ---


# --- what is told in milliseconds, bytes and counts ---


def graphs(given: SeedInput) -> list[int]:
    """New graphs at each moment of a seed's life, forward and backward, under aot_eager."""
    from torch._dynamo.utils import counters  # noqa: PLC0415 - a second's work, for this alone

    torch.compiler.reset()
    counters.clear()
    torch.manual_seed(0)
    x, host = torch.randn(8, 1, 8, 8), ConvHost()
    slot = graft_host(host)["stage0"]
    forward = torch.compile(host, fullgraph=True, backend="aot_eager")
    found: list[int] = []

    def live(behaviour: Behaviour, *alphas: float) -> None:
        before = counters["stats"]["unique_graphs"]
        for alpha in alphas:
            follow(slot, behaviour, alpha, given)
            forward(x).sum().backward()
        found.append(counters["stats"]["unique_graphs"] - before)

    live(Behaviour.IDENTITY, 0.0)
    for last in (False, True):
        slot.attach(blueprints.build(slot.topology, "conv_light", slot.width))
        live(Behaviour.INCUBATE, 0.0)
        if last:
            break
        live(Behaviour.BLEND, 0.0)
        live(Behaviour.BLEND, *(n / 20 for n in range(21)))
        live(Behaviour.SEED, 1.0)
        slot.detach()
        live(Behaviour.IDENTITY, 0.0)
    slot.detach()
    live(Behaviour.IDENTITY, 0.0)
    assert not counters["graph_break"]
    return found


def recompiles() -> str:
    """The counts, for both ways in which a seed may see its input from BLENDING on."""
    moments = ("first call", "germination", "exposure", "20 moves of alpha", "fossilization")
    moments += ("removal", "second germination", "cull")
    rows = [f"| seed input | {' | '.join(moments)} |", "|---" * (len(moments) + 1) + "|"]
    for given in SeedInput:
        found = graphs(given)
        rows.append(f"| {given.value.lower()} | {' | '.join(map(str, found))} |")
    return "\n".join((*rows, "", GRAPHS))


def parts() -> str:
    """What is paid for exactness, piece by piece, on both features."""
    shapes = ["×".join(map(str, shape)) for shape in (CNN, TRANSFORMER)]
    rows = [f"| part | {' | '.join(f'{s}, warm | {s}, cold' for s in shapes)} |", "|---" * 5 + "|"]
    columns: dict[str, list[float]] = {}
    for shape in (CNN, TRANSFORMER):
        host, seed, alpha = torch.randn(shape), torch.randn(shape), torch.tensor(ALPHA)
        count = torch.zeros((), dtype=torch.int64)
        works: dict[str, Work] = {
            "count a non-finite output": partial(ops.count_nonfinite, seed, count),
            "`torch.where(alpha == 0, host, seed)`": partial(torch.where, alpha == 0, host, seed),
            "clean the seed's gradient (`nan_to_num`)": partial(torch.nan_to_num, seed, 0, 0, 0),
            "multiply by a 0-dim tensor": partial(torch.mul, host, alpha),
            "for scale: `torch.lerp`": partial(torch.lerp, host, seed, ALPHA),
            "for scale: a copy": host.clone,
        }
        for name, work in works.items():
            columns.setdefault(name, []).extend((warm(work), cold(work)))
    for name, column in columns.items():
        rows.append(f"| {name} | {' | '.join(f'{each * 1e6:.0f} µs' for each in column)} |")
    return "\n".join((*rows, "", PARTS))


def warm(work: Work) -> float:
    """CPU seconds in a loop of its own."""
    times = calls(work)
    return statistics.median(sample(work, times) for _ in range(15))


def cold(work: Work) -> float:
    """CPU seconds right after a training pass of other tensors, as in a real step."""
    x, seed = torch.randn(CNN), blueprints.build(Topology.CNN, "conv_light", CNN[1])
    found = []
    for _ in range(25):
        seed(x).sum().backward()
        found.append(sample(work, 1))
    return statistics.median(found)


# --- measuring ---


def missed(rows: Sequence[Row]) -> str:
    """Which wanted figures this run missed, by how much, and why."""
    text = []
    for kind in dict.fromkeys(each.line.kind for each in rows if each.missed):
        those = [each for each in rows if each.missed and each.line.kind == kind]
        by = "; ".join(
            f"{each.line.name}: {each.ratios[1]:.2f}, +{each.more * 1e6:.0f} µs" for each in those
        )
        text.append(f"- {by}. {WHY[kind]}")
    return "\n".join(text) or "None."


def measure(*, quick: bool) -> str:
    """All tables, as Markdown."""
    with tempfile.TemporaryDirectory() as name, trainings(Path(name)) as trained:
        folder = Path(name)
        times = latencies(folder, 10 if quick else 60)  # first: it grows with all that is loaded
        rows = compare([*empty(compiled=not quick), *stages()], 4 if quick else 70)
        larger, again, small = trained
        control = f"training step by hand, against itself, {larger}"
        steps = [Line(control, "by hand", larger.limit, again.limit, units=EPOCH)]
        steps = [small.line()] if quick else [*steps, larger.line(), small.line()]
        rows += compare(steps, 5 if quick else 15)
        return "\n\n".join(
            (
                table(rows),
                NOT_YET,
                "## Missed in this run, by how much, and why",
                missed(rows),
                "## What exactness costs",
                parts(),
                "## Latency, with an event log that is durable on return",
                times,
                f"## Size of a checkpoint, {small}",
                sizes(folder, small),
                "## Graphs compiled in a seed's life (`fullgraph=True`, no graph break)",
                recompiles(),
            )
        )


def main() -> None:
    """Measure, print, and keep the tables where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, nothing compiled")
    parser.add_argument("--write", action="store_true", help="keep it in results/forward.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    where = (
        f"Device cpu, {os.cpu_count()} CPUs, one thread, torch {torch.__version__}, Python "
        f"{platform.python_version()}. CPU time, of a forward and backward where "
        "a line says nothing else"
    )
    text = f"# The forward against code by hand\n\n{where}.\n\n{measure(quick=options.quick)}\n"
    print(text)
    if options.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
