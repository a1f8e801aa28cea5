"""A baked model: the bits of the grafted one, made of torch and the host's own classes alone."""

import copy
import io
import pickle
import re
import subprocess
import sys
import textwrap
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch.utils.hooks import RemovableHandle

from kasmina.adapters.torch.bake import BakedDiffers, BakeTooEarly, Tensors, Unbakeable, bake
from kasmina.adapters.torch.blueprints import blueprints
from kasmina.adapters.torch.blueprints.parts import ChannelNorm, Residual, ZeroConv2d
from kasmina.adapters.torch.graft import Slots, graft
from kasmina.adapters.torch.mixer import Mixer
from kasmina.adapters.torch.plain import plain
from kasmina.adapters.torch.slot import Sprout
from kasmina.domain.blueprints import SHIPPED
from kasmina.domain.errors import UngraftableModule
from kasmina.domain.evidence import Probe
from kasmina.domain.projections import Behaviour, SlotView
from kasmina.domain.schedules import held
from kasmina.domain.stages import Blend, SeedInput, Stage, Topology

CNN, TRANSFORMER = Topology.CNN, Topology.TRANSFORMER
WIDTH = 8
Pair = namedtuple("Pair", ["extra", "features"])  # noqa: PYI024  # as strangers' models return it


@dataclass(frozen=True)
class Output:
    extra: object
    features: torch.Tensor


class Answer(OrderedDict):
    """As the outputs of many libraries: a mapping of a class of its own."""


class Block(nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)))


class Host(nn.Module):
    """Has a target with a forward of its own, and one that is an ``nn.Sequential``."""

    def __init__(self):
        super().__init__()
        self.first = Block()
        self.second = nn.Sequential(Block(), nn.ReLU())
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        return self.head(self.second(self.first(x)).mean((2, 3)))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True)
        self.inner = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x):
        return self.norm(self.inner(x))


class Returning(nn.Module):
    """A host whose target returns its features as ``wrap`` does, and unwraps them itself."""

    def __init__(self, wrap, unwrap):
        super().__init__()
        self.layer = Wrapping(wrap)
        self.unwrap = unwrap

    def forward(self, x):
        output = self.layer(x)
        return output, self.unwrap(output).mean()


class Wrapping(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.conv(x))


def images(dtype=torch.float32):
    return torch.randn(4, WIDTH, 6, 6).to(dtype)


def tokens(dtype=torch.float32):
    return torch.randn(3, 5, WIDTH).to(dtype)


def drawn(module):
    """A seed that does something: the shipped ones are the identity at birth."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return module


def fossilise(slot, seed, *, blend=Blend.LERP, target=1.0, seed_input=SeedInput.OPEN):
    """As the domain projects it at the end of a seed's life."""
    mixer = drawn(Mixer(slot.topology, slot.width)) if blend is Blend.GATED else None
    sprout = Sprout(module=drawn(seed), probe=Probe(), parameters=1, stream=None, mixer=mixer)
    slot.attach(sprout)
    slot.to(slot.alpha.dtype)
    replaces = blend is Blend.LERP and target == 1.0
    view = SlotView(
        slot_id=slot.slot_id,
        stage=Stage.FOSSILIZED,
        seed_id="seed",
        behaviour=Behaviour.SEED if replaces else Behaviour.BLEND,
        seed_input=seed_input,
        learning=True,
        blend=blend,
        schedule=held(target),
    )
    slot.follow(view, 0)


def grown(model=None, targets=("first", "second"), topology=CNN, name="conv_light", **life):
    """A grafted model, with a fossilized seed in every slot."""
    slots = graft(model or Host(), dict.fromkeys(targets, topology), example_inputs=None)
    for slot in slots.values():
        fossilise(slot, blueprints.build(topology, name, WIDTH), **life)
    return slots.model


def train(model, x, steps=3):
    """Losses, and all tensors at the end but the slots' own names."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def reloaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


class TestOutputs:
    @pytest.mark.parametrize("spec", SHIPPED, ids=lambda spec: f"{spec.topology.value}-{spec.name}")
    @settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_are_those_of_the_grafted_model_bit_for_bit(self, spec, data):
        cnn = spec.topology is CNN
        host, targets, features = (
            (Host, ("first", "second"), images)
            if cnn
            else (Encoder, ("inner.layers.0", "inner.layers.1", "norm"), tokens)
        )
        dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
        torch.manual_seed(data.draw(st.integers(0, 2**31)))
        chosen = data.draw(st.lists(st.sampled_from(targets), min_size=1, unique=True))
        blend = data.draw(st.sampled_from(Blend))
        model = grown(
            host().to(dtype),
            chosen,
            spec.topology,
            spec.name,
            blend=blend,
            target=data.draw(st.sampled_from([0.25, 0.9, 1.0])),
            seed_input=data.draw(st.sampled_from(SeedInput)),
        )
        x = features(dtype)
        baked = bake(model)
        assert torch.equal(baked.train()(x), model.train()(x))
        assert torch.equal(baked.eval()(x), model.eval()(x))
        with torch.no_grad():
            assert torch.equal(baked(x), model(x))
            assert torch.equal(reloaded(baked)(x), model(x))

    @pytest.mark.parametrize("blend", Blend)
    def test_follow_autocast(self, blend):
        model, x = grown(blend=blend, target=0.3).eval(), images()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(bake(model)(x), model(x))

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_keep_the_memory_format(self, layout):
        model, x = grown().to(memory_format=layout).eval(), images().to(memory_format=layout)
        ours, theirs = bake(model).first(x), model.first(x)
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()

    def test_of_seeds_in_series_come_in_order(self):
        for targets in ("first", "second"):
            slots = graft(Host(), {targets: (CNN, CNN)})
            for slot in slots.values():
                fossilise(slot, nn.Conv2d(WIDTH, WIDTH, 3, padding=1))
            x, baked = images(), bake(slots.model)
            assert torch.equal(baked.eval()(x), slots.model.eval()(x))
            series = baked.get_submodule(targets)
            assert torch.equal(series.seed.weight, slots[targets].seed.weight)
            assert torch.equal(series.seed2.weight, slots[f"{targets}:2"].seed.weight)

    def test_of_targets_inside_targets_are_right(self):
        model = grown(targets=("second", "second.0", "second.0.conv"))
        x = images()
        assert torch.equal(bake(model).eval()(x), model.eval()(x))

    def test_of_a_module_called_twice_are_right(self):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = Block()
                self.again = self.layer

            def forward(self, x):
                return self.again(self.layer(x))

        model, x = grown(Twice(), ("layer",)), images()
        baked = bake(model)
        assert torch.equal(baked.eval()(x), model.eval()(x))
        assert baked.again is baked.layer

    def test_of_a_container_that_runs_its_children_itself_are_right(self):
        class Dense(nn.ModuleDict):
            def forward(self, x):
                features = [x]
                for layer in self.values():
                    features.append(layer(torch.stack(features).sum(0)))
                return features[-1]

        model = nn.Sequential(Dense({"a": Block(), "b": nn.Sequential(Block())}), nn.ReLU())
        grown(model, ("0",))
        x, baked = images(), bake(model)
        assert torch.equal(baked.eval()(x), model.eval()(x))
        assert list(baked[0]) == ["a", "b"]

    def test_keep_the_fast_path_of_a_transformer_layer(self, monkeypatch):
        model = grown(Encoder(), ("inner.layers.0", "inner.layers.1"), TRANSFORMER, "mlp").eval()
        fast, calls = torch._transformer_encoder_layer_fwd, []

        def spy(*args):
            calls.append(args)
            return fast(*args)

        monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", spy)
        baked, x = bake(model), tokens()
        with torch.no_grad():
            for each in (baked, reloaded(baked), copy.deepcopy(baked)):
                assert torch.equal(each(x), model(x))
        assert len(calls) == 3 * 2 * 2

    def test_come_before_the_hosts_own_hooks(self):
        model, x = grown(targets=("first",)), images()
        model.first.register_forward_hook(lambda module, args, output: output * 3)
        assert torch.equal(bake(model).eval()(x), model.eval()(x))

    def test_of_a_model_baked_and_grafted_again_are_right(self):
        for targets in ("first", "second"):
            again, x = grown(bake(grown()), (targets,)), images()
            assert torch.equal(bake(again).eval()(x), again.eval()(x))

    def test_of_a_graft_inside_a_graft_are_right(self):
        inner = grown(targets=("first",))
        model = grown(nn.Sequential(Block(), inner, nn.Unflatten(1, (3, 1, 1))), ("0",))
        x, baked = images(), bake(model)
        assert torch.equal(baked.eval()(x), model.eval()(x))
        assert kasmina_in(baked) == []

    def test_of_a_seed_that_writes_in_place_leave_the_host_alone(self):
        seed = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(WIDTH, WIDTH, 1))
        host = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.Sigmoid())
        slots = graft(host, {"1": CNN}, example_inputs=(images(),))
        fossilise(slots["1"], seed)
        slots["1"].writes = True
        slots["1"].choose()
        x, baked = images(), bake(slots.model)
        baked(x).sum().backward()  # the sigmoid needs its own output for that
        assert torch.equal(baked(x), slots.model(x))

    def test_of_a_seed_that_draws_are_equal_in_eval_and_drawn_as_torch_does_in_training(self):
        slots = graft(Host(), {"first": CNN})
        fossilise(slots["first"], nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.Dropout(0.5)))
        x, baked = images(), bake(slots.model)
        assert torch.equal(baked.eval()(x), slots.model.eval()(x))
        torch.manual_seed(1)
        one = baked.train()(x)
        torch.manual_seed(2)
        assert not torch.equal(baked(x), one)


CONTAINERS = {
    "tuple": (lambda h: (None, h, "extra"), lambda out: out[1]),
    "pair": (lambda h: (h, "extra"), lambda out: out[0]),
    "list": (lambda h: ["extra", h], lambda out: out[1]),
    "named": (lambda h: Pair("extra", h), lambda out: out.features),
    "dict": (lambda h: {"extra": None, "features": h, "more": 1}, lambda out: out["features"]),
    "mapping": (lambda h: Answer(extra=None, features=h), lambda out: out["features"]),
    "dataclass": (lambda h: Output(None, h), lambda out: out.features),
    "nested": (lambda h: ({"x": [3, Output("y", h)]}, 4), lambda out: out[0]["x"][1].features),
}


class TestContainers:
    @pytest.mark.parametrize("kind", CONTAINERS)
    def test_are_handed_on_with_the_features_replaced(self, kind):
        wrap, unwrap = CONTAINERS[kind]
        x, model = images(), grown(Returning(wrap, unwrap), ("layer",)).eval()
        baked = bake(model, example_inputs=(x,))
        baked.layer.wrap = baked.unwrap = model.layer.wrap = model.unwrap = None  # not picklable
        for each in (baked, copy.deepcopy(baked), reloaded(baked)):
            each.layer.wrap, each.unwrap = wrap, unwrap
            model.layer.wrap, model.unwrap = wrap, unwrap
            (ours, mean), (theirs, expected) = each(x), model(x)
            assert type(ours) is type(theirs)
            assert torch.equal(unwrap(ours), unwrap(theirs))
            assert torch.equal(mean, expected)
            assert not torch.equal(unwrap(ours), model.layer.conv(x))

    def test_are_found_in_grafts_inside_grafts_of_the_same_names(self):
        class Outer(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = Wrapping(lambda h: h)
                self.inner = grown(Returning(*CONTAINERS["tuple"]), ("layer",))

            def forward(self, x):
                return self.inner(self.layer(x))[1]

        x, model = images(), grown(Outer(), ("layer",))
        assert torch.equal(bake(model, example_inputs=(x,)).eval()(x), model.eval()(x))

    def test_that_nothing_plain_can_rebuild_are_refused(self):
        class Odd(list):
            pass

        model = grown(Returning(lambda h: Odd([h]), lambda out: out[0]), ("layer",))
        with pytest.raises(Unbakeable, match="Odd, which plain operations cannot rebuild"):
            bake(model, example_inputs=(images(),))

    def test_that_differ_from_call_to_call_are_refused(self):
        class Moody(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = Wrapping(lambda h: (h,) if len(h) == 4 else h)

            def forward(self, x):
                return self.layer(self.layer(x)[0][:2])

        with pytest.raises(Unbakeable, match="now in one place, now in another"):
            bake(grown(Moody(), ("layer",)), example_inputs=(images(),))


def kasmina_in(model):
    """Everything in a model that has to do with kasmina."""
    classes = [name for name, module in model.named_modules() if "kasmina" in str(type(module))]
    attributes = [key for module in model.modules() for key in vars(module) if "kasmina" in key]
    inherited = [
        name
        for name, module in model.named_modules()
        if any(each.__module__.startswith("kasmina") for each in type(module).__mro__)
    ]
    children = [name for name, _ in model.named_modules() if "kasmina" in name]
    return classes + attributes + inherited + children


class TestWhatIsLeft:
    @pytest.mark.parametrize("spec", SHIPPED, ids=lambda spec: f"{spec.topology.value}-{spec.name}")
    @pytest.mark.parametrize("blend", Blend)
    def test_names_kasmina_nowhere(self, spec, blend):
        model = nn.ModuleDict({"layer": nn.Linear(WIDTH, WIDTH)})
        grown(model, ("layer",), spec.topology, spec.name, blend=blend, target=0.5)
        baked = bake(model)
        assert kasmina_in(baked) == []
        assert b"kasmina" not in pickle.dumps(baked).lower()

    def test_keeps_the_hosts_names_and_adds_readable_ones(self):
        baked, host = bake(grown()), Host()
        added = [name for name in baked.state_dict() if name not in host.state_dict()]
        assert [name for name in baked.state_dict() if name not in added] == list(host.state_dict())
        assert added == [
            f"{target}.seed.delta.{layer}"
            for target in ("first", "second")
            for layer in ("0.weight", "0.bias", "2.weight", "2.bias")
        ]

    def test_keeps_the_hosts_classes_and_attributes(self):
        baked, host = bake(grown()), Host()
        assert type(baked) is Host
        for name, module in host.named_modules():
            assert type(baked.get_submodule(name)) is type(module)
        assert baked.first.conv.kernel_size == (3, 3)

    def test_shows_nothing_of_empty_slots(self):
        model = graft(Host(), {"first": CNN, "second.0": CNN}).model
        baked = bake(model)
        assert list(baked.state_dict()) == list(Host().state_dict())
        assert [type(each) for each in baked.modules()] == [type(each) for each in Host().modules()]
        assert not any(each._forward_hooks for each in baked.modules())

    def test_does_not_take_a_name_that_the_host_has(self):
        host = Host()
        host.first.seed = host.second.seed = 17
        model, x = grown(host), images()
        baked = bake(model)
        assert baked.first.seed == baked.second.seed == 17
        assert torch.equal(baked.eval()(x), model.eval()(x))

    def test_keeps_a_users_own_class_and_what_is_not_ours_inside(self):
        class Own(nn.Module):
            def __init__(self):
                super().__init__()
                self.shared = Residual(nn.Sequential(ChannelNorm(WIDTH), nn.Tanh()))
                self.again = self.shared
                self.block = Block()

            def forward(self, x):
                return self.block(self.again(self.shared(x)))

        slots = graft(Host(), {"first": CNN})
        fossilise(slots["first"], Own())
        x, baked = images(), bake(slots.model)
        assert type(baked.first.seed) is Own
        assert type(baked.first.seed.block) is Block
        assert type(baked.first.seed.shared) is nn.Module
        assert baked.first.seed.again is baked.first.seed.shared
        assert torch.equal(baked.eval()(x), slots.model.eval()(x))

    def test_uses_torchs_own_layers_where_only_their_birth_was_ours(self):
        slots = graft(Host(), {"first": CNN})
        fossilise(slots["first"], ZeroConv2d(WIDTH, WIDTH, 1))
        assert type(bake(slots.model).first.seed) is nn.Conv2d

    @pytest.mark.parametrize("spec", SHIPPED, ids=lambda spec: f"{spec.topology.value}-{spec.name}")
    def test_is_the_same_code_in_training_and_evaluation(self, spec):
        codes = []
        for mode in (True, False):
            seed = plain(blueprints.build(spec.topology, spec.name, WIDTH).train(mode))
            forwards = [vars(part).get("forward") for part in seed.modules()]
            codes.append([each.func.__self__.code for each in forwards if each is not None])
        assert codes[0] == codes[1] != []

    def test_prints_what_it_was(self):
        printed = str(bake(grown()).first.seed)
        assert "Residual" in printed
        assert "(0): GroupNorm(1, 8, eps=1e-05" in printed


class TestTheGivenModel:
    def test_is_left_as_it_was(self):
        model, x = grown(), images()
        before = pickle.dumps(model)
        classes = [type(each) for each in model.modules()]
        bake(model, example_inputs=(x,))
        assert pickle.dumps(model) == before
        assert [type(each) for each in model.modules()] == classes
        assert list(Slots(model)) == ["first", "second"]

    def test_shares_no_memory_with_the_baked_one(self):
        model = grown()
        baked = bake(model)
        mine = {each.data_ptr() for each in model.state_dict().values()}
        assert not mine & {each.data_ptr() for each in baked.state_dict().values()}

    @pytest.mark.parametrize("name", ["conv_light", "attention"])
    def test_shares_every_tensor_if_so_asked_and_is_untouched_still(self, name):
        model, x = grown(name=name), images()
        before = pickle.dumps(model)
        baked = bake(model, tensors=Tensors.SHARED)
        assert pickle.dumps(model) == before
        assert {id(each) for each in baked.parameters()} == {
            id(each) for each in model.parameters()
        }
        assert {id(each) for each in baked.buffers()} <= {id(each) for each in model.buffers()}
        assert torch.equal(baked.eval()(x), model.eval()(x))

    def test_keeps_its_alpha_when_tensors_are_shared(self):
        model = grown(blend=Blend.MULTIPLY, target=0.5)
        baked = bake(model, tensors=Tensors.SHARED)
        baked.first.seed.alpha.fill_(0.75)
        assert Slots(model)["first"].alpha == 0.5


class TestTraining:
    @pytest.mark.parametrize("seed_input", SeedInput)
    @pytest.mark.parametrize("blend", Blend)
    def test_goes_on_as_that_of_the_grafted_model(self, blend, seed_input):
        model = grown(name="conv_heavy", blend=blend, target=0.7, seed_input=seed_input)
        baked, x = bake(model), images()
        ours, theirs = train(baked, x), train(model, x)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
        assert torch.equal(ours[0], theirs[0])
        own = Slots(model)["first"].seed.state_dict()
        for name, value in baked.first.seed.seed.state_dict().items():
            torch.testing.assert_close(value, own[name], rtol=1e-5, atol=1e-6)

    def test_of_a_seed_alone_gives_the_same_bits(self):
        model, x = grown(name="conv_heavy"), images()
        baked = bake(model)
        assert all(map(torch.equal, train(baked, x), train(model, x)))
        ours, theirs = dict(baked.named_parameters()), Slots(model)
        for name, parameter in theirs["first"].seed.named_parameters():
            assert torch.equal(ours[f"first.seed.{name}"], parameter)
        for name, parameter in theirs.host_named_parameters():
            assert torch.equal(ours[name], parameter)

    def test_moves_the_statistics_of_a_seeds_batch_norm(self):
        slots = graft(Host(), {"first": CNN})
        fossilise(slots["first"], nn.Sequential(Residual(nn.BatchNorm2d(WIDTH))))
        baked = bake(slots.model)
        baked(images())
        assert baked.first.seed[0].delta.num_batches_tracked == 1
        baked.eval()(images())
        assert baked.first.seed[0].delta.num_batches_tracked == 1

    def test_reaches_the_host_upstream(self):
        baked = bake(grown())
        baked(images()).sum().backward()
        assert all(each.grad is not None for each in baked.parameters())

    def test_keeps_what_was_frozen_frozen(self):
        model = grown()
        Slots(model)["first"].seed.delta[2].weight.requires_grad = False
        model.head.weight.requires_grad = False
        frozen = [name for name, p in bake(model).named_parameters() if not p.requires_grad]
        assert frozen == ["first.seed.delta.2.weight", "head.weight"]


class TestRefusals:
    @pytest.mark.parametrize("stage", [each for each in Stage if each.holds_seed])
    def test_of_seeds_that_their_gates_have_not_let_in_names_slot_and_stage(self, stage):
        if stage is Stage.FOSSILIZED:
            return
        slots = graft(Host(), {"first": CNN, "second": CNN})
        for slot in slots.values():
            fossilise(slot, nn.Conv2d(WIDTH, WIDTH, 1))
        view = SlotView(slot_id="second", stage=stage, seed_id="seed", behaviour=Behaviour.BLEND)
        slots["second"].follow(view, 0)
        with pytest.raises(BakeTooEarly, match=rf"'second' \({stage.value}\)") as caught:
            bake(slots.model)
        assert caught.value.stages == {"second": stage}

    def test_of_a_model_without_slots(self):
        with pytest.raises(Unbakeable, match="no slots of its own"):
            bake(Host())
        with pytest.raises(Unbakeable, match="no slots of its own"):
            bake(nn.Sequential(grown()))

    def test_of_a_target_whose_class_was_changed_after_the_graft(self):
        model = grown(targets=("second.0.conv",))
        nn.utils.parametrize.register_parametrization(model.second[0].conv, "weight", nn.Identity())
        with pytest.raises(UngraftableModule, match="class was changed after the graft"):
            bake(model)
        assert list(Slots(model)) == ["second.0.conv"]

    def test_of_a_graph_module_whose_copies_would_forget(self):
        model = grown(nn.ModuleDict({"inner": fx.symbolic_trace(Host())}), ("inner.second",))
        with pytest.raises(Unbakeable, match="copies and pickles keep nothing"):
            bake(model)

    def test_of_a_result_that_differs_on_the_example_inputs(self):
        class Bypassing(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = Block()

            def forward(self, x):
                return self.layer.forward(x)

        model = grown(Bypassing(), ("layer",))
        with pytest.raises(BakedDiffers, match=r"not equal.*calls a target's forward\(\) itself"):
            bake(model, example_inputs=(images(),))


class TestSaving:
    def test_a_copy_is_independent(self):
        baked, x = bake(grown()).eval(), images()
        copied = copy.deepcopy(baked)
        expected = baked(x)
        with torch.no_grad():
            for seed in (copied.first.seed, copied.second.seed):
                seed.delta[2].weight.zero_()
                seed.delta[2].bias.zero_()
        assert torch.equal(baked(x), expected)
        assert torch.equal(
            copied(x), copied.head(copied.second[:2](plain_block(copied, x)).mean((2, 3)))
        )

    def test_a_reloaded_model_can_be_copied_saved_and_trained_again(self):
        baked, x = bake(grown()), images()
        again = reloaded(copy.deepcopy(reloaded(baked)))
        assert torch.equal(copy.deepcopy(again).eval()(x), copy.deepcopy(baked).eval()(x))
        assert all(map(torch.equal, train(again, x), train(baked, x)))

    def test_weights_load_into_another_model_baked_alike(self):
        one, other, x = bake(grown()), bake(grown()), images()
        assert not torch.equal(one.eval()(x), other.eval()(x))
        other.load_state_dict(one.state_dict(), strict=True)
        assert torch.equal(one(x), other(x))

    @pytest.mark.parametrize("target", ["first", "inner.layers.0"])
    def test_a_hook_registered_in_a_new_process_does_not_replace_the_seed(
        self, monkeypatch, target
    ):
        cnn = target == "first"
        monkeypatch.setattr(RemovableHandle, "next_id", 0)
        model = grown() if cnn else grown(Encoder(), (target,), TRANSFORMER, "mlp")
        baked, x = bake(model).eval(), images() if cnn else tokens()
        file = io.BytesIO()
        torch.save(baked, file)
        file.seek(0)
        monkeypatch.setattr(RemovableHandle, "next_id", 0)  # as a new process begins
        loaded, seen = torch.load(file, weights_only=False), []
        for _ in range(4):
            loaded.get_submodule(target).register_forward_hook(lambda *args: seen.append(args))
        assert torch.equal(loaded(x), baked(x))
        assert len(seen) == 4

    def test_the_seed_is_removed_by_its_handle(self):
        baked, x = bake(grown(targets=("first",))).eval(), images()
        baked.first.seed_hook.remove()
        host = Host().eval()
        host.load_state_dict(baked.state_dict(), strict=False)
        assert torch.equal(baked(x), host(x))

    def test_replacing_the_seed_replaces_what_runs(self):
        baked, x = bake(grown(targets=("first",))).eval(), images()
        baked.first.seed = nn.Identity()
        host = Host().eval()
        host.load_state_dict(baked.state_dict(), strict=True)
        assert torch.equal(baked(x), host(x))


def plain_block(model, x):
    """The target ``first`` without its hook."""
    return type(model.first).forward(model.first, x)


STRANGER = """
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            return self.conv(x), None

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block()
            self.stage = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())
            layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

        def forward(self, x):
            x = self.stage(self.block(x)[0])
            return self.encoder(x.flatten(2).transpose(1, 2))
"""

FRESH = """
    import copy, io, sys

    class Wall:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in {"kasmina", "attrs", "attr"}:
                raise ImportError(f"{name} is not installed here")

    sys.meta_path.insert(0, Wall())
    try:
        import kasmina
    except ImportError:
        pass
    else:
        raise SystemExit("the wall has a hole")

    import torch

    def print_nothing(module, args, output):
        pass

    torch.set_num_threads(1)
    model = torch.load("model.pt", weights_only=False)
    x, expected, weights = torch.load("expected.pt")
    with torch.no_grad():
        assert torch.equal(model(x), expected)
    for target in (model.block, model.stage, model.encoder.layers[0]):
        target.register_forward_hook(print_nothing)
    file = io.BytesIO()
    torch.save(copy.deepcopy(model), file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    for parameter in again.parameters():
        parameter.data.zero_()
    again.load_state_dict(weights)
    with torch.no_grad():
        assert torch.equal(again(x), expected)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    model(x).square().mean().backward()
    assert all(each.grad is not None for each in model.parameters())
    optimizer.step()
    assert not any(name.partition(".")[0] == "kasmina" for name in sys.modules)
    print("ran without it")
"""


@pytest.mark.parametrize("blend", [Blend.LERP, Blend.GATED])
def test_a_baked_model_loads_runs_and_trains_where_kasmina_cannot_be_imported(
    tmp_path, monkeypatch, blend
):
    (tmp_path / "stranger.py").write_text(textwrap.dedent(STRANGER))
    monkeypatch.syspath_prepend(tmp_path)
    import stranger

    x = images()
    model = stranger.Net().eval()
    topologies = {"block": CNN, "stage": CNN, "encoder.layers.0": TRANSFORMER}
    slots = graft(model, topologies, example_inputs=(x,))
    for slot in slots.values():
        name = "conv_heavy" if slot.topology is CNN else "attention"
        fossilise(slot, blueprints.build(slot.topology, name, WIDTH), blend=blend, target=1.0)
    baked = bake(model, example_inputs=(x,))
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(baked(x), expected)
    torch.save(baked, tmp_path / "model.pt")
    torch.save((x, expected, baked.state_dict()), tmp_path / "expected.pt")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(FRESH)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ran without it\n"


class Second(nn.Module):
    """What a host returns beside a container that could not leave an exported graph."""

    def __init__(self, host):
        super().__init__()
        self.host = host

    def forward(self, x):
        return self.host(x)[1]


def returning(kind):
    return grown(Second(Returning(*CONTAINERS[kind])), ("host.layer",)), images()


HOSTS = {
    "hook and layer": lambda: (grown(), images()),
    "tuple": lambda: returning("tuple"),
    "dict": lambda: returning("dict"),
    "mapping": lambda: returning("mapping"),
    "dataclass": lambda: returning("dataclass"),
    "gated": lambda: (grown(blend=Blend.GATED, target=0.5), images()),
    "encoder": lambda: (
        grown(Encoder(), ("inner.layers.0", "norm"), TRANSFORMER, "attention"),
        tokens(),
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
# torch 2.6, of what stands in for the forward of a TransformerEncoderLayer.
@pytest.mark.filterwarnings("ignore:Unable to find the path of the module:UserWarning")
class TestTheCompiler:
    @pytest.fixture(autouse=True)
    def fresh(self):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    @pytest.mark.parametrize("host", HOSTS)
    def test_makes_one_graph_with_the_same_bits(self, host):
        model, x = HOSTS[host]()
        baked = bake(model, example_inputs=(x,)).eval()
        compiled = torch.compile(baked, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), baked(x), rtol=0, atol=0)
        torch.testing.assert_close(compiled(x), model.eval()(x), rtol=0, atol=0)

    @pytest.mark.slow
    @pytest.mark.parametrize("strict", [False, True])
    @pytest.mark.parametrize("host", HOSTS)
    def test_exports(self, host, strict):
        model, x = HOSTS[host]()
        baked = bake(model, example_inputs=(x,)).eval()
        exported = torch.export.export(baked, (x,), strict=strict)
        torch.testing.assert_close(exported.module()(x), baked(x), rtol=0, atol=0)
        assert set(exported.state_dict) == set(baked.state_dict())

    def test_takes_other_weights_for_one_call(self):
        baked, x = bake(grown()).eval(), images()
        other = bake(grown()).eval()
        called = torch.func.functional_call(baked, dict(other.state_dict()), (x,))
        assert torch.equal(called, other(x))

    def test_traces_symbolically(self):
        baked, x = bake(grown()).eval(), images()
        assert torch.equal(fx.symbolic_trace(baked)(x), baked(x))


def test_the_documented_lines_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    guide = Path(__file__).parents[2] / "docs" / "bake.md"
    (lines,) = re.findall("```python\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)
    given = {"torch": torch, "model": grown(), "images": images()}
    exec(lines, given)
    assert torch.load("weights.pt").keys() == given["plain"].state_dict().keys()
