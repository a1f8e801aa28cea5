"""One log for all ranks: what is recorded, who decides it, and what happens when a rank fails."""

import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from attrs import evolve as changed

from kasmina import IncubationPlan, Incubator, Stage, open_store
from kasmina.adapters.torch.distributed.ranks import RankFailed, RankPlan, Reading
from kasmina.domain import events as e
from kasmina.domain.errors import StoreUnavailable
from kasmina.infra.engine import Access
from tests.distributed.launch import launch, values
from tests.distributed.loop import PLAN, Training, equal

STRAIGHT = IncubationPlan(incubator=Incubator.STRAIGHT_THROUGH)
HASTY = RankPlan(timeout=timedelta(seconds=5))


def recorded(folder: Path):
    """The events of every run in the log."""
    with open_store(f"sqlite:///{folder / 'runs.db'}", access=Access.READ) as store:
        runs = {first.run_id: list(store.read(first.run_id)) for first in store.runs()}
        assert all(store.verify(run_id).problems == () for run_id in runs)
    return runs


def only(folder: Path, kind):
    (run,) = recorded(folder).values()
    return [record.event for record in run if isinstance(record.event, kind)]


def live(rank, folder):
    training = Training.fresh(wrapper={})
    with training.open(folder) as run:
        run.germinate("1", "conv_light", incubation=STRAIGHT)
        for _ in range(4):
            training.epoch(run)
        head = run._journal.head()
        run_id = run.run_id
        state = run.state
    return run_id, state, head


def test_all_ranks_are_one_run_with_one_log_and_one_state(tmp_path: Path) -> None:
    first, second = values(launch(live, tmp_path))
    assert first == second
    (run_id,) = recorded(tmp_path)
    assert run_id == first[0]
    assert len(only(tmp_path, e.EpochRecorded)) == 4


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def live_and_count(rank, folder):
    training = Training.fresh()
    before = threads()
    with training.open(folder) as run:
        training.epoch(run)
        within = threads()
    return before, within, threads()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Linux lists threads there")
@pytest.mark.skipif(torch.__version__ < (2, 13), reason="its groups may wait for ever to end")
def test_a_run_that_ended_leaves_no_thread_behind(tmp_path: Path) -> None:
    for before, within, after in values(launch(live_and_count, tmp_path)):
        assert after == before < within


def live_apart(rank, folder):
    own = folder / str(rank)
    own.mkdir()
    training = Training.fresh()
    with training.open(own, ranks=None) as run:
        training.epoch(run)


def test_without_a_plan_each_process_is_a_run_of_its_own(tmp_path: Path) -> None:
    values(launch(live_apart, tmp_path))
    assert recorded(tmp_path / "0").keys() != recorded(tmp_path / "1").keys()


def measure(rank, folder, reading):
    training = Training.fresh(wrapper={})
    with training.open(folder, ranks=changed(PLAN, reading=reading)) as run:
        training.backward(training.images[:8], training.labels[:8])
        training.optimizer.step()
        run.step()
        return run.end_epoch(lambda: {"val_accuracy": 10.0 + rank, "loss": 0.1}).metrics


@pytest.mark.parametrize(("reading", "accuracy"), [(Reading.MEAN, 10.5), (Reading.FIRST, 10.0)])
def test_metrics_are_averaged_over_the_ranks_or_those_of_the_first(
    tmp_path: Path, reading, accuracy
) -> None:
    first, second = values(launch(measure, tmp_path, reading))
    assert first == second == {"val_accuracy": accuracy, "loss": 0.1}
    assert [each.objective for each in only(tmp_path, e.EpochRecorded)] == [accuracy]


def poison(rank, folder):
    training = Training.fresh(wrapper={})
    run = training.open(folder)
    run.germinate("1", "conv_light", incubation=STRAIGHT)
    slot = run.slots["1"]
    for number in range(3):
        training.backward(training.images[:8], training.labels[:8])
        training.optimizer.step()
        run.step()
        if number == 1 and rank == 1:
            slot.nonfinite_outputs.add_(3)  # as its forward does
    run.end_epoch(training.evaluate)


def test_what_one_rank_alone_saw_is_on_record(tmp_path: Path) -> None:
    values(launch(poison, tmp_path))
    (epoch,) = only(tmp_path, e.EpochRecorded)
    assert [seed.nonfinite_outputs for seed in epoch.seeds] == [3]


def disagree(rank, folder, about):
    training = Training.fresh(wrapper={})
    run = training.open(folder)
    if about == "blueprint":
        run.germinate("1", ("conv_light", "conv_heavy")[rank])
    elif about == "steps":
        training.backward(training.images[:8], training.labels[:8])
        training.optimizer.step()
        for _ in range(1 + rank):
            run.step()
        run.end_epoch(training.evaluate)
    elif about == "gradients":
        run.germinate("1", "conv_light", incubation=STRAIGHT)
        training.backward(training.images[:8], training.labels[:8])
        for parameter in training.slots.seed_parameters():
            parameter.grad += rank
        training.optimizer.step()
        run.step()
        run.end_epoch(training.evaluate)


@pytest.mark.parametrize("about", ["blueprint", "steps", "gradients"])
def test_ranks_that_disagree_all_stop_with_nothing_recorded(tmp_path: Path, about) -> None:
    for ended in launch(disagree, tmp_path, about):
        assert ended.error == "RanksDiverged"
        assert "rank 0 has" in ended.message
        assert "rank 1 has" in ended.message
    (run,) = recorded(tmp_path).values()
    kinds = {type(record.event) for record in run}
    assert e.EpochRecorded not in kinds
    assert (e.SeedGerminated in kinds) == (about == "gradients")


def evaluate_badly(rank, folder):
    training = Training.fresh(wrapper={})
    run = training.open(folder)
    run.step()

    def evaluate():
        if rank == 1:
            raise ValueError("no such file")
        return training.evaluate()

    with pytest.raises((ValueError, RankFailed)) as caught:
        run.end_epoch(evaluate)
    run.end_epoch(training.evaluate)
    return type(caught.value).__name__, str(caught.value)


def test_an_evaluation_that_fails_on_one_rank_fails_on_all_and_can_be_repeated(
    tmp_path: Path,
) -> None:
    first, second = values(launch(evaluate_badly, tmp_path))
    assert second == ("ValueError", "no such file")
    assert first[0] == "RankFailed"
    assert "rank 1" in first[1]
    assert "no such file" in first[1]
    assert len(only(tmp_path, e.EpochRecorded)) == 1


def fill_the_disk(rank, folder):
    training = Training.fresh(wrapper={})
    run = training.open(folder)
    before = run.state
    if rank == 0:
        store = run._journal.store._held

        def full(appends):
            raise StoreUnavailable("sqlite:///runs.db", "the disk is full", "make room")

        kept, store.append_all = store.append_all, full
    caught = None
    try:
        run.germinate("1", "conv_light")
    except StoreUnavailable as error:
        caught = error.problem, str(error)
    assert run.state == before
    assert run.slots["1"].seed is None
    if rank == 0:
        store.append_all = kept
    run.germinate("1", "conv_light")
    return caught


def test_an_append_that_fails_on_rank_0_is_the_same_error_on_every_rank(tmp_path: Path) -> None:
    first, second = values(launch(fill_the_disk, tmp_path))
    assert first == second
    assert first[0] == "the disk is full"
    assert len(only(tmp_path, e.SeedGerminated)) == 1


def open_nowhere(rank, folder):
    Training.fresh(wrapper={}).open(folder / "missing" / "folder")


def test_a_database_that_rank_0_cannot_open_stops_every_rank(tmp_path: Path) -> None:
    first, second = launch(open_nowhere, tmp_path)
    assert first.error == second.error == "StoreUnavailable"


def open_alone(rank, folder):
    training = Training.fresh()
    if rank == 0:
        training.open(folder, ranks=HASTY)
    time.sleep(1)


@pytest.mark.slow
def test_a_run_that_is_opened_on_one_rank_alone_is_refused(tmp_path: Path) -> None:
    first, _ = launch(open_alone, tmp_path)
    assert first.error == "RankLost"
    assert "a rank did not come to open_run()" in first.message
    assert "every rank must make the same calls" in first.message


def lose_a_rank(rank, folder, how):
    training = Training.fresh(wrapper={})
    run = training.open(folder, ranks=HASTY)
    training.epoch(run)
    for _ in range(2):
        training.backward(training.images[:8], training.labels[:8])
        training.optimizer.step()
        run.step()
    if rank == 1 and how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 1:
        time.sleep(3 * HASTY.timeout.total_seconds())
    run.end_epoch(training.evaluate)


@pytest.mark.parametrize("how", ["killed", pytest.param("late", marks=pytest.mark.slow)])
def test_a_rank_that_does_not_come_is_named_and_nothing_is_half_recorded(
    tmp_path: Path, how
) -> None:
    first, second, third = launch(lose_a_rank, tmp_path, how, size=3)
    assert first.error == "RankLost"
    assert "rank 1 did not come to evaluate()" in first.message
    assert third.error == "RankLost"
    assert second is None if how == "killed" else second.error == "RankLost"
    assert len(only(tmp_path, e.EpochRecorded)) == 1


def die_after_hearing(rank, folder):
    training = Training.fresh(wrapper={})
    run = training.open(folder, ranks=HASTY)
    if rank == 0:
        store = run._journal.store._held
        append = store.append_all

        def die(appends):
            append(appends)
            os.kill(os.getpid(), signal.SIGKILL)

        store.append_all = die
    run.germinate("1", "conv_light")


def test_a_rank_0_that_dies_while_it_records_has_recorded_all_or_nothing(tmp_path: Path) -> None:
    first, second = launch(die_after_hearing, tmp_path)
    assert first is None
    assert second.error == "RankLost"
    assert "rank 0" in second.message
    stages = [event.target for event in only(tmp_path, e.StageChanged)]
    assert stages == [Stage.GERMINATED, Stage.TRAINING]  # the whole decision


def save_and_go_on(rank, folder):
    """Two epochs, a checkpoint, two more: with dropout drawn differently on each rank."""
    training = Training.fresh(wrapper={}, adam=True, host=dropping())
    torch.manual_seed(100 + rank)
    run = training.open(folder)
    run.germinate("1", "conv_light", incubation=STRAIGHT)
    training.epoch(run)
    training.epoch(run)
    run.checkpoint(folder / "run.pt")
    training.epoch(run)
    training.epoch(run)
    return run.run_id, training.tensors(), torch.get_rng_state()


def resume(rank, folder, run_id):
    training = Training.fresh(wrapper={}, adam=True, host=dropping())
    with training.open(folder, resume=run_id) as run:
        assert run.state.epoch == 2
        training.epoch(run)
        training.epoch(run)
    return run_id, training.tensors(), torch.get_rng_state()


def dropping():
    from tests.distributed.loop import build_host

    host = build_host()
    host.get_submodule("1").append(torch.nn.Dropout(0.5))
    return host


def test_resumed_ranks_go_on_to_the_same_bits_each_with_its_own_random_stream(
    tmp_path: Path,
) -> None:
    whole = values(launch(save_and_go_on, tmp_path))
    run_id = whole[0][0]
    again = values(launch(resume, tmp_path, run_id))
    for before, after in zip(whole, again, strict=True):
        assert equal(before[1], after[1])
        assert torch.equal(before[2], after[2])
    assert not torch.equal(whole[0][2], whole[1][2])


@pytest.mark.slow
def test_a_checkpoint_of_two_ranks_is_resumed_by_one_process(tmp_path: Path) -> None:
    whole = values(launch(save_and_go_on, tmp_path))
    training = Training.fresh(adam=True, host=dropping())
    with training.open(tmp_path, resume=whole[0][0]) as run:
        assert run.state.epoch == 2
        training.epoch(run)
