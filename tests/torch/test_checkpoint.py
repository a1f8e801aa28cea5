"""A checkpoint is whole or absent, runs no code, and is taken on entirely or not at all."""

import collections
import copy
import os
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

from kasmina.adapters.torch import checkpoint as module
from kasmina.adapters.torch.checkpoint import (
    read_checkpoint,
    restore_checkpoint,
    save_checkpoint,
)
from kasmina.adapters.torch.graft import graft
from kasmina.adapters.torch.optimizer import SeedGroups
from kasmina.adapters.torch.slot import Sprout
from kasmina.adapters.torch.streams import Stream
from kasmina.domain.errors import CheckpointError
from kasmina.domain.evidence import Probe
from kasmina.domain.projections import Behaviour, SlotView
from kasmina.domain.schedules import held
from kasmina.domain.stages import Stage, Topology

HERE = Path(__file__).parent
POSITION = {"run_id": "r1", "sequence": 17, "digest": bytes(range(32)), "epoch": 3, "step": 42}


class Host(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width))
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.Dropout(0.2))
        self.head = nn.Linear(width, 2)

    def forward(self, images):
        return self.head(self.second(self.first(images).relu()).mean((2, 3)))


class Training:
    """A host in training with a dropping-out seed in each slot named."""

    def __init__(self, seeds=("first", "second"), *, width=4, kind=torch.optim.AdamW):
        torch.manual_seed(0)
        self.model = Host(width)
        self.slots = graft(self.model, {"first": Topology.CNN, "second": Topology.CNN})
        self.optimizer = kind(self.model.parameters(), lr=0.01)
        self.scheduler = schedulers.CosineAnnealingLR(self.optimizer, T_max=20)
        groups = SeedGroups(self.optimizer)
        for slot_id in seeds:
            slot = self.slots[slot_id]
            seed = nn.Sequential(nn.Conv2d(slot.width, slot.width, 1), nn.Dropout(0.5))
            slot.attach(Sprout(module=seed, probe=Probe(), parameters=1, stream=Stream(7)))
            view = SlotView(
                slot_id=slot_id,
                stage=Stage.BLENDING,
                seed_id=f"seed of {slot_id}",
                behaviour=Behaviour.BLEND,
                learning=True,
                schedule=held(0.5),
            )
            slot.follow(view, 0)
            groups.add(f"seed of {slot_id}", slot.seed_parameters(), learning_rate=0.005)

    @property
    def extra(self):
        return {"scheduler": self.scheduler}

    def run(self, steps):
        losses = []
        for _ in range(steps):
            loss = self.model(torch.randn(4, 1, 6, 6)).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            losses.append(loss.item() + random.random() + np.random.rand())  # noqa: NPY002 - the stream that is saved
        return losses

    def save(self, path, **other):
        save_checkpoint(
            path,
            **{"slots": self.slots, "optimizer": self.optimizer, "extra": self.extra} | other,
            **POSITION,
        )

    def restore(self, path, **other):
        return restore_checkpoint(
            read_checkpoint(path),
            **{"slots": self.slots, "optimizer": self.optimizer, "extra": self.extra} | other,
        )

    def snapshot(self):
        parts = (self.model, self.optimizer, self.scheduler)
        return copy.deepcopy([part.state_dict() for part in parts])


def alike(one, other):
    """Equal to the last bit, through dicts and lists."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.pt"


@pytest.fixture
def saved(path):
    training = Training()
    training.run(3)
    training.save(path)
    return training


class TestGoingOn:
    def test_a_restored_training_is_the_one_that_was_saved_bit_for_bit(self, path, saved):
        losses = saved.run(5)
        again = Training()
        again.run(1)
        assert again.restore(path) == ()
        assert again.run(5) == losses
        assert alike(again.snapshot(), saved.snapshot())

    def test_seeds_may_have_been_grown_again_in_another_order(self, path, saved):
        again = Training(("second", "first"))
        again.restore(path)
        assert again.run(5) == saved_losses(saved, path)
        assert alike(again.snapshot(), saved.snapshot())

    def test_a_checkpoint_may_be_restored_twice(self, path, saved):
        checkpoint, losses = read_checkpoint(path), []
        for _ in range(2):
            restore_checkpoint(
                checkpoint, slots=saved.slots, optimizer=saved.optimizer, extra=saved.extra
            )
            losses.append(saved.run(3))
        assert losses[0] == losses[1]

    def test_a_seed_that_was_not_known_to_draw_gets_its_stream_back(self, path, saved):
        losses, again = saved_losses(saved, path), Training()
        again.slots["first"].stream = None
        again.slots["first"].choose()
        again.restore(path)
        assert again.run(5) == losses

    def test_the_position_in_the_run_is_kept(self, path, saved):
        checkpoint = read_checkpoint(path)
        assert {name: getattr(checkpoint, name) for name in POSITION} == POSITION

    def test_a_device_that_is_not_there_is_reported(self, path, saved, monkeypatch):
        absent = ("cuda:7",)
        monkeypatch.setattr(module.RandomStreams, "restore", lambda _: absent)
        assert saved.restore(path) == absent


def saved_losses(training, path):
    training.restore(path)
    return training.run(5)


class TestTheFile:
    def test_is_read_by_torch_without_unpickling_objects(self, path, saved):
        content = torch.load(path, weights_only=True)
        assert content["model"].keys() == saved.model.state_dict().keys()
        assert content["format"] == "kasmina checkpoint"

    def test_has_the_permissions_of_any_new_file_and_nothing_beside_it(self, path, saved):
        mask = os.umask(0)
        os.umask(mask)
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask
        assert [each.name for each in path.parent.iterdir()] == ["run.pt"]

    def test_makes_the_folders_it_needs(self, tmp_path):
        Training().save(tmp_path / "a" / "b" / "run.pt")
        assert read_checkpoint(tmp_path / "a" / "b" / "run.pt").step == 42

    @pytest.mark.parametrize(
        "make",
        [
            lambda o: schedulers.MultiStepLR(o, [1, 2]),
            lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=9),
            lambda o: schedulers.CyclicLR(o, 0.1, 0.2, cycle_momentum=False),
            lambda o: schedulers.LambdaLR(o, lambda _: 0.5),
            lambda o: schedulers.ReduceLROnPlateau(o, min_lr=np.float64(1e-4)),
            lambda o: schedulers.SequentialLR(
                o, [schedulers.LinearLR(o), schedulers.StepLR(o, 2)], milestones=[3]
            ),
            lambda _: torch.amp.GradScaler("cpu"),
            lambda _: torch.optim.swa_utils.AveragedModel(nn.BatchNorm1d(2)),
        ],
    )
    def test_holds_schedulers_scalers_and_averaged_models(self, path, make):
        training = Training()
        extra = {"it": make(training.optimizer)}
        before = extra["it"].state_dict()
        training.save(path, extra=extra)
        assert alike(dict(before), dict(read_checkpoint(path).extra["it"]))
        training.restore(path, extra=extra)

    def test_holds_rates_that_were_made_with_numpy(self, path):
        training = Training()
        training.optimizer.param_groups[0]["lr"] = np.float64(0.25)
        training.save(path)
        assert type(read_checkpoint(path).optimizer["param_groups"][0]["lr"]) is float

    def test_keeps_the_versions_that_torch_notes_on_a_state(self, path, saved):
        assert read_checkpoint(path).model._metadata == saved.model.state_dict()._metadata

    def test_is_not_begun_for_a_state_that_could_not_be_read_again(self, path):
        stranger = nn.Module()
        stranger.state_dict = lambda: {"when": [1, {"deep": collections.deque()}]}
        with pytest.raises(
            CheckpointError, match=r"extra\['ema'\]\['when'\]\[1\]\['deep'\] is a d"
        ):
            Training().save(path, extra={"ema": stranger})
        assert not path.exists()

    def test_has_checksums_whatever_the_users_setting_is(self, path):
        torch.serialization.set_crc32_options(compute_crc32=False)
        try:
            Training().save(path)
            assert not torch.serialization.get_crc32_options()
        finally:
            torch.serialization.set_crc32_options(compute_crc32=True)
        assert read_checkpoint(path).step == 42


OUT_OF_SPACE = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from test_checkpoint import Training, CheckpointError
training = Training()
training.run(1)
for room in (100, 10_000, 20_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try:
        training.save(sys.argv[1])
    except CheckpointError as error:
        print(error)
"""


class Evil:
    def __reduce__(self):
        return (os.system, ("touch pwned",))


class TestAFileThatCannotBeUsed:
    def test_a_full_disk_leaves_the_old_checkpoint(self, path, saved):
        before = path.read_bytes()
        assert len(before) > 20_000
        done = subprocess.run(
            [sys.executable, "-c", OUT_OF_SPACE, str(path), str(HERE)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.count("could not be written") == 3
        assert path.read_bytes() == before
        assert [each.name for each in path.parent.iterdir()] == ["run.pt"]

    def test_a_folder_in_its_place_is_refused_and_nothing_left_behind(self, path):
        path.mkdir()
        with pytest.raises(CheckpointError, match="could not be written"):
            Training().save(path)
        assert [each.name for each in path.parent.iterdir()] == ["run.pt"]

    def test_a_missing_one(self, path):
        with pytest.raises(CheckpointError, match="is missing"):
            read_checkpoint(path)

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
    def test_a_truncated_one(self, path, saved, share):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_checkpoint(path)

    def test_a_single_flipped_bit_in_a_tensor(self, path, saved):
        with zipfile.ZipFile(path) as archive:
            name = next(each for each in archive.namelist() if "/data/" in each)
            data = archive.read(name)
        whole = bytearray(path.read_bytes())
        whole[whole.find(data) + len(data) // 2] ^= 4
        path.write_bytes(whole)
        with pytest.raises(CheckpointError, match="is damaged at"):
            read_checkpoint(path)

    def test_bytes_flipped_anywhere_never_go_unnoticed_and_never_raise_another_error(
        self, path, saved
    ):
        whole, chance = path.read_bytes(), random.Random(0)
        expected = torch.load(path, weights_only=True)
        for _ in range(40):
            spoilt = bytearray(whole)
            spoilt[chance.randrange(len(spoilt))] ^= 1 << chance.randrange(8)
            path.write_bytes(spoilt)
            try:
                read = read_checkpoint(path)
            except CheckpointError:
                continue
            assert alike(dict(expected["model"]), dict(read.model))
            assert alike(dict(expected["optimizer"]), dict(read.optimizer))

    @pytest.mark.parametrize("archive", [True, False])
    def test_a_malicious_one_is_not_run(self, path, archive, monkeypatch):
        monkeypatch.chdir(path.parent)
        torch.save({"model": Evil()}, path, _use_new_zipfile_serialization=archive)
        with pytest.raises(CheckpointError, match=r"was not read|cannot be read"):
            read_checkpoint(path)
        path.write_bytes(pickle.dumps(Evil()))
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_checkpoint(path)
        assert not (path.parent / "pwned").exists()

    def test_weights_of_another_program(self, path):
        torch.save(Host().state_dict(), path)
        with pytest.raises(CheckpointError, match="was not written by kasmina"):
            read_checkpoint(path)
        torch.save([1], path)
        with pytest.raises(CheckpointError, match="was not written by kasmina"):
            read_checkpoint(path)

    def test_one_of_a_newer_kasmina(self, path, saved):
        content = torch.load(path, weights_only=True)
        torch.save(content | {"version": 2}, path)
        with pytest.raises(CheckpointError, match="has format 2, this kasmina reads up to 1"):
            read_checkpoint(path)

    def test_one_with_a_part_missing(self, path, saved):
        content = torch.load(path, weights_only=True)
        del content["optimizer"]
        torch.save(content, path)
        with pytest.raises(CheckpointError, match="lacks optimizer"):
            read_checkpoint(path)


class Stubborn:
    def __init__(self):
        self.value = 0

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]
        if self.value == 1:
            raise ValueError("I do not like it")


class TestARestoreThatDoesNotFit:
    """Says what does not fit, and leaves everything as it was."""

    @pytest.mark.parametrize(
        ("other", "problem"),
        [
            (lambda: Training(("first",)), r"its kasmina\.\S*second\S* has no place"),
            (lambda: Training(width=5), r"first\.0\.bias was float32 \(4,\), is float32 \(5,\)"),
            (lambda: Training(kind=torch.optim.SGD), "it was AdamW, is SGD"),
        ],
    )
    def test_by_its_structure(self, path, saved, other, problem):
        given = other()
        before = given.snapshot()
        with pytest.raises(CheckpointError, match=problem):
            given.restore(path)
        assert alike(given.snapshot(), before)

    def test_by_a_dtype(self, path, saved):
        saved.model.head.double()
        before = saved.snapshot()
        with pytest.raises(CheckpointError, match=r"head\.bias was float32 \(2,\), is float64"):
            saved.restore(path)
        assert alike(saved.snapshot(), before)

    def test_by_a_seed_that_the_checkpoint_does_not_know(self, path):
        Training(("first",)).save(path)
        given = Training()
        with pytest.raises(CheckpointError, match=r"it has no kasmina\.\S*second"):
            given.restore(path)

    def test_by_seeds_that_are_not_in_the_optimizer(self, path, saved):
        optimizer = torch.optim.AdamW(saved.slots.host_parameters())
        with pytest.raises(CheckpointError, match="its seed seed of first has no place"):
            saved.restore(path, optimizer=optimizer)
        assert len(optimizer.param_groups) == 1

    def test_by_parameters_in_another_order(self, path, saved):
        saved.optimizer.param_groups[0]["params"].reverse()
        before = saved.snapshot()
        with pytest.raises(CheckpointError, match="exp_avg of parameter 0"):
            saved.restore(path)
        assert alike(saved.snapshot(), before)

    def test_by_the_size_of_a_group(self, path, saved):
        saved.optimizer.param_groups[0]["params"].pop()
        with pytest.raises(CheckpointError, match=r"groups had \[8, 2, 2\] parameters, have \[7"):
            saved.restore(path)

    def test_by_the_names_of_what_else_is_to_be_restored(self, path, saved):
        with pytest.raises(CheckpointError, match="it has no ema; its scheduler has no place"):
            saved.restore(path, extra={"ema": saved.scheduler})

    def test_by_an_object_that_refuses_its_state(self, path, saved):
        willing, stubborn = Stubborn(), Stubborn()
        willing.value, stubborn.value = 5, 1
        extra = {"willing": willing, "scheduler": saved.scheduler, "stubborn": stubborn}
        saved.save(path, extra=extra)
        willing.value, stubborn.value = 6, 7
        saved.run(2)
        before = saved.snapshot()
        with pytest.raises(CheckpointError, match=r"'stubborn' refused .*I do not like it"):
            saved.restore(path, extra=extra)
        assert (willing.value, stubborn.value) == (6, 7)
        assert alike(saved.snapshot(), before)

    def test_tells_a_few_of_many_names(self, path):
        Training(()).save(path)
        with pytest.raises(CheckpointError, match="; and 1 more"):
            Training().restore(path)
