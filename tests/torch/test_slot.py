import copy
import gc
import weakref

import pytest
import torch
from attrs import evolve as changed
from torch import nn
from torch.utils.checkpoint import checkpoint

from kasmina.adapters.torch.graft import graft
from kasmina.adapters.torch.slot import SeedSlot, SlotMisuse, Sprout
from kasmina.adapters.torch.streams import Stream
from kasmina.domain.errors import FeatureMismatch, UngraftableModule
from kasmina.domain.evidence import Probe
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.projections import Behaviour
from kasmina.domain.schedules import AlphaSchedule, Curve
from kasmina.domain.stages import Incubator, SeedInput, Topology

BATCH_NORM = "1"


def make_slot(**changes):
    return SeedSlot("s", **{"topology": Topology.CNN, "width": 8, **changes})


@pytest.fixture
def grown(kit, view):
    """A host and its slot, with a seed that behaves as asked."""

    def make(behaviour, alpha=0.0, *, seed=None, seed_input=SeedInput.OPEN, host=None):
        model = host or kit.host()
        slot = graft(model, {BATCH_NORM: Topology.CNN})[BATCH_NORM]
        slot.attach(seed or kit.seed())
        slot.follow(view(BATCH_NORM, behaviour, alpha, seed_input=seed_input), 0)
        return model, slot

    return make


class TestIdentity:
    def test_an_empty_slot_returns_the_very_same_object(self):
        x, pair = torch.randn(2, 8, 4, 4), (torch.randn(2, 8, 4, 4), "extra")
        slot = make_slot()
        assert slot(x) is x
        assert slot(pair) is pair

    def test_a_seed_that_only_germinated_changes_nothing(self, kit, view):
        x, slot = torch.randn(2, 8, 4, 4), make_slot()
        slot.attach(kit.seed())
        slot.follow(view("s", Behaviour.IDENTITY), 0)
        assert slot(x) is x

    def test_a_paused_incubating_seed_does_not_run(self, kit, view):
        x, slot = torch.randn(2, 8, 4, 4), make_slot()
        slot.attach(kit.seed())
        slot.follow(view("s", Behaviour.INCUBATE, learning=False), 0)
        assert slot(x) is x

    def test_an_empty_slot_has_no_state_and_no_parameters(self):
        assert make_slot().state_dict() == {}
        assert list(make_slot().parameters()) == []


class TestOccupancy:
    def test_a_second_seed_is_refused(self, kit):
        slot = make_slot()
        slot.attach(kit.seed())
        with pytest.raises(SlotMisuse, match="holds a seed already"):
            slot.attach(kit.seed())

    def test_an_empty_slot_has_nothing_to_give_back(self):
        with pytest.raises(SlotMisuse, match="no seed to give back"):
            make_slot().detach()

    def test_a_seed_comes_back_trainable_and_the_slot_is_as_new(self, kit, view):
        slot, seed = make_slot(), kit.seed()
        seed.conv.bias.requires_grad_(requires_grad=False)
        slot.attach(seed)
        slot.follow(view("s", Behaviour.BLEND, 0.5), 3)
        assert slot.detach() is seed
        assert seed.conv.weight.requires_grad
        assert not seed.conv.bias.requires_grad
        assert slot.seed is None
        assert slot.alpha == 0
        assert slot.view.behaviour is Behaviour.IDENTITY

    def test_a_culled_seed_is_freed(self, kit, view, images):
        model = kit.host(inplace=True)
        slot = graft(model, {BATCH_NORM: Topology.CNN})[BATCH_NORM]
        for behaviour in (Behaviour.INCUBATE, Behaviour.BLEND, Behaviour.SEED):
            seed = kit.seed(dropout=0.5)
            gone = weakref.ref(seed)
            slot.attach(seed)
            slot.follow(view(BATCH_NORM, behaviour, 0.5), 0)
            model(images).sum().backward()
            del seed
            slot.detach()
            gc.collect()
            assert gone() is None

    def test_an_empty_slot_cannot_act(self, view):
        with pytest.raises(SlotMisuse, match="is empty and cannot blend"):
            make_slot().follow(view("s", Behaviour.BLEND), 0)

    def test_a_slot_follows_its_own_view_alone(self, view):
        with pytest.raises(SlotMisuse, match="'other'"):
            make_slot().follow(view("other", Behaviour.IDENTITY), 0)

    def test_a_seed_takes_on_the_mode_of_its_host(self, kit):
        slot = make_slot().eval()
        slot.attach(kit.seed())
        assert not slot.seed.training

    def test_a_sprout_brings_its_stream(self, kit):
        slot, stream = make_slot(), Stream(1)
        sprout = Sprout(module=kit.seed(), probe=Probe(), parameters=1, stream=stream)
        slot.attach(sprout)
        assert sprout.draws_randomness
        assert slot.own_stream is stream

    def test_a_seed_that_draws_nothing_has_no_stream(self, kit):
        slot = make_slot()
        slot.attach(kit.seed())
        with pytest.raises(SlotMisuse, match="no random stream"):
            _ = slot.own_stream


class TestLoading:
    def test_a_seeds_tensors_into_an_empty_slot_is_an_error_that_names_them(self, grown, kit):
        model, _ = grown(Behaviour.INCUBATE)
        state = model.state_dict()
        empty = kit.host()
        graft(empty, {BATCH_NORM: Topology.CNN})
        with pytest.raises(RuntimeError, match=r'Unexpected.*"kasmina.1.seed.conv.weight"'):
            empty.load_state_dict(state)
        found = empty.load_state_dict(state, strict=False)
        assert found.missing_keys == []

    def test_a_seeds_tensors_into_the_same_seed_is_none(self, grown, kit):
        model, _ = grown(Behaviour.INCUBATE)
        again, _ = grown(Behaviour.INCUBATE)
        again.load_state_dict(model.state_dict())
        assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))


class TestLearning:
    def test_only_what_was_trainable_follows(self, kit, view):
        slot, seed = make_slot(), kit.seed()
        seed.conv.bias.requires_grad_(requires_grad=False)
        slot.attach(seed)
        assert not seed.conv.weight.requires_grad
        slot.follow(view("s", Behaviour.INCUBATE), 0)
        assert seed.conv.weight.requires_grad
        assert not seed.conv.bias.requires_grad
        assert slot.learning

    def test_a_paused_seed_keeps_no_gradient_that_a_step_would_apply(self, kit, view):
        slot, seed = make_slot(), kit.seed()
        slot.attach(seed)
        slot.follow(view("s", Behaviour.BLEND, 0.5), 0)
        slot(torch.randn(2, 8, 4, 4)).sum().backward()
        assert seed.conv.weight.grad is not None
        slot.follow(view("s", Behaviour.BLEND, 0.5, learning=False), 0)
        assert seed.conv.weight.grad is None
        assert not seed.conv.weight.requires_grad

    def test_showing_a_view_leaves_gradients_alone(self, kit, view):
        slot, seed = make_slot(), kit.seed()
        slot.attach(seed)
        slot.follow(view("s", Behaviour.BLEND, 0.5), 0)
        slot(torch.randn(2, 8, 4, 4)).sum().backward()
        slot.show(view("s", Behaviour.IDENTITY), 0)
        assert seed.conv.weight.grad is not None
        assert seed.conv.weight.requires_grad


class TestAlpha:
    def test_it_is_filled_in_place_from_the_schedule(self, kit, view):
        slot = make_slot()
        slot.attach(kit.seed())
        ramp = AlphaSchedule(curve=Curve.LINEAR, start_step=0, steps=4)
        buffer = slot.alpha
        slot.follow(changed(view("s", Behaviour.BLEND), schedule=ramp), 1)
        assert slot.alpha == 0.25
        slot.set_alpha(2)
        assert slot.alpha == 0.5
        assert slot.alpha is buffer

    @pytest.mark.parametrize(("alpha", "expected"), [(0.0, "host"), (1.0, "seed")])
    def test_its_ends_are_exact(self, kit, view, alpha, expected):
        slot, seed, x = make_slot().eval(), kit.seed(), torch.randn(2, 8, 4, 4)
        slot.attach(seed)
        slot.follow(view("s", Behaviour.BLEND, alpha), 0)
        assert torch.equal(slot(x), x if expected == "host" else seed(x))

    def test_it_is_0_for_a_seed_that_incubates(self, kit, view):
        slot = make_slot()
        slot.attach(kit.seed())
        slot.follow(view("s", Behaviour.INCUBATE, 0.5), 0)
        assert slot.alpha == 0

    def test_one_that_rounds_to_1_in_the_slots_dtype_is_1(self, kit, view):
        slot = make_slot(dtype=torch.bfloat16).eval()
        seed, x = kit.seed().bfloat16(), torch.randn(2, 8, 4, 4).bfloat16()
        slot.attach(seed)
        slot.follow(view("s", Behaviour.BLEND, 0.9999), 0)
        assert torch.equal(slot(x), seed(x))


class TestFeatures:
    @pytest.mark.parametrize("kind", ["tuple", "list", "namedtuple", "dict"])
    def test_the_first_of_several_outputs_goes_through(self, kit, view, images, kind):
        model = nn.ModuleDict({"block": kit.returning(kind)})
        slot = graft(model, {"block": Topology.CNN})["block"]
        plain = model["block"](images)
        slot.attach(kit.seed())
        slot.follow(view("block", Behaviour.SEED), 0)
        model.eval()
        output = model["block"](images)
        assert type(output) is type(plain)
        (features, extra), (before, _) = (
            each.values() if kind == "dict" else each for each in (output, plain)
        )
        assert torch.equal(features, slot.seed(before))
        assert extra == "extra"

    def test_other_outputs_are_refused(self, kit, view, images):
        model = nn.ModuleDict({"block": kit.returning("text")})
        slot = graft(model, {"block": Topology.CNN})["block"]
        slot.attach(kit.seed())
        slot.follow(view("block", Behaviour.SEED), 0)
        with pytest.raises(UngraftableModule, match="returned str"):
            model["block"](images)

    @pytest.mark.parametrize("behaviour", [Behaviour.INCUBATE, Behaviour.BLEND])
    @pytest.mark.parametrize(
        ("seed", "told"),
        [
            (nn.Conv2d(8, 8, 3), r"float32 \(4, 8, 8, 8\)"),
            (nn.Conv2d(8, 8, 1).double(), "float64"),
            (nn.Sequential(nn.Conv2d(8, 8, 1), nn.LSTM(10, 10)), "tuple"),
        ],
        ids=["shape", "dtype", "kind"],
    )
    def test_a_seed_that_changes_them_is_told_apart(self, grown, images, behaviour, seed, told):
        model, _ = grown(behaviour, 0.5, seed=seed)
        if told == "float64":
            seed.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
        if told == "tuple":
            seed[1].register_forward_pre_hook(lambda _, inputs: (inputs[0][:, 0],))
        with pytest.raises(FeatureMismatch, match=told):
            model(images)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize(
        ("alpha", "behaviour"),
        [
            (0.0, Behaviour.INCUBATE),
            (0.0, Behaviour.BLEND),
            (0.5, Behaviour.BLEND),
            (1.0, Behaviour.BLEND),
        ],
    )
    def test_under_autocast_a_seed_answers_in_the_hosts_dtype(self, view, dtype, alpha, behaviour):
        slot, seed = make_slot(), nn.Conv2d(8, 8, 1)
        slot.attach(seed)
        slot.follow(view("s", behaviour, alpha), 0)
        x = torch.randn(2, 8, 4, 4, requires_grad=True)
        with torch.autocast("cpu", dtype=dtype):
            out = slot(x)
            expected = {0.0: x, 0.5: torch.lerp(x, seed(x).float(), 0.5), 1.0: seed(x).float()}
        assert out.dtype is torch.float32
        assert torch.equal(out, expected[alpha])
        out.sum().backward()
        assert seed.weight.grad.isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
    def test_a_slot_works_in_its_hosts_dtype(self, view, dtype, alpha):
        slot, seed = make_slot(), nn.Conv2d(8, 8, 1)
        slot.attach(seed)
        slot.to(dtype).follow(view("s", Behaviour.BLEND, alpha), 0)
        x = torch.randn(2, 8, 4, 4, dtype=dtype)
        expected = torch.lerp(x, seed(x), torch.tensor(alpha, dtype=dtype))
        out = slot(x)
        assert out.dtype is dtype
        assert torch.equal(out, {0.0: x, 0.5: expected, 1.0: seed(x)}[alpha])

    def test_channels_last_stays_channels_last(self, kit, view):
        slot = make_slot().to(memory_format=torch.channels_last)
        slot.attach(kit.seed().to(memory_format=torch.channels_last))
        x = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
        for behaviour, alpha in ((Behaviour.INCUBATE, 0.0), (Behaviour.BLEND, 0.5)):
            slot.follow(view("s", behaviour, alpha), 0)
            assert slot(x).is_contiguous(memory_format=torch.channels_last)


class TestUpstreamGradient:
    """What the host in front of the slot receives."""

    def gradient(self, model, images):
        model.zero_grad()
        model(images).square().sum().backward()
        return model[0].weight.grad

    def test_open_after_fossilization_it_is_that_of_the_seed_in_the_line(self, grown, kit, images):
        model, slot = grown(Behaviour.SEED)
        by_hand = kit.host()
        by_hand.load_state_dict(model.state_dict(), strict=False)
        by_hand.insert(2, copy.deepcopy(slot.seed))
        for parameter in by_hand.parameters():
            parameter.requires_grad_()
        expected = self.gradient(by_hand, images)
        assert torch.equal(self.gradient(model, images), expected)
        assert expected.abs().sum() > 0

    def test_detached_after_fossilization_there_is_none(self, grown, images):
        model, _ = grown(Behaviour.SEED, seed_input=SeedInput.DETACHED)
        assert self.gradient(model, images) is None

    @pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
    def test_detached_while_blending_it_is_1_minus_alpha(self, view, alpha):
        slot, x = make_slot(), torch.randn(2, 8, 4, 4, requires_grad=True)
        slot.attach(nn.Conv2d(8, 8, 1))
        slot.follow(view("s", Behaviour.BLEND, alpha, seed_input=SeedInput.DETACHED), 0)
        slot(x).sum().backward()
        assert torch.equal(x.grad, torch.full_like(x, 1 - alpha))

    def test_open_while_blending_it_is_that_of_the_blend(self, view):
        slot, seed = make_slot().double(), nn.Conv2d(8, 8, 1).double()
        slot.attach(seed)
        slot.follow(view("s", Behaviour.BLEND, 0.25), 0)
        x = torch.randn(2, 8, 4, 4, dtype=torch.float64, requires_grad=True)
        (expected,) = torch.autograd.grad(torch.lerp(x, seed(x), 0.25).square().sum(), x)
        (given,) = torch.autograd.grad(slot(x).square().sum(), x)
        torch.testing.assert_close(given, expected)

    def test_a_seeds_gradient_that_is_not_finite_stops_at_its_input(self, view):
        class Root(nn.Module):
            def __init__(self):
                super().__init__()
                self.gain = nn.Parameter(torch.ones(()))

            def forward(self, x):
                return self.gain * (x - x).sqrt()  # value 0, derivative infinite

        slot, x = make_slot(), torch.randn(2, 8, 4, 4, requires_grad=True)
        slot.attach(Root())
        slot.follow(view("s", Behaviour.BLEND, 0.25), 0)
        slot(x).sum().backward()
        assert torch.equal(x.grad, torch.full_like(x, 0.75))


class TestNotFinite:
    @pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
    def test_a_nan_seed_never_reaches_the_output_and_is_counted(self, view, alpha):
        slot, seed = make_slot(), nn.Conv2d(8, 8, 1)
        nn.init.constant_(seed.weight, float("nan"))
        slot.attach(seed)
        slot.follow(view("s", Behaviour.BLEND, alpha), 0)
        x = torch.randn(2, 8, 4, 4, requires_grad=True)
        out = slot(x)
        out.sum().backward()
        assert torch.equal(out, x)
        assert torch.equal(x.grad, torch.ones_like(x))
        assert slot.nonfinite_outputs == 1

    @pytest.mark.parametrize("incubator", [Incubator.STRAIGHT_THROUGH, Incubator.PROXIMAL])
    def test_an_incubating_one_is_counted_where_it_is_watched(self, view, incubator):
        """Nobody but the seed could suffer, so that no pass is spent on looking every time."""
        slot, seed = make_slot(), nn.Conv2d(8, 8, 1)
        nn.init.constant_(seed.bias, float("inf"))
        slot.attach(seed)
        plan = IncubationPlan(incubator=incubator)
        slot.follow(changed(view("s", Behaviour.INCUBATE), incubation=plan), 0)
        for sampled in (1, 2):
            for _ in range(3):
                slot(torch.randn(2, 8, 4, 4))
            assert slot.nonfinite_outputs == sampled
            slot.watch()


class TestHostsThatWorkInPlace:
    def test_a_host_that_overwrites_its_features_trains_as_without_the_seed(
        self, grown, kit, images
    ):
        plain = kit.host(inplace=True)
        model, slot = grown(Behaviour.INCUBATE, host=copy.deepcopy(plain))
        for _ in range(3):
            for each in (plain, model):
                each(images).square().sum().backward()
        assert torch.equal(plain[0].weight.grad, model[0].weight.grad)
        assert slot.overwritten is True
        assert slot.seed.conv.weight.grad.abs().sum() > 0

    @pytest.mark.parametrize("reentrant", [False, True])
    @pytest.mark.parametrize("behaviour", [Behaviour.INCUBATE, Behaviour.BLEND, Behaviour.SEED])
    def test_activation_checkpointing_changes_nothing(self, kit, view, reentrant, behaviour):
        gradients = []
        for checkpointed in (False, True):
            torch.manual_seed(0)
            model, x = nn.ModuleDict({"trunk": kit.host(inplace=True)}), torch.randn(4, 3, 12, 12)
            slot = graft(model, {"trunk.1": Topology.CNN})["trunk.1"]
            slot.attach(nn.Conv2d(8, 8, 1))
            slot.follow(view("trunk.1", behaviour, 0.5), 0)
            x.requires_grad_()
            for _ in range(3):
                model.zero_grad()
                if checkpointed:
                    out = checkpoint(model["trunk"], x, use_reentrant=reentrant)
                else:
                    out = model["trunk"](x)
                out.square().sum().backward()
            gradients.append([p.grad for p in model.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))

    def test_for_others_no_copy_is_made_after_the_first_step(self, grown, images):
        model, slot = grown(Behaviour.INCUBATE)
        for _ in range(3):
            model(images).sum().backward()
        assert slot.overwritten is False
        assert slot.handed is None


class TestStream:
    def test_a_seed_that_draws_leaves_its_hosts_stream_alone(self, kit, view):
        slot = make_slot()
        sprout = Sprout(module=kit.seed(dropout=0.5), probe=Probe(), parameters=1, stream=Stream(1))
        slot.attach(sprout)
        slot.follow(view("s", Behaviour.BLEND, 0.5), 0)
        before, x = torch.get_rng_state(), torch.randn(2, 8, 4, 4)
        torch.set_rng_state(before)
        assert not torch.equal(slot(x), slot(x))
        assert torch.equal(torch.get_rng_state(), before)

    def test_it_goes_on_from_a_state_that_was_kept(self):
        stream, device = Stream(1), torch.device("cpu")

        def draw():
            with stream.entered(device):
                return torch.rand(3)

        first, state = draw(), stream.state()
        second = draw()
        stream.set_state(state)
        assert torch.equal(draw(), second)
        assert not torch.equal(first, second)

    def test_it_is_left_where_it_stands_by_an_error(self):
        stream, device, before = Stream(1), torch.device("cpu"), torch.get_rng_state()
        with pytest.raises(TypeError), stream.entered(device):
            torch.rand(3) + "one"
        assert torch.equal(torch.get_rng_state(), before)
        with stream.entered(device):
            later = torch.rand(3)
        with Stream(1).entered(device):
            assert not torch.equal(torch.rand(3), later)

    def test_a_fossil_draws_from_the_hosts_stream_like_any_module(self, kit, view):
        slot = make_slot()
        sprout = Sprout(module=kit.seed(dropout=0.5), probe=Probe(), parameters=1, stream=Stream(1))
        slot.attach(sprout)
        slot.follow(view("s", Behaviour.SEED), 0)
        x, before = torch.randn(2, 8, 4, 4), torch.get_rng_state()
        slot(x)
        assert not torch.equal(torch.get_rng_state(), before)
