import copy

import pytest
import torch
from torch import nn

from kasmina.adapters.torch.germination import sprout
from kasmina.adapters.torch.graft import graft
from kasmina.domain.errors import UnfitSeed, UnknownBlueprint
from kasmina.domain.stages import Topology

NORM = "1"


@pytest.fixture
def slots(kit):
    return graft(kit.host(dropout=0.5), {NORM: Topology.CNN})


@pytest.fixture
def grow(slots):
    def make(build, init_seed=7):
        return sprout(
            slots[NORM],
            build,
            blueprint_id="mine",
            init_seed=init_seed,
            host_parameters=[tensor for _, tensor in slots.host_tensors()],
        )

    return make


class Wrapped(nn.Module):
    """A seed that computes ``rule(its convolution, x)``."""

    def __init__(self, rule):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.rule = rule

    def forward(self, x):
        return self.rule(self.conv, x)


class TestAFitSeed:
    def test_it_is_described_by_its_probe(self, grow, kit):
        grown = grow(kit.seed)
        assert grown.probe.input_shape == grown.probe.output_shape == (2, 8, 8, 8)
        assert grown.probe.input_dtype == grown.probe.output_dtype == "float32"
        count = sum(p.numel() for p in kit.seed().parameters())
        assert grown.parameters == grown.probe.trainable_parameters == count
        assert not grown.draws_randomness

    def test_frozen_parameters_count_apart(self, grow, kit):
        def build():
            seed = kit.seed()
            seed.conv.weight.requires_grad_(requires_grad=False)
            return seed

        grown = grow(build)
        assert grown.parameters - grown.probe.trainable_parameters == 8 * 8 * 9

    def test_its_weights_depend_on_the_init_seed_alone(self, grow, kit):
        first = grow(kit.seed).module.state_dict()
        torch.randn(10)
        again, other = grow(kit.seed).module.state_dict(), grow(kit.seed, 8).module.state_dict()
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not torch.equal(first["conv.weight"], other["conv.weight"])

    def test_it_is_as_it_was_born(self, grow, kit):
        grown = grow(kit.seed).module
        assert grown.norm.num_batches_tracked == 0
        assert torch.equal(grown.norm.running_mean, torch.zeros(8))
        assert all(p.grad is None for p in grown.parameters())

    def test_host_slot_and_random_streams_are_untouched(self, grow, slots, kit):
        before = {name: tensor.clone() for name, tensor in slots.host_tensors()}
        random_state = torch.get_rng_state()
        grow(lambda: kit.seed(dropout=0.5))
        assert torch.equal(torch.get_rng_state(), random_state)
        assert all(torch.equal(before[name], tensor) for name, tensor in slots.host_tensors())
        assert slots[NORM].seed is None

    def test_one_that_draws_has_a_stream_of_its_own(self, grow, kit):
        assert grow(lambda: kit.seed(dropout=0.5)).draws_randomness

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_it_is_probed_in_its_hosts_dtype(self, grow, slots, kit, dtype):
        slots.model.to(dtype)
        grown = grow(kit.seed)
        assert grown.module.conv.weight.dtype is dtype
        assert grown.probe.input_dtype == str(dtype).removeprefix("torch.")

    def test_it_follows_a_channels_last_host(self, grow, slots):
        layouts = []

        def look(conv, x):
            layouts.append(x.is_contiguous(memory_format=torch.channels_last))
            return conv(x)

        slots.model.to(memory_format=torch.channels_last)
        grow(lambda: Wrapped(look))
        assert layouts == [True]

    def test_it_can_be_grown_for_a_host_without_memory(self, slots, grow, kit):
        slots.model.to("meta")
        assert grow(kit.seed).module.conv.weight.is_meta

    @pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
    def test_it_does_not_matter_what_surrounds_it(self, grow, kit, around):
        with around(), torch.autocast("cpu", dtype=torch.bfloat16):
            grown = grow(kit.seed)
        assert grown.probe.output_dtype == "float32"
        grown.module(torch.randn(2, 8, 4, 4)).sum().backward()

    @pytest.mark.gpu
    def test_it_grows_on_the_accelerator_as_on_the_cpu(self, grow, slots, kit, accelerator):
        on_cpu = grow(kit.seed).module.state_dict()
        slots.model.to(accelerator)
        before = torch.get_device_module(accelerator).get_rng_state()
        there = grow(lambda: kit.seed(dropout=0.5))
        assert torch.equal(torch.get_device_module(accelerator).get_rng_state(), before)
        assert there.draws_randomness
        for name, tensor in there.module.state_dict().items():
            assert tensor.device.type == accelerator.type
            assert torch.equal(tensor.cpu(), on_cpu[name])


def raising(_conv, _x):
    raise ValueError("not today")


LEAKED = nn.Parameter(torch.ones(1))

UNFIT = {
    "shape": (lambda conv, x: conv(x)[..., :-1], r"turns features float32 \(2, 8, 8, 8\) into"),
    "dtype": (lambda conv, x: conv(x).double(), "into float64"),
    "kind": (lambda conv, x: (conv(x), x), "returns a tuple"),
    "in-place": (lambda conv, x: conv(x.relu_()), "writes in place"),
    "in-place-data": (lambda conv, x: conv(x.data.relu_()), "writes in place"),
    "raises": (raising, "its forward raised ValueError: not today"),
    "unused": (lambda conv, x: x * 2, "no gradient reaches"),
    "foreign": (lambda conv, x: conv(x) * LEAKED, r"not its own \(shape \(1,\)\)"),
    "not-finite": (lambda conv, x: conv(x) / 0, "output is not finite"),
    "bad-gradient": (lambda conv, x: (conv(x) * 0).sqrt() + x, "gradient is not finite"),
    "backward": (lambda conv, x: Broken.apply(conv(x)), "its backward raised"),
}


class Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        raise ValueError("not today")


class TestAnUnfitSeed:
    @pytest.mark.parametrize("name", UNFIT)
    def test_its_defect_is_named_and_nothing_is_touched(self, grow, slots, name):
        rule, told = UNFIT[name]
        before = {key: tensor.clone() for key, tensor in slots.host_tensors()}
        random_state = torch.get_rng_state()
        with pytest.raises(UnfitSeed, match=told) as caught:
            grow(lambda: Wrapped(rule))
        assert caught.value.blueprint == "mine"
        assert caught.value.slot_id == NORM
        assert slots[NORM].seed is None
        assert torch.equal(torch.get_rng_state(), random_state)
        assert all(torch.equal(before[key], tensor) for key, tensor in slots.host_tensors())

    def test_the_exception_that_it_raised_is_the_cause(self, grow):
        with pytest.raises(UnfitSeed) as caught:
            grow(lambda: Wrapped(raising))
        assert isinstance(caught.value.__cause__, ValueError)

    def test_all_its_defects_are_named(self, grow):
        with pytest.raises(UnfitSeed) as caught:
            grow(lambda: Wrapped(lambda conv, x: conv(x.relu_()).double() / 0))
        assert len(caught.value.defects) == 4

    def test_it_has_no_trainable_parameters(self, grow):
        with pytest.raises(UnfitSeed, match="no trainable parameters"):
            grow(nn.Identity)

    @pytest.mark.parametrize("what", ["parameter", "buffer", "view", "module"])
    def test_it_shares_memory_with_the_host_which_is_not_moved_or_run(self, grow, slots, kit, what):
        model = slots.model

        def build():
            seed = kit.seed()
            match what:
                case "parameter":
                    seed.conv.weight = model[4].weight
                case "buffer":
                    seed.norm.running_mean = model[1].running_mean
                case "view":
                    seed.conv.weight = nn.Parameter(model[4].weight.detach().flatten()[:64])
                case "module":
                    seed.norm = model[1].eval()
            return seed

        with pytest.raises(UnfitSeed, match="shares memory with the host"):
            grow(build)
        assert model[1].num_batches_tracked == 0

    def test_one_that_cannot_be_built_says_why(self, grow):
        with pytest.raises(UnfitSeed, match="could not be built: TypeError"):
            grow(lambda: nn.Conv2d("many"))

    def test_one_that_is_no_module_is_told(self, grow):
        with pytest.raises(UnfitSeed, match="built as a builtin"):
            grow(lambda: torch.relu)

    def test_an_unknown_blueprint_stays_what_it_is(self, grow):
        def build():
            raise UnknownBlueprint("cnov", ["conv"])

        with pytest.raises(UnknownBlueprint):
            grow(build)

    def test_the_slot_can_be_used_at_once(self, grow, slots, kit):
        with pytest.raises(UnfitSeed):
            grow(lambda: Wrapped(raising))
        slots[NORM].attach(grow(kit.seed))
        assert slots[NORM].seed is not None


def test_a_seed_probed_at_its_real_shape_sees_that_shape(kit, images):
    shapes = []
    slots = graft(kit.host(), {NORM: Topology.CNN}, example_inputs=(images,))

    def look(conv, x):
        shapes.append(x.shape)
        return conv(x)

    sprout(
        slots[NORM],
        lambda: Wrapped(look),
        blueprint_id="mine",
        init_seed=0,
        host_parameters=slots.host_parameters(),
    )
    assert shapes == [(4, 8, 10, 10)]


def test_copies_of_a_host_do_not_count_as_shared(kit):
    model = kit.host()
    twin = copy.deepcopy(model)
    slots = graft(model, {NORM: Topology.CNN})
    sprout(
        slots[NORM],
        lambda: nn.Sequential(nn.Conv2d(8, 8, 1), twin[1]),
        blueprint_id="mine",
        init_seed=0,
        host_parameters=slots.host_parameters(),
    )
