"""What observing the isolation of seeds costs: a sampled step against one that is not.

    python benchmarks/isolation.py            # prints the tables, in three minutes
    python benchmarks/isolation.py --write    # and keeps them in benchmarks/results/isolation.md
    python benchmarks/isolation.py --quick    # fewer rounds

One thread, CPU time, every line in every round and its works in turns (see ``timing.py``). Sampled
or not, the same seeds train in the same host; nothing is recorded, which ``forward.py`` measures.
"""
# ruff: noqa: INP001, T201 - a script: its output is the terminal

import argparse
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from timing import Line, Row, Work, calls, compare, sample
from torch import Tensor
from torch.nn import functional as F

from kasmina.adapters.torch import leaks
from kasmina.adapters.torch.blueprints import blueprints
from kasmina.adapters.torch.germination import sprout
from kasmina.adapters.torch.graft import graft_host
from kasmina.adapters.torch.hosts import ConvHost, GPTHost
from kasmina.adapters.torch.isolation import Monitor
from kasmina.adapters.torch.slot import SeedSlot
from kasmina.adapters.torch.streams import Draws
from kasmina.adapters.torch.surroundings import Habitat
from kasmina.domain.projections import Behaviour, SlotView
from kasmina.domain.stages import Stage

RESULTS = Path(__file__).parent / "results" / "isolation.md"
NEVER = 10**9
EVERY = (1, 10, 50)

READING = """A sample is one watched forward and backward of every seed, and the norm of its
gradient. The first step of a seed and of every epoch is always one. "Control" is the unsampled step
against itself: what it is off 1 this run cannot tell apart. The average at N = 500 is computed from
the cost of one sample; the others are measured, over N steps with one sample among them."""

DETECTORS = """Each is per seed and sample, where it says nothing else. The look for writes and
hooks is the largest, and grows with the number of modules and tensors, not with their size: it
reads version counters and the keys of hooks, and no values. While a seed's forward runs, each
module of the host that has forward hooks gets one more, which is in none of these figures."""

ASIDE = """Shared memory is looked for in any case. A seed is tried aside only where no watched
forward has shown it, as in a compiled model; the host's tensors are copied once for that, and
compared with the copies twice for each seed."""


class Garden:
    """A host with a seed in training in every slot."""

    def __init__(self, host: ConvHost | GPTHost, blueprint: str, inputs: Tensor) -> None:
        self.host, self.inputs = host, inputs
        self.slots = graft_host(host)
        self.optimizer = torch.optim.AdamW(host.parameters(), lr=1e-4)
        tensors = tuple(tensor for _, tensor in self.slots.host_tensors())
        for slot_id, slot in self.slots.items():
            build = partial(blueprints.build, slot.topology, blueprint, slot.width)
            seed = sprout(slot, build, blueprint_id=blueprint, init_seed=1, host_parameters=tensors)
            slot.attach(seed)
            view = SlotView(
                slot_id=slot_id,
                stage=Stage.TRAINING,
                behaviour=Behaviour.INCUBATE,
                learning=True,
            )
            slot.follow(view, 0)
            self.optimizer.add_param_group({"params": slot.seed_parameters()})
        self.monitor = Monitor(self.slots)
        self.habitat = Habitat(host, self.slots.values())

    def __str__(self) -> str:
        kind, modules = type(self.host).__name__, len(list(self.host.modules()))
        tensors = len(list(self.slots.host_tensors()))
        return f"{kind}, {len(self.slots)} seeds, {modules} modules, {tensors} tensors"

    @property
    def slot(self) -> SeedSlot:
        """The first."""
        return next(iter(self.slots.values()))

    def train(self, steps: int, every: int) -> None:
        """So many steps, of which the first is sampled, and after it one in ``every``."""
        self.monitor.every = every
        self.monitor.resume(0 if every < NEVER else 1)
        for slot in self.slots.values():
            slot.watching = every < NEVER
            slot.choose()
        for _ in range(steps):
            self.optimizer.zero_grad()
            logits = self.host(self.inputs)
            F.cross_entropy(logits.flatten(0, -2), labels(logits)).backward()
            self.monitor.observe_gradients()
            self.optimizer.step()
            self.monitor.step()

    def lines(self) -> list[Line]:
        """A block of N steps with one sample, against one with none; and the latter with itself."""
        one = partial(self.train, 1, NEVER)
        control = Line(f"{self}: control", "control", one, partial(self.train, 1, NEVER))
        blocks = [
            Line(
                f"{self}: N = {every}",
                "average",
                partial(self.train, every, NEVER),
                partial(self.train, every, every),
                units=every,
            )
            for every in EVERY
        ]
        return [control, *blocks]

    def detectors(self) -> dict[str, Work]:
        """Each by itself, on the first seed."""
        slot = self.slot
        seed, device = slot.seed, slot.alpha.device
        habitat = self.habitat
        around = habitat.around(seed)
        output = seed(slot.draw_features())

        def draws() -> None:
            before = Draws(device)
            before.from_torch()
            before.from_others()

        def gather() -> None:
            habitat.refresh()
            habitat.around(seed)

        def listen() -> None:
            with around.calls():
                pass

        return {
            "gradient: the graph of the seed's output": lambda: leaks.way_back(output.grad_fn),
            "writes and hooks, around its forward": lambda: tuple(habitat.around(seed).changes()),
            "writes and hooks, around its backward": lambda: tuple(around.again().changes()),
            "what there is to look at, once for all seeds": gather,
            "calls of host modules": listen,
            "random streams, around each of both": draws,
            "norm of the gradients of all seeds": self.norms,
        }

    def norms(self) -> None:
        """As on a sampled step."""
        self.monitor.resume(0)
        self.monitor.observe_gradients()

    def collections(self) -> dict[str, Work]:
        """The end of an epoch, for all seeds: watched ones, and such as were never seen to run."""

        def collect(*, seen: bool) -> None:
            for slot in self.slots.values():
                slot.seen = seen
            self.monitor.collect()

        return {
            "shared memory, and the figures": partial(collect, seen=True),
            "the same, and all seeds tried aside": partial(collect, seen=False),
        }


def labels(logits: Tensor) -> Tensor:
    """Any will do."""
    return torch.zeros(logits.flatten(0, -2).shape[0], dtype=torch.int64)


def gardens() -> list[Garden]:
    """A few modules and real convolutions; many modules and one slot for each block."""
    torch.manual_seed(0)
    return [
        Garden(ConvHost(inputs=3, channels=(32, 64)), "conv_light", torch.randn(32, 3, 16, 16)),
        Garden(GPTHost(width=64, depth=12), "mlp", torch.randint(0, 64, (16, 32))),
    ]


def averages(found: Sequence[Row]) -> str:
    """What a step costs on the average, by N."""
    sampled = found[1].ratios[1]
    text = ["| N | a step with one sample every N : without | quartiles |", "|---|---|---|"]
    for name, line in zip(("control", *map(str, EVERY)), found, strict=True):
        low, ratio, high = line.ratios
        text.append(f"| {name} | {ratio:.3f} | {low:.3f}–{high:.3f} |")
    text.append(f"| 500, computed | {1 + (sampled - 1) / 500:.4f} | – |")
    return "\n".join(text)


def parts(works: Mapping[str, Work], step: float) -> str:
    """Each by itself, in µs and in hundredths of an unsampled step."""
    rows = ["| what | µs | of a step |", "|---|---|---|"]
    for name, work in works.items():
        times = calls(work)
        took = statistics.median(sample(work, times) for _ in range(15))
        rows.append(f"| {name} | {took * 1e6:,.0f} | {100 * took / step:.2f} % |")
    return "\n".join(rows)


def measure(rounds: int) -> str:
    """All tables, as Markdown."""
    text = [READING]
    for garden in gardens():
        found = [
            row for line in garden.lines() for row in compare([line], max(5, rounds // line.units))
        ]
        step = found[0].limit
        text += [
            f"## {garden}",
            f"An unsampled step takes {step * 1e3:.1f} ms.",
            averages(found),
            "### Each detector",
            DETECTORS,
            parts(garden.detectors(), step),
            "### The end of an epoch",
            ASIDE,
            parts(garden.collections(), step),
        ]
    return "\n\n".join(text)


def main() -> None:
    """Measure, print, and keep the tables where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--write", action="store_true", help="keep it in results/isolation.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    where = (
        f"Device cpu, {os.cpu_count()} CPUs, one thread, torch {torch.__version__}, Python "
        f"{platform.python_version()}. CPU time."
    )
    tables = measure(10 if options.quick else 60)
    text = f"# What it costs to observe isolation\n\n{where}\n\n{tables}\n"
    print(text)
    if options.write:
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
