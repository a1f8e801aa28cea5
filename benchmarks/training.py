"""A training under a run against the same by hand; and what a run's own acts take."""
# ruff: noqa: INP001, S101 - beside a script, which imports it; it asserts what is measured

import copy
import gc
import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import Line, Work, both_clocks
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler

from kasmina import GatePolicy, Objective, open_run
from kasmina.adapters.torch.graft import Slots, graft_host
from kasmina.adapters.torch.hosts import ConvHost
from kasmina.domain.projections import Behaviour
from kasmina.run import RELATIVE_RATE

EPOCH = 20
RATE = 1e-3

LATENCY = """Germination and cull each look once at every live object for learning-rate schedulers,
since an optimizer does not know its own: the last line says what that costs by itself."""


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


class Training:
    """``ConvHost`` with two seeds that incubate, under a run; and the same by hand."""

    def __init__(
        self, url: str, channels: tuple[int, ...], images: tuple[int, ...], resources: ExitStack
    ) -> None:
        torch.manual_seed(0)
        self.images = torch.randn(EPOCH, *images)
        self.labels = torch.randint(0, 10, (EPOCH, images[0]))
        self.host = ConvHost(inputs=images[1], channels=channels)
        twin = copy.deepcopy(self.host)
        self.slots = graft_host(self.host)
        self.optimizer = torch.optim.AdamW(self.slots.host_parameters(), lr=RATE)
        self.run = resources.enter_context(opened(url, self.slots, self.optimizer))
        for slot_id in self.slots:
            self.run.germinate(slot_id, "conv_light")
        seeds = [copy.deepcopy(slot.seed) for slot in self.slots.values()]
        self.by_hand = GrownByHand(twin, seeds)
        groups = [{"params": twin.parameters()}]
        groups += [{"params": seed.parameters(), "lr": RATE * RELATIVE_RATE} for seed in seeds]
        self.optimizer_by_hand = torch.optim.AdamW(groups, lr=RATE)

    def __str__(self) -> str:
        widths = " and ".join(str(slot.width) for slot in self.slots.values())
        return f"ConvHost({widths}) on {'×'.join(map(str, self.images.shape[1:]))}"

    def limit(self) -> None:
        """An epoch by hand."""
        for images, labels in zip(self.images, self.labels, strict=True):
            self.optimizer_by_hand.zero_grad()
            F.cross_entropy(self.by_hand(images), labels).backward()
            self.optimizer_by_hand.step()

    def ours(self) -> None:
        """An epoch under the run, recorded."""
        for images, labels in zip(self.images, self.labels, strict=True):
            self.optimizer.zero_grad()
            F.cross_entropy(self.host(images), labels).backward()
            self.optimizer.step()
            self.run.step()
        self.run.end_epoch(None)

    def check(self) -> None:
        """Host and seeds have the bits of those by hand, and still incubate."""
        ours = [*self.slots.host_parameters(), *self.slots.seed_parameters()]
        for one, other in zip(ours, self.by_hand.parameters(), strict=True):
            assert torch.equal(one, other)
        for slot in self.slots.values():
            assert slot.view.behaviour is Behaviour.INCUBATE

    def line(self) -> Line:
        """A whole step, its share of the epoch's end included."""
        self.limit()
        self.ours()
        self.check()
        return Line(
            f"training step, two seeds, recorded, {self}",
            "step",
            limit=self.limit,
            ours=self.ours,
            wanted=1.01,
            units=EPOCH,
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
    """A larger host, the same again, and a small one on which every microsecond shows."""
    with ExitStack() as resources:
        yield [
            Training(f"sqlite:///{folder / f'{n}.db'}", channels, images, resources)
            for n, (channels, images) in enumerate(
                (((32, 64), (32, 3, 16, 16)),) * 2 + (((16, 32), (64, 1, 8, 8)),)
            )
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
            f"for scale: a look at each of the {len(gc.get_objects()):,} live objects": look,
        }
        for _ in range(times):
            run.step()
            for what, act in acts.items():
                found.setdefault(what, []).append(both_clocks(act))
    rows = ["| what | wall, ms | CPU, ms |", "|---|---|---|"]
    for what, each in found.items():
        wall, cpu = (statistics.median(side) * 1e3 for side in zip(*each, strict=True))
        rows.append(f"| {what} | {wall:.2f} | {cpu:.2f} |")
    return "\n".join((*rows, "", LATENCY))


def look() -> list[object]:
    """The live learning-rate schedulers: both germinate and cull search for them."""
    return [each for each in gc.get_objects() if issubclass(type(each), LRScheduler)]


def sizes(folder: Path, training: Training) -> str:
    """A checkpoint, beside the least that could be saved."""
    host, hand, ours = (folder / name for name in ("host.pt", "hand.pt", "ours.pt"))
    torch.save(training.by_hand.host.state_dict(), host)
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
