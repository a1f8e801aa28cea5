import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import nn

from kasmina.adapters.torch.graft import Slots, graft, graft_host
from kasmina.adapters.torch.hosts import ConvHost, InjectionPoint
from kasmina.domain.errors import UngraftableModule, UnknownModule, UnknownSlot
from kasmina.domain.projections import Behaviour
from kasmina.domain.stages import Topology

CONV, NORM, LAST = "0", "1", "4"


@pytest.fixture
def both(kit):
    """A host with slots after its BatchNorm and its last convolution."""
    return graft(kit.host(), {NORM: Topology.CNN, LAST: Topology.CNN})


def grow(slots, slot_id, view, behaviour=Behaviour.BLEND, *, alpha=0.5, seed):
    slots[slot_id].attach(seed)
    slots[slot_id].follow(view(slot_id, behaviour, alpha), 0)


def snapshot(model):
    """All that a graft could leave a trace in."""
    return (
        [(name, type(module)) for name, module in model.named_modules()],
        [dict.fromkeys(vars(module)) for module in model.modules()],
        [list(module._modules) for module in model.modules()],
        [len(module._forward_hooks) for module in model.modules()],
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
    )


def assert_same_state(a, b):
    assert a[:4] == b[:4]
    assert a[4].keys() == b[4].keys()
    assert all(torch.equal(a[4][name], b[4][name]) for name in a[4])


class TestGrafting:
    def test_the_hosts_own_names_do_not_change(self, kit, view, both):
        plain = kit.host()
        assert both.model.state_dict().keys() == plain.state_dict().keys()
        grow(both, NORM, view, seed=kit.seed())
        names = [name for name, _ in both.host_named_parameters()]
        assert names == [name for name, _ in plain.named_parameters()]
        grown = both.model.state_dict().keys() - plain.state_dict().keys()
        assert all(name.startswith("kasmina.1.seed.") for name in grown)

    def test_an_ungrown_graft_computes_what_the_host_did(self, kit, images):
        model = kit.host().eval()
        expected = model(images)
        graft(model, {NORM: Topology.CNN})
        assert torch.equal(model(images), expected)

    def test_a_target_keeps_the_name_of_its_class(self, both):
        target = both.model[1]
        assert repr(target).startswith("BatchNorm2d(8")
        assert type(target).__qualname__ == "BatchNorm2d"
        assert isinstance(target, nn.BatchNorm2d)

    def test_targets_of_one_class_share_one_class(self, kit):
        model = kit.host()
        graft(model, {CONV: Topology.CNN, LAST: Topology.CNN})
        assert type(model[0]) is type(model[4])

    def test_slots_are_a_mapping_in_the_given_order(self, both):
        assert list(both) == [NORM, LAST]
        assert len(both) == 2
        assert NORM in both
        assert [slot.width for slot in both.values()] == [8, 8]
        with pytest.raises(UnknownSlot, match="no slot '9'"):
            both["9"]

    def test_paths_with_dots_have_slots_too(self, kit, view):
        model = nn.ModuleDict({"trunk": kit.host()})
        slots = graft(model, {"trunk.1": Topology.CNN})
        grow(slots, "trunk.1", view, seed=kit.seed())
        assert "kasmina.trunk/1.seed.conv.weight" in model.state_dict()

    def test_a_module_called_twice_meets_its_slot_twice(self, view):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Conv2d(3, 3, 1)

            def forward(self, x):
                return self.layer(self.layer(x))

        model, seed = Twice(), nn.Conv2d(3, 3, 1)
        x = torch.randn(2, 3, 4, 4)
        grow(graft(model, {"layer": Topology.CNN}), "layer", view, Behaviour.SEED, seed=seed)
        layer = nn.Conv2d(3, 3, 1)
        layer.load_state_dict(model.layer.state_dict())
        assert torch.equal(model(x), seed(layer(seed(layer(x)))))

    def test_a_root_sequential_stays_right(self, kit, view, images):
        model = kit.host().eval()
        slots = graft(model, {NORM: Topology.CNN})
        grow(slots, NORM, view, Behaviour.SEED, seed=kit.seed())
        x = model[1](model[0](images))
        for index in range(2, 7):
            x = model[index](x)
        assert torch.equal(model(images), x)

    def test_a_slice_of_a_grafted_sequential_is_not_grafted(self, kit, view, images):
        model = nn.ModuleDict({"trunk": kit.host()})
        slots = graft(model, {"trunk": Topology.CNN}, example_inputs=None)
        grow(slots, "trunk", view, Behaviour.SEED, seed=nn.Flatten())
        head = model["trunk"][:1]
        assert torch.equal(head(images), model["trunk"][0](images))

    def test_a_host_names_its_own_points(self):
        host = ConvHost(channels=(4, 6))
        slots = graft_host(host)
        assert {slot_id: slot.width for slot_id, slot in slots.items()} == {
            "stage0": 4,
            "stage1": 6,
        }
        slots.ungraft()
        assert list(graft_host(host, example_inputs=(torch.randn(1, 1, 8, 8),))) == list(slots)


class TestPatterns:
    def test_a_pattern_stands_for_the_paths_it_matches(self, kit):
        model = nn.ModuleDict({"a": kit.host(), "b": kit.host()})
        slots = graft(model, {"?.[14]": Topology.CNN, "a.0": Topology.CNN})
        assert list(slots) == ["a.1", "a.4", "b.1", "b.4", "a.0"]

    def test_a_name_is_not_read_as_a_pattern(self):
        model = nn.ModuleDict({"conv*": nn.Conv2d(3, 4, 1), "conv1": nn.Conv2d(3, 4, 1)})
        assert list(graft(model, {"conv*": Topology.CNN})) == ["conv*"]

    def test_a_place_named_twice_is_refused(self, kit):
        model = kit.host()
        before = snapshot(model)
        with pytest.raises(UngraftableModule, match=r"both '1' and '\[14\]' name it; name it once"):
            graft(model, {NORM: Topology.CNN, "[14]": Topology.CNN})
        assert_same_state(snapshot(model), before)

    def test_one_that_matches_nothing_names_the_nearest(self, kit):
        model = nn.ModuleDict({"encoder": kit.host()})
        with pytest.raises(
            UnknownModule, match=r"that matches 'encodr\.\*'; did you mean 'encoder"
        ):
            graft(model, {"encodr.*": Topology.CNN})

    def test_one_that_hits_what_cannot_be_grafted_is_refused(self, images):
        model = Wrong()
        before = snapshot(model)
        with pytest.raises(UngraftableModule, match="'idle' cannot be grafted"):
            graft(model, {"*": Topology.CNN}, example_inputs=(images,))
        assert_same_state(snapshot(model), before)


class TestSeries:
    @pytest.fixture
    def three(self, kit, view):
        slots = graft(kit.host(), {NORM: (Topology.CNN,) * 3, LAST: Topology.CNN})
        for slot_id in list(slots)[:3]:
            grow(slots, slot_id, view, Behaviour.SEED, seed=kit.seed())
        slots.model.eval()
        return slots

    def test_the_slots_at_one_place_are_numbered(self, three):
        assert list(three) == ["1", "1:2", "1:3", "4"]
        assert "kasmina.1:2.seed.conv.weight" in three.model.state_dict()

    def test_each_receives_what_the_one_before_it_returned(self, three, images):
        model = three.model
        x = nn.BatchNorm2d.forward(model[1], model[0](images))
        for slot_id in ("1", "1:2", "1:3"):
            x = three[slot_id].seed(x)
        assert torch.equal(model[1](model[0](images)), x)

    def test_each_has_a_life_of_its_own(self, three, view, images):
        model = three.model
        three["1:2"].detach()
        x = nn.BatchNorm2d.forward(model[1], model[0](images))
        x = three["1:3"].seed(three["1"].seed(x))
        assert torch.equal(model[1](model[0](images)), x)
        assert not list(three["1:2"].parameters())

    @pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_a_copy_goes_through_its_own_slots(self, three, images, way):
        copied = way(three.model)
        twins = Slots(copied)
        assert list(twins) == list(three)
        assert torch.equal(copied(images), three.model(images))
        expected = three.model(images)
        nn.init.constant_(twins["1:3"].seed.norm.weight, 5.0)
        assert torch.equal(three.model(images), expected)
        assert not torch.equal(copied(images), expected)

    def test_ungraft_leaves_no_trace(self, kit):
        model = kit.host()
        before = snapshot(model)
        graft(model, {NORM: (Topology.CNN,) * 2}).ungraft()
        assert_same_state(snapshot(model), before)
        assert type(model[1]) is nn.BatchNorm2d

    def test_a_run_resumes_each_by_its_name(self, tmp_path, images):
        from kasmina import Objective, open_run

        def opened(resume=None):
            torch.manual_seed(7)
            model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten())
            slots = graft(model, {"0": (Topology.CNN, Topology.CNN)})
            optimizer = torch.optim.AdamW(slots.host_parameters(), lr=1e-2)
            objective = Objective.minimize("loss", unit="nats")
            url = f"sqlite:///{tmp_path}/k.db"
            return optimizer, open_run(
                url, name="r", slots=slots, optimizer=optimizer, objective=objective, resume=resume
            )

        def train(optimizer, run):
            for _ in range(2):
                optimizer.zero_grad()
                run.slots.model(images).square().mean().backward()
                optimizer.step()
                run.step()
            return {name: value.clone() for name, value in run.slots.model.state_dict().items()}

        optimizer, run = opened()
        run.germinate("0", blueprint="conv_light")
        run.germinate("0:2", blueprint="norm")
        train(optimizer, run)
        run.checkpoint(tmp_path / "c.pt")
        expected = train(optimizer, run)
        run.close()
        optimizer, again = opened(resume=run.run_id)
        found = train(optimizer, again)
        again.close()
        assert any(name.startswith("kasmina.0:2.seed") for name in expected)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    def test_the_description_is_that_of_the_host(self, kit, three):
        assert three.describe() == graft(kit.host(), {LAST: Topology.CNN}).describe()

    @pytest.mark.parametrize(
        ("topologies", "told"),
        [
            ((), "no topology is given"),
            ((Topology.CNN, "cnn"), "'cnn' is no topology"),
            ((Topology.CNN, Topology.TRANSFORMER), "'1' and '1:2' disagree on its features"),
        ],
    )
    def test_a_series_without_one_topology_is_refused(self, kit, topologies, told):
        with pytest.raises(UngraftableModule, match=told):
            graft(kit.host(), {NORM: topologies})

    def test_a_host_names_a_path_as_often_as_it_likes(self):
        class Doubled(ConvHost):
            def injection_points(self):
                once = super().injection_points()["stage0"]
                return {"first": once, "second": once}

        host = Doubled()
        slots = graft_host(host)
        assert list(slots) == ["first", "second"]
        assert vars(host.stages[0])["_kasmina_slot"].passages == tuple(slots.values())


class TestLookingAtFeatures:
    def test_widths_and_shapes_come_from_one_forward(self, kit, images):
        slots = graft(kit.host(), {NORM: Topology.CNN}, example_inputs=(images,))
        assert slots[NORM].width == 8
        assert slots[NORM].feature_shape == (4, 8, 10, 10)

    def test_a_module_called_twice_is_seen_the_first_time(self, images):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.pool = nn.AvgPool2d(2)

            def forward(self, x):
                return self.pool(self.pool(x))

        slots = graft(Twice(), {"pool": Topology.CNN}, example_inputs=(images,))
        assert slots["pool"].feature_shape == (4, 3, 6, 6)

    def test_a_host_without_parameters_can_be_looked_at(self, images):
        model = nn.Sequential(nn.Identity())
        assert graft(model, {"0": Topology.CNN}, example_inputs=(images,))["0"].width == 3

    def test_it_leaves_no_trace(self, kit, images):
        model = kit.host(dropout=0.5)
        model[1].eval()
        before, modes = snapshot(model), [module.training for module in model.modules()]
        random_state = torch.get_rng_state()
        graft(model, {NORM: Topology.CNN}, example_inputs=(images,)).ungraft()
        assert_same_state(snapshot(model), before)
        assert [module.training for module in model.modules()] == modes
        assert torch.equal(torch.get_rng_state(), random_state)

    def test_a_forward_that_fails_leaves_no_trace(self, kit):
        model = kit.host()
        before = snapshot(model)
        with pytest.raises(RuntimeError, match="channels"):
            graft(model, {NORM: Topology.CNN}, example_inputs=(torch.randn(1, 5, 12, 12),))
        assert_same_state(snapshot(model), before)
        assert model.training

    def test_a_stateful_module_is_set_back(self, images):
        class Counting(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 1)
                self.register_buffer("calls", torch.zeros(()))

            def forward(self, x):
                self.calls += 1
                return self.conv(x)

        model = Counting()
        graft(model, {"conv": Topology.CNN}, example_inputs=(images,))
        assert model.calls == 0

    def test_one_example_is_probed_as_two(self, kit):
        slots = graft(kit.host(), {NORM: Topology.CNN}, example_inputs=(torch.randn(1, 3, 12, 12),))
        assert slots[NORM].feature_shape == (2, 8, 10, 10)

    @pytest.mark.parametrize(
        ("layer", "topology", "width"),
        [
            (nn.Conv2d(3, 5, 1), Topology.CNN, 5),
            (nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.ReLU()), Topology.CNN, 5),
            (nn.GroupNorm(2, 6), Topology.CNN, 6),
            (nn.Linear(3, 7), Topology.TRANSFORMER, 7),
            (nn.LayerNorm((4, 9)), Topology.TRANSFORMER, 9),
            (nn.Embedding(10, 11), Topology.TRANSFORMER, 11),
        ],
    )
    def test_without_examples_the_last_layer_tells(self, layer, topology, width):
        slot = graft(nn.ModuleDict({"layer": layer}), {"layer": topology})["layer"]
        assert slot.width == width
        shapes = {Topology.CNN: (2, width, 8, 8), Topology.TRANSFORMER: (2, 16, width)}
        assert slot.feature_shape == shapes[topology]

    def test_a_recurrent_layer_needs_an_example(self):
        model = nn.ModuleDict({"gru": nn.GRU(3, 5, batch_first=True)})
        with pytest.raises(UngraftableModule, match="pass example_inputs"):
            graft(model, {"gru": Topology.TRANSFORMER})
        root = nn.Sequential(nn.GRU(3, 5, batch_first=True))
        slots = graft(root, {"0": Topology.TRANSFORMER}, example_inputs=(torch.randn(2, 4, 3),))
        assert slots["0"].feature_shape == (2, 4, 5)


class Wrong(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.idle = nn.Conv2d(3, 4, 1)
        self.index = nn.MaxPool2d(2, return_indices=True)
        self.flat = nn.Flatten()

    def forward(self, x):
        features = self.conv(x)
        self.index(features)
        self.flat(features)
        return features


def doubly_named():
    model = nn.Module()
    model.first = model.second = nn.Conv2d(3, 4, 1)
    return model


def patched():
    model = Wrong()
    model.conv.forward = model.conv.forward
    return model


def with_the_name_taken():
    model = Wrong()
    model.kasmina = "mine"
    return model


def compiled_in_place():
    model = Wrong()
    model.compile(backend="eager")
    return model


def scripted():
    return torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 1)))


class Stubborn(nn.Module):
    """Normalises by the batch, whatever mode it is in."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        self.norm.train()
        return self.norm(self.conv(x))


def test_a_look_at_a_host_that_stays_in_training_leaves_its_statistics(images):
    model = Stubborn().eval()
    before = snapshot(model)
    slots = graft(model, {"conv": Topology.CNN}, example_inputs=(images,))
    slots.ungraft()
    assert_same_state(snapshot(model), before)
    assert not model.norm.training


class TestRefusals:
    @pytest.mark.parametrize(
        ("make", "paths", "told"),
        [
            (Wrong, [""], "the whole model"),
            (doubly_named, ["first", "second"], "same module as 'first'"),
            (patched, ["conv"], "replaced on the instance"),
            (with_the_name_taken, ["conv"], "already has a 'kasmina'"),
            (
                lambda: torch.compile(Wrong(), backend="eager"),
                ["_orig_mod.conv"],
                "graft first, then compile",
            ),
            (
                lambda: nn.Sequential(torch.compile(Wrong(), backend="eager")),
                ["0._orig_mod.conv"],
                "'0' is comp",
            ),
            (compiled_in_place, ["conv"], "graft first, then compile"),
            (lambda: nn.DataParallel(Wrong()), ["module.conv"], "bare model first, then wrap"),
        ],
    )
    def test_a_model_that_cannot_be_grafted_says_why_and_stays_as_it_was(self, make, paths, told):
        model = make()
        before = snapshot(model)
        with pytest.raises(UngraftableModule, match=told):
            graft(model, dict.fromkeys(paths, Topology.CNN))
        assert_same_state(snapshot(model), before)

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
    @pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
    def test_torchscript_is_refused(self):
        with pytest.raises(UngraftableModule, match="TorchScript"):
            graft(scripted(), {"0": Topology.CNN})

    def test_a_module_that_fx_generated_is_refused_since_its_copies_would_lose_the_slot(self):
        traced = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()))
        with pytest.raises(UngraftableModule, match=r"generated by torch\.fx"):
            graft(nn.Sequential(traced), {"0": Topology.CNN})

    @pytest.mark.parametrize(
        ("path", "topology", "told"),
        [
            ("idle", Topology.CNN, "was not called"),
            ("flat", Topology.CNN, r"\(batch, width, height, width\)"),
            ("conv", Topology.TRANSFORMER, r"\(batch, positions, width\)"),
        ],
    )
    def test_features_that_do_not_fit_are_told(self, images, path, topology, told):
        model = Wrong()
        before = snapshot(model)
        with pytest.raises(UngraftableModule, match=told):
            graft(model, {path: topology}, example_inputs=(images,))
        assert_same_state(snapshot(model), before)

    @pytest.mark.parametrize(
        ("returned", "told"),
        [
            (lambda x: {"best": x.argmax(1)}, "returns dict"),
            (lambda x: x.argmax(1), "returns int64"),
            (lambda x: None, "returns NoneType"),
            (lambda x: torch.nested.nested_tensor(list(x)), "returns a nested tensor"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
    def test_outputs_that_are_no_features_are_told(self, images, returned, told):
        class Block(nn.Module):
            def forward(self, x):
                return returned(x)

        with pytest.raises(UngraftableModule, match=told):
            graft(nn.Sequential(Block()), {"0": Topology.CNN}, example_inputs=(images,))

    def test_a_layer_that_a_fused_path_bypasses_is_refused(self):
        model = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1, enable_nested_tensor=False
        )
        with pytest.raises(UngraftableModule, match="fused layers bypass"):
            graft(
                model,
                {"layers.0.linear2": Topology.TRANSFORMER},
                example_inputs=(torch.randn(2, 4, 8),),
            )

    @pytest.mark.parametrize("path", ["layers.0.linear2", "layers.0.self_attn.out_proj"])
    def test_where_nobody_looked_a_layer_that_may_be_bypassed_is_refused(self, path):
        model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
        with pytest.raises(UngraftableModule, match=r"may compute without calling it; pass exampl"):
            graft(model, {path: Topology.TRANSFORMER})
        with pytest.raises(UngraftableModule, match="the model, a TransformerEncoderLayer, may"):
            graft(model.layers[0], {"linear2": Topology.TRANSFORMER})

    def test_a_class_that_cannot_be_derived_from_leaves_no_trace(self):
        class Final(nn.Conv2d):
            def __init_subclass__(cls):
                raise TypeError("no more of these")

        model = nn.Sequential(nn.Conv2d(3, 4, 1), Final(4, 4, 1))
        before = snapshot(model)
        with pytest.raises(TypeError, match="no more of these"):
            graft(model, {"0": Topology.CNN, "1": Topology.CNN})
        assert_same_state(snapshot(model), before)

    @pytest.mark.parametrize("name", ["slot", "paths"])
    def test_a_module_that_would_hide_a_part_of_the_bank_is_refused(self, name):
        model = nn.Module()
        model.add_module(name, nn.Conv2d(3, 4, 1))
        with pytest.raises(UngraftableModule, match=f"would be called '{name}', as is an attrib"):
            graft(model, {name: Topology.CNN})
        assert not any(key.startswith("kasmina") for key, _ in model.named_modules())

    def test_two_slots_of_one_name_are_refused(self):
        model = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Conv2d(3, 4, 1)})})
        model.add_module("a/b", nn.Conv2d(3, 4, 1))
        with pytest.raises(UngraftableModule, match=r"called 'a/b', as is the slot 'a\.b'"):
            graft(model, {"a.b": Topology.CNN, "a/b": Topology.CNN})

    def test_an_unknown_path_names_the_nearest(self, kit):
        model = nn.ModuleDict({"encoder": kit.host()})
        with pytest.raises(UnknownModule, match="did you mean 'encoder' or ") as caught:
            graft(model, {"encodr": Topology.CNN})
        assert caught.value.name == "encodr"
        assert "kasmina" not in dict(model.named_children())

    def test_a_second_graft_is_refused(self, kit):
        model = kit.host()
        graft(model, {NORM: Topology.CNN})
        with pytest.raises(UngraftableModule, match=r"ungraft\(\) it"):
            graft(model, {LAST: Topology.CNN})

    def test_a_module_of_another_grafted_model_is_refused(self, kit):
        model = kit.host()
        graft(model, {NORM: Topology.CNN})
        with pytest.raises(UngraftableModule, match="another model"):
            graft(nn.Sequential(model[1]), {"0": Topology.CNN})

    def test_a_point_with_the_wrong_width_is_refused(self):
        class Mistaken(ConvHost):
            def injection_points(self):
                return {"s": InjectionPoint(path="stages.0", topology=Topology.CNN, width=99)}

        with pytest.raises(UngraftableModule, match="16 wide, not 99"):
            graft_host(Mistaken(), example_inputs=(torch.randn(1, 1, 8, 8),))

    def test_a_host_is_a_module(self):
        with pytest.raises(TypeError, match=r"must be an nn\.Module"):
            graft_host("host")

    def test_a_plain_model_has_no_slots(self, kit):
        with pytest.raises(UngraftableModule, match="has no slots"):
            Slots(kit.host())


def sharded():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(Wrong())
    fully_shard(model[0], mesh=init_device_mesh("cpu", (1,)))
    return model


def sharded_by_wrapping():
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(Wrong(), device_id=torch.device("cpu"))


@pytest.fixture(scope="module")
def alone_in_a_group():
    dist = torch.distributed
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone_in_a_group")
@pytest.mark.filterwarnings("ignore:FSDP is switching to use:UserWarning")
class TestSeveralProcesses:
    @pytest.mark.parametrize(
        ("make", "path", "told"),
        [
            (
                lambda: nn.parallel.DistributedDataParallel(Wrong()),
                "module.conv",
                "the model is wrapped in DDP; graft the bare model first, then wrap it",
            ),
            (
                lambda: nn.Sequential(nn.parallel.DistributedDataParallel(Wrong())),
                "0.module.conv",
                "'0' is wrapped in DDP; graft the bare model first",
            ),
            (
                sharded_by_wrapping,
                "_fsdp_wrapped_module.conv",
                "wrapped in FSDP; graft the bare model first",
            ),
            (sharded, "0.conv", "sharded; graft first, then fully_"),
        ],
        ids=["DDP", "DDP inside", "FSDP", "fully_shard"],
    )
    def test_a_wrapped_model_names_the_right_order(self, make, path, told):
        model = make()
        with pytest.raises(UngraftableModule, match=told):
            graft(model, {path: Topology.CNN})
        assert not any("kasmina" in name for name, _ in model.named_modules())

    def test_in_the_right_order_the_seed_is_part_of_it(self, kit, view, images):
        model = kit.host()
        slots = graft(model, {NORM: Topology.CNN})
        grow(slots, NORM, view, seed=kit.seed())
        wrapped = nn.parallel.DistributedDataParallel(model)
        wrapped(images).square().mean().backward()
        assert all(p.grad.abs().sum() > 0 for p in slots.seed_parameters())


class TestUngraft:
    def test_it_leaves_no_trace(self, kit, view, images):
        model = kit.host()
        before = snapshot(model)
        slots = graft(model, {NORM: Topology.CNN, LAST: Topology.CNN})
        grow(slots, NORM, view, seed=kit.seed())
        slots[NORM].detach()
        slots.ungraft()
        assert_same_state(snapshot(model), before)
        assert type(model[1]) is nn.BatchNorm2d
        assert "forward" not in vars(model[1])

    def test_a_class_that_was_changed_again_is_refused(self, both):
        both.model[4].__class__ = type("Sharded", (type(both.model[4]),), {})
        with pytest.raises(UngraftableModule, match="changed after the graft, to Sharded"):
            both.ungraft()
        assert "kasmina" in dict(both.model.named_children())

    def test_the_model_can_be_grafted_again(self, kit):
        model = kit.host()
        graft(model, {NORM: Topology.CNN}).ungraft()
        assert list(graft(model, {LAST: Topology.CNN})) == [LAST]

    def test_classes_made_for_a_graft_are_freed(self):
        class Mine(nn.Conv2d):
            pass

        model = nn.Sequential(Mine(3, 4, 1))
        slots = graft(model, {"0": Topology.CNN})
        made = weakref.ref(type(model[0]))
        slots.ungraft()
        gc.collect()
        assert made() is None


class TestCopies:
    @pytest.fixture
    def slots(self, both, kit, view):
        grow(both, NORM, view, seed=kit.seed())
        both.model.eval()
        return both

    @pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
    def test_a_copy_computes_the_same_and_is_its_own(self, slots, images, way):
        model = slots.model
        if way == "deepcopy":
            copied = copy.deepcopy(model)
        elif way == "pickle":
            copied = pickle.loads(pickle.dumps(model))
        else:
            file = io.BytesIO()
            torch.save(model, file)
            file.seek(0)
            copied = torch.load(file, weights_only=False)
        twin = Slots(copied)
        assert vars(copied[1])["_kasmina_slot"] is twin[NORM]
        assert twin[NORM].seed is not slots[NORM].seed
        assert torch.equal(copied(images), model(images))
        expected = model(images)
        nn.init.zeros_(twin[NORM].seed.norm.weight)
        assert torch.equal(model(images), expected)
        assert not torch.equal(copied(images), expected)
        twin.ungraft()
        assert type(copied[1]) is nn.BatchNorm2d

    def test_a_grown_state_dict_loads_strictly(self, slots, kit, view, images):
        fresh = graft(kit.host(), {NORM: Topology.CNN, LAST: Topology.CNN})
        grow(fresh, NORM, view, seed=kit.seed())
        fresh.model.load_state_dict(slots.model.state_dict(), strict=True)
        assert torch.equal(fresh.model.eval()(images), slots.model(images))

    def test_the_host_part_loads_into_a_plain_host(self, slots, kit):
        host = {k: v for k, v in slots.model.state_dict().items() if not k.startswith("kasmina.")}
        kit.host().load_state_dict(host, strict=True)

    def test_moving_the_model_moves_a_seed_once(self, slots):
        moved = []
        seed = slots[NORM].seed
        seed._apply = lambda fn, recurse=True: moved.append(fn) or nn.Module._apply(seed, fn)
        slots.model.to(torch.float64)
        assert len(moved) == 1
        assert seed.conv.weight.dtype is torch.float64
        assert slots[NORM].alpha.dtype is torch.float64
        assert slots[NORM].nonfinite_outputs.dtype is torch.int64

    def test_modes_reach_the_seed(self, slots):
        slots.model.train()
        assert slots[NORM].seed.training

    def test_functional_call_reaches_host_and_seed(self, slots, images):
        changed = {name: p * 0.5 for name, p in slots.model.named_parameters()}
        out = torch.func.functional_call(slots.model, changed, (images,))
        twin = copy.deepcopy(slots.model)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(0.5)
        assert torch.equal(out, twin(images))

    def test_gradients_of_many_samples_go_through_vmap(self, slots, images, view):
        slots[NORM].follow(view(NORM, Behaviour.SEED), 0)
        parameters = dict(slots.model.named_parameters())

        def loss(params, image):
            return torch.func.functional_call(slots.model, params, (image[None],)).sum()

        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, images)
        total = torch.func.grad(lambda p: sum(loss(p, image) for image in images))(parameters)
        for name, gradient in total.items():
            torch.testing.assert_close(each[name].sum(0), gradient, rtol=1e-4, atol=1e-4)


class TestTellingApart:
    def test_host_and_seed_parameters_make_up_the_model(self, both, kit, view):
        grow(both, NORM, view, seed=kit.seed())
        parts = [*both.host_parameters(), *both.seed_parameters()]
        assert {id(p) for p in parts} == {id(p) for p in both.model.parameters()}
        assert len(parts) == len(list(both.model.parameters()))
        names = dict(both.host_tensors())
        assert "1.running_mean" in names
        assert not any(name.startswith("kasmina") for name in names)

    def test_clipping_leaves_the_hosts_gradient_what_it_is_alone(self, kit, view, images):
        plain = kit.host()
        slots = graft(copy.deepcopy(plain), {NORM: Topology.CNN})
        grow(slots, NORM, view, Behaviour.INCUBATE, seed=kit.seed())
        for model in (plain, slots.model):
            model(images).square().sum().backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        assert torch.equal(slots.clip_grad_norm_(0.1), norm)
        for a, b in zip(plain.parameters(), slots.host_parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)
        seed = [p.grad.norm() for p in slots.seed_parameters()]
        assert torch.stack(seed).norm() == pytest.approx(0.1, rel=1e-3)

    def test_the_description_does_not_depend_on_seeds(self, both, kit, view):
        plain = both.describe()
        grow(both, NORM, view, seed=kit.seed())
        assert both.describe() == plain
        assert plain.kind == "Sequential"
        assert plain.parameters == sum(p.numel() for p in kit.host().parameters())
        wider = graft(nn.Sequential(nn.Conv2d(3, 9, 3)), {"0": Topology.CNN}).describe()
        assert wider.digest != plain.digest

    def test_showing_lasts_as_long_as_its_block(self, both, kit, view, images):
        grow(both, NORM, view, seed=kit.seed())
        model = both.model.eval()
        expected = model(images)
        with both.showing(NORM, view(NORM, Behaviour.IDENTITY)):
            without = model(images)
        slot = both[NORM]
        kept, slot_view = slot.detach(), None
        assert slot_view is None
        assert torch.equal(model(images), without)
        slot.attach(kept)
        slot.follow(view(NORM, Behaviour.BLEND, 0.5), 0)
        assert torch.equal(model(images), expected)
        with pytest.raises(KeyError), both.showing(NORM, view(NORM, Behaviour.BLEND, 1.0)):
            raise KeyError
        assert torch.equal(model(images), expected)
