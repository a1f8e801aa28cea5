"""A rehearsal teaches one seed the loss of its blend, on a part of the batch, and nobody else."""

import copy
import math
import random

import pytest
import torch
from attrs import evolve as changed
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounter

from kasmina.adapters.torch.graft import graft
from kasmina.adapters.torch.measurement import SlotNotEvaluated
from kasmina.adapters.torch.mixer import Mixer
from kasmina.adapters.torch.randomness import RandomStreams
from kasmina.adapters.torch.rehearsal import part_of, rehearse
from kasmina.adapters.torch.slot import Sprout
from kasmina.adapters.torch.streams import Stream
from kasmina.domain.evidence import Probe
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.projections import Behaviour, SlotView
from kasmina.domain.schedules import held
from kasmina.domain.stages import Blend, Incubator, SeedInput, Stage, Topology
from tests.torch.bits import same_bits

FIRST, SECOND = "0", "3"


def build_host(*, dropout=0.0):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Dropout(dropout),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(8 * 16, 5),
    )


class Seed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x):
        return x + self.dropout(self.norm(self.conv(x)))


def view_of(slot_id, incubator, *, share=0.25, blend=Blend.LERP, learning=True):
    beside = incubator in (Incubator.STRAIGHT_THROUGH, Incubator.PROXIMAL)
    return SlotView(
        slot_id=slot_id,
        stage=Stage.TRAINING,
        seed_id=slot_id,
        behaviour=Behaviour.INCUBATE if beside else Behaviour.IDENTITY,
        learning=learning,
        incubation=IncubationPlan(incubator=incubator, share=share),
        blend=blend,
    )


class Bench:
    """A grafted host with a seed in each slot, and a batch."""

    def __init__(self, *, incubators=None, dropout=0.0, share=0.25, blend=Blend.LERP):
        self.host = build_host(dropout=dropout)
        self.slots = graft(self.host, {FIRST: Topology.CNN, SECOND: Topology.CNN})
        self.images, self.labels = torch.randn(7, 3, 4, 4), torch.randint(0, 5, (7,))
        for slot_id, incubator in (incubators or {FIRST: Incubator.REHEARSAL}).items():
            mixer = Mixer(Topology.CNN, 8) if blend is Blend.GATED else None
            module = Seed()
            sprout = Sprout(module=module, probe=Probe(), parameters=1, stream=None, mixer=mixer)
            self.slots[slot_id].attach(sprout)
            self.slots[slot_id].follow(view_of(slot_id, incubator, share=share, blend=blend), 0)

    def loss(self, images, labels):
        return nn.functional.cross_entropy(self.host(images), labels)

    def rehearse(self, slot_id=FIRST, *, alpha=1.0, loss=None, batch=None, draws=0):
        batch = (self.images, self.labels) if batch is None else batch
        view = self.slots[slot_id].view
        rehearse(self.slots, view, alpha, loss or self.loss, batch, draws=draws)

    def gradients(self, slot_id=FIRST):
        return [p.grad for p in self.slots[slot_id].seed_parameters()]


class TestThePart:
    @given(rows=st.integers(1, 50), share=st.floats(0.001, 1.0))
    def test_is_the_first_rows_at_least_one_rounded_up(self, rows, share):
        (part,) = part_of((torch.arange(rows),), share)
        assert torch.equal(part, torch.arange(max(1, math.ceil(share * rows))))

    def test_is_taken_of_every_tensor_inside_tuples_lists_and_dicts(self):
        images, mask, table = torch.randn(8, 3), torch.randn(8, 2, 2), torch.randn(5, 3)
        batch = ({"images": images, "more": [mask, (images, "text")]}, table, torch.tensor(3.0), 7)
        part = part_of(batch, 0.25)
        assert part[0]["images"].shape == (2, 3)
        assert torch.equal(part[0]["more"][0], mask[:2])
        assert torch.equal(part[0]["more"][1][0], images[:2])
        assert part[0]["more"][1][1] == "text"
        assert part[1] is table, "whose rows are not those of the batch"
        assert part[2] is batch[2]
        assert part[3] == 7

    def test_of_nothing_with_rows_is_all_of_it(self):
        assert part_of(("text", 3), 0.5) == ("text", 3)
        assert part_of((), 0.5) == ()


def by_hand(bench, alpha, rows, blend):
    """The gradients of the seed's parameters, from the blend written into the model."""
    slot = copy.deepcopy(bench.slots[FIRST])
    host = build_host().double()
    host.load_state_dict(bench.host.state_dict(), strict=False)
    features = host[0](bench.images[:rows])
    seed = slot.seed(features.detach())
    if blend is Blend.MULTIPLY:
        shown = features * (1 + alpha * torch.tanh(seed - features))
    else:
        share = 1.0 if blend is Blend.LERP else slot.mixer(features.detach())
        shown = features + alpha * share * (seed - features)
    loss = nn.functional.cross_entropy(host[1:](shown), bench.labels[:rows])
    return torch.autograd.grad(loss, list(slot.parameters()), allow_unused=True)


@pytest.mark.parametrize("blend", Blend)
@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize(("share", "rows"), [(0.25, 2), (0.5, 4), (1.0, 7)])
def test_the_gradient_is_that_of_the_detached_blend_written_by_hand(alpha, share, rows, blend):
    bench = Bench(share=share, blend=blend)
    bench.host.double()
    bench.images = bench.images.double()
    expected = by_hand(bench, alpha, rows, blend)
    bench.rehearse(alpha=alpha)
    for told, hand in zip(bench.gradients(), expected, strict=True):
        torch.testing.assert_close(told, hand)
    assert any(g.abs().sum() > 0 for g in bench.gradients())


def test_it_is_added_to_what_was_accumulated_before():
    bench = Bench()
    bench.rehearse()
    once = [g.clone() for g in bench.gradients()]
    bench.rehearse()
    for twice, one in zip(bench.gradients(), once, strict=True):
        torch.testing.assert_close(twice, 2 * one)


def everything_of_the_host(bench):
    streams = RandomStreams.capture().state_dict()
    return copy.deepcopy(
        {
            "tensors": dict(bench.slots.host_tensors()),
            "gradients": {n: p.grad for n, p in bench.slots.host_named_parameters()},
            "streams": streams,
            "modes": {name: module.training for name, module in bench.host.named_modules()},
            "views": [slot.view for slot in bench.slots.values()],
            "alphas": [slot.alpha for slot in bench.slots.values()],
        }
    )


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return same_bits(one, other) if isinstance(one, torch.Tensor) else one == other


class TestTheHost:
    def test_keeps_gradients_statistics_and_every_random_stream(self):
        numpy = pytest.importorskip("numpy")
        bench = Bench(dropout=0.5)
        bench.loss(bench.images, bench.labels).backward()
        before = everything_of_the_host(bench)

        def loss(images, labels):
            return bench.loss(images, labels) * (random.random() + numpy.random.random() + 1)

        bench.rehearse(loss=loss)
        assert same(everything_of_the_host(bench), before)
        assert all(g is not None for g in bench.gradients())

    def test_keeps_having_no_gradients_where_it_had_none(self):
        bench = Bench()
        bench.rehearse()
        assert all(p.grad is None for p in bench.slots.host_parameters())

    def test_is_as_before_also_after_a_loss_that_raised(self):
        bench = Bench(dropout=0.5, incubators=dict.fromkeys((FIRST, SECOND), Incubator.PROXIMAL))
        before = everything_of_the_host(bench)

        def loss(images, labels):
            bench.loss(images, labels)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            bench.rehearse(loss=loss)
        assert same(everything_of_the_host(bench), before)

    def test_may_have_buffers_without_memory_of_their_own(self):
        bench = Bench()
        bench.host.register_buffer("mask", torch.ones(1).expand(4))
        bench.rehearse()
        assert torch.equal(bench.host.mask, torch.ones(4))

    def test_may_be_frozen_altogether(self):
        bench = Bench()
        for parameter in bench.slots.host_parameters():
            parameter.requires_grad_(requires_grad=False)
        bench.rehearse()
        assert any(g.abs().sum() > 0 for g in bench.gradients())

    def test_may_run_inside_no_grad(self):
        bench = Bench()
        with torch.no_grad():
            bench.rehearse()
        assert any(g.abs().sum() > 0 for g in bench.gradients())


class TestTheDraws:
    def dropped(self, draws):
        bench = Bench(dropout=0.5)
        bench.rehearse(draws=draws)
        return bench.gradients()

    def test_are_decided_by_their_number(self):
        torch.manual_seed(3)
        first = self.dropped(5)
        again, other = self.dropped(5), self.dropped(6)
        assert all(same_bits(a, b) for a, b in zip(first, again, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


class TestSeveralSeeds:
    def test_each_learns_alone_while_the_others_rest(self):
        bench = Bench(incubators=dict.fromkeys((FIRST, SECOND), Incubator.REHEARSAL))
        acting = []

        def loss(images, labels):
            acting.append({s: slot.view.behaviour for s, slot in bench.slots.items()})
            return bench.loss(images, labels)

        bench.rehearse(FIRST, loss=loss)
        assert acting == [{FIRST: Behaviour.BLEND, SECOND: Behaviour.IDENTITY}]
        assert all(g is None for g in bench.gradients(SECOND))
        alone = Bench(incubators={FIRST: Incubator.REHEARSAL})
        alone.slots[FIRST].seed.load_state_dict(bench.slots[FIRST].seed.state_dict())
        alone.images, alone.labels = bench.images, bench.labels
        alone.rehearse(FIRST)
        pairs = zip(bench.gradients(FIRST), alone.gradients(FIRST), strict=True)
        assert all(same_bits(a, b) for a, b in pairs)

    def test_one_that_incubates_beside_the_host_neither_runs_nor_learns_meanwhile(self):
        bench = Bench(incubators={FIRST: Incubator.REHEARSAL, SECOND: Incubator.PROXIMAL})
        beside, calls = bench.slots[SECOND], []
        beside.seed.register_forward_pre_hook(lambda *_: calls.append(1))
        bench.rehearse(FIRST)
        assert calls == []
        assert all(g is None for g in bench.gradients(SECOND))
        assert beside.view.behaviour is Behaviour.INCUBATE
        assert beside.incubating == 1

    @pytest.mark.parametrize("behaviour", [Behaviour.BLEND, Behaviour.SEED])
    def test_one_that_is_exposed_already_takes_part_and_stays_what_it_is(self, behaviour):
        bench = Bench(incubators=dict.fromkeys((FIRST, SECOND), Incubator.REHEARSAL))
        exposed, calls = bench.slots[SECOND], []
        exposed.stream = Stream(4)
        exposed.seed.dropout.p = 0.5
        exposed.follow(changed(exposed.view, behaviour=behaviour, schedule=held(0.5)), 0)
        exposed(torch.randn(2, 8, 4, 4))
        before = copy.deepcopy((dict(exposed.state_dict()), exposed.stream.state()))
        exposed.seed.register_forward_pre_hook(lambda *_: calls.append(1))
        bench.rehearse(FIRST)
        assert calls == [1]
        assert all(g is None for g in bench.gradients(SECOND))
        assert same((dict(exposed.state_dict()), exposed.stream.state()), before)


class TestTheSeed:
    def test_has_statistics_of_its_own_that_go_on(self):
        bench = Bench()
        bench.rehearse()
        norm = bench.slots[FIRST].seed.norm
        assert norm.num_batches_tracked == 1
        assert norm.running_mean.abs().sum() > 0

    def test_is_read_through_a_detached_input_whatever_its_blend_will_have(self):
        bench = Bench()
        assert bench.slots[FIRST].view.seed_input is SeedInput.OPEN
        seen = []
        bench.slots[FIRST].seed.register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0].requires_grad)
        )
        bench.rehearse()
        assert seen == [False]

    def test_that_the_loss_never_ran_is_told(self):
        bench = Bench()
        elsewhere = build_host()
        for loss in (
            lambda images, labels: nn.functional.cross_entropy(elsewhere(images), labels),
            lambda images, labels: images.sum() + labels.sum(),
        ):
            with pytest.raises(SlotNotEvaluated, match=f"never ran slot '{FIRST}'"):
                bench.rehearse(loss=loss)
        assert all(g is None for g in bench.gradients())

    def test_that_is_not_finite_is_counted_and_leaves_the_loss_finite(self):
        bench, losses = Bench(), []
        nn.init.constant_(bench.slots[FIRST].seed.conv.weight, math.nan)
        bench.rehearse(loss=lambda *part: losses.append(bench.loss(*part)) or losses[-1])
        assert losses[0].isfinite()
        assert bench.slots[FIRST].nonfinite_outputs == 1


# torch warns of what its own compiler does with an autograd function.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_rehearses_eagerly(in_place):
    torch._dynamo.reset()
    eager, bench, counter = Bench(), Bench(), CompileCounter()
    eager.images, eager.labels = bench.images, bench.labels
    eager.slots[FIRST].seed.load_state_dict(bench.slots[FIRST].seed.state_dict())
    compiled = bench.host
    if in_place:
        bench.host.compile(backend=counter)
    else:
        compiled = torch.compile(bench.host, backend=counter)

    def loss(images, labels):
        return nn.functional.cross_entropy(compiled(images), labels)

    loss(bench.images, bench.labels).backward()
    graphs = counter.frame_count
    bench.rehearse(loss=loss)
    eager.rehearse()
    assert counter.frame_count == graphs > 0
    assert all(same_bits(a, b) for a, b in zip(bench.gradients(), eager.gradients(), strict=True))
    loss(bench.images, bench.labels).backward()
    assert counter.frame_count == graphs
    torch._dynamo.reset()
