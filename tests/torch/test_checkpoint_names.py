"""Optimizer state is known by the names of parameters: their order is the host's affair."""

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

from kasmina.adapters.torch.checkpoint import read_checkpoint
from kasmina.domain.errors import CheckpointError
from tests.torch.checkpointed import Training, alike


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.pt"


def groups(model, *, reverse=False):
    """Weights and biases apart, as for weight decay."""
    weights, biases = [], []
    for name, parameter in model.named_parameters():
        (weights if name.endswith("weight") else biases).append(parameter)
    both = [{"params": weights, "lr": 0.01}, {"params": biases, "lr": 0.02, "weight_decay": 0.0}]
    return (
        [{**each, "params": each["params"][::-1]} for each in reversed(both)] if reverse else both
    )


def in_order(model):
    return torch.optim.AdamW(groups(model))


def in_reverse(model):
    return torch.optim.AdamW(groups(model, reverse=True))


def by_parameter(training):
    """The state of every parameter and the rate of its group, by name."""
    names = {each: name for name, each in training.model.named_parameters()}
    return {
        names[each]: (group["lr"], group["weight_decay"], training.optimizer.state[each])
        for group in training.optimizer.param_groups
        for each in group["params"]
    }


def test_the_file_names_every_parameter(path):
    training = Training(build=in_order)
    training.run(2)
    training.save(path)
    content = torch.load(path, weights_only=True)["optimizer"]
    assert content["kind"] == "AdamW"
    biases = ["first.0.bias", "first.1.bias", "second.0.bias", "head.bias"]
    assert content["groups"][1]["params"] == biases
    assert content["groups"][2]["params"][0] == "kasmina.first.seed.0.weight"
    assert content["state"].keys() == dict(training.model.named_parameters()).keys()


def test_groups_and_parameters_may_come_in_another_order(path):
    """And with them the rates, which a scheduler keeps in lists by group."""
    straight = Training(build=in_order)
    straight.run(3)
    straight.save(path)
    losses = straight.run(4)
    again = Training(("second", "first"), build=in_reverse)
    again.run(1)
    again.restore(path)
    assert again.run(4) == losses
    assert alike(by_parameter(again), by_parameter(straight))


def test_what_a_scheduler_computes_with_moves_with_the_groups(path):
    """``LambdaLR`` saves no functions: they stay with the groups that they were given for."""

    def attach(training, *, reverse=False):
        functions = [lambda step: 0.5**step, lambda _: 1.0]
        hosts = functions[::-1] if reverse else functions
        training.scheduler = schedulers.LambdaLR(
            training.optimizer, [*hosts, functions[0], functions[0]]
        )

    straight = Training(build=in_order)
    attach(straight)
    straight.run(2)
    straight.save(path)
    losses = straight.run(3)
    again = Training(build=in_reverse)
    attach(again, reverse=True)
    again.restore(path)
    assert again.run(3) == losses
    assert alike(by_parameter(again), by_parameter(straight))


def test_a_refused_restore_leaves_the_order_of_groups_and_functions(path):
    Training(build=in_order).save(path, extra={})
    again = Training(build=in_reverse)
    kept = [lambda _: 1.0, lambda _: 2.0, lambda _: 3.0, lambda _: 4.0]
    again.scheduler = schedulers.LambdaLR(again.optimizer, list(kept))
    order = [len(group["params"]) for group in again.optimizer.param_groups]

    def refuse(*_):
        raise ValueError("not today")

    again.model.register_load_state_dict_post_hook(refuse)
    with pytest.raises(CheckpointError, match="not today"):
        again.restore(path, extra={})
    assert [len(group["params"]) for group in again.optimizer.param_groups] == order
    assert again.scheduler.lr_lambdas == kept


def test_optimizers_of_named_parameters_keep_their_names(path):
    def named(model):
        return torch.optim.AdamW(model.named_parameters(), lr=0.01)

    straight = Training(build=named)
    straight.run(2)
    straight.save(path)
    losses = straight.run(3)
    again = Training(build=named)
    again.restore(path)
    assert again.optimizer.param_groups[0]["param_names"][0] == "first.0.weight"
    assert again.run(3) == losses


def test_tied_parameters_are_one_under_their_first_name(path):
    def tie(model):
        model.second[0].bias = model.first[0].bias
        return torch.optim.AdamW(model.parameters(), lr=0.01)

    straight = Training(build=tie)
    straight.run(2)
    straight.save(path)
    assert "second.0.bias" not in read_checkpoint(path).optimizer.state
    losses = straight.run(3)
    again = Training(build=tie)
    again.restore(path)
    assert again.model.second[0].bias is again.model.first[0].bias
    assert again.run(3) == losses


class WithTemperature:
    """An optimizer that also trains a parameter of the loss."""

    def __init__(self):
        self.criterion = nn.Bilinear(1, 1, 1)

    def __call__(self, model):
        return torch.optim.AdamW([*self.criterion.parameters(), *model.parameters()], lr=0.01)


def test_a_parameter_in_neither_model_nor_extra_would_be_lost_and_is_refused(path):
    with pytest.raises(CheckpointError, match=r"2 parameters .*\(1, 1, 1\); \(1,\), are neither"):
        Training(build=WithTemperature()).save(path)
    assert not path.exists()


def test_a_parameter_of_an_object_in_extra_is_known_by_that(path):
    build = WithTemperature()
    training = Training(build=build)
    training.criterion = build.criterion
    training.run(1)
    training.save(path, extra={"criterion": build.criterion})
    assert read_checkpoint(path).optimizer.groups[0]["params"][:2] == [
        "extra['criterion'].weight",
        "extra['criterion'].bias",
    ]
    training.restore(path, extra={"criterion": build.criterion})


def test_moments_in_a_wider_dtype_than_their_parameter_come_back_to_the_bit(path):
    """torch itself rounds them to the parameter's when it loads."""
    training = Training(())
    training.model.bfloat16()
    for each in training.model.parameters():
        each.grad = torch.zeros_like(each)
    training.optimizer.step()
    state = training.optimizer.state[training.model.head.bias]
    state["exp_avg"] = torch.tensor([1.0001, 2.0001])
    training.save(path)
    training.optimizer.state.clear()
    training.restore(path)
    assert training.optimizer.state[training.model.head.bias]["exp_avg"].tolist() == pytest.approx(
        [1.0001, 2.0001], abs=1e-6
    )


def test_what_an_optimizer_keeps_beside_its_parameters_comes_back(path):
    class Counting(torch.optim.SGD):
        def state_dict(self):
            return {**super().state_dict(), "calls": self.calls}

        def load_state_dict(self, state):
            self.calls = state["calls"]
            super().load_state_dict(state)

    def build(model):
        optimizer = Counting(model.parameters(), lr=0.1)
        optimizer.calls = 3
        optimizer.state["shared"] = {"norm": 5.0}
        return optimizer

    training = Training(build=build)
    training.save(path)
    training.optimizer.calls = 0
    training.optimizer.state.clear()
    training.restore(path)
    assert training.optimizer.calls == 3
    assert training.optimizer.state["shared"] == {"norm": 5.0}
