"""A seed in the optimizer is a guest: it learns by the host's schedule and leaves no trace."""

import copy
import functools
import gc
import inspect
import weakref

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

from kasmina.adapters.torch.births import Births
from kasmina.adapters.torch.optimizer import (
    AlreadyOptimized,
    SeedGroups,
    UnfitOptimizer,
    UnknownSeed,
    seed_order,
)


def lively(step):
    return 1.0 / (1 + step) + 0.1 * (step % 3)


SCHEDULERS = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lively),
    "LambdaLR, a list": lambda o: schedulers.LambdaLR(o, [lively, lambda _: 0.5]),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda _: 0.9),
    "StepLR": lambda o: schedulers.StepLR(o, 3),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [4, 9]),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.8),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, T_max=8, eta_min=1e-4),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, T_0=4),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, max_lr=[0.3, 0.1], total_steps=40),
    "LinearLR": lambda o: schedulers.LinearLR(o, total_iters=10),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, total_iters=6),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, total_iters=15, power=2.0),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o,
        [schedulers.LinearLR(o, total_iters=6), schedulers.CosineAnnealingLR(o, T_max=8)],
        milestones=[6],
    ),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.LambdaLR(o, lively), schedulers.ExponentialLR(o, 0.9)]
    ),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, [0.01, 0.02], [0.1, 0.2], step_size_up=3),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=1, min_lr=[1e-4, 0.0]),
}


def alike(one, other):
    """Equal to the last bit, through dicts and lists."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def host():
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


def seed():
    return nn.Linear(4, 4)


def sgd(model):
    groups = [
        {"params": model[0].parameters(), "weight_decay": 0.01},
        {"params": model[1].parameters(), "lr": 0.05},
    ]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def give_gradients(optimizer, generator):
    for group in optimizer.param_groups[:2]:
        for parameter in group["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def train(build, make_scheduler, *, steps=20, visits=(), own=None):
    """The rates of every group after each step, and the host at the end."""
    torch.manual_seed(0)
    model = host()
    optimizer = build(model)
    scheduler = make_scheduler(optimizer)
    generator = torch.Generator().manual_seed(1)
    groups = SeedGroups(optimizer)
    rates = []
    for step in range(steps):
        for name, born, gone in visits:
            if step == born:
                groups.add(name, seed().parameters(), **(own or {}))
            if step == gone:
                groups.remove(name)
        give_gradients(optimizer, generator)
        for group in optimizer.param_groups[2:]:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
        if isinstance(scheduler, schedulers.ReduceLROnPlateau):
            scheduler.step(1.0)
        else:
            scheduler.step()
    return rates, optimizer, scheduler


def scheduler_state(scheduler):
    state = scheduler.state_dict()
    return {k: v for k, v in state.items() if k not in {"optimizer", "anneal_func"}}


@functools.cache
def visited_by_seeds(name):
    return train(sgd, SCHEDULERS[name], visits=(("a", 3, 12), ("b", 5, 9), ("c", 11, 17)))


# torch 2.6 warns of what its own SequentialLR does.
@pytest.mark.filterwarnings("ignore:The epoch parameter in")
@pytest.mark.parametrize("name", SCHEDULERS)
class TestWithEveryScheduler:
    def test_the_hosts_rates_and_tensors_are_those_of_a_host_without_seeds(self, name):
        alone, lonely, schedule = train(sgd, SCHEDULERS[name])
        together, visited, seeded = visited_by_seeds(name)
        assert [rates[:2] for rates in together] == alone
        for left, right in zip(lonely.param_groups, visited.param_groups, strict=True):
            for one, other in zip(left["params"], right["params"], strict=True):
                assert torch.equal(one, other)
                assert torch.equal(
                    lonely.state[one]["momentum_buffer"], visited.state[other]["momentum_buffer"]
                )
        assert str(scheduler_state(schedule)) == str(scheduler_state(seeded))

    def test_a_seed_has_the_hosts_rate(self, name):
        rates, _, _ = visited_by_seeds(name)
        assert all(each[2:] == [each[0]] * (len(each) - 2) for each in rates)
        assert {len(each) for each in rates} == {2, 3, 4}

    def test_a_seed_with_its_own_rate_keeps_its_proportion_to_the_host(self, name):
        rates, optimizer, _ = train(
            sgd, SCHEDULERS[name], visits=(("a", 4, None),), own={"learning_rate": 0.03}
        )
        ratio = optimizer.param_groups[2]["kasmina_ratio"]
        assert ratio != 1.0
        assert all(each[2] == each[0] * ratio for each in rates[4:])


class TestTheRatio:
    def test_is_taken_from_the_rate_the_host_was_built_with_not_from_its_present_one(self):
        rates, _, _ = train(
            sgd, SCHEDULERS["ExponentialLR"], visits=(("a", 10, None),), own={"learning_rate": 0.05}
        )
        assert rates[10][2] == pytest.approx(0.05 * 0.8**10)

    def test_of_one_cycle_is_taken_from_its_peak(self):
        _, optimizer, _ = train(
            sgd, SCHEDULERS["OneCycleLR"], visits=(("a", 1, None),), own={"learning_rate": 0.15}
        )
        group = optimizer.param_groups[2]
        assert group["kasmina_ratio"] == 0.5
        assert group["max_lr"] == 0.15
        assert group["initial_lr"] == optimizer.param_groups[0]["initial_lr"] * 0.5

    def test_is_told_by_the_rate_that_was_given(self):
        _, optimizer, _ = train(sgd, SCHEDULERS["ExponentialLR"])
        assert optimizer.param_groups[0]["lr"] < 0.01
        assert SeedGroups(optimizer).given_rate == 0.1

    def test_survives_a_loop_that_writes_the_rate_into_every_group(self):
        optimizer = sgd(host())
        SeedGroups(optimizer).add("s1", seed().parameters(), learning_rate=0.01)
        for group in optimizer.param_groups:
            group["lr"] = 0.5
        optimizer.step()
        assert optimizer.param_groups[2]["lr"] == 0.5 * (0.01 / 0.1)

    def test_of_a_host_without_a_rate_is_refused(self):
        optimizer = torch.optim.SGD(host().parameters(), lr=0.0)
        with pytest.raises(UnfitOptimizer, match="learning rate of 0"):
            SeedGroups(optimizer).add("s1", seed().parameters(), learning_rate=0.1)
        assert len(optimizer.param_groups) == 1


class TestAGroup:
    @pytest.mark.parametrize(
        ("build", "options"),
        [
            (torch.optim.AdamW, {"betas": (0.8, 0.95), "amsgrad": True, "fused": True}),
            (torch.optim.AdamW, {"lr": torch.tensor(0.1), "foreach": False}),
            (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "foreach": True}),
            (torch.optim.RMSprop, {"alpha": 0.9, "centered": True}),
        ],
    )
    def test_copies_every_option_of_the_hosts_first_group_and_shares_none(self, build, options):
        optimizer = build(host().parameters(), **{"lr": 0.1, **options})
        SeedGroups(optimizer).add("s1", seed().parameters())
        first, last = optimizer.param_groups
        assert last.keys() - first.keys() == {"kasmina_seed", "kasmina_ratio"}
        assert all(last[key] == first[key] for key in first.keys() - {"params"})
        if isinstance(first["lr"], torch.Tensor):
            assert last["lr"] is not first["lr"]

    def test_may_have_its_own_weight_decay(self):
        optimizer = sgd(host())
        SeedGroups(optimizer).add("s1", seed().parameters(), weight_decay=0.5)
        assert [g["weight_decay"] for g in optimizer.param_groups] == [0.01, 0, 0.5]

    def test_holds_parameters_that_are_frozen_at_present_too(self):
        member = seed()
        member.requires_grad_(requires_grad=False)
        optimizer = sgd(host())
        SeedGroups(optimizer).add("s1", member.parameters())
        assert len(optimizer.param_groups[2]["params"]) == 2

    def test_is_named_where_the_host_is(self):
        optimizer = torch.optim.AdamW(host().named_parameters())
        groups = SeedGroups(optimizer)
        groups.add("s1", seed().parameters())
        assert optimizer.param_groups[1]["param_names"] == ["s1.0", "s1.1"]

    def test_learns_by_a_rate_that_is_a_tensor(self):
        optimizer = torch.optim.AdamW(host().parameters(), lr=torch.tensor(0.1))
        scheduler = schedulers.CosineAnnealingLR(optimizer, T_max=4)
        SeedGroups(optimizer).add("s1", seed().parameters(), learning_rate=0.05)
        held = optimizer.param_groups[1]["lr"]
        for _ in range(3):
            optimizer.step()
            scheduler.step()
        optimizer.step()
        assert optimizer.param_groups[1]["lr"] is held
        assert torch.equal(held, optimizer.param_groups[0]["lr"] * 0.5)


class TestRemoval:
    def test_restores_what_was_to_the_last_object(self):
        model = host()
        optimizer = sgd(model)
        give_gradients(optimizer, torch.Generator().manual_seed(0))
        optimizer.step()
        before = copy.deepcopy(optimizer.state_dict())
        objects = [id(optimizer.param_groups), *(id(g) for g in optimizer.param_groups)]
        states = {id(p): id(s) for p, s in optimizer.state.items()}
        groups, member = SeedGroups(optimizer), seed()
        groups.add("s1", member.parameters())
        for parameter in member.parameters():
            parameter.grad = torch.ones_like(parameter)
        for group in optimizer.param_groups[:2]:
            for parameter in group["params"]:
                parameter.grad = None
        optimizer.step()
        assert len(optimizer.state) == 6
        groups.remove("s1")
        assert objects == [id(optimizer.param_groups), *(id(g) for g in optimizer.param_groups)]
        assert states == {id(p): id(s) for p, s in optimizer.state.items()}
        assert alike(optimizer.state_dict(), before)

    def test_of_one_seed_leaves_the_others_their_state(self):
        optimizer = sgd(host())
        groups, kept = SeedGroups(optimizer), seed()
        groups.add("first", seed().parameters())
        groups.add("kept", kept.parameters())
        for parameter in kept.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        groups.remove("first")
        assert groups.seeds == ("kept",)
        assert all(p in optimizer.state for p in kept.parameters())

    def test_of_an_unknown_seed_says_which_there_are(self):
        groups = SeedGroups(sgd(host()))
        groups.add("layer2-1", seed().parameters())
        with pytest.raises(UnknownSeed, match="did you mean 'layer2-1'") as raised:
            groups.remove("layer2-2")
        assert raised.value.known == ("layer2-1",)

    def test_of_everything_leaves_no_hook(self):
        optimizer = sgd(host())
        groups = SeedGroups(optimizer)
        groups.add("s1", seed().parameters())
        groups.close()
        assert len(optimizer.param_groups) == 2
        assert not optimizer._optimizer_step_pre_hooks

    def test_serves_a_scheduler_that_was_built_after_the_germination(self):
        optimizer = sgd(host())
        groups = SeedGroups(optimizer)
        groups.add("s1", seed().parameters())
        scheduler = schedulers.LambdaLR(optimizer, lively)
        groups.remove("s1")
        optimizer.step()
        scheduler.step()
        assert len(scheduler.base_lrs) == len(scheduler.lr_lambdas) == 2


class TestAddingTwice:
    def test_parameters_of_the_host_is_refused_with_what_they_are(self):
        model = host()
        optimizer = sgd(model)
        shared = nn.Sequential(nn.Linear(4, 4), model[0])
        with pytest.raises(
            AlreadyOptimized, match=r"2 of the 4 .* 'thief', of shapes \(4, 4\), \(4,\)"
        ) as raised:
            SeedGroups(optimizer).add("thief", shared.parameters())
        assert raised.value.positions == (2, 3)
        assert len(optimizer.param_groups) == 2

    def test_the_same_seed_is_refused(self):
        groups, member = SeedGroups(sgd(host())), seed()
        groups.add("s1", member.parameters())
        with pytest.raises(AlreadyOptimized):
            groups.add("s2", member.parameters())
        with pytest.raises(UnfitOptimizer, match="holds seed 's1' already"):
            groups.add("s1", seed().parameters())
        assert groups.seeds == ("s1",)


class TestResuming:
    def test_a_saved_state_fits_a_fresh_optimizer_with_the_same_seeds_and_fresh_schedulers(self):
        _, optimizer, scheduler = train(sgd, SCHEDULERS["LambdaLR"], visits=(("a", 3, None),))
        saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
        fresh = sgd(host())
        follower = schedulers.LambdaLR(fresh, lively)
        groups = SeedGroups(fresh)
        for name in seed_order(saved[0]["param_groups"]):
            groups.add(name, seed().parameters())
        fresh.load_state_dict(saved[0])
        follower.load_state_dict(saved[1])
        for _ in range(5):
            for each in (optimizer, fresh, scheduler, follower):
                each.step()
            rates = [[g["lr"] for g in each.param_groups] for each in (fresh, optimizer)]
            assert rates[0] == rates[1]
        groups.remove("a")
        assert len(follower.base_lrs) == 2


class TestOptimizersThatCannotServe:
    def test_lbfgs_is_refused_since_it_steps_its_first_group_alone(self):
        with pytest.raises(UnfitOptimizer, match="first parameter group alone"):
            SeedGroups(torch.optim.LBFGS(host().parameters()))

    def test_a_weight_decay_that_the_optimizer_does_not_know_is_refused(self):
        optimizer = torch.optim.Rprop(host().parameters())
        with pytest.raises(UnfitOptimizer, match="knows no weight decay"):
            SeedGroups(optimizer).add("s1", seed().parameters(), weight_decay=0.1)


class TestStepping:
    def test_calls_back_before_each_step_until_the_handle_is_removed(self):
        model = host()
        optimizer = sgd(model)
        give_gradients(optimizer, torch.Generator().manual_seed(0))
        before, seen = model[0].weight.detach().clone(), []
        handle = SeedGroups(optimizer).on_step(
            lambda: seen.append(model[0].weight.detach().clone())
        )
        optimizer.step()
        handle.remove()
        optimizer.step()
        assert len(seen) == 1
        assert torch.equal(seen[0], before)

    def test_with_a_gradient_scaler_unscales_the_seed_too(self):
        optimizer, member = torch.optim.SGD(host().parameters(), lr=1.0), seed()
        SeedGroups(optimizer).add("s1", member.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        before = member.weight.detach().clone()
        scaler.scale(member.weight.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(member.weight, before - 1)


class Wrapper(torch.optim.Optimizer):
    """An optimizer around another one, as accelerate makes it."""

    def __init__(self, inner):
        self.inner = inner

    @property
    def param_groups(self):
        return self.inner.param_groups


class Frugal(schedulers.LRScheduler):
    """Never calls its parent's constructor, and cannot be hashed."""

    __hash__ = None

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]

    def __eq__(self, other):
        raise NotImplementedError


class Tagged:
    def __new__(cls, *args, tag):
        made = super().__new__(cls)
        made.tag = tag
        return made


class Mixed(schedulers.LambdaLR, Tagged):
    def __init__(self, optimizer, *, tag):
        super().__init__(optimizer, lively)


class TestAScheduler:
    @pytest.mark.parametrize(
        "build",
        [
            lambda o: schedulers.LambdaLR(o, lively),
            lambda o: copy.copy(schedulers.LambdaLR(o, lively)),
            Frugal,
            lambda o: Frugal(Wrapper(o)),
            lambda o: Mixed(o, tag="mine"),
        ],
        ids=["plain", "copied", "frugal", "of a wrapper", "mixed"],
    )
    def test_is_known_whenever_and_however_it_was_made(self, build):
        optimizer = sgd(host())
        first = build(optimizer)
        groups = SeedGroups(optimizer)
        groups.add("s1", seed().parameters())
        second = build(optimizer)
        groups.add("s2", seed().parameters())
        assert [len(each.base_lrs) for each in (first, second)] == [4, 4]
        groups.remove("s1")
        assert [len(each.base_lrs) for each in (first, second)] == [3, 3]

    def test_of_a_copied_optimizer_is_not_taken_for_the_originals(self):
        optimizer = sgd(host())
        scheduler = schedulers.LambdaLR(optimizer, lively)
        groups = SeedGroups(optimizer)
        other = copy.deepcopy(scheduler)
        groups.add("s1", seed().parameters())
        assert (len(scheduler.base_lrs), len(other.base_lrs)) == (3, 2)
        SeedGroups(other.optimizer).add("s1", seed().parameters())
        assert (len(scheduler.base_lrs), len(other.base_lrs)) == (3, 3)

    def test_is_made_and_described_as_ever(self):
        optimizer = sgd(host())
        SeedGroups(optimizer)
        assert Mixed(optimizer, tag="mine").tag == "mine"
        for kind in (schedulers.LRScheduler, schedulers.LambdaLR):
            signature = inspect.signature(kind)
            assert next(iter(signature.parameters)) == "optimizer"
            assert signature == inspect.signature(kind.__init__.__get__(object()))

    def test_is_not_kept_alive(self):
        optimizer = sgd(host())
        SeedGroups(optimizer)
        scheduler = weakref.ref(schedulers.StepLR(optimizer, 3))
        gc.collect()
        assert scheduler() is None

    def test_that_failed_to_be_built_is_no_obstacle(self):
        class Broken(schedulers.LRScheduler):
            def __init__(self):
                raise RuntimeError

        broken = Broken.__new__(Broken)
        SeedGroups(sgd(host())).add("s1", seed().parameters())
        assert any(each is broken for each in gc.get_objects())


class TestBirths:
    def test_find_what_was_there_and_note_what_comes_until_it_dies(self):
        class Thing:
            pass

        class Other(Thing):
            pass

        there, calls = [Thing(), Other()], []
        births = Births(Thing, told=lambda: calls.append(len(there)))
        assert births.living() == []
        births.attend()
        assert set(births.living()) == set(there)
        there.append(Other())
        assert set(births.living()) == set(there)
        assert calls == [2]
        births.attend()
        there.append(Thing())
        assert calls == [2, 3]
        del there[0]
        assert set(births.living()) == set(there)
