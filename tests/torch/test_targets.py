import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from kasmina.adapters.torch.graft import graft
from kasmina.adapters.torch.targets import Target, targets
from kasmina.domain.errors import UngraftableModule, UnknownModule
from kasmina.domain.stages import Topology
from tests.torch.models import ResNet, Twice, gpt2

CNN, TRANSFORMER = Topology.CNN, Topology.TRANSFORMER


class Mixed(nn.Module):
    """Some of its modules can be grafted, and each of the others is in the way for a reason."""

    def __init__(self):
        super().__init__()
        self.good = nn.Conv2d(3, 4, 1)
        self.idle = nn.Conv2d(3, 4, 1)
        self.flat = nn.Flatten()
        self.patched = nn.Conv2d(4, 4, 1)
        self.patched.forward = self.patched.forward

    def forward(self, x):
        x = self.patched(self.good(x))
        self.flat(x)
        return x


@pytest.fixture
def looked(images):
    return targets(Mixed(), "*", CNN, example_inputs=(images,))


def paths(report):
    return [target.path for target in report.listed]


def test_a_target_tells_what_was_seen_of_it(looked):
    assert looked.listed[0] == Target(
        path="good",
        kind="Conv2d",
        topology=CNN,
        parameters=16,
        other_names=(),
        width=4,
        shape=(4, 4, 12, 12),
        calls=1,
        obstacle=None,
    )


def test_without_examples_it_tells_what_the_layers_do():
    (target,) = targets(ResNet(), "layer2", CNN).listed
    assert (target.width, target.shape, target.calls) == (12, None, None)


class TestWhere:
    @pytest.mark.parametrize(
        ("pattern", "matched"),
        [
            ("layer1", ["layer1"]),
            ("layer?", ["layer1", "layer2", "layer3"]),
            ("layer[!1]", ["layer2", "layer3"]),
            ("layer?.*", ["layer1.0", "layer1.1", "layer2.0", "layer3.0"]),
            ("*.0.downsample.*", [f"layer{i}.0.downsample.{j}" for i in (2, 3) for j in (0, 1)]),
        ],
    )
    def test_a_star_stays_within_one_component_of_a_path(self, pattern, matched):
        assert paths(targets(ResNet(), pattern, CNN)) == matched

    def test_a_predicate_sees_path_and_module_of_all_but_the_model_itself(self):
        seen = {}
        model = ResNet()
        report = targets(model, lambda path, module: seen.update({path: module}) or True, CNN)
        expected = {path: module for path, module in model.named_modules() if path}
        assert seen == expected
        assert paths(report) == list(expected)

    def test_one_module_with_two_names_is_listed_once(self):
        (target,) = targets(Twice(), "[fs]*d", TRANSFORMER).listed
        assert (target.path, target.other_names) == ("second", ("first",))
        (target,) = targets(Twice(), lambda path, _: path in {"first", "second"}, CNN).listed
        assert (target.path, target.other_names) == ("first", ("second",))

    def test_a_module_called_twice_says_so(self):
        x = torch.randn(2, 3, 16)
        assert targets(Twice(), "first", TRANSFORMER, example_inputs=(x,)).listed[0].calls == 2

    def test_a_pattern_without_a_match_names_the_nearest(self):
        with pytest.raises(UnknownModule, match=r"did you mean 'layer.\.0\.conv1' or") as caught:
            targets(ResNet(), "layer?.*.conf1", CNN)
        assert caught.value.name == "layer?.*.conf1"

    def test_a_predicate_without_a_match_names_what_there_is(self):
        with pytest.raises(
            UnknownModule, match=r"matches 'the predicate'; known: 'avgpool', 'bn1'"
        ):
            targets(ResNet(), lambda path, module: False, CNN)


class TestObstacles:
    @pytest.mark.parametrize("path", ["idle", "flat", "patched"])
    def test_each_is_what_graft_would_raise(self, looked, images, path):
        (obstacle,) = [target.obstacle for target in looked.listed if target.path == path]
        with pytest.raises(UngraftableModule) as caught:
            graft(Mixed(), {path: CNN}, example_inputs=(images,))
        assert str(caught.value) == obstacle

    def test_a_module_that_was_never_called_says_so(self, looked):
        assert [target.calls for target in looked.listed] == [1, 0, 1, None]

    def test_where_nobody_looked_a_width_may_be_unknown(self):
        report = targets(gpt2(), "transformer.h.*.mlp", TRANSFORMER)
        assert all("pass example_inputs" in target.obstacle for target in report.listed)
        assert len(report) == 0

    def test_a_layer_that_may_be_bypassed_is_told(self):
        encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
        report = targets(encoder, "layers.*.linear?", TRANSFORMER)
        assert ["may compute without calling it" in each.obstacle for each in report.listed] == [
            True
        ] * 4

    def test_a_model_that_is_compiled_is_refused_as_a_whole(self):
        with pytest.raises(UngraftableModule, match="graft first, then compile"):
            targets(torch.compile(ResNet(), backend="eager"), "layer1", CNN)


class TestAsAMapping:
    def test_it_holds_what_can_be_grafted(self, looked):
        assert dict(looked) == {"good": CNN}
        assert "idle" not in looked
        assert len(looked) == 1

    def test_graft_takes_it(self, images):
        model = Mixed()
        slots = graft(model, targets(model, "*", CNN, example_inputs=(images,)))
        assert list(slots) == ["good"]

    def test_slots_in_series_are_made_from_it(self):
        model = ResNet()
        slots = graft(model, dict.fromkeys(targets(model, "layer?", CNN), (CNN, CNN)))
        assert list(slots) == [f"layer{i}{n}" for i in (1, 2, 3) for n in ("", ":2")]


class TestNoTouching:
    def test_model_and_random_numbers_are_as_before(self, images):
        model = ResNet()
        model.layer1.eval()
        before = copy.deepcopy(model)
        names = [(name, type(module), set(vars(module))) for name, module in model.named_modules()]
        state = torch.get_rng_state()
        targets(model, lambda path, module: True, CNN, example_inputs=(images,))
        assert torch.equal(torch.get_rng_state(), state)
        assert names == [(n, type(m), set(vars(m))) for n, m in model.named_modules()]
        assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
        for name, value in model.state_dict().items():
            assert torch.equal(value, before.state_dict()[name])


def test_printed_it_is_a_table_with_the_obstacles_below(looked):
    assert str(looked).splitlines()[:5] == [
        "module   class    features               shape  width  calls  parameters",
        "good     Conv2d   cnn                4×4×12×12      4      1          16",
        "idle     Conv2d   cannot be grafted                        0          16",
        "flat     Flatten  cannot be grafted      4×576             1           0",
        "patched  Conv2d   cannot be grafted                                   20",
    ]
    assert str(looked).splitlines()[5:] == [each.obstacle for each in looked.listed[1:]]


def test_other_names_are_printed_too():
    assert str(targets(Twice(), "first", TRANSFORMER)).splitlines()[1].startswith("first, second ")


def test_the_documentation_prints_what_it_shows(capsys):
    document = (Path(__file__).parents[2] / "docs" / "any-model.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(python|text)\n(.*?)```", document, re.DOTALL)
    names: dict[str, object] = {}
    for kind, block in blocks:
        if kind == "python":
            exec(block, names)
        else:
            assert capsys.readouterr().out == block
    assert "slots" in names
