"""A run that branches off another: from its bits, under its own gates, and leaving it alone."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from attrs import evolve as changed

from kasmina import GatePolicy, Run, Stage, open_run, open_store
from kasmina.domain import events as e
from kasmina.domain.comparison import differences
from kasmina.domain.errors import CheckpointError, HostMismatch, InvalidCommand, UnknownRun
from kasmina.domain.points import AtEpoch, TensorsNotSaved
from kasmina.domain.ports import Recorded
from kasmina.domain.stages import Topology
from kasmina.history import locate
from kasmina.infra.engine import Access
from kasmina.service import fork
from tests.journeys.loop import ACCURACY, LENIENT, PATIENT, Loop, same, tensors

EPOCHS, FORKED_AT = 8, 4
DOCUMENT = Path(__file__).parents[2] / "docs" / "history.md"


def train(loop: Loop, run: Run, epochs: int) -> None:
    """Training in which one seed is put in at once, and another later."""
    for _ in range(epochs):
        for slot_id, first_epoch in (("2", 0), ("0", FORKED_AT + 1)):
            stage = run.state.slot(slot_id).stage
            if stage is Stage.DORMANT and run.state.epoch >= first_epoch:
                run.germinate(slot_id, "conv_light")
        loop.epoch(run)


def log(database: Path, run_id: str) -> list[Recorded]:
    with open_store(f"sqlite:///{database}", access=Access.READ) as store:
        assert store.verify(run_id).sound
        return list(store.read(run_id))


def parent(database: Path, folder: Path, *, end: int = EPOCHS) -> tuple[Loop, Run]:
    """A run with a checkpoint in the middle of its life, ended."""
    loop = Loop.fresh()
    run = loop.open(database, name="parent")
    train(loop, run, FORKED_AT)
    run.checkpoint(folder / "parent.pt")
    train(loop, run, end - FORKED_AT)
    run.close()
    return loop, run


def test_a_fork_in_which_nothing_is_changed_ends_with_the_bits_of_its_parent(
    database: Path, tmp_path: Path
) -> None:
    first, run = parent(database, tmp_path)
    expected, before = tensors(first), log(database, run.run_id)
    torch.manual_seed(99)

    second = Loop.fresh(seed=7)
    child = second.open(database, name="child", fork=run.run_id, policy=None)
    assert child.run_id != run.run_id
    assert (child.state.epoch, child.state.sequence) == (FORKED_AT, 1)
    train(second, child, EPOCHS - FORKED_AT)
    assert same(tensors(second), expected)
    apart = {each.path for each in differences(run.state, child.state)}
    assert {path[0] for path in apart if path[-1] != "seed_id"} == {
        "run_id",
        "name",
        "sequence",
        "checkpoint",
        "closed",
    }
    assert log(database, run.run_id) == before


def test_a_fork_says_where_it_comes_from(database: Path, tmp_path: Path) -> None:
    _, run = parent(database, tmp_path)
    child = Loop.fresh().open(database, name="child", fork=run.run_id, policy=None)
    (forked,) = [record.event for record in log(database, child.run_id)]
    (saved,) = [
        record
        for record in log(database, run.run_id)
        if isinstance(record.event, e.CheckpointSaved)
    ]
    assert (forked.name, forked.parent_run_id) == ("child", run.run_id)
    assert forked.parent_sequence == saved.sequence
    assert forked.parent_digest == saved.digest.hex()


def test_a_fork_under_another_policy_goes_its_own_way(database: Path, tmp_path: Path) -> None:
    first, run = parent(database, tmp_path)
    before = log(database, run.run_id)
    stricter = changed(PATIENT, g4=changed(LENIENT.g4, min_agreement=1.0))
    second = Loop.fresh()
    child = second.open(database, name="strict", fork=run.run_id, policy=stricter)
    assert child.state.policy == stricter
    events = [record.event for record in log(database, child.run_id)]
    assert [type(event) for event in events] == [e.RunForked, e.GatePolicyChanged]
    train(second, child, EPOCHS - FORKED_AT)
    assert child.state.slot("2").stage is not run.state.slot("2").stage
    assert not same(tensors(second), tensors(first))
    assert log(database, run.run_id) == before


def test_a_checkpoint_can_be_chosen_from_which_to_fork(database: Path, tmp_path: Path) -> None:
    loop = Loop.fresh()
    run = loop.open(database)
    for epoch in (1, 2):
        train(loop, run, 1)
        run.checkpoint(tmp_path / f"{epoch}.pt")
    children = [
        Loop.fresh().open(
            database, name=f"at {n}", fork=run.run_id, checkpoint=tmp_path / f"{n}.pt"
        )
        for n in (1, 2)
    ]
    assert [child.state.epoch for child in children] == [1, 2]


def test_without_any_checkpoint_a_fork_begins_where_its_parent_began(database: Path) -> None:
    first = Loop.fresh()
    run = first.open(database)
    train(first, run, 2)
    expected = tensors(first)
    second = Loop.fresh()
    child = second.open(database, name="child", fork=run.run_id, policy=None)
    assert (child.state.epoch, child.state.step) == (0, 0)
    assert all(slot.seed is None for slot in second.slots.values())
    train(second, child, 2)
    assert same(tensors(second), expected)


def test_a_fork_is_resumed_before_and_after_its_own_first_checkpoint(
    database: Path, tmp_path: Path
) -> None:
    first, run = parent(database, tmp_path)
    expected = tensors(first)

    second = Loop.fresh()
    child = second.open(database, name="child", fork=run.run_id, policy=LENIENT)
    train(second, child, 1)  # to be taken back: no checkpoint of its own holds it

    third = Loop.fresh()
    early = third.open(database, resume=child.run_id)
    assert (early.state.epoch, early.state.rewinds) == (FORKED_AT, 1)
    assert early.state.policy == LENIENT
    train(third, early, 1)
    early.checkpoint(tmp_path / "child.pt")
    train(third, early, 1)

    fourth = Loop.fresh()
    with fourth.open(database, resume=child.run_id) as late:
        assert (late.state.epoch, late.state.rewinds) == (FORKED_AT + 1, 2)
        train(fourth, late, EPOCHS - FORKED_AT - 1)
    assert same(tensors(fourth), expected)
    assert any(isinstance(r.event, e.RunClosed) for r in log(database, child.run_id))


def test_a_fork_of_a_fork_goes_on_with_the_bits_of_the_first_run(
    database: Path, tmp_path: Path
) -> None:
    first, run = parent(database, tmp_path)
    child = Loop.fresh().open(database, name="child", fork=run.run_id, policy=None)
    second = Loop.fresh()
    grandchild = second.open(database, name="grandchild", fork=child.run_id, policy=None)
    train(second, grandchild, 1)
    third = Loop.fresh()
    resumed = third.open(database, resume=grandchild.run_id)
    assert resumed.state.epoch == FORKED_AT
    train(third, resumed, EPOCHS - FORKED_AT)
    assert same(tensors(third), tensors(first))


def test_a_fork_from_the_command_line_is_trained_from_its_parent_s_checkpoint(
    database: Path, tmp_path: Path
) -> None:
    first, run = parent(database, tmp_path)
    with open_store(f"sqlite:///{database}") as store:
        (saved,) = [r for r in store.read(run.run_id) if isinstance(r.event, e.CheckpointSaved)]
        late = locate(store, run.run_id, AtEpoch(epoch=FORKED_AT + 1))
        fork(store, run.run_id, at=saved.sequence, run_id="good", name="good")
        fork(store, run.run_id, at=late, run_id="lost", name="lost")
    second = Loop.fresh()
    resumed = second.open(database, resume="good")
    train(second, resumed, EPOCHS - FORKED_AT)
    assert same(tensors(second), tensors(first))

    third = Loop.fresh()
    untouched = tensors(third)
    with pytest.raises(TensorsNotSaved, match=f"from is event {saved.sequence}"):
        third.open(database, resume="lost")
    with pytest.raises(CheckpointError, match="forked from another point"):
        third.open(database, resume="lost", checkpoint=tmp_path / "parent.pt")
    assert same(tensors(third), untouched)
    assert len(log(database, "lost")) == 1


def test_a_fork_within_an_epoch_keeps_the_steps_taken_so_far(
    database: Path, tmp_path: Path
) -> None:
    first = Loop.fresh()
    run = first.open(database)
    train(first, run, 1)
    first.train(run.step)
    run.checkpoint(tmp_path / "run.pt")
    second = Loop.fresh()
    child = second.open(database, name="child", fork=run.run_id, policy=GatePolicy())
    assert (child.state.epoch, child.state.step) == (1, 8)
    second.train(child.step)
    assert child.end_epoch(second.evaluate).epoch == 2
    assert child.state.step == 12


def test_a_fork_with_another_host_is_refused_with_both_described(
    database: Path, tmp_path: Path
) -> None:
    _, run = parent(database, tmp_path, end=FORKED_AT)
    other = Loop.fresh(targets={"2": Topology.CNN})
    with pytest.raises(HostMismatch, match=r"0 \(4\), 2 \(6\).*slots 2 \(6\)"):
        other.open(database, name="child", fork=run.run_id)


def test_a_refused_fork_leaves_no_run_and_nothing_attached(database: Path, tmp_path: Path) -> None:
    _, run = parent(database, tmp_path, end=FORKED_AT)
    loop = Loop.fresh()
    untouched = tensors(loop)
    with pytest.raises(ValueError, match="name must not be blank"):
        loop.open(database, name=" ", fork=run.run_id)
    (tmp_path / "parent.pt").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError):
        loop.open(database, name="child", fork=run.run_id)
    with pytest.raises(UnknownRun):
        loop.open(database, name="child", fork="nosuch")
    with pytest.raises(InvalidCommand, match="not both"):
        loop.open(database, fork=run.run_id, resume=run.run_id)
    assert same(tensors(loop), untouched)
    assert len(loop.optimizer.param_groups) == 1
    with open_store(f"sqlite:///{database}", access=Access.READ) as store:
        assert store.run_ids() == (run.run_id,)


class Named:
    """Identifiers that chance would never give."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id

    def run_id(self, name: str) -> str:
        return self._run_id

    def seed_id(self) -> str:
        return "s7tb6ebor"

    def batch(self) -> str:
        return "b"


def test_what_the_document_says_can_be_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compared, forked = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    loop = Loop.fresh()
    run = loop.open(Path("digits.db"), name="digits", identifiers=Named("digits-hidjlgg2"))
    train(loop, run, 3)
    run.checkpoint("digits-3.pt")
    train(loop, run, 1)
    exec(compared, {})
    assert "('slots', '2', 'stage') Stage.BLENDING Stage.SHADOWING" in capsys.readouterr().out
    second = Loop.fresh()
    given = {
        "open_run": partial(open_run, extra={"scheduler": second.scheduler}),
        "stricter": PATIENT,
        "slots": second.slots,
        "optimizer": second.optimizer,
        "objective": ACCURACY,
    }
    exec(forked, given)
    assert (given["run"].state.epoch, given["run"].state.policy) == (3, PATIENT)
