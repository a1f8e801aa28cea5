"""One graph for every alpha, with the bits of the eager code; checkpointing and torch.func too."""

import copy

import pytest
import torch
from attrs import evolve
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

from kasmina.adapters.torch.graft import graft
from kasmina.adapters.torch.mixer import Mixer
from kasmina.adapters.torch.slot import Sprout
from kasmina.adapters.torch.streams import Stream
from kasmina.domain.evidence import Probe
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.projections import Behaviour
from kasmina.domain.schedules import AlphaSchedule, Curve
from kasmina.domain.stages import Blend, Incubator, SeedInput, Topology

NORM = "1"
STRAIGHT = IncubationPlan(incubator=Incubator.STRAIGHT_THROUGH)
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
def view(view):
    """As the domain projects it: the seed's input in incubation is that of its later stages."""

    def make(slot_id, behaviour, alpha=0.0, *, seed_input=SeedInput.OPEN, **plan):
        return evolve(view(slot_id, behaviour, alpha), seed_input=seed_input, **plan)

    return make


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


def blended(seed, blend):
    mixer = Mixer(Topology.CNN, 8) if blend is Blend.GATED else None
    return Sprout(module=seed, probe=Probe(), parameters=1, stream=None, mixer=mixer)


@pytest.mark.parametrize("incubation", [STRAIGHT, IncubationPlan(incubator=Incubator.PROXIMAL)])
@pytest.mark.parametrize("blend", Blend)
def test_every_incubator_and_blend_is_one_graph_with_and_without_gradients(
    kit, view, images, incubation, blend
):
    slots = graft(kit.host(inplace=True), {NORM: Topology.CNN})
    model, slot = slots.model, slots[NORM]
    slot.attach(blended(kit.seed(), blend))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for behaviour, alpha in STAGES[1:5]:
        slot.follow(view(NORM, behaviour, alpha, incubation=incubation, blend=blend), 0)
        twin = copy.deepcopy(model)
        ours, theirs = train(model, compiled, images), train(twin, twin, images)
        assert torch.equal(ours[0], theirs[0])
        for a, b in zip(ours[1], theirs[1], strict=True):
            # In incubation eager code leaves the mixer out, where compiled code hands it zeros.
            assert torch.equal(a, torch.zeros_like(a) if b is None else b), behaviour
        with torch.no_grad():
            assert torch.equal(compiled(images), twin(images))
    assert counter.frame_count == 2
    assert not counters["graph_break"]


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


def test_a_moving_alpha_is_followed_without_a_recompile(slots, kit, view, images):
    counter = CompileCounterWithBackend("aot_eager")
    slot, model = slots[NORM], slots.model.eval()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    ramp = AlphaSchedule(curve=Curve.LINEAR, start_step=0, steps=20)
    slot.attach(kit.seed())
    slot.follow(view(NORM, Behaviour.BLEND, schedule=ramp), 0)
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


class Checkpointing(nn.Module):
    def __init__(self, block, *, use_reentrant):
        super().__init__()
        self.block = block
        self.use_reentrant = use_reentrant

    def forward(self, x):
        if self.use_reentrant is None:
            return self.block(x)
        return checkpoint(self.block, x, use_reentrant=self.use_reentrant)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("path", ["1", "1.block", "1.block.0"])
def test_checkpointing_changes_no_gradient_of_a_compiled_model(view, images, path, use_reentrant):
    block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), Checkpointing(block, use_reentrant=use_reentrant), nn.Flatten()
    )
    slot = graft(model, {path: Topology.CNN})[path]
    slot.attach(nn.Conv2d(8, 8, 1))
    for behaviour, alpha in STAGES[1:4]:
        slot.follow(view(path, behaviour, alpha), 0)
        plain = copy.deepcopy(model)
        plain[1].use_reentrant = None
        expected = train(plain, plain, images)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert same(train(model, compiled, images), expected), behaviour


def gradients(loss, parameters, images):
    return grad(loss)(parameters, images)


def gradients_in_one_graph(loss, parameters, images):
    return torch.compile(grad(loss), fullgraph=True, backend="aot_eager")(parameters, images)


def gradients_of_each_sample(loss, parameters, images):
    found = vmap(grad(loss), (None, 0))(parameters, images.unsqueeze(1))
    return {name: gradient.sum(0) for name, gradient in found.items()}


# Not the last within the second: dynamo has no vmap over an autograd function.
@pytest.mark.parametrize(
    "way",
    [
        gradients,
        pytest.param(
            gradients_in_one_graph,
            marks=pytest.mark.skipif(
                torch.__version__.startswith("2.6."),
                reason="torch 2.6 compiles no transform of an autograd function",
            ),
        ),
        gradients_of_each_sample,
    ],
)
@pytest.mark.parametrize("blend", Blend)
@pytest.mark.parametrize("stage", [STAGES[1], STAGES[3], STAGES[5]])
def test_the_transforms_of_torch_func_give_the_gradients_of_backward(
    view, images, stage, blend, way
):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(800, 2))
    slot = graft(model, {"0": Topology.CNN})["0"]
    slot.attach(blended(nn.Conv2d(8, 8, 1), blend))
    slot.follow(view("0", *stage, incubation=STRAIGHT, blend=blend), 0)

    def loss(parameters, images):
        return functional_call(model, parameters, (images,)).square().sum()

    parameters = {name: p.detach() for name, p in model.named_parameters()}
    found = way(loss, parameters, images)
    assert slot.watching  # a transform's tensors tell nothing of writes: they are not looked at
    assert slot.handed is None
    model(images).square().sum().backward()
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-4)


def test_a_functional_call_of_a_compiled_model_uses_the_tensors_it_is_given(
    slots, kit, view, images
):
    model = slots.model.eval()
    slots[NORM].attach(kit.seed())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    other = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    for behaviour, alpha in STAGES:
        slots[NORM].follow(view(NORM, behaviour, alpha), 0)
        twin = copy.deepcopy(model)
        twin.load_state_dict(other, strict=False)
        given = {f"_orig_mod.{name}": tensor for name, tensor in other.items()}
        assert torch.equal(functional_call(compiled, given, (images,)), twin(images))


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
def test_the_default_compiler_agrees_with_eager_code_in_one_graph_for_incubation_and_blend(
    slots, kit, view, images
):
    slots[NORM].attach(kit.seed())
    compiled = torch.compile(slots.model, fullgraph=True)
    for behaviour, alpha in STAGES[1:5]:
        slots[NORM].follow(view(NORM, behaviour, alpha), 0)
        twin = copy.deepcopy(slots.model)
        ours, theirs = train(slots.model, compiled, images), train(twin, twin, images)
        for a, b in zip([ours[0], *ours[1]], [theirs[0], *theirs[1]], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    assert counters["stats"]["unique_graphs"] == 1


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


@pytest.mark.gpu
def test_cuda_graphs_follow_alpha_and_a_seed_born_after_they_were_recorded(
    slots, kit, view, images, accelerator
):
    if accelerator.type != "cuda":
        pytest.skip("CUDA graphs need CUDA")
    model, slot, images = slots.model.to(accelerator), slots[NORM], images.to(accelerator)
    compiled = torch.compile(model, fullgraph=True, mode="reduce-overhead")

    def agrees():
        for _ in range(3):  # warmed up, recorded, replayed
            torch.compiler.cudagraph_mark_step_begin()
            twin = copy.deepcopy(model)
            ours, theirs = train(model, compiled, images), train(twin, twin, images)
            torch.testing.assert_close(ours[0], theirs[0], rtol=1e-2, atol=1e-2)

    agrees()
    slot.attach(kit.seed().to(accelerator))
    for behaviour, alpha in STAGES:
        slot.follow(view(NORM, behaviour, alpha), 0)
        agrees()
    assert counters["inductor"]["cudagraph_skips"] == 0
