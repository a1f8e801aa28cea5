"""The checkpoint of a sharded host: parts of every rank, taken on by any number of them."""

import hashlib
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from attrs import evolve as changed

from kasmina import IncubationPlan, Incubator
from kasmina.adapters.torch.checkpoint import read_checkpoint
from kasmina.adapters.torch.checkpoints import archive
from kasmina.adapters.torch.checkpoints.spread import placed
from kasmina.adapters.torch.distributed import saving
from kasmina.adapters.torch.distributed.ranks import RankFailed
from kasmina.domain import events as e
from kasmina.domain.errors import CheckpointError, KasminaError
from tests.distributed.launch import launch, values
from tests.distributed.loop import Training, close, equal
from tests.distributed.sharded import Layout, laid_out, tensors
from tests.distributed.test_record import only

pytestmark = pytest.mark.skipif(
    torch.__version__ < (2, 7), reason="fully_shard of torch 2.6 does not run on CPUs"
)

STRAIGHT = IncubationPlan(incubator=Incubator.STRAIGHT_THROUGH)


def save(rank, folder, layout):
    training = laid_out(layout)
    with training.open(folder) as run:
        run.germinate("1", "conv_light", incubation=STRAIGHT)
        training.epoch(run)
        run.checkpoint(folder / "run.pt")
        training.epoch(run)
        run.checkpoint(folder / "run.pt")
        saved = tensors(training)
        training.epoch(run)
        return run.run_id, saved, tensors(training)


def resume(rank, folder, run_id, layout):
    training = laid_out(layout)
    with training.open(folder, resume=run_id, checkpoint=folder / "run.pt") as run:
        restored = tensors(training)
        training.epoch(run)
        return restored, tensors(training)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """The folder of a run that two ranks saved, with a part each, and what they ended with."""
    folder = tmp_path_factory.mktemp("sharded")
    return folder, values(launch(save, folder, Layout.SHARDED))[0]


def copied(sharded, tmp_path: Path) -> tuple[Path, object]:
    folder, saved = sharded
    return shutil.copytree(folder, tmp_path / "copy"), saved


def test_ranks_go_on_from_their_parts_to_the_same_bits(sharded, tmp_path: Path) -> None:
    folder, (run_id, saved, ended) = copied(sharded, tmp_path)
    for restored, again in values(launch(resume, folder, run_id, Layout.SHARDED)):
        assert equal(restored, saved)
        assert equal(again, ended)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "size"), [(Layout.SHARDED, 1), (Layout.SHARDED, 3), (Layout.WHOLE, 2)]
)
def test_any_number_of_ranks_takes_it_on_in_any_layout(
    sharded, tmp_path: Path, layout, size
) -> None:
    folder, (run_id, saved, ended) = copied(sharded, tmp_path)
    for restored, again in values(launch(resume, folder, run_id, layout, size=size)):
        assert equal(restored, saved)
        assert close(again, ended) or size == 3  # whose shares of a batch are not alike


def test_one_process_takes_it_on(sharded, tmp_path: Path) -> None:
    folder, (run_id, saved, ended) = copied(sharded, tmp_path)
    training = Training.fresh(adam=True)
    with training.open(folder, resume=run_id, checkpoint=folder / "run.pt") as run:
        assert equal(training.tensors(), saved)
        training.epoch(run)
    assert close(training.tensors(), ended)


@pytest.mark.slow
def test_a_sharded_host_takes_on_a_checkpoint_of_a_whole_one(tmp_path: Path) -> None:
    run_id, saved, ended = values(launch(save, tmp_path, Layout.WHOLE))[0]
    for restored, again in values(launch(resume, tmp_path, run_id, Layout.SHARDED)):
        assert equal(restored, saved)
        assert close(again, ended)


def test_only_the_parts_of_the_last_checkpoint_are_kept(sharded) -> None:
    folder, _ = sharded
    (kept,) = (folder / "run.pt.shards").iterdir()
    shards = read_checkpoint(folder / "run.pt").shards
    assert folder / shards.folder == kept
    assert sorted(shards.files) == sorted(each.name for each in kept.iterdir())


def refused(rank, folder, run_id):
    training = laid_out(Layout.SHARDED)
    before = tensors(training)
    with pytest.raises(CheckpointError) as error:
        training.open(folder, resume=run_id, checkpoint=folder / "run.pt")
    return str(error.value), equal(before, tensors(training))


@pytest.mark.parametrize("damage", ["a flipped bit", "a lost file", "a lost folder"])
def test_damage_to_a_part_is_found_by_every_rank_before_anything_is_taken_on(
    sharded, tmp_path: Path, damage
) -> None:
    folder, (run_id, *_) = copied(sharded, tmp_path)
    (parts,) = (folder / "run.pt.shards").iterdir()
    victim = parts / "__1_0.distcp"
    if damage == "a lost folder":
        shutil.rmtree(parts)
    elif damage == "a lost file":
        victim.unlink()
    else:
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    for message, untouched in values(launch(refused, folder, run_id)):
        assert "__1_0.distcp" in message
        assert untouched
    assert not only(folder, e.RunRewound)


def place_by_position(rank, folder):
    training = laid_out(Layout.SHARDED)
    old = changed(read_checkpoint(folder / "run.pt"), version=1)
    with pytest.raises(CheckpointError, match="by position"):
        placed(old, training.slots, {})


def test_a_sharded_host_takes_no_parameters_by_position(sharded) -> None:
    folder, _ = sharded
    values(launch(place_by_position, folder))


def fail_to_save(rank, folder):
    training = laid_out(Layout.SHARDED)
    with training.open(folder) as run:
        training.epoch(run)
        run.checkpoint(folder / "run.pt")
        saved = tensors(training)
        training.epoch(run)
        digests = saving.spread.digests
        if rank == 1:
            saving.spread.digests = broken
        with pytest.raises(KasminaError) as error:
            run.checkpoint(folder / "run.pt")
        saving.spread.digests = digests
        run.checkpoint(folder / "other.pt")
        return run.run_id, saved, type(error.value)


def broken(*_arguments):
    raise OSError("the disk is full")


def test_a_rank_that_cannot_write_its_part_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    first, second = values(launch(fail_to_save, tmp_path))
    assert (first[2], second[2]) == (RankFailed, CheckpointError)
    run_id, saved, _ = first
    for restored, _ in values(launch(resume, tmp_path, run_id, Layout.SHARDED)):
        assert equal(restored, saved)


class Harmful:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return Path.mkdir, (self.folder,)


def test_a_folder_that_would_run_code_is_refused_though_its_digests_are_right(
    sharded, tmp_path: Path
) -> None:
    folder, (run_id, *_) = copied(sharded, tmp_path)
    content = torch.load(folder / "run.pt", weights_only=True)
    listing = folder / content["shards"]["folder"] / ".metadata"
    listing.write_bytes(pickle.dumps(Harmful(tmp_path / "harm")))
    content["shards"]["files"][".metadata"] = hashlib.sha256(listing.read_bytes()).hexdigest()
    archive.write(folder / "run.pt", content)
    with pytest.raises(CheckpointError, match=r"pathlib.*mkdir|builtins.*getattr"):
        Training.fresh(adam=True).open(folder, resume=run_id, checkpoint=folder / "run.pt")
    assert not (tmp_path / "harm").exists()
