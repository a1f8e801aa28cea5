"""What holds for every host, whatever it is made of."""

import copy
import dataclasses
import pickle

import pytest
import torch
from torch import Tensor, nn

from kasmina.adapters.torch.germination import sprout
from kasmina.adapters.torch.graft import Slots, graft
from kasmina.domain.projections import Behaviour
from kasmina.domain.stages import Topology
from tests.torch.models import HOSTS

STEPS = 3
CHECKPOINTED = {name: host for name, host in HOSTS.items() if name.startswith("checkpointed")}


class Seed(nn.Module):
    """Not the identity at birth, so that what it does is seen; with a buffer and with draws."""

    def __init__(self, slot, dropout):
        super().__init__()
        spatial = slot.topology is Topology.CNN
        self.layer = (
            nn.Conv2d(slot.width, slot.width, 1) if spatial else nn.Linear(slot.width, slot.width)
        )
        self.norm = nn.BatchNorm2d(slot.width) if spatial else nn.LayerNorm(slot.width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return x + self.dropout(self.norm(self.layer(x)))


@pytest.fixture(params=HOSTS.values(), ids=HOSTS)
def host(request):
    return request.param


@pytest.fixture
def model(host):
    return host.build()


@pytest.fixture
def inputs(host):
    return host.inputs()


@pytest.fixture
def grow(host, inputs, view):
    """Graft a model, put a seed into every slot, and let it act."""

    def make(model, behaviour, alpha=0.0, *, dropout=0.3):
        slots = graft(model, host.places, example_inputs=inputs)
        tensors = [tensor for _, tensor in slots.host_tensors()]
        for number, (slot_id, slot) in enumerate(slots.items()):
            slot.attach(
                sprout(
                    slot,
                    lambda slot=slot: Seed(slot, dropout),
                    blueprint_id="seed",
                    init_seed=number,
                    host_parameters=tensors,
                )
            )
            slot.follow(view(slot_id, behaviour, alpha), 0)
        return slots

    return make


def tensors_in(output):
    """Every floating-point tensor that a model returned."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, dict):
        output = output.values()
    elif dataclasses.is_dataclass(output):
        output = vars(output).values()
    elif not isinstance(output, tuple | list):
        return []
    return [tensor for each in output for tensor in tensors_in(each)]


def computed(model, inputs, *, training=False):
    torch.manual_seed(5)
    with torch.set_grad_enabled(training):
        return tensors_in(model.train(training)(*inputs))


def trained(model, parameters, inputs, steps=STEPS):
    """All that a short training shows: outputs, gradients, weights, buffers, random numbers."""
    torch.manual_seed(5)
    model.train()
    optimizer = torch.optim.SGD(parameters.values(), lr=0.01, momentum=0.9)
    shown = []
    for _ in range(steps):
        optimizer.zero_grad()
        outputs = tensors_in(model(*inputs))
        sum(output.square().mean() for output in outputs).backward()
        shown += [output.detach().clone() for output in outputs]
        shown += [p.grad.clone() for p in parameters.values() if p.grad is not None]
        optimizer.step()
        shown += [parameter.detach().clone() for parameter in parameters.values()]
        shown.append(torch.get_rng_state())
    buffers = (b for name, b in model.named_buffers() if not name.startswith("kasmina"))
    return [*shown, *(buffer.clone() for buffer in buffers)]


def equal(a, b):
    return len(a) == len(b) > 0 and all(map(torch.equal, a, b))


def traces(model):
    """All that a graft could leave behind, as objects to be compared by identity."""
    return [
        (name, type(module), *({key: id(value) for key, value in each.items()} for each in kept))
        for name, module in model.named_modules(remove_duplicate=False)
        for kept in [(vars(module), module._modules, module._parameters, module._buffers)]
    ]


def test_a_graft_changes_neither_output_nor_keys(host, model, inputs):
    plain, keys = copy.deepcopy(model), list(model.state_dict())
    slots = graft(model, host.places, example_inputs=inputs)
    assert len(slots) > 0
    assert list(model.state_dict()) == keys
    for training in (False, True):
        expected = computed(plain, inputs, training=training)
        assert equal(computed(model, inputs, training=training), expected)


def test_an_incubating_seed_learns_and_changes_not_one_bit_of_its_host(model, inputs, grow):
    plain = copy.deepcopy(model)
    slots = grow(model, Behaviour.INCUBATE)
    alone = trained(plain, dict(plain.named_parameters()), inputs)
    beside = trained(model, dict(slots.host_named_parameters()), inputs)
    assert equal(beside, alone)
    assert equal(computed(model, inputs), computed(plain, inputs))
    for slot in slots.values():
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in slot.seed_parameters())


def test_a_blend_at_0_is_the_host(model, inputs, grow):
    plain = copy.deepcopy(model)
    grow(model, Behaviour.BLEND, 0.0)
    for training in (False, True):
        expected = computed(plain, inputs, training=training)
        assert equal(computed(model, inputs, training=training), expected)


def test_a_blend_at_1_is_the_seed_and_is_seen(model, inputs, grow, view):
    plain = copy.deepcopy(model)
    slots = grow(model, Behaviour.BLEND, 1.0)
    blended = computed(model, inputs)
    for slot_id, slot in slots.items():
        slot.follow(view(slot_id, Behaviour.SEED), 0)
    assert equal(blended, computed(model, inputs))
    assert not equal(blended[:1], computed(plain, inputs)[:1])


def test_each_slot_acts_by_itself(model, inputs, grow, view):
    slots = grow(model, Behaviour.IDENTITY)
    for slot_id, slot in slots.items():
        without = computed(model, inputs)
        slot.follow(view(slot_id, Behaviour.SEED), 0)
        assert not equal(computed(model, inputs)[:1], without[:1])


def test_a_fossilized_seed_passes_the_gradient_on(model, inputs, grow):
    plain = copy.deepcopy(model)
    trained(plain, dict(plain.named_parameters()), inputs, steps=1)
    slots = grow(model, Behaviour.SEED)
    grown = dict(slots.host_named_parameters())
    trained(model, grown, inputs, steps=1)
    reached = {name for name, p in plain.named_parameters() if _moves(p)}
    assert reached
    assert {name for name, p in grown.items() if _moves(p)} >= reached
    assert all(_moves(parameter) for slot in slots.values() for parameter in _heads(slot))


def _moves(parameter):
    grad = parameter.grad
    return grad is not None and bool(grad.isfinite().all()) and bool(grad.abs().sum() > 1e-12)


def _heads(slot):
    return (slot.seed.norm.weight,)


def test_ungraft_restores_the_model_exactly(model, inputs, grow):
    expected = computed(model, inputs)  # a host may keep something of its first forward
    before, state = traces(model), {k: v.clone() for k, v in model.state_dict().items()}
    slots = grow(model, Behaviour.SEED)
    computed(model, inputs)
    slots.ungraft()
    assert traces(model) == before
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert equal(computed(model, inputs), expected)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_computes_the_same_and_is_its_own(model, inputs, grow, way):
    slots = grow(model, Behaviour.BLEND, 0.5)
    trained(model, dict(slots.host_named_parameters()), inputs, steps=1)
    expected = computed(model, inputs)
    copied = way(model)
    twins = Slots(copied)
    assert list(twins) == list(slots)
    assert equal(computed(copied, inputs), expected)
    for twin in twins.values():
        nn.init.constant_(twin.seed.norm.weight, -3)
    assert equal(computed(model, inputs), expected)
    assert not equal(computed(copied, inputs)[:1], expected[:1])
    twins.ungraft()
    assert not any("kasmina" in key for key in copied.state_dict())


# A checkpoint is for training only: in eval mode those hosts are like the others.
@pytest.mark.parametrize(
    "host",
    [pytest.param(host, id=name) for name, host in HOSTS.items() if "checkp" not in name],
    indirect=True,
)
# The tracer looks at functions in ways that torch itself deprecates.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_to_one_graph_it_computes_the_same(model, inputs, grow):
    torch.compiler.reset()
    grow(model, Behaviour.BLEND, 0.5, dropout=0.0)
    compiled = torch.compile(model.eval(), fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(allow_rnn=True):
        outputs = tensors_in(compiled(*inputs))
    # Close: the compiler spells out what recurrent layers do, and rounds otherwise.
    torch.testing.assert_close(outputs, tensors_in(model(*inputs)))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("behaviour", [Behaviour.INCUBATE, Behaviour.BLEND])
@pytest.mark.parametrize("host", CHECKPOINTED.values(), ids=CHECKPOINTED, indirect=True)
def test_checkpointing_changes_no_gradient(model, inputs, grow, behaviour, dropout):
    plain = copy.deepcopy(model)
    plain.reentrant = None
    gradients = []
    for each in (plain, model):
        grow(each, behaviour, 0.5, dropout=dropout)
        parameters = dict(each.named_parameters())
        trained(each, parameters, inputs, steps=1)
        gradients.append([parameter.grad for parameter in parameters.values()])
    assert equal(*gradients)
