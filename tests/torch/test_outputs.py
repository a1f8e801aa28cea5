import dataclasses
from collections import OrderedDict, defaultdict, namedtuple

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from kasmina.adapters.torch.outputs import features_in, with_features

Pair = namedtuple("Pair", ["mask", "features"])  # noqa: PYI024  # as strangers' models return it
MASK = torch.ones(2, dtype=torch.bool)


@dataclasses.dataclass
class Plain:
    mask: object
    features: object
    derived: list = dataclasses.field(init=False, default_factory=list)


@dataclasses.dataclass(frozen=True)
class Frozen:
    mask: object
    features: object


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlotted:
    mask: object
    features: object


class Strict(namedtuple("Strict", ["mask", "features"])):  # noqa: PYI024, SLOT002
    def __new__(cls, only):
        return super().__new__(cls, MASK, only)


class Ordered(dict):
    pass


class Row(list):
    pass


class Triple(tuple):  # noqa: SLOT001
    pass


COMPILED = {
    "tuple": lambda x: (MASK, x),
    "list": lambda x: [MASK, x],
    "dict": lambda x: {"mask": MASK, "features": x},
    "OrderedDict": lambda x: OrderedDict(mask=MASK, features=x),
    "dict subclass": lambda x: Ordered(mask=MASK, features=x),
    "namedtuple": lambda x: Pair(MASK, x),
    "tuple subclass": lambda x: Triple((MASK, x)),
    "dataclass": lambda x: Plain(MASK, x),
    "frozen dataclass": lambda x: Frozen(MASK, x),
    "ModelOutput": lambda x: BaseModelOutputWithPast(last_hidden_state=x, hidden_states=(x, MASK)),
    "nested": lambda x: (MASK, {"inner": [None, x]}, "after"),
}
EAGER = {
    **COMPILED,
    "defaultdict": lambda x: defaultdict(list, mask=MASK, features=x),
    "list subclass": lambda x: Row([MASK, x]),
    "frozen slotted dataclass": lambda x: FrozenSlotted(MASK, x),
    "a constructor of its own": Strict,
}


def leaves(output):
    """Everything in a container but its features, in order."""
    if isinstance(output, dict):
        return [leaf for item in output.values() for leaf in leaves(item)]
    if isinstance(output, tuple | list):
        return [leaf for item in output for leaf in leaves(item)]
    if dataclasses.is_dataclass(output):
        names = [field.name for field in dataclasses.fields(output)]
        return [leaf for name in names for leaf in leaves(getattr(output, name))]
    return [output]


def same(a, b):
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("make", EAGER.values(), ids=EAGER)
class TestEveryContainer:
    def test_its_features_are_its_first_floating_tensor(self, make):
        x = torch.randn(2, 3)
        assert features_in(make(x)) is x

    def test_new_features_take_their_place_and_all_else_stays_the_same_object(self, make):
        x, other = torch.randn(2, 3), torch.randn(2, 3)
        output = make(x)
        before = leaves(output)
        rebuilt = with_features(output, other)
        assert type(rebuilt) is type(output)
        assert rebuilt is not output
        assert features_in(rebuilt) is other
        position = next(index for index, leaf in enumerate(before) if leaf is x)
        assert same(leaves(rebuilt), [*before[:position], other, *before[position + 1 :]])

    def test_the_output_itself_is_left_as_it_was(self, make):
        x = torch.randn(2, 3)
        output = make(x)
        before = leaves(output)
        with_features(output, torch.zeros(2, 3))
        assert features_in(output) is x
        assert same(leaves(output), before)


@pytest.mark.parametrize("make", COMPILED.values(), ids=COMPILED)
def test_it_is_traced_into_one_graph(make):
    torch.compiler.reset()

    def forward(x):
        output = make(x.relu())
        return with_features(output, features_in(output) * 2)

    x = torch.randn(2, 3)
    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")(x)
    assert type(compiled) is type(forward(x))
    assert torch.equal(features_in(compiled), x.relu() * 2)


class TestATensor:
    def test_is_its_own_features(self):
        x, other = torch.randn(2), torch.randn(2)
        assert features_in(x) is x
        assert with_features(x, other) is other

    @pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64])
    def test_of_another_kind_is_none(self, kind):
        assert features_in(torch.ones(2, dtype=kind)) is None


@pytest.mark.parametrize("output", [None, "text", 3, (), {}, [MASK, None], (MASK, {"a": "b"})])
def test_outputs_without_floating_tensors_have_no_features(output):
    assert features_in(output) is None


def test_what_torch_itself_returns_is_served():
    output = torch.sort(torch.randn(2, 3))
    rebuilt = with_features(output, torch.zeros(2, 3))
    assert type(rebuilt) is type(output)
    assert torch.equal(rebuilt.values, torch.zeros(2, 3))
    assert rebuilt.indices is output.indices


def test_a_packed_sequence_is_served():
    packed = nn.utils.rnn.pack_sequence([torch.randn(3, 4), torch.randn(2, 4)])
    rebuilt = with_features(packed, packed.data * 2)
    assert isinstance(rebuilt, nn.utils.rnn.PackedSequence)
    assert torch.equal(rebuilt.data, packed.data * 2)
    assert rebuilt.batch_sizes is packed.batch_sizes


def test_a_model_output_keeps_its_names_and_its_items_in_step():
    output = BaseModelOutputWithPast(last_hidden_state=torch.ones(2), hidden_states=None)
    rebuilt = with_features(output, torch.zeros(2))
    assert rebuilt.last_hidden_state is rebuilt["last_hidden_state"] is rebuilt[0]
    assert list(rebuilt) == ["last_hidden_state"]


def test_a_field_that_no_constructor_sets_is_handed_on():
    output = Plain(MASK, torch.ones(2))
    output.derived.append("kept")
    assert with_features(output, torch.zeros(2)).derived is output.derived
