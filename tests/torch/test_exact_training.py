"""Beside an incubating seed a host trains to the bits of the host alone, whatever the training."""

import copy
import math
import random

import pytest
import torch
from attrs import evolve as changed
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kasmina.adapters.torch.blueprints import blueprints
from kasmina.adapters.torch.germination import sprout
from kasmina.adapters.torch.graft import graft
from kasmina.adapters.torch.hosts import GPTHost
from kasmina.adapters.torch.isolation import Monitor
from kasmina.adapters.torch.optimizer import SeedGroups
from kasmina.adapters.torch.rehearsal import rehearse
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.projections import Behaviour, SlotView
from kasmina.domain.stages import Incubator, Stage, Topology
from tests.torch.bits import same_bits

STEPS = 4
TOKENS, CLASSES = 11, 5


class Drawing(nn.Module):
    """Draws from torch's stream, and has statistics of its own."""

    def __init__(self, width):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x):
        return x + self.dropout(self.norm(self.conv(x)))


class DrawingTokens(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear, self.dropout = nn.Linear(width, width), nn.Dropout(0.3)

    def forward(self, x):
        return x + self.dropout(self.linear(x))


def images_host(draw, *, in_place, dropout):
    torch.manual_seed(draw)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=in_place),
        nn.Dropout(dropout),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(inplace=in_place),
        nn.Flatten(),
        nn.Linear(8 * 16, CLASSES),
    )


def tokens_host(draw, *, dropout):
    torch.manual_seed(draw)
    return GPTHost(width=8, depth=2, heads=2, vocabulary=TOKENS, context=8, dropout=dropout)


@frozen
class Training:
    """All that a loop may do with a host."""

    draw: int
    topology: Topology
    blueprint: str
    incubator: Incubator
    dtype: torch.dtype
    autocast: torch.dtype | None
    channels_last: bool
    in_place: bool
    dropout: float
    momentum: bool
    clip: float | None
    accumulate: int
    scaled: bool
    every: int
    broken: float | None = None

    def host(self):
        if self.topology is Topology.CNN:
            host = images_host(self.draw, in_place=self.in_place, dropout=self.dropout)
        else:
            host = tokens_host(self.draw, dropout=self.dropout)
        host.to(self.dtype)
        return host.to(memory_format=torch.channels_last) if self.channels_last else host

    def places(self):
        if self.topology is Topology.CNN:
            return {"1": Topology.CNN, "4": Topology.CNN}
        return {"blocks.0": Topology.TRANSFORMER}

    def batches(self):
        generator = torch.Generator().manual_seed(self.draw + 1)
        for _ in range(STEPS * self.accumulate):
            if self.topology is Topology.CNN:
                images = torch.randn(4, 3, 6, 6, generator=generator).to(self.dtype)
                if self.channels_last:
                    images = images.contiguous(memory_format=torch.channels_last)
                yield images, torch.randint(0, CLASSES, (4,), generator=generator)
            else:
                text = torch.randint(0, TOKENS, (4, 9), generator=generator)
                yield text[:, :-1], text[:, 1:]

    def build(self, width):
        if self.blueprint != "drawing":
            return blueprints.build(self.topology, self.blueprint, width)
        return Drawing(width) if self.topology is Topology.CNN else DrawingTokens(width)

    def view(self, slot_id):
        beside = self.incubator in (Incubator.STRAIGHT_THROUGH, Incubator.PROXIMAL)
        return SlotView(
            slot_id=slot_id,
            stage=Stage.TRAINING,
            seed_id=slot_id,
            behaviour=Behaviour.INCUBATE if beside else Behaviour.IDENTITY,
            learning=self.incubator is not Incubator.NONE,
            incubation=IncubationPlan(incubator=self.incubator, share=0.5),
        )


@st.composite
def trainings(draw):
    topology = draw(st.sampled_from(Topology))
    dtype, autocast = draw(
        st.sampled_from(
            [
                (torch.float32, None),
                (torch.float64, None),
                (torch.bfloat16, None),
                (torch.float16, None),
                (torch.float32, torch.bfloat16),
                (torch.float32, torch.float16),
            ]
        )
    )
    return Training(
        draw=draw(st.integers(0, 2**16)),
        topology=topology,
        blueprint=draw(st.sampled_from([*blueprints.names(topology), "drawing"])),
        incubator=draw(st.sampled_from(Incubator)),
        dtype=dtype,
        autocast=autocast,
        channels_last=topology is Topology.CNN and draw(st.booleans()),
        in_place=draw(st.booleans()),
        dropout=draw(st.sampled_from([0.0, 0.2])),
        momentum=draw(st.booleans()),
        clip=draw(st.sampled_from([None, 0.5])),
        accumulate=draw(st.sampled_from([1, 2])),
        scaled=dtype is not torch.float16 and draw(st.booleans()),  # which no scaler takes
        every=draw(st.integers(1, 3)),
    )


def optimizer_of(training, parameters):
    if training.momentum:
        return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    return torch.optim.AdamW(parameters, lr=0.01)


class Alone:
    """The host, and nothing that knows of seeds."""

    def __init__(self, training):
        self.training, self.model = training, training.host()
        self.optimizer = optimizer_of(training, self.model.parameters())
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=training.scaled)

    def named(self):
        return dict(self.model.named_parameters())

    def buffers(self):
        return dict(self.model.named_buffers())

    def clip(self):
        return nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip)

    def loss(self, inputs, targets):
        dtype = self.training.autocast
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            logits = self.model(inputs)
        loss = nn.functional.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())
        share = random.uniform(0.5, 1.0) / self.training.accumulate  # a loss may draw as well
        return self.scaler.scale(loss * share)

    def learn(self, *batch):
        loss = self.loss(*batch)
        loss.backward()
        return loss.detach()

    def train(self):
        """What could be seen of the host meanwhile, as tensors."""
        torch.manual_seed(1)
        random.seed(1)
        seen = []
        for number, batch in enumerate(self.training.batches(), start=1):
            seen.append(self.learn(*batch))
            if number % self.training.accumulate:
                continue
            self.scaler.unscale_(self.optimizer)
            if self.training.clip is not None:
                seen.append(self.clip())
            seen += [p.grad.clone() for p in self.named().values()]
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()
            self.stepped()
        return seen

    def stepped(self):
        pass

    def remains(self):
        """All that the training leaves behind, by name."""
        optimizer = {
            f"{name}.{key}": value
            for name, parameter in self.named().items()
            for key, value in self.optimizer.state[parameter].items()
            if isinstance(value, torch.Tensor)
        }
        scale = torch.tensor([float(v) for v in self.scaler.state_dict().values()])
        drawn = torch.tensor(random.getstate()[1])
        return {
            **self.named(),
            **self.buffers(),
            **optimizer,
            "scaler": scale,
            "torch": torch.get_rng_state(),
            "python": drawn,
        }


class Grown(Alone):
    """The same host, with a seed incubating in every slot."""

    def __init__(self, training):
        super().__init__(training)
        self.slots = graft(self.model, training.places())
        self.monitor = Monitor(self.slots, every=training.every)
        self.groups = SeedGroups(self.optimizer)
        self.groups.on_step(self.monitor.observe_gradients)
        for slot_id, slot in self.slots.items():
            grown = sprout(
                slot,
                lambda slot=slot: training.build(slot.width),
                blueprint_id="mine",
                init_seed=3,
                host_parameters=[tensor for _, tensor in self.slots.host_tensors()],
            )
            slot.attach(grown)
            slot.follow(training.view(slot_id), 0)
            if training.broken is not None:
                nn.init.constant_(next(grown.module.parameters()), training.broken)
            self.groups.add(slot_id, slot.seed_parameters())
            self.groups.shield(slot)

    def named(self):
        return dict(self.slots.host_named_parameters())

    def buffers(self):
        return {n: t for n, t in self.slots.host_tensors() if not isinstance(t, nn.Parameter)}

    def clip(self):
        return self.slots.clip_grad_norm_(self.training.clip)

    def learn(self, *batch):
        loss = super().learn(*batch)
        if self.training.incubator is Incubator.REHEARSAL:
            for slot in self.slots.values():
                rehearse(self.slots, slot.view, 1.0, self.loss, batch, draws=5)
        return loss

    def stepped(self):
        self.monitor.step()


def assert_the_host_is_as_alone(training):
    alone, grown = Alone(training), Grown(training)
    born = copy.deepcopy([slot.seed.state_dict() for slot in grown.slots.values()])
    seen = alone.train()
    expected = alone.remains()
    told = grown.train()
    assert len(seen) == len(told)
    assert all(same_bits(a, b) for a, b in zip(seen, told, strict=True))
    remains = grown.remains()
    assert remains.keys() == expected.keys()
    for name, value in expected.items():
        assert same_bits(value, remains[name]), name
    return born, [slot.seed.state_dict() for slot in grown.slots.values()]


@given(trainings())
@settings(max_examples=40)
def test_nothing_of_a_host_changes_by_one_bit_while_a_seed_incubates(training):
    assert_the_host_is_as_alone(training)


PLAIN = Training(
    draw=0,
    topology=Topology.CNN,
    blueprint="drawing",
    incubator=Incubator.PROXIMAL,
    dtype=torch.float32,
    autocast=None,
    channels_last=False,
    in_place=True,
    dropout=0.2,
    momentum=False,
    clip=0.5,
    accumulate=1,
    scaled=False,
    every=3,
)


@pytest.mark.parametrize("incubator", Incubator)
@pytest.mark.parametrize("topology", Topology)
def test_meanwhile_the_seed_learns_unless_its_incubator_is_none(incubator, topology):
    training = changed(PLAIN, incubator=incubator, topology=topology)
    before, after = assert_the_host_is_as_alone(training)
    for born, now in zip(before, after, strict=True):
        moved = [n for n in born if not torch.equal(born[n], now[n])]
        assert bool(moved) is (incubator is not Incubator.NONE)
        if topology is Topology.CNN and moved:
            assert {"conv.weight", "norm.weight", "norm.running_mean"} <= set(moved)
            assert now["norm.num_batches_tracked"] == STEPS


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("incubator", Incubator)
def test_nor_does_it_while_a_broken_seed_incubates(incubator, broken, scaled):
    assert_the_host_is_as_alone(changed(PLAIN, incubator=incubator, broken=broken, scaled=scaled))
