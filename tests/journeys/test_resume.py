"""A run that went away and comes back: to the same bits, and with the way back on record."""

from pathlib import Path

import pytest
import torch

from kasmina import Stage, Topology, open_store
from kasmina.domain import events as e
from kasmina.domain.errors import CheckpointError, HostMismatch, RunIsClosed, UnknownRun
from kasmina.infra.engine import Access
from tests.journeys.loop import Loop, same, tensors


def plant_and_train(loop: Loop, run: object, epochs: int) -> None:
    for _ in range(epochs):
        for slot_id, blueprint in (("2", "conv_light"), ("0", "attention")):
            slot = run.state.slot(slot_id)
            if slot.stage is Stage.DORMANT and run.state.epoch >= (0 if slot_id == "2" else 2):
                run.germinate(slot_id, blueprint)
        loop.epoch(run)


@pytest.mark.parametrize("stopped_at", [1, 3, 5, 7])
def test_a_resumed_run_ends_with_the_bits_of_one_that_was_never_stopped(
    database: Path, tmp_path: Path, stopped_at: int
) -> None:
    whole = Loop.fresh()
    with whole.open(database) as run:
        plant_and_train(whole, run, 9)
    expected = tensors(whole)

    first = Loop.fresh()
    run = first.open(database)
    plant_and_train(first, run, stopped_at)
    run.checkpoint(tmp_path / "run.pt")
    plant_and_train(first, run, 1)  # beyond the checkpoint, to be taken back
    torch.manual_seed(99)

    again = Loop.fresh()
    with again.open(database, resume=run.run_id) as resumed:
        assert resumed.state.epoch == stopped_at
        assert resumed.state.rewinds == 1
        plant_and_train(again, resumed, 9 - stopped_at)
        assert same(tensors(again), expected)
        assert resumed.state.slots.keys() == whole.slots.keys()
    with open_store(f"sqlite:///{database}", access=Access.READ) as store:
        (rewound,) = [r.event for r in store.read(run.run_id) if isinstance(r.event, e.RunRewound)]
        assert rewound.epoch == stopped_at
        assert store.verify(run.run_id).problems == ()


def test_a_resume_right_at_the_checkpoint_takes_nothing_back(
    database: Path, tmp_path: Path
) -> None:
    first = Loop.fresh()
    run = first.open(database)
    plant_and_train(first, run, 2)
    run.checkpoint(tmp_path / "run.pt")
    again = Loop.fresh()
    resumed = again.open(database, resume=run.run_id)
    assert resumed.state == run.state
    assert resumed.state.rewinds == 0
    assert same(tensors(again), tensors(first))


def test_a_run_without_a_checkpoint_goes_back_to_its_beginning(database: Path) -> None:
    first = Loop.fresh()
    run = first.open(database)
    plant_and_train(first, run, 2)
    again = Loop.fresh()
    resumed = again.open(database, resume=run.run_id)
    assert (resumed.state.epoch, resumed.state.step, resumed.state.rewinds) == (0, 0, 1)
    assert all(slot.seed is None for slot in again.slots.values())
    plant_and_train(again, resumed, 2)


def test_a_checkpoint_that_was_written_but_not_recorded_is_good(
    database: Path, tmp_path: Path
) -> None:
    first = Loop.fresh()
    run = first.open(database)
    plant_and_train(first, run, 2)
    run.checkpoint(tmp_path / "run.pt")
    sequence = run.state.sequence
    plant_and_train(first, run, 1)
    later = run.state.sequence

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    run._do = crash
    with pytest.raises(KeyboardInterrupt):
        run.checkpoint(tmp_path / "run.pt")
    again = Loop.fresh()
    resumed = again.open(database, resume=run.run_id)
    assert resumed.state.sequence == later > sequence
    assert resumed.state.epoch == 3


def test_a_resume_with_another_host_is_refused_with_both_described(
    database: Path, tmp_path: Path
) -> None:
    first = Loop.fresh()
    run = first.open(database)
    run.checkpoint(tmp_path / "run.pt")
    other = Loop.fresh(targets={"2": Topology.CNN})
    with pytest.raises(HostMismatch, match=r"0 \(4\), 2 \(6\).*slots 2 \(6\)"):
        other.open(database, resume=run.run_id)


def test_a_checkpoint_of_another_run_is_refused_and_nothing_changes(
    database: Path, tmp_path: Path
) -> None:
    first, second = Loop.fresh(), Loop.fresh()
    run, other = first.open(database), second.open(database)
    first.epoch(run)
    run.checkpoint(tmp_path / "run.pt")
    plant_and_train(second, other, 2)
    before = other.state
    third = Loop.fresh()
    untouched = tensors(third)
    with pytest.raises(CheckpointError):
        third.open(database, resume=other.run_id, checkpoint=tmp_path / "run.pt")
    assert same(tensors(third), untouched)
    with open_store(f"sqlite:///{database}", access=Access.READ) as store:
        assert store.head(other.run_id).sequence == before.sequence


def test_a_run_that_is_not_there_is_named_with_its_neighbours(database: Path) -> None:
    loop = Loop.fresh()
    run = loop.open(database)
    with pytest.raises(UnknownRun, match=run.run_id):
        Loop.fresh().open(database, resume=run.run_id[:-1] + "_")


def test_a_closed_run_goes_on_from_its_checkpoint(database: Path, tmp_path: Path) -> None:
    first = Loop.fresh()
    with first.open(database) as run:
        plant_and_train(first, run, 2)
        run.checkpoint(tmp_path / "run.pt")
    again = Loop.fresh()
    resumed = again.open(database, resume=run.run_id)
    assert not resumed.state.closed
    plant_and_train(again, resumed, 1)


def test_a_checkpoint_within_an_epoch_keeps_the_steps_taken_so_far(
    database: Path, tmp_path: Path
) -> None:
    first = Loop.fresh()
    run = first.open(database)
    plant_and_train(first, run, 1)
    first.train(run.step)
    run.checkpoint(tmp_path / "run.pt")
    report = run.end_epoch(first.evaluate)
    assert report.epoch == 2
    again = Loop.fresh()
    resumed = again.open(database, resume=run.run_id)
    assert (resumed.state.epoch, resumed.state.step) == (1, 8)
    again.train(resumed.step)
    assert resumed.end_epoch(again.evaluate).epoch == 2
    assert resumed.state.step == 12


def test_a_refused_resume_lets_go_of_store_and_optimizer(database: Path, tmp_path: Path) -> None:
    first = Loop.fresh()
    run = first.open(database)
    plant_and_train(first, run, 1)
    run.checkpoint(tmp_path / "run.pt")
    (tmp_path / "run.pt").write_bytes(b"nonsense")
    again = Loop.fresh()
    hooks = len(again.optimizer._optimizer_step_pre_hooks)
    with pytest.raises(CheckpointError):
        again.open(database, resume=run.run_id)
    assert all(slot.seed is None for slot in again.slots.values())
    assert len(again.optimizer.param_groups) == 1
    assert len(again.optimizer._optimizer_step_pre_hooks) == hooks
    with again.open(tmp_path / "other.db") as other:
        again.epoch(other)


def test_a_closed_run_without_a_checkpoint_is_not_taken_back_to_its_beginning(
    database: Path,
) -> None:
    first = Loop.fresh()
    with first.open(database) as run:
        plant_and_train(first, run, 1)
    with pytest.raises(RunIsClosed):
        Loop.fresh().open(database, resume=run.run_id)


def test_an_epoch_that_was_trained_to_its_end_can_be_ended_after_a_resume(
    database: Path, tmp_path: Path
) -> None:
    first = Loop.fresh()
    run = first.open(database)
    plant_and_train(first, run, 1)
    first.train(run.step)
    run.checkpoint(tmp_path / "run.pt")
    again = Loop.fresh()
    resumed = again.open(database, resume=run.run_id)
    assert resumed.end_epoch(again.evaluate).epoch == 2
