"""Taken away, a seed was never there: rejected before its host met it, or taken back after."""

import copy
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from attrs import define
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler as schedulers

from kasmina import IncubationPlan, Incubator, Run, Slots, Stage, Topology, graft, open_run
from kasmina.adapters.torch.blueprints import blueprints
from kasmina.infra.engine import Durability
from tests.journeys.loop import ACCURACY, LENIENT, PATIENT, build_host

# torch 2.6 gives it of its own `SequentialLR`.
pytestmark = pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")

TARGETS = {"0": Topology.CNN, "2": Topology.CNN}
STEPS = 40

OPTIMIZERS: Mapping[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
}
SCHEDULERS: Mapping[str, Callable[[torch.optim.Optimizer], schedulers.LRScheduler | None]] = {
    "none": lambda _: None,
    "lambda": lambda o: schedulers.LambdaLR(o, lambda step: 1 / (1 + step)),
    "one cycle": lambda o: schedulers.OneCycleLR(o, max_lr=0.05, total_steps=STEPS),
    "plateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=0, min_lr=[1e-5]),
    "sequential": lambda o: schedulers.SequentialLR(
        o,
        [schedulers.LinearLR(o, total_iters=4), schedulers.CosineAnnealingLR(o, STEPS)],
        milestones=[4],
    ),
}


@define
class Training:
    """A host with dropout and BatchNorm, in training, and all that decides how it goes on."""

    host: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: schedulers.LRScheduler | None
    images: torch.Tensor
    labels: torch.Tensor
    slots: Slots | None = None
    run: Run | None = None
    steps: int = 0

    @classmethod
    def fresh(cls, optimizer: str, scheduler: str) -> "Training":
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002  # the global stream is what a seed could disturb
        host = build_host()
        made = OPTIMIZERS[optimizer](host.parameters())
        data = torch.Generator().manual_seed(1)
        return cls(
            host=host,
            optimizer=made,
            scheduler=SCHEDULERS[scheduler](made),
            images=torch.randn(8, 1, 6, 6, generator=data),
            labels=torch.randint(0, 3, (8,), generator=data),
        )

    def open(self, folder: str | Path, **options: object) -> Run:
        extra = {} if self.scheduler is None else {"scheduler": self.scheduler}
        self.slots = graft(self.host, TARGETS)
        self.run = open_run(
            f"sqlite:///{folder}/runs.db",
            name="removal",
            slots=self.slots,
            optimizer=self.optimizer,
            objective=ACCURACY,
            sample_every=2,
            durability=Durability.RELAXED,
            extra=extra,
            **options,
        )
        return self.run

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.host(images), labels)

    def train(self, steps: int) -> None:
        self.host.train()
        for _ in range(steps):
            chosen = torch.randperm(len(self.images))[:6]
            batch = self.images[chosen], self.labels[chosen]
            self.optimizer.zero_grad()
            loss = self.loss(*batch)
            loss.backward()
            if self.run is not None:
                self.run.rehearse(self.loss, *batch)
            self.clip()
            self.optimizer.step()
            if self.run is not None:
                self.run.step()
            self.anneal(loss)
            self.steps += 1

    def clip(self) -> None:
        if self.slots is None:
            nn.utils.clip_grad_norm_(self.host.parameters(), 1.0)
        else:
            self.slots.clip_grad_norm_(1.0)

    def anneal(self, loss: torch.Tensor) -> None:
        if isinstance(self.scheduler, schedulers.ReduceLROnPlateau):
            self.scheduler.step(loss.item())
        elif self.scheduler is not None:
            self.scheduler.step()

    def evaluate(self) -> Mapping[str, float]:
        self.host.eval()
        with torch.no_grad():
            right = (self.host(self.images).argmax(1) == self.labels).double().mean().item()
        self.host.train()
        return {"val_accuracy": 100 * right}

    def everything(self) -> dict[str, Any]:
        """A copy of all that the next step depends on."""
        return copy.deepcopy(
            {
                "host": dict(self.host.state_dict()),
                "gradients": [parameter.grad for parameter in self.host.parameters()],
                "optimizer": self.optimizer.state_dict(),
                "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
                "torch": torch.get_rng_state(),
                "python": random.getstate(),
                "numpy": np.random.get_state(legacy=False),  # noqa: NPY002
            }
        )


def differences(one: object, other: object, at: str = "") -> list[str]:
    """Where two nests of containers, tensors and numbers are not equal to the last bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        lone = [f"{at}.{key}" for key in one.keys() ^ other.keys()]
        both = one.keys() & other.keys()
        return lone + [d for key in both for d in differences(one[key], other[key], f"{at}.{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            return [f"{at}: {len(one)} and {len(other)}"]
        pairs = enumerate(zip(one, other, strict=True))
        return [d for number, pair in pairs for d in differences(*pair, f"{at}[{number}]")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [at]
    return [] if np.array_equal(one, other) else [at]


def closing(training: Training) -> None:
    assert training.run is not None
    assert training.slots is not None
    training.run.close()
    training.slots.ungraft()


PLANS = st.builds(
    IncubationPlan, incubator=st.sampled_from(Incubator), warmup_steps=st.integers(0, 3)
)
FEW = st.integers(0, 4)


@settings(max_examples=40)
@given(
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    scheduler=st.sampled_from(sorted(SCHEDULERS)),
    seeds=st.dictionaries(
        st.sampled_from(sorted(TARGETS)),
        st.tuples(st.sampled_from(blueprints.names(Topology.CNN)), PLANS),
        min_size=1,
    ),
    before=FEW,
    between=st.integers(1, 5),
    after=FEW,
    measured=st.booleans(),
)
def test_a_run_whose_seeds_were_culled_before_blending_is_one_that_never_grafted(
    *,
    optimizer: str,
    scheduler: str,
    seeds: Mapping[str, tuple[str, IncubationPlan]],
    before: int,
    between: int,
    after: int,
    measured: bool,
) -> None:
    alone = Training.fresh(optimizer, scheduler)
    alone.train(before + between + after)
    expected = alone.everything()
    with TemporaryDirectory() as folder:
        grown = Training.fresh(optimizer, scheduler)
        run = grown.open(folder, policy=PATIENT)
        grown.train(before)
        for slot_id, (blueprint, plan) in seeds.items():
            run.germinate(slot_id, blueprint, incubation=plan)
        grown.train(between)
        if measured and Incubator.NONE not in {plan.incubator for _, plan in seeds.values()}:
            run.end_epoch(grown.evaluate)
        for slot_id in seeds:
            assert run.state.slot(slot_id).stage is Stage.TRAINING
            run.cull(slot_id, "to leave no trace")
        grown.train(after)
        closing(grown)
    assert differences(expected, grown.everything()) == []


@settings(max_examples=15)
@given(
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    scheduler=st.sampled_from(sorted(SCHEDULERS)),
    blueprint=st.sampled_from(blueprints.names(Topology.CNN)),
    plan=PLANS,
    beyond=st.integers(1, 4),
)
@example(
    optimizer="adamw",
    scheduler="sequential",
    blueprint="conv_light",
    plan=IncubationPlan(),
    beyond=6,
)
def test_a_run_rewound_from_blending_on_is_what_it_was_at_the_gate(
    *, optimizer: str, scheduler: str, blueprint: str, plan: IncubationPlan, beyond: int
) -> None:
    with TemporaryDirectory() as folder:
        first = Training.fresh(optimizer, scheduler)
        run = first.open(folder, policy=LENIENT)
        run.germinate("2", blueprint, incubation=plan)
        while run.state.slot("2").stage is Stage.TRAINING:
            first.train(2)
            run.end_epoch(first.evaluate)
        assert run.state.slot("2").stage is Stage.BLENDING
        run.checkpoint(Path(folder) / "gate.pt")
        expected, state = first.everything(), run.state
        for _ in range(beyond):
            first.train(3)
            run.end_epoch(first.evaluate)
        assert differences(expected["host"], first.everything()["host"]) != []
        if run.state.slot("2").seed is not None:
            assert run.state.slot("2").stage.exposed

        again = Training.fresh(optimizer, scheduler)
        resumed = again.open(folder, resume=run.run_id)
        assert resumed.state.slots == state.slots
        found = again.everything()
        for each in (expected, found):
            del each["gradients"]  # of the step before, which no later step sees
        assert differences(expected, found) == []
        resumed.close()
