"""A host that trains beside an incubating seed is, to the bit, the host that trains alone."""

import copy
import math

import pytest
import torch
from torch import nn

from kasmina.adapters.torch.germination import sprout
from kasmina.adapters.torch.graft import graft
from kasmina.adapters.torch.hosts import GPTHost
from kasmina.adapters.torch.isolation import Monitor
from kasmina.domain.projections import Behaviour
from kasmina.domain.stages import Topology

STEPS = 200


def conv_host():
    """Dropout, BatchNorm, and ReLUs that work in place on what the slots return."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Dropout(0.2),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Dropout2d(0.2),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 5),
    )


def batches(steps=STEPS):
    generator = torch.Generator().manual_seed(11)
    return [
        (
            torch.randn(8, 1, 8, 8, generator=generator),
            torch.randint(0, 5, (8,), generator=generator),
        )
        for _ in range(steps)
    ]


class Alone:
    """A host that knows nothing of seeds."""

    def __init__(self, model):
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def clip(self):
        return nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)

    def host(self):
        return dict(self.model.named_parameters())

    def before_step(self, number):
        pass

    def after_step(self):
        pass


class Grown(Alone):
    """The same host, grafted; a seed is born after ``birth`` steps and culled after ``cull``."""

    def __init__(self, model, targets, seed, view, *, birth=0, cull=math.inf, spoil=None):
        super().__init__(model)
        self.slots = graft(model, targets)
        self.monitor = Monitor(self.slots, every=7)
        self.optimizer.register_step_pre_hook(lambda *_: self.monitor.observe_gradients())
        self.seed, self.view, self.spoil = seed, view, spoil
        self.birth, self.cull = birth, cull

    def clip(self):
        return self.slots.clip_grad_norm_(0.5)

    def host(self):
        return dict(self.slots.host_named_parameters())

    def before_step(self, number):
        if number == self.birth:
            for slot_id, slot in self.slots.items():
                self.germinate(slot_id, slot)
        if number == self.cull:
            for slot in self.slots.values():
                slot.detach()
                del self.optimizer.param_groups[1:]

    def germinate(self, slot_id, slot):
        grown = sprout(
            slot,
            lambda: self.seed(slot.width),
            blueprint_id="mine",
            init_seed=3,
            host_parameters=[tensor for _, tensor in self.slots.host_tensors()],
        )
        slot.attach(grown)
        slot.follow(self.view(slot_id, Behaviour.INCUBATE), 0)
        if self.spoil is not None:
            nn.init.constant_(next(grown.module.parameters()), self.spoil)
        self.optimizer.add_param_group({"params": slot.seed_parameters(), "lr": 3e-3})

    def after_step(self):
        self.monitor.step()


def train(arm, data):
    torch.manual_seed(1)
    curve = []
    for number, (x, y) in enumerate(data):
        arm.before_step(number)
        arm.optimizer.zero_grad()
        logits = arm.model(x)
        loss = nn.functional.cross_entropy(logits.flatten(0, -2), y.flatten())
        loss.backward()
        curve += [loss.detach(), arm.clip()]
        arm.optimizer.step()
        arm.after_step()
    return curve


def assert_same_host(alone, grown):
    theirs = grown.host()
    for name, parameter in alone.host().items():
        assert torch.equal(parameter, theirs[name]), name
        ours = alone.optimizer.state[parameter]
        for key, value in grown.optimizer.state[theirs[name]].items():
            assert torch.equal(value, ours[key]), (name, key)
    buffers = dict(grown.model.named_buffers())
    for name, buffer in alone.model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


SPOILED = {"healthy": None, "inf": math.inf, "nan": math.nan}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_every_parameter_buffer_moment_and_loss_is_equal_after_200_steps(kit, view, spoil):
    model = conv_host()
    targets = {"1": Topology.CNN, "4": Topology.CNN}
    alone = Alone(copy.deepcopy(model))
    grown = Grown(model, targets, lambda width: kit.seed(width, dropout=0.3), view, spoil=spoil)
    curve, theirs = train(alone, batches()), train(grown, batches())
    assert all(torch.equal(a, b) for a, b in zip(curve, theirs, strict=True))
    assert_same_host(alone, grown)
    observed = grown.monitor.collect()
    assert all(slot.violations == () for slot in observed.values())
    counts = {slot.nonfinite_outputs for slot in observed.values()}
    sampled = 1 + (STEPS - 1) // grown.monitor.every
    assert counts == ({0} if spoil is None else {sampled})


def test_the_seed_learned_meanwhile(kit, view):
    grown = Grown(conv_host(), {"4": Topology.CNN}, kit.seed, view)
    data = batches(20)
    grown.before_step(0)
    born = copy.deepcopy(grown.slots["4"].seed.state_dict())
    grown.birth = -1
    train(grown, data)
    now = grown.slots["4"].seed.state_dict()
    assert not torch.equal(born["conv.weight"], now["conv.weight"])
    assert grown.monitor.collect()["4"].gradient_norm > 0


def test_a_seed_born_and_culled_in_mid_training_leaves_no_trace(kit, view):
    model = conv_host()
    alone = Alone(copy.deepcopy(model))
    grown = Grown(
        model,
        {"4": Topology.CNN},
        lambda width: kit.seed(width, dropout=0.3),
        view,
        birth=20,
        cull=60,
    )
    curve, theirs = train(alone, batches(80)), train(grown, batches(80))
    assert all(torch.equal(a, b) for a, b in zip(curve, theirs, strict=True))
    grown.slots.ungraft()
    assert_same_host(alone, grown)
    assert model.state_dict().keys() == alone.model.state_dict().keys()


class TokenSeed(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x):
        return x + self.dropout(self.linear(self.norm(x)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_transformer_is_left_alone_too(view, dtype):
    model = GPTHost(width=16, depth=2, heads=2, vocabulary=11, context=12, dropout=0.2).to(dtype)
    alone = Alone(copy.deepcopy(model))
    grown = Grown(model, {"blocks.0": Topology.TRANSFORMER}, TokenSeed, view)
    tokens = [torch.randint(0, 11, (4, 13)) for _ in range(30)]
    data = [(each[:, :-1], each[:, 1:]) for each in tokens]
    curve, theirs = train(alone, data), train(grown, data)
    assert all(torch.equal(a, b) for a, b in zip(curve, theirs, strict=True))
    assert_same_host(alone, grown)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_with_a_scaler_leaves_the_host_alone(kit, view, dtype):
    def run(arm):
        torch.manual_seed(1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=dtype is torch.float16)
        for number, (x, y) in enumerate(batches(20)):
            arm.before_step(number)
            arm.optimizer.zero_grad()
            with torch.autocast("cpu", dtype=dtype):
                loss = nn.functional.cross_entropy(arm.model(x), y)
            scaler.scale(loss).backward()
            scaler.unscale_(arm.optimizer)
            arm.clip()
            scaler.step(arm.optimizer)
            scaler.update()
            arm.after_step()

    model = conv_host()
    alone = Alone(copy.deepcopy(model))
    grown = Grown(model, {"4": Topology.CNN}, lambda width: kit.seed(width, dropout=0.3), view)
    run(alone)
    run(grown)
    assert_same_host(alone, grown)


def test_accumulated_gradients_are_the_same(kit, view):
    model = conv_host()
    alone = Alone(copy.deepcopy(model))
    grown = Grown(model, {"1": Topology.CNN}, lambda width: kit.seed(width, dropout=0.3), view)
    for arm in (alone, grown):
        torch.manual_seed(1)
        arm.before_step(0)
        for x, y in batches(4):
            nn.functional.cross_entropy(arm.model(x), y).backward()
    theirs = grown.host()
    for name, parameter in alone.host().items():
        assert torch.equal(parameter.grad, theirs[name].grad), name


@pytest.mark.gpu
def test_it_holds_on_an_accelerator(kit, view, accelerator):
    torch.backends.cudnn.deterministic = True
    model = conv_host().to(accelerator)
    alone = Alone(copy.deepcopy(model))
    grown = Grown(model, {"4": Topology.CNN}, lambda width: kit.seed(width, dropout=0.3), view)
    data = [(x.to(accelerator), y.to(accelerator)) for x, y in batches(50)]
    curve, theirs = train(alone, data), train(grown, data)
    assert all(torch.equal(a, b) for a, b in zip(curve, theirs, strict=True))
    assert_same_host(alone, grown)
