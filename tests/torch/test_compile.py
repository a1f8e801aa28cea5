"""One graph for every alpha, the bits of the eager code, and seeds born after compilation."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from kasmina.adapters.torch.graft import graft
from kasmina.adapters.torch.slot import Sprout
from kasmina.adapters.torch.streams import Stream
from kasmina.domain.evidence import Probe
from kasmina.domain.projections import Behaviour
from kasmina.domain.schedules import AlphaSchedule, Curve
from kasmina.domain.stages import SeedInput, Topology

NORM = "1"
STAGES = [
    (Behaviour.IDENTITY, 0.0),
    (Behaviour.INCUBATE, 0.0),
    (Behaviour.BLEND, 0.0),
    (Behaviour.BLEND, 0.3),
    (Behaviour.BLEND, 1.0),
    (Behaviour.SEED, 1.0),
]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    # The compiler's own look at the inputs of a graph that begins in the middle of a model.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]


@pytest.fixture(autouse=True)
def a_fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def slots(kit):
    return graft(kit.host(inplace=True), {NORM: Topology.CNN})


def train(model, forward, images):
    model.zero_grad()
    out = forward(images)
    out.square().sum().backward()
    return out, [p.grad for p in model.parameters()]


def same(a, b):
    pairs = zip([a[0], *a[1]], [b[0], *b[1]], strict=True)
    return all((x is None and y is None) or torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("seed_input", SeedInput)
def test_every_stage_is_one_graph_with_the_bits_of_eager_code(slots, kit, view, images, seed_input):
    eager, slot = slots.model, slots[NORM]
    slot.attach(kit.seed())
    for behaviour, alpha in STAGES:
        slot.follow(view(NORM, behaviour, alpha, seed_input=seed_input), 0)
        twin = copy.deepcopy(eager)
        compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
        assert same(train(twin, compiled, images), train(eager, eager, images)), behaviour
        assert twin.state_dict().keys() == eager.state_dict().keys()
        for name, value in eager.state_dict().items():
            assert torch.equal(twin.state_dict()[name], value), (behaviour, name)


def test_a_seed_that_is_not_finite_is_caught_and_counted_inside_the_graph(slots, view, images):
    seed = nn.Conv2d(8, 8, 1)
    nn.init.constant_(seed.weight, float("nan"))
    slots[NORM].attach(seed)
    expected = slots.model.eval()(images)
    compiled = torch.compile(slots.model, fullgraph=True, backend="aot_eager")
    for behaviour, alpha in STAGES[1:5]:
        slots[NORM].follow(view(NORM, behaviour, alpha), 0)
        assert torch.equal(compiled(images), expected)
    assert slots[NORM].nonfinite_outputs == 4


def test_a_seed_germinated_after_compilation_acts_and_learns(slots, kit, view, images):
    compiled = torch.compile(slots.model, fullgraph=True, backend="aot_eager")
    before = compiled(images)
    slots[NORM].attach(kit.seed())
    slots[NORM].follow(view(NORM, Behaviour.BLEND, 0.5), 0)
    after = compiled(images)
    assert not torch.equal(before, after)
    after.sum().backward()
    assert slots[NORM].seed.conv.weight.grad.abs().sum() > 0


def test_a_whole_life_recompiles_for_birth_exposure_fossilization_and_cull_alone(
    slots, kit, view, images
):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(slots.model, fullgraph=True, backend=counter)
    slot, graphs = slots[NORM], []

    def live(behaviour, alpha=0.0):
        slot.follow(view(NORM, behaviour, alpha), 0)
        compiled(images).sum().backward()
        graphs.append(counter.frame_count)

    compiled(images).sum().backward()
    slot.attach(kit.seed())
    live(Behaviour.IDENTITY)
    live(Behaviour.INCUBATE)
    for alpha in (0.0, 0.2, 0.7, 1.0):
        live(Behaviour.BLEND, alpha)
    live(Behaviour.SEED)
    slot.detach()
    compiled(images)
    graphs.append(counter.frame_count)
    empty, born, opened, alone = 1, 2, 3, 4
    assert graphs == [empty, born, opened, opened, opened, opened, alone, alone]
    assert not counters["graph_break"]


def test_with_a_detached_input_one_graph_serves_from_training_to_probation(
    slots, kit, view, images
):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(slots.model, fullgraph=True, backend=counter)
    slots[NORM].attach(kit.seed())
    for behaviour, alpha in STAGES[1:5]:
        slots[NORM].follow(view(NORM, behaviour, alpha, seed_input=SeedInput.DETACHED), 0)
        compiled(images).sum().backward()
    assert counter.frame_count == 1


def test_a_moving_alpha_is_followed_without_a_recompile(slots, kit, view, images):
    from attrs import evolve

    counter = CompileCounterWithBackend("aot_eager")
    slot, model = slots[NORM], slots.model.eval()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    ramp = AlphaSchedule(curve=Curve.LINEAR, start_step=0, steps=20)
    slot.attach(kit.seed())
    slot.follow(evolve(view(NORM, Behaviour.BLEND), schedule=ramp), 0)
    for step in range(21):
        slot.set_alpha(step)
        assert torch.equal(compiled(images), model(images))
    assert counter.frame_count == 1


def test_layers_of_one_class_share_a_graph_when_compiled_one_by_one(kit, images):
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(x)

    model = nn.Sequential(*(Layer() for _ in range(12)))
    expected = model(images)
    graft(model, {str(index): Topology.CNN for index in range(12)})
    counter = CompileCounterWithBackend("aot_eager")
    for index in range(12):
        model[index].compile(fullgraph=True, backend=counter)
    assert torch.equal(model(images), expected)
    assert counter.frame_count == 2  # the first layer's input needs no gradient


def test_a_seed_that_draws_breaks_the_graph_but_not_its_hosts_random_stream(kit, view, images):
    plain = kit.host(dropout=0.5)
    slots = graft(copy.deepcopy(plain), {NORM: Topology.CNN})
    seed = kit.seed(dropout=0.5)
    slots[NORM].attach(Sprout(module=seed, probe=Probe(), parameters=1, stream=Stream(7)))
    slots[NORM].follow(view(NORM, Behaviour.INCUBATE), 0)
    compiled = torch.compile(slots.model, backend="aot_eager")
    torch.manual_seed(5)
    expected = [plain(images) for _ in range(3)]
    torch.manual_seed(5)
    assert all(torch.equal(compiled(images), each) for each in expected)
    compiled(images).sum().backward()
    assert seed.conv.weight.grad.abs().sum() > 0
    torch._dynamo.reset()
    strict = torch.compile(slots.model, fullgraph=True, backend="aot_eager")
    with pytest.raises(torch._dynamo.exc.Unsupported):
        strict(images)


def test_autocast_and_a_seed_of_another_dtype_compile_too(view, images):
    class Float(nn.Module):
        def forward(self, x):
            return x.float()

    model = nn.Sequential(nn.Conv2d(3, 8, 3), Float())
    slot = graft(model, {"1": Topology.CNN}, example_inputs=(images,))["1"]
    slot.attach(nn.Conv2d(8, 8, 1))
    slot.follow(view("1", Behaviour.BLEND, 0.5), 0)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(compiled(images), model(images))


@pytest.mark.slow
def test_a_grown_model_exports(slots, kit, view, images):
    slots[NORM].attach(kit.seed())
    model = slots.model.eval()
    for behaviour, alpha in STAGES:
        slots[NORM].follow(view(NORM, behaviour, alpha), 0)
        exported = torch.export.export(model, (images,))
        assert torch.equal(exported.module()(images), model(images))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [STAGES[1], STAGES[3]], ids=["incubate", "blend"])
def test_the_default_compiler_agrees_with_eager_code(slots, kit, view, images, stage):
    slots[NORM].attach(kit.seed())
    slots[NORM].follow(view(NORM, *stage), 0)
    twin = copy.deepcopy(slots.model)
    ours = train(twin, torch.compile(twin, fullgraph=True), images)
    theirs = train(slots.model, slots.model, images)
    for a, b in zip([ours[0], *ours[1]], [theirs[0], *theirs[1]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_the_default_compiler_gives_a_host_the_same_bits_with_and_without_a_seed(kit, view, images):
    plain = kit.host()
    slots = graft(copy.deepcopy(plain), {NORM: Topology.CNN})
    slots[NORM].attach(kit.seed())
    slots[NORM].follow(view(NORM, Behaviour.INCUBATE), 0)
    out, gradients = train(plain, torch.compile(plain, fullgraph=True), images)
    theirs = torch.compile(slots.model, fullgraph=True)(images)
    theirs.square().sum().backward()
    assert torch.equal(theirs, out)
    for a, b in zip(slots.host_parameters(), gradients, strict=True):
        assert torch.equal(a.grad, b)
