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
# ruff: noqa: INP001, T201 - a script: it asserts what it measures, its output is the terminal

import argparse
import copy
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from counts import kept, parts, recompiles
from stages import SMALL, baked, both_ways, compiled_stages, control, stages
from timing import Line, Row, compare, table
from torch import nn
from training import EPOCH, latencies, sizes, trainings

from kasmina import Topology, graft
from kasmina.adapters.torch.graft import graft_host
from kasmina.adapters.torch.hosts import ConvHost

RESULTS = Path(__file__).parent / "results" / "forward.md"

# Why a wanted figure is missed, by kind of line; printed only where one is.
WHY = {
    "incubate": "The slot looks at the shape and dtype of the seed's output, and goes through some "
    "more Python calls; by hand nothing of this is done.",
    "blend": "Forward and backward see in one pass each that what comes from the seed is finite "
    "(warm and cold below); by hand a NaN in the seed reaches host and loss. The look back is a "
    "function in Python. A node of autograd in C++ would close most of it.",
    "fossilized": "Nothing of the blend is left. What remains is the way through the slot to the "
    "seed, a few Python calls; anything beyond some microseconds is this run's noise.",
    "incubate, compiled": "One graph serves TRAINING to PROBATIONARY without a recompile, so in "
    "TRAINING it computes the blend at alpha 0, the check of the seed's output, and the gradient "
    "of the seed's input, which the blend will need and incubation throws away. A seed whose input "
    "is detached for life does not pay for the last.",
    "blend, compiled": "The graph holds the check of the seed's output, a sum that must be there "
    "before the blend can begin, and the incubator's way for the gradient.",
    "fossilized, compiled": "The graph is that of the seed alone. What differs is the guards that "
    "are checked before it runs.",
    "baked": "The baked model calls the same operations; what differs is how the seed is called.",
    "empty": "The slot adds Python calls alone, about those on `nn.Identity` above for each slot; "
    "anything beyond is this run's noise.",
    "compiled": "The graph is that of the host alone. What differs is the guards that are checked "
    "before it runs.",
    "step": "Each forward has the cost of TRAINING, each step sets the seeds' rates and asks the "
    "monitor, an epoch's first step is watched, and `end_epoch` decides, encodes and writes (its "
    f"cost is told below, and shared by {EPOCH} steps here). Most of it does not grow with the "
    "host, so it shows the more the smaller the host is.",
}

NOT_YET = """Not measured here: an accelerator."""


def empty(*, compiled: bool) -> Iterator[Line]:
    """A host with empty slots, and the host."""
    x, images = torch.randn(SMALL), torch.randn(32, 1, 16, 16)
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
        lines = [*empty(compiled=not quick), *control(), *stages(), *baked()]
        rows = compare(lines, 3 if quick else 50)
        if not quick:
            rows += compare(list(compiled_stages()), 50)
        larger, again, little, twelve = trained
        by_hand = f"training step by hand, against itself, {larger}"
        steps = [Line(by_hand, "by hand", larger.limit, again.limit, units=EPOCH)]
        steps += [each.line() for each in (larger, little, twelve)]
        rows += compare(steps, 3 if quick else 15)
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
                "## Bytes kept for the backward, on 32×64×8×8",
                kept(),
                f"## Size of a checkpoint, {little}",
                sizes(folder, little),
                "## Graphs compiled in a seed's life (`fullgraph=True`, no graph break)",
                recompiles(),
            )
        )


# glibc gives large blocks back to the system at once and asks for them again, page by page: noise
# as large as what is measured here.
_PINNED = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**32)}


def pin_allocator() -> None:
    """Begin again with the allocator's thresholds pinned, which it reads when a process starts."""
    if not _PINNED.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | _PINNED)  # noqa: S606


def main() -> None:
    """Measure, print, and keep the tables where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, nothing compiled")
    parser.add_argument("--write", action="store_true", help="keep it in results/forward.md")
    options = parser.parse_args()
    pin_allocator()
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
