"""What a slot shows is exactly the host or exactly the seed, and never what is not finite."""

import copy
import functools
from contextlib import nullcontext

import pytest
import torch
from attrs import evolve as changed
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kasmina.adapters.torch.blueprints import blueprints
from kasmina.adapters.torch.graft import graft
from kasmina.adapters.torch.mixer import Mixer
from kasmina.adapters.torch.slot import SeedSlot, Sprout
from kasmina.domain.evidence import Probe
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.projections import Behaviour, SlotView
from kasmina.domain.schedules import held
from kasmina.domain.stages import Blend, Incubator, SeedInput, Stage, Topology
from tests.torch.bits import DTYPES, NONFINITE, as_on_a_device, same_bits, with_signed_zeros

SHAPES = {Topology.CNN: (2, 8, 4, 4), Topology.TRANSFORMER: (2, 5, 8)}
BESIDE = [Incubator.STRAIGHT_THROUGH, Incubator.PROXIMAL]
SHIPPED = [(topology, name) for topology in Topology for name in blueprints.names(topology)]

somewhere = pytest.mark.parametrize("place", [nullcontext, as_on_a_device], ids=["cpu", "device"])
shipped = pytest.mark.parametrize(
    ("topology", "blueprint"), SHIPPED, ids=[f"{t.value}-{name}" for t, name in SHIPPED]
)


@functools.cache
def _grown(topology, blueprint):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        seed = blueprints.build(topology, blueprint, 8)
        with torch.no_grad():
            for parameter in seed.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return seed


def grown(topology, blueprint):
    """A seed that is no longer the identity that it was born as."""
    return copy.deepcopy(_grown(topology, blueprint))


class Pointwise(nn.Module):
    """``rule(gain * x)``: a seed for features of every shape."""

    def __init__(self, rule):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.rule = rule

    def forward(self, x):
        return self.rule(self.gain * x)


def planted(seed, topology=Topology.CNN, *, dtype=torch.float32, **view):
    """A slot that acts as ``view`` says."""
    slot = SeedSlot("s", topology=topology, width=8)
    mixer = Mixer(topology, 8) if view.get("blend") is Blend.GATED else None
    slot.attach(Sprout(module=seed, probe=Probe(), parameters=1, stream=None, mixer=mixer))
    slot.to(dtype)
    slot.follow(SlotView(**{"slot_id": "s", "learning": True, **view}), 0)
    return slot


def passed(slot, x, gradient, *, autocast=None):
    """What comes out of a slot, and what comes back: to ``x`` and to each of its parameters."""
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    slot.zero_grad()
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        out = slot(leaf)
    out.backward(gradient)
    return out.detach(), leaf.grad, [p.grad for p in slot.parameters() if p.grad is not None]


def alike(one, other):
    """The same bits, but for the sign of a gradient that is zero: it changes no sum."""
    (out, to_host, to_seed), (out2, to_host2, to_seed2) = one, other
    gradients = zip([to_host, *to_seed], [to_host2, *to_seed2], strict=True)
    return same_bits(out, out2) and all(same_bits(a + 0.0, b + 0.0) for a, b in gradients)


@frozen
class Case:
    """A shipped blueprint, and features and a gradient to try it with."""

    shipped: tuple[Topology, str]
    dtype: torch.dtype
    channels_last: bool
    draw: int
    autocast: torch.dtype | None = None

    def seed(self):
        return grown(*self.shipped).to(self.dtype)

    def plant(self, seed=None, **view):
        return planted(seed or self.seed(), self.shipped[0], dtype=self.dtype, **view)

    def pass_through(self, module):
        shape = SHAPES[self.shipped[0]]
        x = with_signed_zeros(*shape, draw=self.draw, dtype=self.dtype)
        gradient = with_signed_zeros(*shape, draw=self.draw + 1, dtype=self.dtype)
        if self.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x, gradient, passed(module, x, gradient, autocast=self.autocast)


cases = st.builds(
    Case,
    shipped=st.sampled_from(SHIPPED),
    dtype=st.sampled_from(DTYPES),
    channels_last=st.booleans(),
    draw=st.integers(0, 2**31),
)
ORDINARY = Case((Topology.CNN, "conv_light"), torch.float32, False, 3)  # noqa: FBT003
RESTING = {
    "germinated": {"stage": Stage.GERMINATED, "learning": False},
    "rehearsing": {"incubation": IncubationPlan(incubator=Incubator.REHEARSAL)},
    "no incubator": {"incubation": IncubationPlan(incubator=Incubator.NONE), "learning": False},
    "paused": {"behaviour": Behaviour.INCUBATE, "learning": False, "paused_at": 0},
}


class TestIdentity:
    @pytest.mark.parametrize("resting", RESTING)
    @shipped
    def test_a_seed_that_does_not_act_hands_on_the_very_same_object(
        self, topology, blueprint, resting
    ):
        slot = planted(grown(topology, blueprint), topology, **RESTING[resting])
        x = torch.randn(SHAPES[topology])
        for output in (x, (x, "extra"), [x], {"features": x}, object()):
            assert slot(output) is output


class TestIncubation:
    @given(case=cases)
    @settings(max_examples=40)
    @pytest.mark.parametrize("incubator", BESIDE)
    def test_value_and_gradient_of_the_host_are_its_own(self, incubator, case):
        plan = IncubationPlan(incubator=incubator)
        slot = case.plant(behaviour=Behaviour.INCUBATE, incubation=plan)
        for _ in range(3):  # watched, copied, plain
            x, gradient, (out, to_host, to_seed) = case.pass_through(slot)
            assert same_bits(out, x)
            assert out.stride() == x.stride()
            assert same_bits(to_host, gradient)
            assert any(g.abs().sum() > 0 for g in to_seed)

    @pytest.mark.parametrize("incubator", BESIDE)
    def test_no_feature_is_copied_for_the_host(self, incubator):
        plan = IncubationPlan(incubator=incubator)
        slot = ORDINARY.plant(behaviour=Behaviour.INCUBATE, incubation=plan)
        x = torch.randn(SHAPES[Topology.CNN])
        assert all(slot(x).data_ptr() == x.data_ptr() for _ in range(3))

    @pytest.mark.parametrize("value", NONFINITE)
    @pytest.mark.parametrize("incubator", BESIDE)
    def test_a_seed_that_is_not_finite_is_not_noticed(self, incubator, value):
        slot = ORDINARY.plant(
            Pointwise(lambda x: torch.where(x > 1, value * x, x)),
            behaviour=Behaviour.INCUBATE,
            incubation=IncubationPlan(incubator=incubator),
        )
        for _ in range(3):
            x, gradient, (out, to_host, _) = ORDINARY.pass_through(slot)
            assert same_bits(out, x)
            assert same_bits(to_host, gradient)


class TestTheEndsOfAlpha:
    @given(case=cases)
    @settings(max_examples=25)
    @somewhere
    @pytest.mark.parametrize("blend", Blend)
    def test_at_0_value_and_gradient_are_the_hosts(self, blend, place, case):
        slot = case.plant(behaviour=Behaviour.BLEND, blend=blend)
        with place():
            x, gradient, (out, to_host, to_seed) = case.pass_through(slot)
        assert same_bits(out, x)
        assert same_bits(to_host + 0.0, gradient + 0.0)
        assert all(g.abs().sum() == 0 for g in to_seed)

    @given(case=cases)
    @settings(max_examples=40)
    @somewhere
    def test_at_1_value_and_every_gradient_are_the_seeds(self, place, case):
        slot = case.plant(behaviour=Behaviour.BLEND, schedule=held(1.0))
        with place():
            *_, blended = case.pass_through(slot)
        *_, alone = case.pass_through(case.seed())
        assert alike(blended, alone)

    @given(case=cases)
    @settings(max_examples=40)
    def test_a_fossil_is_the_seed_alone(self, case):
        *_, fossil = case.pass_through(case.plant(behaviour=Behaviour.SEED))
        *_, alone = case.pass_through(case.seed())
        assert same_bits(fossil[0], alone[0])
        assert same_bits(fossil[1], alone[1])
        assert all(same_bits(a, b) for a, b in zip(fossil[2], alone[2], strict=True))


halves = st.sampled_from([torch.bfloat16, torch.float16])
acting = st.fixed_dictionaries(
    {
        "behaviour": st.sampled_from([Behaviour.INCUBATE, Behaviour.BLEND]),
        "blend": st.sampled_from(Blend),
        "incubation": st.builds(IncubationPlan, incubator=st.sampled_from(BESIDE)),
        "schedule": st.sampled_from([0.0, 1e-6, 0.3, 0.999999, 1.0]).map(held),
        "seed_input": st.sampled_from(SeedInput),
    }
)


@given(case=cases, view=acting, autocast=st.none() | halves)
@settings(max_examples=120)
def test_a_cpu_and_a_device_give_the_same_bits(case, view, autocast):
    """Where numbers can be read at once, passes are spared; nobody can tell by the result."""
    if autocast is not None:
        case = changed(case, dtype=torch.float32, autocast=autocast)
    slot = case.plant(**view)
    *_, here = case.pass_through(slot)
    with as_on_a_device():
        *_, there = case.pass_through(slot)
    assert alike(here, there)


ODD = {  # finite, with a gradient that is not
    "infinite": lambda x: (x - x).sqrt(),
    "nan": lambda x: torch.where(x.isfinite(), x, (x - x).sqrt()),
}


class TestNotFinite:
    @given(
        value=st.sampled_from(NONFINITE),
        where=st.integers(0, 2 * 8 * 16 - 1),
        dtype=st.sampled_from(DTYPES),
        view=acting,
    )
    @settings(max_examples=60)
    @somewhere
    def test_a_single_entry_leaves_the_seed_out_of_value_and_gradient(
        self, place, value, where, dtype, view
    ):
        def spoil(x):
            return x.flatten().index_fill(0, torch.tensor([where]), value).view(x.shape)

        case = changed(ORDINARY, dtype=dtype)
        slot = case.plant(Pointwise(spoil), **view)
        with place():
            x, gradient, (out, to_host, _) = case.pass_through(slot)
        assert same_bits(out, x)
        assert same_bits(to_host + 0.0, gradient + 0.0)
        assert slot.nonfinite_outputs == 1

    @somewhere
    @pytest.mark.parametrize("blend", Blend)
    @pytest.mark.parametrize("alpha", [0.3, 1.0])
    @pytest.mark.parametrize("odd", ODD)
    def test_a_gradient_out_of_a_finite_seed_does_not_reach_the_host(
        self, odd, alpha, blend, place
    ):
        slot = ORDINARY.plant(
            Pointwise(ODD[odd]), behaviour=Behaviour.BLEND, blend=blend, schedule=held(alpha)
        )
        with place():
            _, _, (out, to_host, (to_seed, *_)) = ORDINARY.pass_through(slot)
        assert out.isfinite().all()
        assert not to_seed.isfinite().all()
        assert to_host.isfinite().all()


class Host(nn.Module):
    """What follows the slot works in place on what comes out of it."""

    def __init__(self, topology, between=None):
        super().__init__()
        cnn = topology is Topology.CNN
        self.before = nn.Conv2d(8, 8, 3, padding=1) if cnn else nn.Linear(8, 8)
        self.between = between or nn.Identity()
        self.after = nn.ReLU(inplace=True)
        self.last = nn.Conv2d(8, 3, 1) if cnn else nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.after(self.between(self.before(x))))


def learned(model, x):
    model.zero_grad()
    model(x).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if not name.startswith("between")}


LATE = {
    "SHADOWING": {"stage": Stage.SHADOWING, "behaviour": Behaviour.BLEND},
    "PROBATIONARY": {"stage": Stage.PROBATIONARY, "behaviour": Behaviour.BLEND},
    "FOSSILIZED": {"stage": Stage.FOSSILIZED, "behaviour": Behaviour.SEED},
}


class TestTheHostGoesOnLearning:
    @somewhere
    @pytest.mark.parametrize("stage", LATE)
    @shipped
    def test_its_gradient_is_that_of_the_model_with_the_seed_written_into_it(
        self, topology, blueprint, stage, place
    ):
        torch.manual_seed(2)
        host, x = Host(topology), torch.randn(SHAPES[topology])
        by_hand = Host(topology, grown(topology, blueprint))
        by_hand.load_state_dict(host.state_dict(), strict=False)
        slots = graft(host, {"before": topology})
        slots["before"].attach(grown(topology, blueprint))
        view = SlotView(slot_id="before", learning=True, schedule=held(1.0), **LATE[stage])
        slots["before"].follow(view, 0)
        expected = learned(by_hand, x)
        with place():
            told = learned(host, x)
        assert all(same_bits(told[name] + 0.0, expected[name] + 0.0) for name in expected)
        assert expected["before.weight"].abs().sum() > 0
        seed = slots["before"].seed
        for ours, theirs in zip(seed.parameters(), by_hand.between.parameters(), strict=True):
            assert same_bits(ours.grad + 0.0, theirs.grad + 0.0)

    @pytest.mark.parametrize("stage", LATE)
    def test_with_its_input_detached_it_gets_nothing_and_that_was_asked_for(self, stage):
        host, x = Host(Topology.CNN), torch.randn(SHAPES[Topology.CNN])
        slot = graft(host, {"before": Topology.CNN})["before"]
        slot.attach(grown(Topology.CNN, "conv_light"))
        view = SlotView(slot_id="before", learning=True, schedule=held(1.0), **LATE[stage])
        slot.follow(changed(view, seed_input=SeedInput.DETACHED), 0)
        gradient = learned(host, x).get("before.weight")
        assert gradient is None or not gradient.any()
