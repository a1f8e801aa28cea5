"""A training under a run against the same by hand; and what a run's own acts take."""
# ruff: noqa: INP001, S101 - beside a script, which imports it; it asserts what is measured

import copy
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from stages import Taught
from timing import Line, Work, both_clocks
from torch import Tensor
from torch.nn import functional as F

from kasmina import GatePolicy, IncubationPlan, Incubator, Objective, open_run
from kasmina.adapters.torch.graft import Slots, graft_host
from kasmina.adapters.torch.hosts import ConvHost, GPTHost
from kasmina.domain.projections import Behaviour

EPOCH = 20
RATE = 1e-3


class Training:
    """A host with a seed in training at each of its injection points, under a run; and by hand."""

    def __init__(self, size: "Size", url: str, resources: ExitStack) -> None:
        torch.manual_seed(0)
        self.name = size.name
        self.inputs, self.labels = size.draw()
        self.host = size.build()
        twin = copy.deepcopy(self.host)
        self.slots = graft_host(self.host)
        self.optimizer = torch.optim.AdamW(self.slots.host_parameters(), lr=RATE)
        self.run = resources.enter_context(opened(url, self.slots, self.optimizer))
        for slot_id in self.slots:
            self.run.germinate(
                slot_id,
                size.blueprint,
                learning_rate=RATE,
                incubation=IncubationPlan(incubator=Incubator.STRAIGHT_THROUGH, warmup_steps=0),
            )
        groups: list[dict[str, Any]] = [{"params": list(twin.parameters())}]
        self.paths = {k: point.path for k, point in self.host.injection_points().items()}
        for slot_id, path in self.paths.items():
            seed = copy.deepcopy(self.slots[slot_id].seed)
            twin.set_submodule(path, Taught(twin.get_submodule(path), seed))
            groups.append({"params": list(seed.parameters())})
        self.by_hand = twin
        self.optimizer_by_hand = torch.optim.AdamW(groups, lr=RATE)

    def __str__(self) -> str:
        return self.name

    def limit(self) -> None:
        """An epoch by hand."""
        for x, labels in zip(self.inputs, self.labels, strict=True):
            self.optimizer_by_hand.zero_grad()
            F.cross_entropy(self.by_hand(x).flatten(0, -2), labels.flatten()).backward()
            self.optimizer_by_hand.step()

    def ours(self) -> None:
        """An epoch under the run, recorded."""
        for x, labels in zip(self.inputs, self.labels, strict=True):
            self.optimizer.zero_grad()
            F.cross_entropy(self.host(x).flatten(0, -2), labels.flatten()).backward()
            self.optimizer.step()
            self.run.step()
        self.run.end_epoch(None)

    def check(self) -> None:
        """Host and seeds have the bits of those by hand, and still incubate."""
        ours = dict(self.slots.host_named_parameters())
        theirs = {k.replace(".module.", "."): p for k, p in self.by_hand.named_parameters()}
        for slot_id, path in self.paths.items():
            slot = self.slots[slot_id]
            assert slot.view.behaviour is Behaviour.INCUBATE
            ours |= {f"{path}.seed.{name}": p for name, p in slot.seed.named_parameters()}
        assert ours.keys() == theirs.keys()
        for name, parameter in ours.items():
            assert torch.equal(parameter, theirs[name]), name

    def line(self) -> Line:
        """A whole step, its share of the epoch's end included."""
        self.limit()
        self.ours()
        self.check()
        return Line(
            f"training step, {len(self.slots)} seeds, recorded, {self}",
            "step",
            limit=self.limit,
            ours=self.ours,
            wanted=1.01,
            units=EPOCH,
        )


class Size(NamedTuple):
    """A host, its seeds and its data."""

    name: str
    build: Callable[[], Any]
    blueprint: str
    draw: Callable[[], tuple[Tensor, Tensor]]


def images(*shape: int) -> tuple[Tensor, Tensor]:
    """An epoch of batches of random images, with labels."""
    return torch.randn(EPOCH, *shape), torch.randint(0, 10, (EPOCH, shape[0]))


def tokens(*shape: int) -> tuple[Tensor, Tensor]:
    """An epoch of batches of random tokens, with those to come."""
    return torch.randint(0, 64, (EPOCH, *shape)), torch.randint(0, 64, (EPOCH, *shape))


LARGER = Size(
    "ConvHost(32 and 64) on 32×3×16×16",
    lambda: ConvHost(inputs=3, channels=(32, 64)),
    "conv_light",
    lambda: images(32, 3, 16, 16),
)
LITTLE = Size(
    "ConvHost(16 and 32) on 64×1×8×8",
    lambda: ConvHost(inputs=1, channels=(16, 32)),
    "conv_light",
    lambda: images(64, 1, 8, 8),
)
TWELVE = Size(
    "GPTHost(12 blocks of width 128) on 16×32",
    lambda: GPTHost(width=128, depth=12),
    "mlp_small",
    lambda: tokens(16, 32),
)


def opened(url: str, slots: Slots, optimizer: torch.optim.Optimizer) -> Any:  # noqa: ANN401
    """A run in the database at ``url``, whose slots can be used again at once."""
    return open_run(
        url,
        name="benchmark",
        slots=slots,
        optimizer=optimizer,
        objective=Objective.maximize("val_accuracy", unit="percent"),
        policy=GatePolicy(embargo_epochs=0),
    )


@contextmanager
def trainings(folder: Path) -> Iterator[list[Training]]:
    """A larger host, the same again, a small one on which every microsecond shows, and twelve."""
    with ExitStack() as resources:
        yield [
            Training(size, f"sqlite:///{folder / f'{n}.db'}", resources)
            for n, size in enumerate((LARGER, LARGER, LITTLE, TWELVE))
        ]


def latencies(folder: Path, times: int) -> str:
    """Germination, cull and the end of an epoch, all durable before they return."""
    slots = graft_host(ConvHost())
    optimizer = torch.optim.AdamW(slots.host_parameters(), lr=RATE)
    found: dict[str, list[tuple[float, float]]] = {}
    with opened(f"sqlite:///{folder / 'latency.db'}", slots, optimizer) as run:
        acts: dict[str, Work] = {
            "germinate": partial(run.germinate, "stage1", "conv_light"),
            "end_epoch, one seed, without evaluation": partial(run.end_epoch, None),
            "cull": partial(run.cull, "stage1", "measured"),
        }
        for _ in range(times):
            run.step()
            for what, act in acts.items():
                found.setdefault(what, []).append(both_clocks(act))
    rows = ["| what | wall, ms | CPU, ms |", "|---|---|---|"]
    for what, each in found.items():
        wall, cpu = (statistics.median(side) * 1e3 for side in zip(*each, strict=True))
        rows.append(f"| {what} | {wall:.2f} | {cpu:.2f} |")
    return "\n".join(rows)


def sizes(folder: Path, training: Training) -> str:
    """A checkpoint, beside the least that could be saved."""
    host, hand, ours = (folder / name for name in ("host.pt", "hand.pt", "ours.pt"))
    torch.save(dict(training.slots.host_tensors()), host)
    state = {
        "model": training.by_hand.state_dict(),
        "optimizer": training.optimizer_by_hand.state_dict(),
    }
    torch.save(state, hand)
    training.run.checkpoint(ours)
    least, by_hand, kept = (file.stat().st_size for file in (host, hand, ours))
    return "\n".join(
        (
            "| what is saved | bytes | kasmina : this |",
            "|---|---|---|",
            f"| the host's `state_dict` alone | {least:,} | {kept / least:.2f} |",
            f"| by hand: host, seeds, optimizer | {by_hand:,} | {kept / by_hand:.2f} |",
            f"| `run.checkpoint`: these, random streams, place in the log | {kept:,} | 1.00 |",
        )
    )
