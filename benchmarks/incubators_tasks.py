"""Three small hosts and their data, none of which is downloaded: what the incubators are tried on.

Each has three sets: one to train on, one for the gates, and a held-out one that neither training
nor gates see, from which accuracy and shock are taken.
"""
# ruff: noqa: INP001 - beside a script, which imports it

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pydoc_data.topics import topics

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn import functional as F

from kasmina import Topology
from kasmina.adapters.torch.hosts import ConvHost, GPTHost
from kasmina.demo.digits import Digits
from kasmina.demo.study import CHANNELS, LEARNING_RATE

Rows = tuple[Tensor, Tensor]
"""Inputs and the classes wanted, one row each."""


@frozen(kw_only=True, eq=False)
class Task:
    """A host, where it is grown, and what it learns.

    ``path`` is the module after which seeds go, ``features`` ``(batch, width, …)`` or, for a
    transformer, ``(batch, positions, width)`` what it returns. ``residual`` and ``inline`` are the
    blueprints tried there. The host trains alone for ``before`` epochs of ``steps`` steps each.
    """

    name: str
    build: Callable[[], nn.Module]
    path: str
    topology: Topology
    width: int
    residual: str
    inline: str
    rate: float
    batch: int
    steps: int
    before: int
    training: Rows
    gates: Rows
    held_out: Rows

    def batches(self, seed: int, epoch: int) -> Iterator[Rows]:
        """The epoch's batches, the same for every arm with the same random seed."""
        draws = torch.Generator().manual_seed(1000 * seed + epoch)
        order = torch.randperm(len(self.training[0]), generator=draws)
        for chosen in order[: self.steps * self.batch].split(self.batch):
            yield self.training[0][chosen], self.training[1][chosen]

    def accuracy(self, model: nn.Module) -> float:
        """In percent, on the held-out set."""
        inputs, classes = self.held_out
        right = _judged(model, inputs).flatten(0, -2).argmax(dim=-1) == classes.flatten()
        return 100.0 * right.double().mean().item()

    def gate_loss(self, model: nn.Module) -> float:
        """The mean cross-entropy on the gates' set."""
        inputs, classes = self.gates
        return cross_entropy(_judged(model, inputs), classes).item()


def cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """The mean over all rows, and positions where there are any."""
    return F.cross_entropy(logits.flatten(0, -2), classes.flatten())


def _judged(model: nn.Module, inputs: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        logits: Tensor = model(inputs)
    model.train()
    return logits


def _parted(rows: Rows, *sizes: int) -> list[Rows]:
    return list(zip(*(torch.split(column[: sum(sizes)], sizes) for column in rows), strict=True))


# --- mnist1d ---


def _line_host() -> nn.Module:
    """mnist1d's own convolutional network with 8 channels instead of 25, in 858 parameters.

    Its signals are images one pixel high, so that its features fit blueprints for CNNs; of their
    3×3 kernels only the middle row ever meets a feature.
    """

    def stage(inputs: int, taps: int) -> nn.Module:
        conv = nn.Conv2d(inputs, 8, (1, taps), stride=(1, 2), padding=(0, 1))
        return nn.Sequential(conv, nn.ReLU())

    return nn.Sequential(stage(1, 5), stage(8, 3), stage(8, 3), nn.Flatten(), nn.Linear(40, 10))


def mnist1d() -> Task:
    """40 samples of a signal in ten classes, generated here with the package's own settings."""
    from mnist1d.data import get_dataset_args, make_dataset  # noqa: PLC0415  # slow, and optional

    settings = get_dataset_args()
    settings.num_samples, settings.train_split = 7500, 1.0
    made = make_dataset(settings)
    signals = torch.as_tensor(made["x"], dtype=torch.float32).view(-1, 1, 1, 40)
    training, gates, held_out = _parted((signals, torch.as_tensor(made["y"])), 4000, 1000, 2500)
    return Task(
        name="mnist1d",
        build=_line_host,
        path="1",
        topology=Topology.CNN,
        width=8,
        residual="conv_light",
        inline="conv_inline",
        rate=1e-2,
        batch=100,
        steps=20,
        before=100,
        training=training,
        gates=gates,
        held_out=held_out,
    )


# --- digits ---


def digits() -> Task:
    """The host and the data of ``kasmina demo``."""
    data = Digits.load()
    training, gates, held_out = (
        (split.images, split.labels) for split in (data.training, data.validation, data.test)
    )
    return Task(
        name="digits",
        build=partial(ConvHost, channels=CHANNELS),
        path="stages.1",
        topology=Topology.CNN,
        width=CHANNELS[1],
        residual="conv_light",
        inline="conv_inline",
        rate=LEARNING_RATE,
        batch=50,
        steps=20,
        before=60,
        training=training,
        gates=gates,
        held_out=held_out,
    )


# --- text ---

_VOCABULARY, _CONTEXT, _WIDTH = 64, 32, 32


def text() -> Task:
    """The next character in the language reference that ships with Python; a small GPT."""
    written = "\n".join(topics[name] for name in sorted(topics)).lower()
    known = [character for character, _ in Counter(written).most_common(_VOCABULARY - 1)]
    index = {character: n for n, character in enumerate(known, start=1)}
    tokens = torch.tensor([index.get(character, 0) for character in written])
    windows = tokens[: len(tokens) // (_CONTEXT + 1) * (_CONTEXT + 1)].view(-1, _CONTEXT + 1)
    windows = windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))]
    training, gates, held_out = _parted((windows[:, :-1], windows[:, 1:]), 8000, 250, 500)
    return Task(
        name="text",
        build=partial(GPTHost, vocabulary=_VOCABULARY, context=_CONTEXT, width=_WIDTH, depth=2),
        path="blocks.0",
        topology=Topology.TRANSFORMER,
        width=_WIDTH,
        residual="mlp_small",
        inline="linear_inline",
        rate=3e-3,
        batch=12,
        steps=20,
        before=60,
        training=training,
        gates=gates,
        held_out=held_out,
    )


TASKS: dict[str, Callable[[], Task]] = {"mnist1d": mnist1d, "digits": digits, "text": text}
