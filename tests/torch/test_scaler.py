"""What an AMP scaler sees of a seed in incubation is finite, so that its host goes on alone."""

import copy
import gc
import inspect
import math
import weakref

import pytest
import torch
from torch import nn

from kasmina import IncubationPlan, Incubator, Objective, graft, open_run
from kasmina.adapters.torch.optimizer import SeedGroups
from kasmina.domain.projections import Behaviour, SlotView
from kasmina.domain.stages import Health, Stage, Topology

STEPS = 50
SPOILED = {"nan": math.nan, "inf": math.inf}

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "adamw, fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
}


def scaled(**options):
    """A scaler that grows within the test, so that one skipped step would be seen in its scale."""
    return torch.amp.GradScaler("cpu", **{"init_scale": 4.0, "growth_interval": 20, **options})


class Seed(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        return x + self.norm(self.linear(x))


def build_host():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.BatchNorm1d(5), nn.Linear(4, 2))


class Alone:
    """A host that knows nothing of seeds, and its scaler."""

    def __init__(self, build=OPTIMIZERS["sgd"]):
        self.model = build_host()
        self.optimizer = build(self.model.parameters())
        self.scaler = None
        self.generator = torch.Generator().manual_seed(1)

    def clip(self):
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)

    def step(self, *, factor=1.0, clip=False, rehearse=lambda x: None):
        """One step on the next batch, its loss times ``factor``."""
        x = torch.randn(6, 5, 3, generator=self.generator)
        self.optimizer.zero_grad()
        loss = self.model(x).square().mean() * factor
        self.scaler.scale(loss).backward()
        rehearse(x)
        if clip:
            self.scaler.unscale_(self.optimizer)
            self.clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state(self):
        """Everything of the host and its scaler, in the order of the host alone."""
        own = {name: p for name, p in self.model.named_parameters() if "kasmina" not in name}
        buffers = {n: b for n, b in self.model.named_buffers() if "kasmina" not in n}
        moments = {
            (name, key): value
            for name, parameter in own.items()
            for key, value in self.optimizer.state[parameter].items()
        }
        return {**own, **buffers, **moments}, self.scaler.state_dict()


class Seeded(Alone):
    """The same host with a seed in the same optimizer."""

    def __init__(self, build=OPTIMIZERS["sgd"]):
        super().__init__(build)
        self.slots = graft(self.model, {"0": Topology.TRANSFORMER})
        self.slot = self.slots["0"]
        self.groups = SeedGroups(self.optimizer)

    def clip(self):
        self.slots.clip_grad_norm_(1.0)

    def germinate(self, seed=None):
        self.slot.attach(seed or Seed())
        self.groups.add("s1", self.slot.seed_parameters())
        self.show(Stage.TRAINING, Behaviour.INCUBATE)

    def show(self, stage, behaviour, *, learning=True):
        view = SlotView(
            slot_id="0", stage=stage, seed_id="s1", behaviour=behaviour, learning=learning
        )
        self.slot.follow(view, 0)
        self.groups.shield(self.slot)

    def cull(self):
        self.slot.detach()
        self.groups.remove("s1")
        self.groups.shield(self.slot)

    def spoil(self, value):
        nn.init.constant_(self.slot.seed.linear.weight, value)

    def hooked(self):
        return [bool(p._post_accumulate_grad_hooks) for p in self.slot.seed_parameters()]


@pytest.fixture(autouse=True)
def no_scaler_of_another_test():
    gc.collect()


@pytest.fixture
def seeded():
    return Seeded()


def assert_same(alone, seeded):
    (tensors, scale), (theirs, other) = alone.state(), seeded.state()
    assert tensors.keys() == theirs.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, theirs[name]), name
    assert scale == other


@pytest.mark.parametrize("spoiled", SPOILED.values(), ids=SPOILED)
@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
class TestTheHostOfASeedThatIsNotFinite:
    def test_and_its_scaler_go_as_alone_when_the_scaler_was_there_first(self, build, spoiled):
        alone, seeded = Alone(build), Seeded(build)
        alone.scaler, seeded.scaler = scaled(), scaled()
        self.train(alone, seeded, spoiled, begin=5)

    def test_and_its_scaler_go_as_alone_when_the_scaler_came_last(self, build, spoiled):
        alone, seeded = Alone(build), Seeded(build)
        seeded.germinate()
        alone.scaler, seeded.scaler = scaled(), scaled()
        self.train(alone, seeded, spoiled)

    def test_goes_as_alone_with_clipping_too(self, build, spoiled):
        alone, seeded = Alone(build), Seeded(build)
        alone.scaler, seeded.scaler = scaled(), scaled()
        self.train(alone, seeded, spoiled, begin=5, clip=True)

    def train(self, alone, seeded, spoiled, *, begin=0, clip=False):
        for number in range(STEPS):
            if begin and number == begin:
                seeded.germinate()
            if number == begin:
                seeded.spoil(spoiled)
            alone.step(clip=clip)
            seeded.step(clip=clip)
        assert alone.scaler.get_scale() == 4.0 * 2**2
        assert_same(alone, seeded)
        assert seeded.slot.nonfinite_gradients == STEPS - begin


class TestWithoutItsShield:
    def test_the_same_seed_holds_its_host_up(self, seeded):
        alone = Alone()
        alone.scaler, seeded.scaler = scaled(), scaled()
        seeded.germinate()
        seeded.groups._shields.close()
        seeded.spoil(math.nan)
        alone.step()
        seeded.step()
        assert seeded.scaler.get_scale() < alone.scaler.get_scale()


class TestAShield:
    def test_leaves_a_sound_gradient_as_it_is(self):
        shielded, bare = Seeded(), Seeded()
        for each in (shielded, bare):
            each.scaler = scaled()
            torch.manual_seed(3)
            each.germinate()
        bare.groups._shields.close()
        for _ in range(10):
            shielded.step()
            bare.step()
        pairs = zip(shielded.slot.seed_parameters(), bare.slot.seed_parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
        assert shielded.slot.nonfinite_gradients == 0

    def test_drops_the_gradients_that_are_not_finite_and_keeps_the_others(self, seeded):
        seeded.scaler = scaled()
        seeded.germinate()
        seeded.slot.seed.linear.weight.register_hook(lambda gradient: gradient * math.inf)
        before = {n: p.detach().clone() for n, p in seeded.slot.seed.named_parameters()}
        seeded.step()
        assert torch.equal(seeded.slot.seed.linear.weight, before["linear.weight"])
        assert not torch.equal(seeded.slot.seed.norm.bias, before["norm.bias"])
        assert seeded.slot.nonfinite_gradients == 1

    def test_drops_a_whole_gradient_of_which_one_entry_overflowed(self, seeded):
        seeded.scaler = scaled()
        seeded.germinate()
        seeded.slot.seed.norm.bias.register_hook(
            lambda gradient: gradient.index_fill(0, torch.tensor([1]), math.inf)
        )
        before = seeded.slot.seed.norm.bias.detach().clone()
        seeded.step()
        assert torch.equal(seeded.slot.seed.norm.bias, before)

    def test_does_not_blame_a_seed_for_an_overflow_that_its_host_has_too(self):
        for build in OPTIMIZERS.values():
            seeded = Seeded(build)
            seeded.scaler = scaled()
            seeded.germinate()
            seeded.step(factor=math.inf)
            seeded.step()
            assert seeded.scaler.get_scale() == 2.0
            assert seeded.slot.nonfinite_gradients == 0

    @pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
    def test_serves_a_model_that_was_compiled_before(self, seeded):
        torch._dynamo.reset()
        fast = torch.compile(seeded.model, backend="eager", fullgraph=True)
        seeded.germinate()
        seeded.scaler = scaled()
        seeded.spoil(math.nan)
        seeded.scaler.scale(fast(torch.ones(6, 5, 3)).sum()).backward()
        assert all(p.grad.isfinite().all() for p in seeded.slot.seed_parameters())

    def test_is_not_copied_with_the_model(self, seeded):
        seeded.scaler = scaled()
        seeded.germinate()
        copied = copy.deepcopy(seeded.model)
        assert not any(p._post_accumulate_grad_hooks for p in copied.parameters())

    def test_keeps_neither_run_nor_scaler_alive(self, seeded):
        seeded.scaler = scaled()
        seeded.germinate()
        seeded.step()
        there = [weakref.ref(each) for each in (seeded.slot, seeded.scaler, seeded.groups)]
        del seeded.slot, seeded.scaler, seeded.groups, seeded.slots, seeded.model
        seeded.optimizer = None
        gc.collect()
        assert [each() for each in there] == [None, None, None]


class TestThereIsNoHook:
    def test_without_a_scaler(self, seeded):
        seeded.germinate()
        assert not any(seeded.hooked())

    def test_with_a_scaler_that_is_not_enabled(self, seeded):
        seeded.scaler = scaled(enabled=False)
        seeded.germinate()
        assert not any(seeded.hooked())

    def test_after_a_scaler_that_was_refused_its_arguments(self, seeded):
        with pytest.raises(TypeError) as raised:  # holds it alive
            torch.amp.GradScaler("cpu", scale=3.0)
        seeded.germinate()
        assert not any(seeded.hooked())
        assert raised.value.__traceback__ is not None

    def test_while_the_seed_is_paused_and_again_when_it_goes_on(self, seeded):
        seeded.scaler = scaled()
        seeded.germinate()
        assert all(seeded.hooked())
        seeded.show(Stage.TRAINING, Behaviour.INCUBATE, learning=False)
        assert not any(seeded.hooked())
        seeded.show(Stage.TRAINING, Behaviour.INCUBATE)
        assert all(seeded.hooked())

    def test_on_the_parameters_of_a_culled_seed(self, seeded):
        seeded.scaler = scaled()
        seeded.germinate()
        parameters = seeded.slot.seed_parameters()
        seeded.cull()
        assert not any(p._post_accumulate_grad_hooks for p in parameters)

    def test_once_the_groups_are_closed(self, seeded):
        seeded.germinate()
        seeded.groups.close()
        seeded.scaler = scaled()
        assert not any(seeded.hooked())

    def test_more_than_one_for_each_parameter_however_often_it_is_raised(self, seeded):
        seeded.germinate()
        kept = [scaled() for _ in range(3)]
        seeded.show(Stage.TRAINING, Behaviour.INCUBATE)
        hooks = [len(p._post_accumulate_grad_hooks) for p in seeded.slot.seed_parameters()]
        assert hooks == [1] * len(hooks)
        assert len(kept) == 3


class TestTheScalerSees:
    def test_an_exposed_seed_that_overflows_since_it_is_part_of_the_model(self, seeded):
        seeded.scaler = scaled()
        seeded.germinate()
        seeded.show(Stage.BLENDING, Behaviour.BLEND)
        assert not any(seeded.hooked())
        seeded.slot.seed.norm.bias.register_hook(lambda gradient: gradient * math.nan)
        seeded.step()
        assert seeded.scaler.get_scale() == 2.0


class TestAScalerIsKnown:
    def test_of_a_subclass(self, seeded):
        class Own(torch.amp.GradScaler):
            pass

        seeded.germinate()
        seeded.scaler = Own("cpu")
        assert all(seeded.hooked())

    def test_that_is_a_copy(self, seeded):
        scaler = scaled()
        original = copy.deepcopy(scaler)
        del scaler
        gc.collect()
        seeded.germinate()
        assert all(seeded.hooked())
        assert original.is_enabled()

    def test_and_made_as_ever(self):
        SeedGroups(torch.optim.SGD([nn.Parameter(torch.ones(1))]))
        parameters = inspect.signature(torch.amp.GradScaler).parameters
        assert list(parameters)[:2] == ["device", "init_scale"]
        assert type(scaled()) is torch.amp.GradScaler


@pytest.mark.parametrize(
    "incubator", [Incubator.STRAIGHT_THROUGH, Incubator.PROXIMAL, Incubator.REHEARSAL]
)
def test_a_run_keeps_its_scaler_from_seeing_a_seed_that_is_not_finite(tmp_path, incubator):
    alone, seeded = Alone(), Seeded()
    seeded.groups.close()
    alone.scaler, seeded.scaler = scaled(), scaled()
    with open_run(
        f"sqlite:///{tmp_path}/runs.db",
        name="scaled",
        slots=seeded.slots,
        optimizer=seeded.optimizer,
        objective=Objective.minimize("loss"),
    ) as run:
        run.germinate("0", "lora", incubation=IncubationPlan(incubator=incubator))
        for number in range(10):
            if number == 3:
                for parameter in seeded.slot.seed_parameters():
                    nn.init.constant_(parameter, math.nan)
            alone.step()
            seeded.step(
                rehearse=lambda x: run.rehearse(
                    lambda part: seeded.scaler.scale(seeded.model(part).square().mean()), x
                )
            )
            run.step()
        assert_same(alone, seeded)
        run.end_epoch(None)
        assert run.state.slot("0").seed.health is Health.UNHEALTHY
        run.cull("0", "not finite")
        assert not seeded.hooked()
