"""A seed's rate rises over its first steps of learning, and only over those."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

from kasmina import IncubationPlan, Incubator, Objective, Topology, graft, open_run
from kasmina.adapters.torch.optimizer import SeedGroups

HOST_RATE = 0.1
SEED_RATE = 0.04
WARMUP = 4

BUILDS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=HOST_RATE, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=HOST_RATE),
    "adamw, tensor rate": lambda p: torch.optim.AdamW(p, lr=torch.tensor(HOST_RATE), foreach=False),
    "adamw, fused": lambda p: torch.optim.AdamW(p, lr=HOST_RATE, fused=True),
    "adamw, fused, tensor rate": lambda p: torch.optim.AdamW(
        p, lr=torch.tensor(HOST_RATE), fused=True
    ),
    "rmsprop, foreach": lambda p: torch.optim.RMSprop(p, lr=HOST_RATE, foreach=True),
}


class Trained:
    """A host and a seed in one optimizer, on gradients that depend on the step alone."""

    def __init__(self, build=BUILDS["sgd"], *, warmup=WARMUP):
        torch.manual_seed(0)
        self.host, self.seed = nn.Linear(3, 3), nn.Linear(3, 3)
        self.optimizer = build(self.host.parameters())
        self.groups = SeedGroups(self.optimizer)
        self.groups.add("s1", self.seed.parameters(), learning_rate=SEED_RATE, warmup_steps=warmup)
        self.number = 0

    @property
    def group(self):
        return self.optimizer.param_groups[1]

    def step(self, *, learning=True, scaler=None):
        """The seed's rate in this step."""
        generator = torch.Generator().manual_seed(self.number)
        self.number += 1
        for parameter in [*self.host.parameters(), *self.seed.parameters()]:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        if not learning:
            for parameter in self.seed.parameters():
                parameter.grad = None
        self.optimizer.step()
        return float(self.group["lr"])

    def tensors(self):
        return [*self.host.parameters(), *self.seed.parameters()]


def wanted(step, *, host=HOST_RATE):
    return pytest.approx(host * (SEED_RATE / HOST_RATE) * min(1.0, (step + 1) / WARMUP))


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
class TestWithEveryOptimizer:
    def test_the_rate_rises_linearly_to_the_full_one_and_stays_there(self, build):
        trained = Trained(build)
        rates = [trained.step() for _ in range(WARMUP + 3)]
        assert rates == [wanted(step) for step in range(WARMUP + 3)]

    def test_a_run_resumed_in_mid_warmup_goes_on_to_the_bit(self, build):
        whole, stopped = Trained(build), Trained(build)
        for _ in range(WARMUP + 3):
            whole.step()
        for _ in range(2):
            stopped.step()
        kept = io.BytesIO()
        torch.save((stopped.optimizer.state_dict(), stopped.tensors()), kept)
        kept.seek(0)
        state, tensors = torch.load(kept, weights_only=True)
        again = Trained(build)
        again.optimizer.load_state_dict(state)
        with torch.no_grad():
            for mine, theirs in zip(again.tensors(), tensors, strict=True):
                mine.copy_(theirs)
        again.number = stopped.number
        for _ in range(WARMUP + 1):
            again.step()
        assert all(map(torch.equal, again.tensors(), whole.tensors()))
        assert again.group["lr"] == whole.group["lr"]

    def test_the_host_goes_as_without_a_warmup(self, build):
        warmed, plain = Trained(build), Trained(build, warmup=0)
        for _ in range(WARMUP + 2):
            warmed.step()
            plain.step()
        assert all(map(torch.equal, warmed.host.parameters(), plain.host.parameters()))
        assert not torch.equal(warmed.seed.weight, plain.seed.weight)


class TestSteps:
    def test_in_which_the_seed_has_no_gradient_do_not_count(self):
        trained = Trained()
        rates = []
        for learning in (False, True, False, False, True, True, True, True):
            rate = trained.step(learning=learning)
            if learning:
                rates.append(rate)
        assert rates == [wanted(step) for step in range(5)]

    def test_that_a_scaler_skips_do_not_count(self):
        trained = Trained()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        for spoiled in (True, False, True, False):
            trained.optimizer.zero_grad()
            loss = trained.seed(trained.host(torch.ones(1, 3))).sum()
            scaler.scale(loss * (torch.inf if spoiled else 1.0)).backward()
            scaler.step(trained.optimizer)
            scaler.update()
        assert float(trained.group["lr"]) == wanted(1)

    def test_of_a_seed_with_some_frozen_parameters_count(self):
        trained = Trained()
        trained.step()
        for parameter in trained.tensors():
            parameter.grad = torch.ones_like(parameter)
        next(trained.seed.parameters()).grad = None
        trained.optimizer.step()
        assert float(trained.group["lr"]) == wanted(1)


class TestTheRate:
    def test_is_that_part_of_whatever_the_scheduler_gave_the_host(self):
        trained = Trained()
        scheduler = schedulers.LambdaLR(trained.optimizer, lambda epoch: 1.0 / (1 + epoch))
        for step in range(WARMUP + 3):
            host = trained.optimizer.param_groups[0]["lr"]
            assert trained.step() == wanted(step, host=host)
            scheduler.step()

    def test_is_full_from_the_first_step_without_a_warmup_or_with_one_of_one_step(self):
        for warmup in (0, 1):
            assert Trained(warmup=warmup).step() == wanted(WARMUP)

    def test_in_a_tensor_stays_in_that_tensor(self):
        trained = Trained(BUILDS["adamw, tensor rate"])
        held = trained.group["lr"]
        for _ in range(WARMUP + 1):
            trained.step()
            assert trained.group["lr"] is held

    def test_bounds_how_far_adams_first_steps_go(self):
        trained = Trained(BUILDS["adam"])
        born = trained.seed.weight.detach().clone()
        trained.step()
        moved = (trained.seed.weight - born).abs().max().item()
        assert moved == pytest.approx(SEED_RATE / WARMUP, rel=1e-3)


class TestTheGroup:
    def test_keeps_plain_numbers_that_state_dict_saves(self):
        trained = Trained()
        trained.step()
        trained.step()
        saved = trained.optimizer.state_dict()["param_groups"][1]
        assert saved["kasmina_warmup"] == WARMUP
        assert saved["kasmina_learned"] == 2

    def test_of_a_saved_state_is_not_moved_on_by_later_steps(self):
        trained = Trained()
        trained.step()
        saved = trained.optimizer.state_dict()
        before = copy.deepcopy(saved["param_groups"][1])
        trained.step()
        assert saved["param_groups"][1] == before

    def test_is_as_one_without_a_warmup_once_it_is_warm(self):
        warmed, plain = Trained(), Trained(warmup=0)
        for _ in range(WARMUP):
            warmed.step()
            plain.step()
        assert warmed.group.keys() == plain.group.keys()
        assert warmed.group["lr"] == plain.group["lr"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_a_compiled_step_warms_up_without_a_recompile_for_each_step():
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    build = BUILDS["adamw, tensor rate"]
    compiled, plain = Trained(build, warmup=20), Trained(build, warmup=20)
    compiled.optimizer.step = torch.compile(compiled.optimizer.step, backend=counter)
    frames = []
    for _ in range(18):
        assert compiled.step() == plain.step()
        frames.append(counter.frame_count)
    assert frames[4:] == [frames[4]] * 14
    torch.testing.assert_close(compiled.tensors(), plain.tensors())


class TestInARun:
    @pytest.fixture
    def host(self):
        return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))

    @pytest.fixture
    def run(self, host, tmp_path):
        slots = graft(host, {"0": Topology.TRANSFORMER})
        self.optimizer = torch.optim.AdamW(slots.host_parameters(), lr=HOST_RATE)
        with open_run(
            f"sqlite:///{tmp_path}/runs.db",
            name="warm",
            slots=slots,
            optimizer=self.optimizer,
            objective=Objective.minimize("loss"),
        ) as run:
            yield run

    def steps(self, run, host, number):
        """How many steps of the seed's warm-up are over after so many more."""
        for _ in range(number):
            self.optimizer.zero_grad()
            host(torch.ones(2, 5, 3)).square().sum().backward()
            self.optimizer.step()
            run.step()
        return self.optimizer.param_groups[1]["kasmina_learned"]

    def test_a_seed_warms_up_as_its_plan_says_and_not_while_it_is_paused(self, run, host):
        run.germinate("0", "mlp", incubation=IncubationPlan(warmup_steps=9))
        assert self.optimizer.param_groups[1]["kasmina_warmup"] == 9
        assert self.steps(run, host, 3) == 3
        run.pause("0")
        assert self.steps(run, host, 2) == 3
        run.resume_seed("0")
        assert self.steps(run, host, 1) == 4

    def test_a_seed_that_waits_for_its_ramp_does_not_warm_up_meanwhile(self, run, host):
        plan = IncubationPlan(incubator=Incubator.NONE, warmup_steps=9)
        run.germinate("0", "mlp", incubation=plan)
        assert self.steps(run, host, 3) == 0
