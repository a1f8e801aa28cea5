"""A checkpoint brings back the bits that it was given, entirely or not at all."""

import collections
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kasmina.adapters.torch.checkpoint import read_checkpoint, restore_checkpoint
from kasmina.domain.errors import CheckpointError
from tests.torch.checkpointed import POSITION, Training, alike


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


class TestAnAveragedModel:
    """Copies the host once: a fresh one has no seeds, and is given those it had."""

    @staticmethod
    def averaged(training):
        return AveragedModel(training.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))

    def test_comes_back_with_the_seeds_that_were_in_it(self, path):
        training = Training(("first",))
        ema = self.averaged(training)
        training.run(1)
        ema.update_parameters(training.model)
        training.save(path, extra={"ema": ema})
        again = Training(())
        fresh = self.averaged(again)
        again = Training(("first",))
        again.restore(path, extra={"ema": fresh})
        assert alike(dict(fresh.state_dict()), dict(ema.state_dict()))
        for each, model in ((ema, training.model), (fresh, again.model)):
            each.update_parameters(model)
        assert alike(dict(fresh.state_dict()), dict(ema.state_dict()))

    def test_comes_back_without_a_seed_that_was_born_after_its_last_update(self, path):
        bare = Training(())
        ema = self.averaged(bare)
        Training(("first",)).save(path, extra={"ema": ema})
        fresh = self.averaged(Training(()))
        Training(("first",)).restore(path, extra={"ema": fresh})
        assert alike(dict(fresh.state_dict()), dict(ema.state_dict()))

    def test_is_left_without_seeds_by_a_restore_that_fails(self, path):
        training = Training(("first",))
        ema = self.averaged(training)
        stubborn = Stubborn()
        training.save(path, extra={"ema": ema, "stubborn": stubborn})
        fresh = self.averaged(Training(()))
        before = dict(fresh.state_dict())
        with pytest.raises(CheckpointError, match="I do not like it"):
            training.restore(path, extra={"ema": fresh, "stubborn": stubborn})
        assert alike(dict(fresh.state_dict()), before)


class Stubborn:
    def state_dict(self):
        return {"value": 1}

    def load_state_dict(self, state):
        raise ValueError("I do not like it")


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
        assert type(read_checkpoint(path).optimizer.groups[0]["lr"]) is float

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


class Saving:
    """As much of a run as the recipe needs."""

    run_id = "digits-1"

    def __init__(self):
        self.training, self.state = Training(), self
        self.epoch = 0

    def checkpoint(self, path):
        self.training.save(path)


def test_the_recipe_keeps_the_last_few(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    recipe = text.split("<!-- executed by tests/torch/test_checkpoint.py -->\n```python\n")[1]
    names = {}
    exec(recipe.split("```")[0], names)
    run = Saving()
    for run.epoch in range(9, 14):
        names["keep"](run, tmp_path)
    left = sorted(each.name for each in tmp_path.iterdir())
    assert left == [f"digits-1-0000{epoch}.pt" for epoch in (11, 12, 13)]
