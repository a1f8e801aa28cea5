"""Every way to touch a host has a seed that does it and is seen; no other seed is seen to."""

import copy
import gc
import pickle
import random
import weakref

import numpy as np
import pytest
import torch
from attrs import evolve as changed
from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.checkpoint import checkpoint

from kasmina.adapters.torch import leaks
from kasmina.adapters.torch.blueprints import blueprints
from kasmina.adapters.torch.germination import sprout
from kasmina.adapters.torch.graft import graft
from kasmina.adapters.torch.hosts import GPTHost
from kasmina.adapters.torch.isolation import Monitor
from kasmina.domain.blueprints import SHIPPED
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.projections import Behaviour
from kasmina.domain.stages import Incubator, Leak, SeedInput, Topology
from tests.journeys.loop import build_host
from tests.torch import leaky

INCUBATE, BLEND = Behaviour.INCUBATE, Behaviour.BLEND

# As in TRAINING, from BLENDING on, and in a rehearsal.
ACTING = [
    (INCUBATE, SeedInput.DETACHED),
    (BLEND, SeedInput.OPEN),
    (BLEND, SeedInput.DETACHED),
]


def over(kinds):
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: kind.__name__)


@pytest.fixture(autouse=True)
def hooks_for_all_modules_end_with_the_test():
    registries = [each for name, each in vars(torch_module).items() if name.endswith("_hooks")]
    before = [dict(each) for each in registries]
    yield
    for registry, content in zip(registries, before, strict=True):
        registry.clear()
        registry.update(content)


@pytest.fixture
def victim():
    return leaky.Victim(build_host())


@pytest.fixture
def slots(victim):
    places = {leaky.Leaky.place, leaky.WritesToTheActivation.place}
    return graft(victim.host, dict.fromkeys(sorted(places), Topology.CNN))


@pytest.fixture
def monitor(slots):
    return Monitor(slots, every=1)


@pytest.fixture
def images():
    return torch.randn(4, 1, 6, 6)


@pytest.fixture
def plant(slots, victim, view, images):
    """A leaky seed that acts, and leaks from now on."""

    def make(kind, behaviour=INCUBATE, seed_input=SeedInput.OPEN):
        victim.host(images)  # some need what it computed
        slot = slots[kind.place]
        slot.attach(kind(slot.width, victim))
        slot.follow(view(slot.slot_id, behaviour, 0.5, seed_input=seed_input), 0)
        victim.leaking = True
        return slot

    return make


@pytest.fixture
def train(victim, monitor, images):
    """A training step."""
    return lambda: step(victim.host, monitor, images)


def step(model, monitor, images):
    model(images).square().sum().backward()
    monitor.observe_gradients()
    model.zero_grad()
    monitor.step()


def seen(monitor, slot_id=None):
    """The leaks of the seed in that slot, or of all seeds; each was seen once."""
    observed = monitor.collect()
    places = observed if slot_id is None else [slot_id]
    violations = [each for place in places for each in observed[place].violations]
    assert all(violation.count == 1 for violation in violations)
    return {(violation.leak, violation.subject) for violation in violations}


class TestEveryWayToLeak:
    def test_every_leak_has_a_seed(self):
        assert {leak for kind in leaky.SEEN for leak, _ in kind.sights} == set(Leak)

    @over(leaky.SEEN)
    @pytest.mark.parametrize("acting", ACTING)
    def test_is_seen_in_a_training_step(self, plant, train, monitor, kind, acting):
        plant(kind, *acting)
        train()
        assert seen(monitor) == kind.sights

    @over(leaky.SEEN)
    def test_is_not_seen_before_it_happens(self, plant, train, monitor, victim, kind):
        plant(kind)
        victim.leaking = False
        train()
        assert seen(monitor) == set()

    @over([each for each in (*leaky.SEEN, *leaky.UNANNOUNCED) if not each.needs_training])
    @pytest.mark.parametrize("behaviour", [INCUBATE, BLEND])
    def test_is_seen_aside_where_nothing_ran_that_could_be_watched(
        self, plant, monitor, kind, behaviour
    ):
        plant(kind, behaviour)
        assert seen(monitor) == kind.sights | kind.aside

    @over((*leaky.SEEN, *leaky.UNANNOUNCED))
    def test_leaves_nothing_in_the_host_when_it_was_looked_at_aside(
        self, plant, train, monitor, victim, kind
    ):
        train()
        victim.conv.weight.grad = torch.ones_like(victim.conv.weight)
        plant(kind)
        before = everything(victim.host)
        monitor.collect()
        assert everything(victim.host) == before

    def test_a_write_that_raises_no_version_is_not_seen_in_a_step(self, plant, train, monitor):
        plant(leaky.WritesUnannounced)
        train()
        assert seen(monitor) == set()


class TestNothingElse:
    """A seed that keeps to itself is never blamed, whatever its host does."""

    @pytest.fixture
    def grown(self, view):
        """A shipped seed at each slot of ``model``, which acts; and a monitor that samples all."""

        def make(model, targets, name, behaviour, seed_input):
            slots = graft(model, targets)
            for slot_id, slot in slots.items():
                slot.attach(born(slots, slot_id, name))
                slot.follow(view(slot_id, behaviour, 0.5, seed_input=seed_input), 0)
            return slots, Monitor(slots, every=1)

        return make

    @pytest.mark.parametrize("spec", SHIPPED, ids=lambda s: f"{s.topology.value}-{s.name}")
    @pytest.mark.parametrize(("behaviour", "seed_input"), ACTING)
    @pytest.mark.parametrize("mode", ["plain", "autocast", "channels_last", "checkpoint"])
    def test_no_shipped_seed_is_seen_to_leak(self, grown, spec, behaviour, seed_input, mode):
        model, targets, inputs = place(spec.topology)
        if mode == "channels_last":
            model.to(memory_format=torch.channels_last)
        slots, monitor = grown(model, targets, spec.name, behaviour, seed_input)
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
                run = model.forward if mode != "checkpoint" else checkpointed(model)
                run(inputs).square().mean().backward()
            monitor.observe_gradients()
            monitor.step()
        assert all(slot.seen for slot in slots.values())
        assert [each.violations for each in monitor.collect().values()] == [()] * len(slots)

    @pytest.mark.parametrize("spec", SHIPPED, ids=lambda s: f"{s.topology.value}-{s.name}")
    @pytest.mark.parametrize(("behaviour", "seed_input"), ACTING)
    def test_no_shipped_seed_is_seen_to_leak_aside(self, grown, spec, behaviour, seed_input):
        model, targets, _ = place(spec.topology)
        slots, monitor = grown(model, targets, spec.name, behaviour, seed_input)
        before = everything(model)
        assert [each.violations for each in monitor.collect().values()] == [()] * len(slots)
        assert everything(model) == before

    @pytest.mark.parametrize("use_reentrant", [True, False])
    def test_no_seed_answers_for_a_host_that_is_run_again_in_the_backward(
        self, grown, view, use_reentrant
    ):
        class Segment(nn.Module):
            """BatchNorm, and a seed whose backward is the first to need what was computed."""

            def __init__(self):
                super().__init__()
                self.block = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6))

            def forward(self, x):
                return checkpoint(self.block, x, use_reentrant=use_reentrant)

        model = Segment()
        slots, monitor = grown(model, {"block": Topology.CNN}, "norm", INCUBATE, SeedInput.OPEN)
        plan = IncubationPlan(
            incubator=Incubator.STRAIGHT_THROUGH
        )  # its own backward needs nothing
        slots["block"].follow(changed(slots["block"].view, incubation=plan), 0)
        step(model, monitor, torch.randn(4, 1, 6, 6, requires_grad=True))
        assert model.block[1].num_batches_tracked == 2
        assert seen(monitor, "block") == set()

    def test_no_seed_answers_for_an_optimizer_that_steps_in_the_backward(self, grown):
        model = build_host()
        _, monitor = grown(model, {"2": Topology.CNN}, "conv_light", INCUBATE, SeedInput.OPEN)

        def update(parameter):
            with torch.no_grad():
                parameter.sub_(parameter.grad, alpha=1e-3)
            parameter.grad = None

        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(update)
        before = model[2][0].weight.clone()
        step(model, monitor, torch.randn(4, 1, 6, 6))
        assert not torch.equal(model[2][0].weight, before)
        assert seen(monitor, "2") == set()

    def test_no_seed_answers_for_gradients_that_lie_in_one_bucket(self, grown):
        """As ``DistributedDataParallel(gradient_as_bucket_view=True)`` keeps them."""
        model = build_host()
        _, monitor = grown(model, {"2": Topology.CNN}, "conv_light", INCUBATE, SeedInput.OPEN)
        parameters = list(model.parameters())
        bucket = torch.zeros(sum(parameter.numel() for parameter in parameters))
        for part, parameter in zip(
            bucket.split([parameter.numel() for parameter in parameters]), parameters, strict=True
        ):
            parameter.grad = part.view_as(parameter)
        model(torch.randn(4, 1, 6, 6)).square().sum().backward()
        assert bucket.count_nonzero() > 0
        assert seen(monitor, "2") == set()

    def test_no_seed_answers_for_a_host_with_hooks_and_buffers_from_inference(self, grown):
        model = build_host()
        with torch.inference_mode():
            model.register_buffer("cached", torch.ones(3))
        _, monitor = grown(model, {"2": Topology.CNN}, "conv_light", INCUBATE, SeedInput.OPEN)
        for name, module in model.named_modules():
            if not name.startswith("kasmina"):
                module.register_forward_hook(leaky.nothing)
                module.register_full_backward_hook(leaky.nothing)
        step(model, monitor, torch.randn(4, 1, 6, 6, requires_grad=True))
        assert seen(monitor, "2") == set()


class TestSampling:
    @pytest.mark.parametrize("name", ["conv_heavy", "bottleneck", "attention", "norm"])
    @pytest.mark.parametrize("behaviour", [INCUBATE, BLEND])
    @pytest.mark.parametrize("dropout", [0.0, 0.3])
    def test_every_step_leaves_the_bits_that_sampling_none_leaves(
        self, view, name, behaviour, dropout
    ):
        always, never = (
            trained(view, name, behaviour, dropout, sampled=sampled) for sampled in (True, False)
        )
        assert always == never

    def test_a_step_that_was_sampled_leaves_no_hook_behind(self, plant, train, victim):
        slot = plant(leaky.Leaky)
        train()
        for parameter in slot.seed_parameters():
            assert not parameter._backward_hooks
            assert not parameter._post_accumulate_grad_hooks
        assert set(victim.norm._forward_pre_hooks) == set()

    def test_a_seed_that_was_watched_is_let_go_of_when_it_is_culled(self, plant, train):
        slot = plant(leaky.Leaky)
        train()
        culled = weakref.ref(slot.seed)
        slot.detach()
        gc.collect()
        assert culled() is None

    def test_a_graph_that_is_run_twice_tells_once(self, plant, monitor, victim, images):
        plant(leaky.WritesInItsBackward)
        loss = victim.host(images).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        assert seen(monitor) == leaky.WritesInItsBackward.sights

    def test_a_graph_that_is_never_run_tells_nothing(self, plant, monitor, victim, images):
        plant(leaky.WritesInItsBackward)
        victim.host(images)
        assert seen(monitor) == set()

    def test_a_backward_after_the_cull_is_not_blamed_on_the_next_seed(
        self, plant, train, monitor, victim, images
    ):
        slot = plant(leaky.WritesInItsBackward)
        loss = victim.host(images).square().sum()
        slot.detach()
        plant(leaky.Leaky)
        loss.backward()
        train()
        assert seen(monitor) == set()

    def test_a_copy_of_a_model_is_observed_by_nobody(self, plant, train, monitor, victim):
        plant(leaky.WritesToAParameter)
        twin = copy.deepcopy(victim.host)
        twin(torch.randn(4, 1, 6, 6)).sum().backward()
        victim.leaking = False
        train()
        assert seen(monitor) == set()

    def test_the_hooks_of_the_host_run_as_often_and_in_the_same_order(self, plant, train, victim):
        plant(leaky.Leaky)
        heard = []
        for number in range(2):
            victim.norm.register_forward_pre_hook(lambda *_, n=number: heard.append(n))
        train()
        assert heard == [0, 1]


def trained(view, name, behaviour, dropout, *, sampled):
    """Everything in a host and its optimizer after a training in which seeds were watched."""
    torch.manual_seed(0)
    model = build_host()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    slots = graft(model, {"0": Topology.CNN, "2": Topology.CNN})
    for slot_id, slot in slots.items():
        slot.attach(born(slots, slot_id, name, dropout))
        slot.follow(view(slot_id, behaviour, 0.5), 0)
        optimizer.add_param_group({"params": slot.seed_parameters()})
    monitor = Monitor(slots, every=1)
    for _ in range(6):
        for slot in slots.values():
            slot.watching = sampled
            slot.choose()
        optimizer.zero_grad()
        model(torch.randn(4, 1, 6, 6)).square().sum().backward()
        slots.clip_grad_norm_(1.0)
        if sampled:
            monitor.observe_gradients()
        optimizer.step()
    assert all(slot.seen is sampled for slot in slots.values())
    state = {
        parameter: {key: value.tolist() for key, value in optimizer.state[parameter].items()}
        for parameter in model.parameters()
    }
    tensors = [(name, tensor.tolist()) for name, tensor in leaks.tensors(model)]
    hosts = [(name, value) for name, value in tensors if not name.endswith("nonfinite_gradients")]
    return hosts, list(state.values()), torch.get_rng_state().tolist()


def place(topology):
    """A host with slots of that topology, and its inputs."""
    if topology is Topology.CNN:
        targets = {"0": Topology.CNN, "2": Topology.CNN}
        return build_host(), targets, torch.randn(4, 1, 6, 6)
    host = GPTHost(vocabulary=11, context=8, width=16, depth=2, heads=2)
    targets = dict.fromkeys(("blocks.0", "blocks.1"), Topology.TRANSFORMER)
    return host, targets, torch.randint(0, 11, (2, 8))


def born(slots, slot_id, name, dropout=0.0):
    slot = slots[slot_id]
    return sprout(
        slot,
        lambda: nn.Sequential(
            blueprints.build(slot.topology, name, slot.width), nn.Dropout(dropout)
        ),
        blueprint_id=name,
        init_seed=1,
        host_parameters=[tensor for _, tensor in slots.host_tensors()],
    )


def checkpointed(model):
    return lambda inputs: checkpoint(model, inputs, use_reentrant=False)


def everything(model):
    """All that a seed could change, in a form that compares."""
    tensors = [(name, id(t), t.tolist()) for name, t in leaks.tensors(model)]
    gradients = [p.grad if p.grad is None else (id(p.grad), p.grad.tolist()) for p in host(model)]
    modules = [torch_module, *model.modules()]
    hooks = [list(v) for each in modules for k, v in vars(each).items() if k.endswith("_hooks")]
    on_tensors = [
        list(each or ())
        for parameter in host(model)
        for each in (parameter._backward_hooks, parameter._post_accumulate_grad_hooks)
    ]
    numpy = pickle.dumps(np.random.get_state())  # noqa: NPY002  # the stream that all share
    return (
        tensors,
        gradients,
        hooks,
        on_tensors,
        numpy,
        random.getstate(),
        torch.get_rng_state().sum(),
    )


def host(model):
    return [p for name, p in model.named_parameters() if not name.startswith("kasmina")]
