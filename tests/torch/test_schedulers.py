"""Schedulers go on as without seeds, whenever they were made; a seed's rate follows its host's."""

import copy
import functools
import gc
import inspect
import weakref

import pytest
import torch
from torch.optim import lr_scheduler as schedulers
from torch.optim import swa_utils

from kasmina.adapters.torch.optimizer import SeedGroups, UnfitOptimizer, seed_order
from tests.torch.continuity import BORN, GONE, STEPS, Alone, alike, growing
from tests.torch.optimizers import SCHEDULERS, give_gradients, host, lively, seed, sgd


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
        stepped(scheduler)
    return rates, optimizer, scheduler


def stepped(scheduler):
    if isinstance(scheduler, schedulers.ReduceLROnPlateau):
        scheduler.step(1.0)
    else:
        scheduler.step()


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

    @pytest.mark.parametrize("when", ["seeds, then states", "states, then seeds"])
    def test_a_grown_state_is_taken_on_by_fresh_ones_before_or_after_the_seeds(self, name, when):
        _, optimizer, scheduler = train(
            sgd, SCHEDULERS[name], steps=9, visits=(("a", 2, 6), ("b", 3, None), ("c", 4, None))
        )
        saved = copy.deepcopy((optimizer.state_dict(), scheduler_state(scheduler)))
        fresh = sgd(host())
        follower, groups = SCHEDULERS[name](fresh), SeedGroups(fresh)
        if when == "states, then seeds":
            follower.load_state_dict(saved[1])
        for member in seed_order(saved[0]["param_groups"]):
            groups.add(member, seed().parameters())
        if when == "seeds, then states":
            follower.load_state_dict(saved[1])
        fresh.load_state_dict(saved[0])
        for _ in range(8):
            for each in (optimizer, fresh):
                each.step()
            for each in (scheduler, follower):
                stepped(each)
            rates = [[g["lr"] for g in each.param_groups] for each in (fresh, optimizer)]
            assert rates[0] == rates[1]
        for member in groups.seeds:
            groups.remove(member)
        fresh.step()
        stepped(follower)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return tmp_path_factory.mktemp("grown") / "runs.db"


class Scheduled:
    """Lets an arm's loop make a scheduler after so many steps, and note the rates it gives."""

    def __init__(self, arm, build, *, made_at):
        self.arm, self.build, self.made_at = arm, build, made_at
        self.scheduler, self.rates = None, []
        self.plain, arm.step = arm.step, self.step

    def step(self):
        if len(self.rates) == self.made_at:
            self.scheduler = self.build(self.arm.optimizer)
        self.plain()
        self.rates.append([group["lr"] for group in self.arm.optimizer.param_groups])
        if self.scheduler is not None:
            stepped(self.scheduler)


@pytest.mark.filterwarnings("ignore:The epoch parameter in")
@pytest.mark.parametrize("made_at", [0, BORN + 2], ids=["made before", "made after"])
@pytest.mark.parametrize("name", [name for name in SCHEDULERS if "list" not in name])
class TestInARun:
    def test_the_host_goes_as_alone_and_the_seed_warms_up_to_its_rate(
        self, name, made_at, database
    ):
        def build(parameters):
            return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)

        with growing(database) as grown:
            alone, seeded = Alone(build), grown(build)
            arms = [Scheduled(arm, SCHEDULERS[name], made_at=made_at) for arm in (alone, seeded)]
            alone.train()
            seeded.train()
            seen = alone.seen(), seeded.seen()
            assert [key for key in seen[0] if not alike(seen[0][key], seen[1][key])] == []
        rates = arms[1].rates
        assert [each[:1] for each in rates] == arms[0].rates
        assert [len(each) for each in rates] == [1] * BORN + [2] * (GONE - BORN) + [1] * (
            STEPS - GONE
        )
        assert rates[BORN] == [rates[BORN][0], rates[BORN][0] * 0.5]  # a warm-up of two steps
        assert all(each[1] == each[0] for each in rates[BORN + 1 : GONE])
        states = [str(scheduler_state(each.scheduler)) for each in arms]
        assert states[0] == states[1]


class TestTheList:
    def test_names_every_scheduler_that_torch_has(self):
        there = {
            name
            for module in (schedulers, swa_utils)
            for name, kind in vars(module).items()
            if isinstance(kind, type) and issubclass(kind, schedulers.LRScheduler)
        }
        listed = {name.split(",")[0] for name in SCHEDULERS}
        assert there - listed == {"LRScheduler", "_LRScheduler"}
        assert listed <= there


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

    def test_holds_for_the_rate_that_swa_anneals_to(self):
        _, optimizer, scheduler = train(
            sgd, SCHEDULERS["SWALR"], visits=(("a", 1, None),), own={"learning_rate": 0.05}
        )
        assert optimizer.param_groups[2]["swa_lr"] == 0.01
        assert scheduler.get_last_lr() == [0.02, 0.02, 0.01]

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
