"""A seed in the optimizer is a guest: it learns by the host's schedule and leaves no trace."""

import copy

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
)
from tests.torch.optimizers import give_gradients, host, seed, sgd


def alike(one, other):
    """Equal to the last bit, through dicts and lists."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


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
        scheduler = schedulers.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
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

    @pytest.mark.parametrize("named", [False, True])
    def test_calls_back_with_the_gradients_that_a_closure_computes(self, named):
        model = host()
        optimizer, seen, calls = sgd(model), [], []

        def closure():
            calls.append(1)
            optimizer.zero_grad()
            loss = len(calls) * model[0].weight.sum()
            loss.backward()
            return loss

        SeedGroups(optimizer).on_step(lambda: seen.append(model[0].weight.grad.unique().item()))
        loss = optimizer.step(closure=closure) if named else optimizer.step(closure)
        optimizer.step(closure)
        assert seen == [1.0, 2.0]
        assert len(calls) == 2
        assert loss.requires_grad

    def test_calls_back_once_where_a_step_computes_its_closure_twice(self):
        class Sharpness(torch.optim.SGD):
            def step(self, closure):
                with torch.enable_grad():
                    closure()
                    closure()

        seen, calls = [], []
        optimizer = Sharpness(host().parameters(), lr=0.1)
        SeedGroups(optimizer).on_step(lambda: seen.append(len(calls)))
        optimizer.step(lambda: calls.append(1))
        assert seen == [1]
        assert len(calls) == 2

    def test_with_a_gradient_scaler_unscales_the_seed_too(self):
        optimizer, member = torch.optim.SGD(host().parameters(), lr=1.0), seed()
        SeedGroups(optimizer).add("s1", member.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        before = member.weight.detach().clone()
        scaler.scale(member.weight.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(member.weight, before - 1)


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
