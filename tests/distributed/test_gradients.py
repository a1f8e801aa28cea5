"""Seeds that are born after the wrapper of their host learn from every rank's data."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from kasmina import IncubationPlan, Incubator
from tests.distributed.launch import launch, values
from tests.distributed.loop import Training, close, equal

STRAIGHT = IncubationPlan(incubator=Incubator.STRAIGHT_THROUGH)


def grow(rank, folder, wrapper, parts):
    training = Training.fresh(wrapper=wrapper)
    with training.open(folder) as run:
        run.germinate("1", "conv_light", incubation=STRAIGHT)
        born = training.tensors()
        for epoch in range(6):
            if epoch == 2:
                run.germinate("0", "conv_heavy", incubation=STRAIGHT)
            training.epoch(run, parts=parts)
        state = run.state
    return {"born": born, "grown": training.tensors(), "state": state}


def stages(grown):
    return {slot_id: slot.stage for slot_id, slot in grown["state"].slots.items()}


# A static graph whose first backward is inside no_sync() fails in torch, without kasmina too.
SLOW = pytest.mark.slow
WRAPPERS = [
    pytest.param({}, 1, id="plain"),
    pytest.param({}, 2, id="accumulating", marks=SLOW),
    pytest.param({"find_unused_parameters": True}, 2, id="unused parameters, accumulating"),
    pytest.param({"static_graph": True}, 1, id="static graph", marks=SLOW),
    pytest.param({"gradient_as_bucket_view": True}, 2, id="buckets, accumulating", marks=SLOW),
]


@pytest.mark.parametrize(("wrapper", "parts"), WRAPPERS)
def test_ranks_are_equal_bit_by_bit_and_equal_one_process_on_the_joined_batch(
    tmp_path: Path, wrapper, parts
) -> None:
    first, second = values(launch(grow, tmp_path, wrapper, parts))
    assert equal(first["born"], second["born"])
    assert equal(first["grown"], second["grown"])
    assert first["state"] == second["state"]
    expected = grow(0, _folder(tmp_path), None, 1)
    assert stages(first) == stages(expected)
    assert equal(first["born"], expected["born"])
    assert close(first["grown"], expected["grown"])
    # Without the reduction each rank's seeds would follow its own half.
    assert not torch.equal(first["grown"]["0.0.weight"], first["born"]["0.0.weight"])


def reduce_once(rank, folder, wrapper):
    training = Training.fresh(wrapper=wrapper)
    with training.open(folder) as run:
        run.germinate("0", "conv_light", incubation=STRAIGHT)
        run.germinate("1", "conv_heavy", incubation=STRAIGHT)
        training.backward(training.images[:8], training.labels[:8])
    return training.gradients()


def test_gradients_after_one_backward_are_those_of_the_joined_batch(tmp_path: Path) -> None:
    first, second = values(launch(reduce_once, tmp_path, {}))
    expected = reduce_once(0, _folder(tmp_path), None)
    assert len(first) == len(expected) > 0
    assert all(map(torch.equal, first, second))
    for reduced, joined in zip(first, expected, strict=True):
        torch.testing.assert_close(reduced, joined, rtol=1e-5, atol=1e-7)
    assert any(gradient.abs().sum() > 0 for gradient in first)


def step_unaveraged(rank, folder):
    training = Training.fresh(wrapper={})
    run = training.open(folder)
    run.germinate("0", "conv_light", incubation=STRAIGHT)
    with training.model.no_sync():
        training.model(training.images).sum().backward()
    training.optimizer.step()


def test_a_step_with_gradients_that_were_never_averaged_is_refused(tmp_path: Path) -> None:
    for ended in launch(step_unaveraged, tmp_path):
        assert ended.error == "GradientsApart"
        assert "'0'" in ended.message
        assert "no_sync" in ended.message


def come_back_from_an_error(rank, folder):
    training = Training.fresh()  # a wrapper of torch's would not come back
    run = training.open(folder)
    run.germinate("1", "conv_light", incubation=STRAIGHT)
    output = training.model(training.share(training.images))

    def fail(gradient):
        raise ValueError("in the midst of it")

    handle = next(iter(training.host.parameters())).register_hook(fail)
    with pytest.raises(ValueError, match="in the midst"):
        output.sum().backward()
    handle.remove()
    for parameter in training.slots.seed_parameters():
        parameter.grad = None
    training.host(training.share(training.images)).square().sum().backward()
    return training.gradients()


def test_a_backward_that_failed_does_not_stop_the_averaging(tmp_path: Path) -> None:
    first, second = values(launch(come_back_from_an_error, tmp_path))
    assert len(first) > 0
    assert all(map(torch.equal, first, second))


def learn_by_rehearsal(rank, folder):
    training = Training.fresh(wrapper={})
    run = training.open(folder)
    run.germinate("1", "norm", incubation=IncubationPlan(incubator=Incubator.REHEARSAL))
    x, y = training.images[:8], training.labels[:8]
    training.backward(x, y)
    run.rehearse(
        lambda x, y: F.cross_entropy(training.host(x), y), training.share(x), training.share(y)
    )
    training.optimizer.step()
    run.step()
    run.end_epoch(training.evaluate)
    return training.gradients(), training.tensors()


def test_a_seed_that_learns_by_rehearsal_learns_the_same_on_all_ranks(tmp_path: Path) -> None:
    first, second = values(launch(learn_by_rehearsal, tmp_path))
    assert len(first[0]) > 0
    assert all(map(torch.equal, first[0], second[0]))
    assert equal(first[1], second[1])


def wrap_late(rank, folder, around):
    training = Training.fresh()
    run = training.open(folder)
    run.germinate("1", "conv_light", incubation=STRAIGHT)
    outer = training.host if around == "host" else nn.Sequential(training.host)
    training.model = DistributedDataParallel(outer)
    training.epoch(run)
    run.cull("1", "to see whether the wrapper waits for it")
    training.epoch(run)
    return training.tensors()


def test_a_host_may_be_wrapped_when_there_is_a_seed(tmp_path: Path) -> None:
    first, second = values(launch(wrap_late, tmp_path, "host"))
    assert equal(first, second)


def test_a_seed_that_a_wrapper_of_more_than_the_host_took_in_is_refused(tmp_path: Path) -> None:
    for ended in launch(wrap_late, tmp_path, "more"):
        assert ended.error == "SeedInReducer"
        assert "'1'" in ended.message


def skip_on_one_rank(rank, folder):
    training = Training.fresh(host=Fork())
    training.model = DistributedDataParallel(training.host, find_unused_parameters=True)
    run = training.open(folder)
    run.germinate("1", "conv_light", incubation=STRAIGHT)
    training.host.skips = rank == 1
    training.model(training.images).square().mean().backward()
    return training.gradients()


class Fork(nn.Module):
    """A host that leaves one of its parts out when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("0", nn.Conv2d(1, 4, 3, padding=1))
        self.add_module("1", nn.Conv2d(4, 4, 3, padding=1))
        self.skips = False

    def forward(self, images):
        features = self.get_submodule("0")(images)
        return features if self.skips else self.get_submodule("1")(features)


def test_a_seed_that_one_rank_left_out_is_averaged_on_both(tmp_path: Path) -> None:
    first, second = values(launch(skip_on_one_rank, tmp_path))
    assert len(first) == len(second) > 0
    assert all(map(torch.equal, first, second))


def run_out_of_data(rank, folder):
    training = Training.fresh(wrapper={})
    run = training.open(folder)
    run.germinate("1", "conv_light", incubation=STRAIGHT)
    with training.model.join():
        training.model(training.images).sum().backward()


def test_uneven_ranks_under_join_are_refused(tmp_path: Path) -> None:
    assert all(ended.error == "UnevenRanks" for ended in launch(run_out_of_data, tmp_path))


def count_collectives(rank, folder):
    training = Training.fresh(wrapper={})
    run = training.open(folder)
    groups, ranks = run._parts.groups, run._parts.ranks
    counts = []
    for _ in range(2):
        for _step in range(3):
            before = ranks.exchanges, groups.reduction.reductions
            training.backward(training.images[:8], training.labels[:8])
            training.slots.clip_grad_norm_(1.0)
            training.optimizer.step()
            run.step()
            after = ranks.exchanges, groups.reduction.reductions
            counts.append(tuple(now - then for now, then in zip(after, before, strict=True)))
        before = ranks.exchanges
        run.end_epoch(training.evaluate)
        counts.append(ranks.exchanges - before)
        run.germinate("0", "conv_light", incubation=STRAIGHT)
        if run.state.slot("1").seed is None:
            run.germinate("1", "conv_heavy", incubation=STRAIGHT)
            run.cull("0", "for the count")
    return counts


def test_a_step_has_one_collective_for_all_seeds_and_an_epoch_three_exchanges(
    tmp_path: Path,
) -> None:
    first, second = values(launch(count_collectives, tmp_path))
    without, with_seeds = (0, 0), (0, 1)
    assert first == second
    assert first[:4] == [without, without, without, 3]
    assert first[4:7] == [with_seeds] * 3


def grow_compiled(rank, folder, wrapper):
    training = Training.fresh(wrapper=wrapper)
    if wrapper is not None:
        training.model = torch.compile(training.model, backend="aot_eager")
    with training.open(folder) as run:
        training.epoch(run)
        run.germinate("1", "conv_light", incubation=STRAIGHT)
        for _ in range(4):
            training.epoch(run)
    return training.tensors()


@pytest.mark.slow
def test_a_compiled_wrapper_averages_its_seeds(tmp_path: Path) -> None:
    first, second = values(launch(grow_compiled, tmp_path, {}))
    assert equal(first, second)
    assert close(first, grow_compiled(0, _folder(tmp_path), None))


def overflow(rank, folder):
    training = Training.fresh(wrapper={})
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with training.open(folder) as run:
        run.germinate("1", "conv_light", incubation=STRAIGHT)
        x, y = training.images[:8], training.labels[:8]
        for number in range(4):
            training.optimizer.zero_grad()
            bad = rank == 1 and number == 1
            images = training.share(x) * (float("inf") if bad else 1.0)
            loss = F.cross_entropy(training.model(images), training.share(y))
            scaler.scale(loss).backward()
            scaler.step(training.optimizer)
            scaler.update()
            run.step()
    return training.tensors(), scaler.get_scale()


def test_ranks_with_a_scaler_learn_the_same(tmp_path: Path) -> None:
    first, second = values(launch(overflow, tmp_path))
    assert equal(first[0], second[0])
    assert first[1] == second[1] == 4.0  # halved once, on both
    assert all(bool(each.isfinite().all()) for each in first[0].values())


def _folder(folder: Path) -> Path:
    alone = folder / "alone"
    alone.mkdir()
    return alone
