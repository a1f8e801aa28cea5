"""A host's training goes on as if there were no seed: with every optimizer, and all that is about.

Each rule is tried on a run: a seed is germinated and culled in mid-training, beside a training of
the same host that knows nothing of seeds.
"""

import copy
import gc
import warnings
import weakref

import pytest
import torch
from torch import nn

from kasmina.adapters.torch.optimizer import OtherSeeds, SeedGroups, UnfitOptimizer, unwrapped
from kasmina.domain.stages import Stage
from tests.torch.continuity import (
    BORN,
    GONE,
    STEPS,
    WAYS,
    Alone,
    alike,
    assert_same,
    build_host,
)
from tests.torch.optimizers import OPTIMIZERS, REFUSED, Early, Mixing


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
class TestWithEveryOptimizer:
    def test_a_host_beside_a_seed_in_training_goes_as_alone_and_the_seed_learns(self, build, grown):
        alone, seeded = Alone(build), grown(build, gone=None)
        alone.train()
        seeded.train()
        assert seeded.stage is Stage.TRAINING
        assert_same(alone, seeded)
        now = list(seeded.slots.seed_parameters())
        assert not any(torch.equal(p, born) for p, born in zip(now, seeded.born, strict=True))

    def test_a_seed_that_was_culled_leaves_nothing(self, build, grown):
        alone, seeded = Alone(build), grown(build)
        alone.train(GONE)
        seeded.train(GONE)
        seed = [weakref.ref(p) for p in seeded.slots.seed_parameters()]
        moments = [
            weakref.ref(value)
            for p in seeded.slots.seed_parameters()
            for value in seeded.optimizer.state[p].values()
            if isinstance(value, torch.Tensor)
        ]
        alone.train(STEPS - GONE)
        seeded.train(STEPS - GONE)
        assert_same(alone, seeded)
        assert len(seeded.optimizer.param_groups) == 1
        assert set(seeded.optimizer.state) <= set(seeded.own())
        gc.collect()
        assert [each for each in (*seed, *moments) if each() is not None] == []

    def test_a_germination_and_a_cull_leave_every_object_in_its_place(self, build, grown):
        seeded = grown(build, gone=None)
        seeded.train(BORN)
        before = self.objects(seeded)
        seeded.run.germinate("0", "mlp")
        assert self.objects(seeded) == before
        seeded.run.cull("0", "enough")
        assert self.objects(seeded) == before

    def objects(self, seeded):
        """By identity and, for tensors, by the version that every write in place moves."""
        return [
            *(id(group) for group in seeded.optimizer.param_groups[:1]),
            *((id(p), p._version) for p in seeded.own()),
            *(
                (id(value), value._version) if isinstance(value, torch.Tensor) else value
                for p in seeded.own()
                for value in seeded.optimizer.state[p].values()
            ),
        ]


# What the compiler warns of is its own.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("step", "prepare"),
    [
        pytest.param(*way, id=name, marks=[pytest.mark.slow] if "compile" in name else [])
        for name, way in WAYS.items()
    ],
)
def test_in_every_kind_of_loop_the_host_goes_as_alone_and_the_seed_learns(step, prepare, grown):
    alone, seeded = Alone(), grown(gone=None)
    for arm in (alone, seeded):
        torch.compiler.reset()
        prepare(arm)
        arm.step = lambda arm=arm: step(arm)
        arm.train()
    assert seeded.stage is Stage.TRAINING
    assert_same(alone, seeded)
    now = list(seeded.slots.seed_parameters())
    assert not any(torch.equal(p, born) for p, born in zip(now, seeded.born, strict=True))


def listed(kind):
    return {name.split(",")[0] for name in kind}


class TestTheLists:
    def test_name_every_optimizer_that_torch_has(self):
        there = {
            name
            for name, kind in vars(torch.optim).items()
            if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
        }
        assert there - listed(OPTIMIZERS) - listed(REFUSED) == {"Muon", "Optimizer"}


class TestAnOptimizerThatCannotServe:
    @pytest.mark.parametrize("name", REFUSED)
    def test_is_refused_before_a_seed_is_in_it(self, name, grown):
        build, why = REFUSED[name]
        with pytest.raises(UnfitOptimizer, match=why):
            grown(build).run.germinate("0", "mlp")

    @pytest.mark.parametrize("build", [lambda p: Mixing(p, lr=0.1), lambda p: Early(p, lr=0.1)])
    def test_leaves_run_and_optimizer_as_they_were(self, build, grown):
        seeded = grown(build)
        seeded.train(1)
        before, sequence = seeded.seen(), seeded.run.state.sequence
        with pytest.raises(UnfitOptimizer):
            seeded.run.germinate("0", "mlp")
        assert seeded.run.state.sequence == sequence
        assert seeded.stage is Stage.DORMANT
        assert len(seeded.optimizer.param_groups) == 1
        assert alike(before, seeded.seen())

    def test_since_it_takes_matrices_alone_says_so_at_germination(self, grown):
        if "Muon" not in vars(torch.optim):
            pytest.skip("this torch has no Muon")
        seeded = grown(lambda p: torch.optim.Muon([each for each in p if each.dim() == 2], lr=0.01))
        with pytest.raises(UnfitOptimizer, match="cannot step the parameters of such a seed"):
            seeded.run.germinate("0", "mlp")
        assert len(seeded.optimizer.param_groups) == 1

    def test_since_it_has_no_learning_rate_says_so(self, grown):
        seeded = grown()
        seeded.optimizer.param_groups[0]["lr"] = None
        with pytest.raises(UnfitOptimizer, match="lr is None"):
            seeded.run.germinate("0", "mlp")
        seeded.optimizer.param_groups[0]["lr"] = 1e-2
        seeded.train(1)

    def test_since_it_was_never_built_as_one_says_so(self):
        class Around(torch.optim.Optimizer):
            def __init__(self, inner):
                self.inner = inner

            @property
            def param_groups(self):
                return self.inner.param_groups

        with pytest.raises(UnfitOptimizer, match="give the optimizer that it wraps"):
            SeedGroups(Around(torch.optim.SGD(build_host().parameters(), lr=0.1)))


class TestATrial:
    def test_of_an_optimizer_at_a_rate_of_zero_does_not_take_it_for_idle(self, grown):
        seeded = grown(lambda p: torch.optim.SGD(p, lr=0.1))
        torch.optim.lr_scheduler.LambdaLR(seeded.optimizer, lambda step: step / 10)
        assert seeded.optimizer.param_groups[0]["lr"] == 0.0
        seeded.run.germinate("0", "mlp")
        assert seeded.stage is Stage.TRAINING
        seeded.train(1)

    def test_moves_no_random_stream_and_passes_no_warning_on(self):
        class Wordy(torch.optim.SGD):
            @torch.no_grad()
            def step(self):
                torch.rand(1)
                warnings.warn("mind", stacklevel=1)

        groups, seed = SeedGroups(Wordy(build_host().parameters(), lr=0.1)), nn.Linear(2, 2)
        before = torch.get_rng_state()
        with pytest.raises(UnfitOptimizer, match="never learn"):
            groups.check("s1", tuple(seed.parameters()))
        assert torch.equal(before, torch.get_rng_state())

    def test_touches_neither_the_hosts_parameters_nor_the_seeds(self, grown):
        seeded, seed = grown(), nn.Linear(2, 2)
        seeded.train(1)
        before = copy.deepcopy((seeded.seen(), dict(seed.named_parameters())))
        SeedGroups(seeded.optimizer).check("s1", tuple(seed.parameters()))
        assert alike(before, (seeded.seen(), dict(seed.named_parameters())))


class TestAdagrad:
    def test_has_a_seeds_state_from_its_birth_as_it_has_its_hosts(self, grown):
        seeded = grown(OPTIMIZERS["Adagrad, begun above 0"])
        seeded.run.germinate("0", "mlp")
        for parameter in seeded.slots.seed_parameters():
            state = seeded.optimizer.state[parameter]
            assert torch.equal(state["sum"], torch.full_like(parameter, 0.1))
            assert state["step"] == 0
        seeded.train(1)


class TestASavedState:
    def test_without_the_seeds_is_refused_and_nothing_is_loaded(self, grown):
        seeded = grown(gone=None)
        saved = copy.deepcopy(seeded.optimizer.state_dict())
        seeded.train(BORN + 2)
        before = copy.deepcopy(seeded.seen())
        (seed,) = SeedGroups(seeded.optimizer).seeds
        with pytest.raises(OtherSeeds, match=r"seeds \[\], the optimizer \['s") as raised:
            seeded.optimizer.load_state_dict(saved)
        assert (raised.value.saved, raised.value.present) == ((), (seed,))
        assert alike(before, seeded.seen())

    def test_of_another_seed_is_refused_even_where_its_shapes_fit(self, grown):
        seeded = grown()
        seeded.train(BORN + 1)
        saved = copy.deepcopy(seeded.optimizer.state_dict())
        seeded.run.cull("0", "enough")
        groups = SeedGroups(seeded.optimizer)
        groups.add("another", [torch.zeros_like(p, requires_grad=True) for p in seeded.born])
        with pytest.raises(OtherSeeds, match=r"'another'"):
            seeded.optimizer.load_state_dict(saved)
        groups.close()

    def test_of_the_same_seeds_is_loaded_and_the_training_goes_on_to_the_bit(self, grown):
        seeded = grown(gone=None)
        seeded.train(BORN + 2)
        saved = copy.deepcopy((seeded.optimizer.state_dict(), seeded.model.state_dict()))
        there = seeded.random, seeded.data.get_state()
        seeded.train(3)
        expected = copy.deepcopy(seeded.seen()["parameters"])
        seeded.optimizer.load_state_dict(saved[0])
        seeded.model.load_state_dict(saved[1])
        seeded.random = there[0]
        seeded.data.set_state(there[1])
        seeded.train(3)
        assert alike(expected, seeded.seen()["parameters"])

    def test_from_before_a_cull_fits_no_more_and_one_from_before_a_birth_fits_again(self, grown):
        seeded = grown()
        before = copy.deepcopy(seeded.optimizer.state_dict())
        seeded.train(BORN + 1)
        during = copy.deepcopy(seeded.optimizer.state_dict())
        seeded.run.cull("0", "enough")
        with pytest.raises(OtherSeeds):
            seeded.optimizer.load_state_dict(during)
        seeded.optimizer.load_state_dict(before)
        seeded.train(1)


class TestAWrappedOptimizer:
    def test_of_accelerate_is_the_one_inside(self):
        accelerate = pytest.importorskip("accelerate")
        inner = torch.optim.SGD(build_host().parameters(), lr=0.1)
        wrapped = accelerate.Accelerator(cpu=True).prepare(inner)
        assert wrapped is not inner
        self.assert_served(wrapped, inner)

    def test_of_lightning_is_the_one_inside(self):
        lightning = pytest.importorskip("pytorch_lightning.core.optimizer")
        inner = torch.optim.SGD(build_host().parameters(), lr=0.1)
        wrapped = lightning.LightningOptimizer(inner)
        assert unwrapped(wrapped) is inner
        assert SeedGroups(wrapped).optimizer is inner

    def assert_served(self, wrapped, inner):
        groups, seed, steps = SeedGroups(wrapped), nn.Linear(2, 2), []
        groups.on_step(lambda: steps.append(1))
        groups.add("s1", seed.parameters(), learning_rate=0.05)
        inner.param_groups[0]["lr"] = 0.4
        wrapped.step()
        assert groups.optimizer is inner
        assert steps == [1]
        assert inner.param_groups[1]["lr"] == 0.2
