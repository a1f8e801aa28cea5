from copy import deepcopy

import pytest
import torch
from torch import nn

from kasmina.adapters.torch.blueprints import BlueprintRegistry, blueprint, blueprints
from kasmina.adapters.torch.blueprints.parts import Residual, ZeroLinear
from kasmina.adapters.torch.blueprints.prototypes import LARGEST_KEPT, Prototypes
from kasmina.domain.blueprints import SHIPPED, BlueprintKind, DuplicateBlueprint
from kasmina.domain.errors import UnknownBlueprint
from kasmina.domain.stages import Topology

EVERY = pytest.mark.parametrize("spec", SHIPPED, ids=lambda s: f"{s.topology.value}-{s.name}")


@pytest.fixture(autouse=True)
def own_stream():
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture
def registry():
    return BlueprintRegistry()


def drawn(seed, draw):
    """What ``draw`` makes after seeding, and where it leaves the random stream."""
    torch.manual_seed(seed)
    module = draw()
    return list(module.parameters()), torch.get_rng_state()


def same(ours, theirs):
    return torch.equal(ours[1], theirs[1]) and all(
        torch.equal(a, b) for a, b in zip(ours[0], theirs[0], strict=True)
    )


class Plain(nn.Module):
    """Draws in its layers alone: a copy can be drawn again."""

    def __init__(self, width):
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x):
        return x + 0 * self.inner(x)


class Bare(nn.Module):
    """Draws a parameter that no ``reset_parameters`` knows of."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))

    def forward(self, x):
        return x + 0 * self.weight


class ZeroedFromOutside(nn.Module):
    """Sets a layer to zero that would draw itself otherwise."""

    def __init__(self, width):
        super().__init__()
        self.inner = nn.Linear(width, width)
        nn.init.zeros_(self.inner.weight)
        nn.init.zeros_(self.inner.bias)

    def forward(self, x):
        return x + self.inner(x)


class Calls:
    """A builder that counts how often it was called."""

    def __init__(self, builder):
        self.builder = builder
        self.count = 0

    def __call__(self, width):
        self.count += 1
        return self.builder(width)


def offer(registry, builder, name="mine"):
    return blueprint(
        name,
        topology=Topology.TRANSFORMER,
        kind=BlueprintKind.RESIDUAL,
        summary="a seed of one's own",
        registry=registry,
    )(builder)


@EVERY
class TestInitSeed:
    def test_the_same_one_gives_the_same_bits_whatever_was_built_before(self, spec):
        cold, warm = BlueprintRegistry(), BlueprintRegistry()
        builder = blueprints.get(spec.topology, spec.name).builder
        for each in (cold, warm):
            each.add(spec, builder)
        for width in (8, 16, 16):
            warm.build(spec.topology, spec.name, width)
        anew = drawn(5, lambda: builder(16))
        assert same(drawn(5, lambda: cold.build(spec.topology, spec.name, 16)), anew)
        assert same(drawn(5, lambda: warm.build(spec.topology, spec.name, 16)), anew)

    def test_another_one_gives_other_bits_where_anything_is_drawn(self, spec):
        one, one_end = drawn(5, lambda: blueprints.build(spec.topology, spec.name, 16))
        two, _ = drawn(6, lambda: blueprints.build(spec.topology, spec.name, 16))
        torch.manual_seed(5)
        draws = not torch.equal(one_end, torch.get_rng_state())
        assert draws == any(not torch.equal(a, b) for a, b in zip(one, two, strict=True))

    def test_what_is_built_is_ready_to_train_and_shares_nothing(self, spec):
        seeds = [blueprints.build(spec.topology, spec.name, 16) for _ in range(3)]
        parameters = [p for seed in seeds for p in seed.parameters()]
        assert len({p.data_ptr() for p in parameters}) == len(parameters)
        assert all(p.requires_grad and p.grad is None for p in parameters)
        assert all(part.training for seed in seeds for part in seed.modules())

    def test_training_one_seed_leaves_the_next_newborn(self, spec):
        before = drawn(5, lambda: blueprints.build(spec.topology, spec.name, 16))
        with torch.no_grad():
            for parameter in before[0]:
                parameter.add_(1.0)
        after = drawn(5, lambda: blueprints.build(spec.topology, spec.name, 16))
        assert not any(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))


class TestPrototypes:
    def test_the_shipped_ones_are_built_once_and_copied_out(self, registry):
        for spec in SHIPPED:
            calls = Calls(blueprints.get(spec.topology, spec.name).builder)
            registry.add(spec, calls)
            for _ in range(4):
                registry.build(spec.topology, spec.name, 16)
            assert calls.count == 2, spec.name  # the seed, and the prototype proved against it

    @pytest.mark.parametrize("builder", [Plain, Bare, ZeroedFromOutside])
    def test_a_users_module_is_drawn_as_if_it_were_built(self, registry, builder):
        offer(registry, builder)
        for init_seed in (5, 6, 5):
            built = drawn(init_seed, lambda: registry.build(Topology.TRANSFORMER, "mine", 4))
            assert same(built, drawn(init_seed, lambda: builder(4)))

    @pytest.mark.parametrize(("builder", "calls"), [(Plain, 2), (Bare, 5), (ZeroedFromOutside, 5)])
    def test_what_cannot_be_redrawn_is_built_each_time(self, registry, builder, calls):
        counting = offer(registry, Calls(builder))
        for _ in range(4):
            registry.build(Topology.TRANSFORMER, "mine", 4)
        assert counting.count == calls

    def test_large_ones_are_not_kept(self):
        calls = Calls(lambda width: nn.Linear(width, 1, bias=False))
        prototypes = Prototypes()
        for _ in range(3):
            prototypes.draw("large", lambda: calls(LARGEST_KEPT + 1))
        assert calls.count == 3

    def test_a_tensor_that_is_not_equal_to_itself_is_built_each_time(self):
        prototypes = Prototypes()
        calls = Calls(lambda width: nn.ParameterList([torch.full((width,), torch.nan)]))
        for _ in range(3):
            prototypes.draw("nan", lambda: calls(2))
        assert calls.count == 4

    def test_seeds_are_drawn_on_the_cpu_wherever_the_host_is_built(self):
        expected = drawn(5, lambda: blueprints.build(Topology.CNN, "conv_heavy", 8))
        with torch.device("meta"):
            built = drawn(5, lambda: blueprints.build(Topology.CNN, "conv_heavy", 8))
        assert same(built, expected)

    def test_the_default_dtype_is_followed(self):
        before = torch.get_default_dtype()
        blueprints.build(Topology.CNN, "conv_heavy", 8)
        try:
            torch.set_default_dtype(torch.float64)
            seed = blueprints.build(Topology.CNN, "conv_heavy", 8)
        finally:
            torch.set_default_dtype(before)
        assert {parameter.dtype for parameter in seed.parameters()} == {torch.float64}


class TestRegistry:
    def test_the_default_one_offers_what_is_shipped(self):
        assert set(SHIPPED) <= set(blueprints.specs())
        for spec in SHIPPED:
            assert blueprints.get(spec.topology, spec.name).spec is spec

    def test_specs_come_by_topology_and_name(self, registry):
        for spec in reversed(SHIPPED):
            registry.add(spec, Plain)
        assert registry.specs() == SHIPPED

    def test_an_unknown_name_is_answered_with_the_nearest_ones(self):
        with pytest.raises(UnknownBlueprint) as caught:
            blueprints.build(Topology.CNN, "conv_lite", 8)
        assert caught.value.nearest[0] == "conv_light"
        assert "there is no blueprint 'conv_lite'; did you mean 'conv_light'" in str(caught.value)

    def test_names_belong_to_their_topology(self):
        with pytest.raises(UnknownBlueprint) as caught:
            blueprints.get(Topology.TRANSFORMER, "conv_light")
        assert set(caught.value.known) == set(blueprints.names(Topology.TRANSFORMER))

    def test_a_name_is_given_once_per_topology(self, registry):
        offer(registry, Plain)
        with pytest.raises(DuplicateBlueprint, match="transformer blueprint 'mine'"):
            offer(registry, Bare)
        assert registry.get(Topology.TRANSFORMER, "mine").builder is Plain

    @pytest.mark.parametrize("width", [0, -1])
    def test_a_width_below_one_is_refused(self, width):
        with pytest.raises(ValueError, match=f"at least 1, got {width}"):
            blueprints.build(Topology.CNN, "norm", width)


class TestDecorator:
    def test_it_returns_what_it_decorates_and_offers_it_under_its_spec(self, registry):
        @blueprint(
            "mine",
            topology=Topology.CNN,
            kind=BlueprintKind.INLINE,
            summary="a function of one's own",
            parameters=lambda width: width * width,
            registry=registry,
        )
        def builder(width):
            return ZeroLinear(width, width, bias=False)

        found = registry.get(Topology.CNN, "mine")
        assert found.builder is builder
        assert (found.spec.kind, found.spec.summary) == (
            BlueprintKind.INLINE,
            "a function of one's own",
        )
        assert found.spec.parameters(6) == 36

    def test_it_offers_in_the_default_registry(self, monkeypatch):
        monkeypatch.setattr(blueprints, "_blueprints", dict(blueprints._blueprints))
        decorate = blueprint(
            "own", topology=Topology.CNN, kind=BlueprintKind.RESIDUAL, summary="a class"
        )
        assert decorate(Plain) is Plain
        assert "own" in blueprints.names(Topology.CNN)

    def test_without_a_formula_parameters_are_counted_once_per_width(self, registry):
        counting = offer(registry, Calls(Plain))
        spec = registry.get(Topology.TRANSFORMER, "mine").spec
        assert [spec.parameters(width) for width in (4, 7, 4)] == [20, 56, 20]
        assert counting.count == 2

    def test_counting_moves_no_random_stream_and_takes_no_memory(self, registry):
        def huge(width):
            torch.rand(1, device="cpu")
            return nn.Linear(width, width)

        offer(registry, huge)
        state = torch.get_rng_state()
        count = registry.get(Topology.TRANSFORMER, "mine").spec.parameters(10**6)
        assert count == 10**12 + 10**6
        assert torch.equal(torch.get_rng_state(), state)

    @EVERY
    def test_counting_agrees_with_every_shipped_formula(self, spec, registry):
        builder = blueprints.get(spec.topology, spec.name).builder
        offer(registry, builder)
        counted = registry.get(Topology.TRANSFORMER, "mine").spec
        widths = (1, 2, 5, 16, 100, 1024)
        assert [counted.parameters(w) for w in widths] == [spec.parameters(w) for w in widths]

    def test_a_seed_of_ones_own_can_be_made_of_the_parts(self, registry):
        offer(registry, lambda width: Residual(ZeroLinear(width, width)))
        seed = registry.build(Topology.TRANSFORMER, "mine", 4)
        x = torch.randn(2, 3, 4)
        assert torch.equal(deepcopy(seed)(x), x)
