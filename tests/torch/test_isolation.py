import math

import numpy as np
import pytest
import torch
from attrs import evolve as changed
from torch import nn

from kasmina.adapters.torch import leaks
from kasmina.adapters.torch.graft import graft
from kasmina.adapters.torch.isolation import Monitor, SlotObservation
from kasmina.domain.projections import Behaviour
from kasmina.domain.stages import Leak, Topology

NORM, LAST = "1", "4"


@pytest.fixture
def slots(kit):
    return graft(kit.host(), {NORM: Topology.CNN, LAST: Topology.CNN})


@pytest.fixture
def incubating(slots, view):
    """A slot in TRAINING that holds the given seed, which nobody probed."""

    def make(seed, behaviour=Behaviour.INCUBATE, alpha=0.0):
        slots[NORM].attach(seed)
        slots[NORM].follow(view(NORM, behaviour, alpha), 0)
        return slots[NORM]

    return make


class Leaky(nn.Module):
    def __init__(self, rule):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.rule = rule

    def forward(self, x):
        return self.rule(self.conv, x)


def step(slots, monitor, images):
    slots.model(images).square().sum().backward()
    monitor.observe_gradients()
    slots.model.zero_grad()
    monitor.step()


def seen(monitor):
    return [(v.leak, v.count, v.subject) for v in monitor.collect()[NORM].violations]


class TestLeaks:
    """What comes of a leak once it was seen; ``test_leaks.py`` has every way to leak."""

    def test_a_gradient_that_reaches_an_unknown_tensor_is_described(
        self, slots, incubating, images
    ):
        stray = torch.ones(8, 1, 1, requires_grad=True)
        incubating(Leaky(lambda conv, x: conv(x) * stray))
        monitor = Monitor(slots)
        step(slots, monitor, images)
        assert seen(monitor) == [(Leak.GRADIENT, 1, "a tensor of shape (8, 1, 1)")]

    @pytest.mark.parametrize("behaviour", [Behaviour.INCUBATE, Behaviour.BLEND])
    def test_a_write_to_the_activation_is_seen_and_prevented_from_then_on(
        self, slots, incubating, images, behaviour
    ):
        slot = incubating(Leaky(lambda conv, x: conv(x.relu_())), behaviour)
        monitor = Monitor(slots, every=1)
        for _ in range(3):
            step(slots, monitor, images)
        assert seen(monitor) == [(Leak.IN_PLACE_WRITE, 1, "activation")]
        features = torch.randn(2, 8, 4, 4)
        kept = features.clone()
        slot(features)
        assert torch.equal(features, kept)

    def test_a_fossil_that_writes_goes_on_with_a_copy(self, slots, incubating, images, view):
        slot = incubating(Leaky(lambda conv, x: conv(x.relu_())))
        step(slots, Monitor(slots), images)
        slot.follow(view(NORM, Behaviour.SEED), 0)
        features = torch.randn(2, 8, 4, 4)
        kept = features.clone()
        slot(features)
        assert torch.equal(features, kept)

    @pytest.mark.parametrize("behaviour", [Behaviour.INCUBATE, Behaviour.BLEND])
    def test_a_draw_is_seen_undone_and_isolated_from_then_on(
        self, slots, incubating, kit, images, behaviour
    ):
        incubating(kit.seed(dropout=0.5), behaviour)
        monitor, before = Monitor(slots), torch.get_rng_state()
        for _ in range(3):
            step(slots, monitor, images)
        assert torch.equal(torch.get_rng_state(), before)
        assert seen(monitor) == [(Leak.RANDOM_STREAM, 1, "cpu")]

    def test_a_well_behaved_seed_is_seen_to_do_nothing(self, slots, incubating, kit, images):
        slot, monitor = incubating(kit.seed()), Monitor(slots, every=1)
        for _ in range(3):
            step(slots, monitor, images)
        assert slot.seen
        assert seen(monitor) == []

    def test_a_write_that_was_seen_aside_is_prevented_from_then_on(self, slots, incubating):
        slot = incubating(Leaky(lambda conv, x: conv(x.relu_())))
        assert seen(Monitor(slots)) == [(Leak.IN_PLACE_WRITE, 1, "activation")]
        features = torch.randn(2, 8, 4, 4)
        kept = features.clone()
        slot.traced_run(slot, slot.traced_inlet(slot, features))
        assert torch.equal(features, kept)

    def test_a_seed_that_learns_in_rehearsals_alone_is_looked_at_aside(
        self, slots, incubating, view
    ):
        weight = slots.model[4].weight
        slot = incubating(Leaky(lambda conv, x: conv(x) * weight.mean()))
        resting = view(NORM, Behaviour.IDENTITY)
        slot.follow(resting, 0)
        assert seen(Monitor(slots)) == []  # it does not learn at all
        slot.follow(changed(resting, learning=True), 0)
        assert seen(Monitor(slots)) == [(Leak.GRADIENT, 1, "4.weight")]

    def test_a_fossil_is_part_of_its_host_and_not_looked_at(self, slots, incubating):
        weight = slots.model[4].weight
        incubating(Leaky(lambda conv, x: conv(x.relu_()) * weight.mean()), Behaviour.SEED)
        assert seen(Monitor(slots)) == []


class TestSharedMemory:
    @pytest.fixture
    def shared(self):
        def find(own, host):
            seed = nn.Module()
            seed.register_buffer("own", own)
            return [(mine, theirs) for mine, theirs, _ in leaks.shared(seed, host.items())]

        return find

    def test_views_at_any_offset_are_found(self, shared):
        base = torch.zeros(100)
        host = {"first": base[:40], "second": base[60:]}
        assert shared(base[70:80], host) == [("own", "second")]
        assert shared(base[:50], host) == [("own", "first")]
        assert shared(base[45:50], host) == [("own", "second")]  # whose storage it could resize
        assert shared(base.view(10, 10).t(), host) == [("own", "first")]

    def test_storages_that_overlap_in_part_are_found(self, shared):
        memory = np.zeros(100, dtype=np.float32)
        host = {"host": torch.from_numpy(memory[:60])}
        assert shared(torch.from_numpy(memory[59:]), host) == [("own", "host")]
        assert shared(torch.from_numpy(memory[60:]), host) == []

    def test_tensors_without_memory_share_none(self, shared):
        assert shared(torch.zeros(0), {"host": torch.zeros(0)}) == []
        assert shared(torch.zeros(3, device="meta"), {"host": torch.zeros(3, device="meta")}) == []

    def test_a_seed_in_another_slot_is_part_of_the_host(self, slots, incubating, kit):
        other = kit.seed()
        slots[LAST].attach(other)
        seed = kit.seed()
        seed.register_buffer("code", other.conv.weight.detach()[1:])
        incubating(seed).seen = True
        assert seen(Monitor(slots)) == [
            (Leak.SHARED_PARAMETER, 1, "code shares memory with kasmina.4.seed.conv.weight")
        ]


class TestSampling:
    def test_the_first_step_of_a_seed_is_watched_and_then_every_so_many(
        self, slots, incubating, kit, images
    ):
        slot, monitor, watched = incubating(kit.seed()), Monitor(slots, every=3), []
        for _ in range(7):
            watched.append(slot.watching)
            step(slots, monitor, images)
        assert watched == [True, False, False, True, False, False, True]

    def test_a_forward_without_gradient_is_not_a_training_step(
        self, slots, incubating, kit, images
    ):
        slot = incubating(kit.seed())
        with torch.no_grad():
            slots.model(images)
        slots.model.eval()(images)
        assert slot.watching

    def test_a_reset_begins_anew(self, slots, incubating, kit, images):
        slot, monitor = incubating(kit.seed(dropout=0.5)), Monitor(slots)
        step(slots, monitor, images)
        assert monitor.collect()[NORM] != SlotObservation()
        monitor.reset()
        assert slot.watching
        slots.model.eval()
        slot.seen = True
        assert monitor.collect()[NORM] == SlotObservation()

    def test_collecting_twice_shows_the_same(self, slots, incubating, kit, images):
        incubating(kit.seed(dropout=0.5))
        monitor = Monitor(slots)
        step(slots, monitor, images)
        assert monitor.collect() == monitor.collect()

    def test_a_culled_seed_takes_its_observations_along(self, slots, incubating, kit, images):
        slot, monitor = incubating(kit.seed(dropout=0.5)), Monitor(slots)
        step(slots, monitor, images)
        slot.detach()
        assert monitor.collect() == {NORM: SlotObservation(), LAST: SlotObservation()}

    def test_samples_are_at_least_a_step_apart(self, slots):
        with pytest.raises(ValueError, match="at least 1, got 0"):
            Monitor(slots, every=0)


class TestFigures:
    def test_the_gradient_norm_is_over_all_of_a_seeds_parameters(
        self, slots, incubating, kit, images
    ):
        slot, monitor = incubating(kit.seed()), Monitor(slots)
        slots.model(images).square().sum().backward()
        monitor.observe_gradients()
        expected = torch.stack([p.grad.norm() for p in slot.seed_parameters()]).norm()
        assert monitor.collect()[NORM].gradient_norm == pytest.approx(expected.item())

    def test_one_that_was_not_measured_is_none(self, slots, incubating, kit):
        incubating(kit.seed())
        monitor = Monitor(slots)
        monitor.observe_gradients()
        assert monitor.collect()[NORM].gradient_norm is None

    def test_the_norm_of_halves_does_not_end_at_their_range(self, slots, incubating):
        seed = nn.Conv2d(8, 8, 1)
        incubating(seed)
        slots.model.half()
        for parameter in seed.parameters():
            parameter.grad = torch.full_like(parameter, 60000.0)
        monitor = Monitor(slots)
        monitor.observe_gradients()
        observed = monitor.collect()[NORM]
        assert observed.gradient_norm == pytest.approx(60000 * 72**0.5)
        assert observed.nonfinite_gradients == 0

    def test_values_that_are_not_finite_are_counted(self, slots, incubating, kit, images):
        seed = kit.seed()
        nn.init.constant_(seed.conv.weight, float("nan"))
        incubating(seed)
        monitor = Monitor(slots, every=2)
        for _ in range(4):
            step(slots, monitor, images)
        observed = monitor.collect()[NORM]
        assert observed.nonfinite_outputs == 2  # of those that were watched, unseen by the host
        assert observed.nonfinite_gradients == 2
        assert math.isnan(observed.gradient_norm)
        monitor.reset()
        assert monitor.collect()[NORM].nonfinite_outputs == 0

    @pytest.mark.gpu
    def test_they_come_from_the_accelerator_too(self, slots, incubating, kit, images, accelerator):
        incubating(kit.seed(dropout=0.5))
        slots.model.to(accelerator)
        monitor = Monitor(slots)
        step(slots, monitor, images.to(accelerator))
        observed = monitor.collect()[NORM]
        assert observed.gradient_norm > 0
        assert [v.leak for v in observed.violations] == [Leak.RANDOM_STREAM]
