"""Graphs over whole lives: when one is compiled, how long it lives, and that there is room."""

import copy
import os
import pickle
import subprocess
import sys
import weakref

import pytest
import torch
from attrs import evolve
from torch import nn
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.utils import counters

from kasmina.adapters.torch import graphs
from kasmina.adapters.torch.graft import graft, graft_host
from kasmina.adapters.torch.hosts import ConvHost, GPTHost
from kasmina.domain.projections import Behaviour
from kasmina.domain.stages import Health, SeedInput, Stage, Topology
from tests.journeys.loop import Loop
from tests.torch.models import ResNet, gpt2, images, tokens

LIFE = [
    (Behaviour.IDENTITY, 0.0),
    (Behaviour.INCUBATE, 0.0),
    (Behaviour.BLEND, 0.0),
    (Behaviour.BLEND, 0.3),
    (Behaviour.BLEND, 1.0),
    (Behaviour.SEED, 1.0),
]
COMPILING = {1, 5}  # of LIFE: the seed runs for the first time, the seed runs alone
MODES = 2  # each with graphs of its own: training, and evaluation without gradients

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    # The compiler's own look at the inputs of a graph that begins in the middle of a model.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]


@pytest.fixture(autouse=True)
def a_fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(cache_size_limit=8, accumulated_cache_size_limit=256):
        yield
    torch._dynamo.reset()


@pytest.fixture
def view(view):
    """As the domain projects it: the seed's input in incubation is that of its later stages."""

    def make(slot_id, behaviour, alpha=0.0):
        return evolve(view(slot_id, behaviour, alpha), seed_input=SeedInput.OPEN)

    return make


class Graphs:
    """A backend that counts the graphs it made, and those that are still alive."""

    def __init__(self):
        self.made = 0
        self._alive = weakref.WeakSet()
        self._compile = lookup_backend("aot_eager")

    def __call__(self, graph, inputs):
        compiled = self._compile(graph, inputs)

        def run(*args):
            return compiled(*args)

        self.made += 1
        self._alive.add(run)
        return run

    @property
    def alive(self):
        return len(self._alive)


@pytest.fixture
def backend():
    return Graphs()


class Seed(nn.Module):
    def __init__(self, slot):
        super().__init__()
        spatial = slot.topology is Topology.CNN
        self.layer = (nn.Conv2d if spatial else nn.Linear)(
            slot.width, slot.width, *((1,) if spatial else ())
        )

    def forward(self, x):
        return x + self.layer(x)


def conv_host():
    return graft_host(ConvHost(inputs=3)), images()


def gpt_host():
    return graft_host(GPTHost(depth=2, width=16, heads=2)), tokens()


def resnet():
    return graft(ResNet(), {"layer2": Topology.CNN}), images()


def gpt2_host():
    pytest.importorskip("transformers")
    inputs = tokens()
    slots = graft(gpt2(), {"transformer.h.1": Topology.TRANSFORMER}, example_inputs=inputs)
    return slots, inputs


def passes(model, forward, inputs):
    """Everything that a training pass and an evaluation without gradients compute."""
    torch.manual_seed(3)
    model.train().zero_grad()
    trained = forward(*inputs)
    trained = getattr(trained, "logits", trained)
    trained.square().sum().backward()
    model.eval()
    with torch.no_grad():
        evaluated = forward(*inputs)
    return [trained, getattr(evaluated, "logits", evaluated), *(p.grad for p in model.parameters())]


def same(a, b):
    pairs = zip(a, b, strict=True)
    return all((x is None and y is None) or torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize(
    "host",
    [
        conv_host,
        gpt_host,
        pytest.param(resnet, marks=pytest.mark.slow),
        pytest.param(gpt2_host, marks=pytest.mark.slow),
    ],
)
def test_a_life_compiles_when_the_seed_first_runs_and_when_it_runs_alone(host, view, backend):
    slots, inputs = host()
    model, (slot_id, slot) = slots.model, next(iter(slots.items()))
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    passes(model, compiled, inputs)
    slot.attach(Seed(slot))
    made = []
    for behaviour, alpha in LIFE:
        slot.follow(view(slot_id, behaviour, alpha), 0)
        twin = copy.deepcopy(model)
        assert same(passes(model, compiled, inputs), passes(twin, twin, inputs)), behaviour
        made.append(backend.made)
    slot.detach()
    passes(model, compiled, inputs)
    assert made == [2, 4, 4, 4, 4, 6]
    assert backend.made == 6  # without the seed it is the model of before
    assert not counters["graph_break"]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return torch.relu(self.linear(x))


class Tower(nn.Module):
    """As many blocks of one class as there are floors, small, since some tests compile a lot."""

    def __init__(self, floors):
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.blocks = nn.Sequential(*(Block() for _ in range(floors)))

    def forward(self, x):
        return self.blocks(self.stem(x))


def tower(floors):
    targets = {f"blocks.{floor}": Topology.TRANSFORMER for floor in range(floors)}
    return graft(Tower(floors), targets), (torch.randn(2, 3, 4),)


def whole(model, backend):
    return torch.compile(model, fullgraph=True, backend=backend)


def in_place(model, backend):
    model.compile(fullgraph=True, backend=backend)
    return model


def within_a_function(model, backend):
    def compute(batch):
        return model(batch)

    return torch.compile(compute, fullgraph=True, backend=backend)


def block_by_block(model, backend):
    for block in model.blocks:
        block.compile(fullgraph=True, backend=backend)
    return model


def block_by_wrapped_block(model, backend):
    for index, block in enumerate(list(model.blocks)):
        model.blocks[index] = torch.compile(block, fullgraph=True, backend=backend)
    return model


@pytest.mark.parametrize(
    ("way", "seeds"),
    [
        (block_by_block, 8),
        (block_by_wrapped_block, 8),
        pytest.param(whole, 8, marks=pytest.mark.slow),
        # Other ways to the same graphs; of these seeds, too, there are more than the limit of 8.
        pytest.param(in_place, 3, marks=pytest.mark.slow),
        pytest.param(within_a_function, 3, marks=pytest.mark.slow),
    ],
)
def test_many_seeds_live_their_whole_lives_in_one_compiled_model(way, seeds, view, backend):
    slots, inputs = tower(seeds)
    forward = way(slots.model, backend)

    def compiled_now():
        before = backend.made
        ours = passes(slots.model, forward, inputs)
        made = backend.made - before
        with torch.compiler.set_stance("force_eager"):
            assert same(ours, passes(slots.model, forward, inputs))
        return made

    assert compiled_now() == MODES
    changes = 0
    for tick in range(len(LIFE) + 2 * seeds):
        for born, (slot_id, slot) in enumerate(slots.items()):
            age = tick - 2 * born
            if age == 0:
                slot.attach(Seed(slot))
            if 0 <= age < len(LIFE):
                slot.follow(view(slot_id, *LIFE[age]), 0)
                assert compiled_now() == (MODES if age in COMPILING else 0)
            if age == len(LIFE):
                slot.detach()
                assert compiled_now() in {0, MODES}
            changes += age in COMPILING or age == len(LIFE)
            # At most three live at once here, and an older graph may still serve without them.
            assert backend.alive <= 6 * MODES
    assert changes == 3 * seeds
    assert not counters["graph_break"]
    assert backend.alive == MODES


def test_compiled_block_by_block_a_cull_compiles_nothing(view, backend):
    slots, inputs = tower(3)
    forward = block_by_block(slots.model, backend)
    for slot_id, slot in slots.items():
        slot.attach(Seed(slot))
        slot.follow(view(slot_id, Behaviour.BLEND, 0.5), 0)
    passes(slots.model, forward, inputs)
    first, *rest = slots.values()
    rest[-1].detach()
    passes(slots.model, forward, inputs)
    made = backend.made
    for slot in (first, rest[0]):
        slot.detach()
        passes(slots.model, forward, inputs)
    assert backend.made == made  # empty blocks of one class share their graphs


def test_each_seed_makes_room_for_the_graphs_of_its_life(kit, view, images, backend):
    slots = graft(kit.host(), {"1": Topology.CNN})
    compiled = torch.compile(slots.model, fullgraph=True, backend=backend)
    with torch._dynamo.config.patch(cache_size_limit=MODES, accumulated_cache_size_limit=MODES):
        for _ in range(3):
            passes(slots.model, compiled, (images,))
            slots["1"].attach(kit.seed())
            for behaviour, alpha in LIFE:
                slots["1"].follow(view("1", behaviour, alpha), 0)
                passes(slots.model, compiled, (images,))
            slots["1"].detach()
    assert backend.made == MODES * (1 + 3 * len(COMPILING))


def test_without_that_room_pytorch_would_give_the_model_up(kit, view, images, backend, monkeypatch):
    monkeypatch.setattr("kasmina.adapters.torch.slot.make_room", lambda: None)
    slots = graft(kit.host(), {"1": Topology.CNN})
    compiled = torch.compile(slots.model, fullgraph=True, backend=backend)

    def live():
        slots["1"].attach(kit.seed())
        slots["1"].follow(view("1", Behaviour.BLEND, 0.5), 0)
        passes(slots.model, compiled, (images,))
        slots["1"].detach()

    for _ in range(8 // MODES):
        live()
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        live()


def test_a_process_that_has_not_loaded_the_compiler_is_spared_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch._dynamo")
    graphs.make_room()
    assert "torch._dynamo" not in sys.modules


def test_a_culled_seed_takes_its_graphs_along(kit, view, images, backend):
    slots = graft(kit.host(), {"1": Topology.CNN})
    compiled = torch.compile(slots.model, fullgraph=True, backend=backend)
    alive = []
    for behaviour in (Behaviour.BLEND, Behaviour.SEED):
        for _ in range(3):
            slots["1"].attach(kit.seed())
            slots["1"].follow(view("1", behaviour, 0.5), 0)
            passes(slots.model, compiled, (images,))
            alive.append(backend.alive)
            slots["1"].detach()
            alive.append(backend.alive)
    assert alive == [MODES, 0] * 6


def test_a_trial_without_the_seed_costs_no_graph(kit, view, images, backend):
    slots = graft(kit.host(), {"1": Topology.CNN})
    compiled = torch.compile(slots.model, fullgraph=True, backend=backend)
    slots["1"].attach(kit.seed())
    slots["1"].follow(view("1", Behaviour.BLEND, 0.5), 0)
    passes(slots.model, compiled, (images,))
    with torch.compiler.set_stance("force_eager"):
        for behaviour in (Behaviour.IDENTITY, Behaviour.SEED):
            with slots.showing("1", view("1", behaviour)):
                compiled(images)
    slots["1"].watch()
    slots["1"].forget()
    passes(slots.model, compiled, (images,))
    assert backend.made == backend.alive == MODES


def passed_alone(request):
    """Run the test in a process of its own, unless this is it.

    After thousands of other tests torch's tracer may leave, in a model it has compiled, what cannot
    be pickled (a ``FakeTensorMode``).
    """
    if os.environ.get("KASMINA_TEST_ALONE") == request.node.nodeid:
        return False
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", request.node.nodeid]
    environment = {**os.environ, "KASMINA_TEST_ALONE": request.node.nodeid}
    done = subprocess.run(
        command,
        env=environment,
        cwd=request.config.rootpath,
        capture_output=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout.decode()
    return True


@pytest.mark.parametrize(
    "way",
    [copy.deepcopy, lambda slots: pickle.loads(pickle.dumps(slots))],
    ids=["deepcopy", "pickle"],
)
def test_a_copy_does_not_keep_the_graphs_of_its_original(  # noqa: PLR0917 - all of them fixtures
    way, kit, view, images, backend, request
):
    if passed_alone(request):
        return
    slots = graft(kit.host(), {"1": Topology.CNN})
    slots["1"].attach(kit.seed())
    slots["1"].follow(view("1", Behaviour.BLEND, 0.5), 0)
    compiled = torch.compile(slots.model, fullgraph=True, backend=backend)
    passes(slots.model, compiled, (images,))
    other = way(slots.model)
    slots["1"].detach()
    assert backend.alive == 0
    assert other.get_submodule("kasmina.1").seed is not None


def test_a_run_compiles_nothing_between_training_and_probation_where_its_seed_is_healthy(
    tmp_path, backend
):
    loop = Loop.fresh()
    loop.host = torch.compile(loop.host, fullgraph=True, backend=backend)
    with loop.open(tmp_path / "runs.db") as run:
        loop.epoch(run)
        made = [backend.made]
        run.germinate("2", "conv_light")
        while run.state.slot("2").stage is not Stage.PROBATIONARY:
            loop.epoch(run)
            made.append(backend.made)
            assert run.state.epoch < 12
        loop.epoch(run)
        assert made == [MODES] + [2 * MODES] * (len(made) - 1)
        assert backend.made == 2 * MODES
        assert run.state.slot("2").seed.violations == 0
        assert run.state.slot("2").seed.health is Health.HEALTHY


def test_compiled_blocks_of_different_classes_do_not_share_one_limit(backend):
    model, inputs = Tower(10), (torch.randn(2, 3, 4),)
    for floor, block in enumerate(model.blocks):
        block.__class__ = type(f"Block{floor}", (Block,), {})
    graft(model, {"blocks.*": Topology.TRANSFORMER})
    forward = block_by_block(model, backend)
    passes(model, forward, inputs)
    assert backend.made == 10 * MODES
