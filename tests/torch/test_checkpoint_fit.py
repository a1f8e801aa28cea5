"""A checkpoint that does not fit says what does not, by name, and leaves everything as it was."""

import pytest
import torch
from torch import nn

from kasmina.adapters.torch.checkpoint import read_checkpoint, restore_checkpoint
from kasmina.domain.errors import CheckpointError
from tests.torch.checkpointed import Training, alike, conv_seed


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.pt"


@pytest.fixture
def saved(path):
    training = Training()
    training.run(3)
    training.save(path)
    return training


def refused(training, path, problem, **other):
    """The restore is refused for that reason, and nothing has changed."""
    before = training.snapshot()
    with pytest.raises(CheckpointError, match=problem) as caught:
        training.restore(path, **other)
    assert alike(training.snapshot(), before)
    return caught.value


def wide_seed(width):
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.Dropout(0.5))


def deep_seed(width):
    return nn.Sequential(*conv_seed(width), nn.Conv2d(width, width, 1, bias=False))


class Stubborn:
    def __init__(self):
        self.value = 0

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]
        if self.value == 1:
            raise ValueError("I do not like it")


@pytest.mark.parametrize(
    ("saver", "taker", "problem"),
    [
        ({}, {"width": 5}, r"first\.0\.bias was float32 \(4,\), is float32 \(5,\)"),
        ({}, {"build": lambda m: torch.optim.SGD(m.parameters())}, "it was AdamW, is SGD"),
        (
            {},
            {"seeds": ("first",)},
            r"slot second held seed seed of second \(BLENDING\), holds no seed \(DORMANT\)",
        ),
        (
            {"seeds": ("first",)},
            {},
            r"slot second held no seed \(DORMANT\), holds seed seed of second \(BLENDING\)",
        ),
        (
            {},
            {"seed": deep_seed},
            r"the model: it has no seed seed of first of slot first, BLENDING: 2\.weight; it has",
        ),
        (
            {"seed": deep_seed},
            {},
            r"its seed seed of second of slot second, BLENDING: 2\.weight has no place",
        ),
        (
            {},
            {"seed": wide_seed},
            r"seed seed of first of slot first, BLENDING: 0\.weight was float32 \(4, 4, 1, 1\), is",
        ),
    ],
)
def test_what_was_built_otherwise_is_named(path, saver, taker, problem):
    Training(**saver).save(path)
    refused(Training(**taker), path, problem)


def test_a_dtype(path, saved):
    saved.model.head.double()
    refused(saved, path, r"head\.bias was float32 \(2,\), is float64")


def test_a_host_on_the_meta_device_would_stay_without_values(path, saved):
    saved.model.head.to("meta")
    with pytest.raises(CheckpointError, match=r"head\.bias is on the meta device, and would stay"):
        saved.restore(path)


def test_seeds_that_are_not_in_the_optimizer(path, saved):
    problem = r"its seed seed of first of slot first, BLENDING: 0\.bias has no place"
    refused(saved, path, problem, optimizer=torch.optim.AdamW(saved.slots.host_parameters()))


def test_a_parameter_that_is_no_longer_optimized(path, saved):
    saved.optimizer.state.pop(saved.optimizer.param_groups[0]["params"].pop())
    refused(saved, path, r"its head\.bias has no place")


def test_parameters_that_were_in_another_group(path, saved):
    first, second = saved.optimizer.param_groups[0], saved.optimizer.param_groups[1]
    second["params"].append(first["params"].pop())
    refused(
        saved, path, r"its groups were others: one of the host with first\.0\.bias; first\.0\.w"
    )


def test_the_names_of_what_else_is_to_be_restored(path, saved):
    problem = "it has no ema; its scheduler has no place"
    refused(saved, path, problem, extra={"ema": saved.scheduler})


def test_an_object_that_refuses_its_state(path, saved):
    willing, stubborn = Stubborn(), Stubborn()
    willing.value, stubborn.value = 5, 1
    extra = {"willing": willing, "scheduler": saved.scheduler, "stubborn": stubborn}
    saved.save(path, extra=extra)
    willing.value, stubborn.value = 6, 7
    saved.run(2)
    refused(saved, path, r"'stubborn' refused .*I do not like it", extra=extra)
    assert (willing.value, stubborn.value) == (6, 7)


def test_an_optimizer_that_refuses_its_state(path, saved):
    saved.run(1)

    def refuse(*_):
        raise ValueError("not today")

    saved.optimizer.register_load_state_dict_post_hook(refuse)
    state = saved.optimizer.state
    refused(saved, path, "the optimizer refused its state .not today")
    assert saved.optimizer.state is state


def test_a_model_that_refuses_its_state_when_half_of_it_is_loaded(path, saved):
    saved.run(1)

    def refuse(*_):
        if saved.model.head.weight.equal(loaded):
            raise ValueError("not today")

    loaded = read_checkpoint(path).model["head.weight"]
    saved.model.register_load_state_dict_post_hook(refuse)
    refused(saved, path, "the model refused its state .not today")


def test_random_streams_that_refuse_their_state(path, saved, monkeypatch):
    checkpoint = read_checkpoint(path)
    saved.run(1)
    before = saved.snapshot()
    checkpoint.random.generators["cpu"]["cpu"] = torch.zeros(3, dtype=torch.uint8)
    with pytest.raises(CheckpointError, match="a random stream refused its state"):
        restore_checkpoint(
            checkpoint, slots=saved.slots, optimizer=saved.optimizer, extra=saved.extra
        )
    assert alike(saved.snapshot(), before)


def test_a_seeds_own_stream_that_is_no_state_of_a_generator(path, saved):
    """Found out now, and not in the forward that would first draw from it."""
    checkpoint = read_checkpoint(path)
    checkpoint.seed_streams["first"]["cpu"] = torch.zeros(3, dtype=torch.uint8)
    before = saved.snapshot()
    with pytest.raises(CheckpointError, match="a random stream refused its state"):
        restore_checkpoint(
            checkpoint, slots=saved.slots, optimizer=saved.optimizer, extra=saved.extra
        )
    assert alike(saved.snapshot(), before)


def test_a_scheduler_keeps_nothing_of_a_state_that_is_taken_back(path, saved):
    """It takes any name in a state for an attribute of its own."""
    stubborn = Stubborn()
    stubborn.value = 1
    other = torch.optim.lr_scheduler.StepLR(saved.optimizer, 2)
    saved.save(path, extra={"scheduler": other, "stubborn": stubborn})
    stubborn.value = 2
    extra = {"scheduler": saved.scheduler, "stubborn": stubborn}
    refused(saved, path, "I do not like it", extra=extra)
    assert "gamma" not in vars(saved.scheduler)


def test_a_few_of_many_names_are_told(path):
    Training().save(path)
    error = refused(Training(seed=lambda w: nn.Sequential(deep_seed(w))), path, "; and 7 more")
    assert error.problem.count(";") == 3
