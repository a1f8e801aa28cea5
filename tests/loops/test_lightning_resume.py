"""Lightning's checkpoints of a model that has grown: they come back, to the bits."""

import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from kasmina import Stage, Topology, graft, open_store
from kasmina.adapters.loops.lightning import Growth, regrow
from kasmina.adapters.loops.opening import UnfitLoop
from kasmina.domain import events as e
from kasmina.domain.errors import CheckpointError, HostMismatch, UnknownRun
from kasmina.infra.engine import Access
from tests.loops.lit import (
    SLOT,
    Net,
    cosine,
    database,
    everything_of,
    fit,
    fresh,
    growth,
    loaders,
    one_cycle,
    planted,
    same,
    trainer,
)

pytestmark = [
    # Lightning's advice on workers, logging intervals and hardware; and torch's on its internals.
    pytest.mark.filterwarnings("ignore::pytorch_lightning.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*litlogger.*"),
    # A training that goes on may save nothing itself.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
]

EPOCHS = 10  # the seed of ``planted()`` fossilizes in the last of them


def keeping(folder, **options):
    settings = {"save_top_k": -1, "filename": "{epoch}"}
    return ModelCheckpoint(folder, **{**settings, **options})


def rewinds(folder, run):
    with open_store(database(folder), access=Access.READ) as store:
        assert store.verify(run.run_id).problems == ()
        events = [record.event for record in store.read(run.run_id)]
    return [event for event in events if isinstance(event, e.RunRewound)]


@pytest.mark.parametrize("at_epoch_end", [False, True], ids=["validated", "epoch_ended"])
@pytest.mark.parametrize("make", [cosine, one_cycle], ids=lambda make: make.__name__)
def test_going_on_from_any_epoch_ends_with_the_bits_of_never_having_stopped(
    tmp_path, make, at_epoch_end
):
    saving = keeping(tmp_path, save_on_train_epoch_end=at_epoch_end)
    options = {"epochs": EPOCHS, "gradient_clip_val": 0.5}
    whole = growth(tmp_path, planted())
    fitted = fit(whole, saving, model=fresh(scheduler=make), saving=True, **options)
    expected = everything_of(fitted)
    lived = whole.run.state
    assert lived.slot(SLOT).stage is Stage.FOSSILIZED
    # TRAINING, BLENDING, SHADOWING, PROBATIONARY, and before any of them.
    for number, epoch in enumerate((0, 1, 3, 5, 7, 8)):
        again = growth(tmp_path, planted())
        path = tmp_path / f"epoch={epoch}.ckpt"
        fitted = fit(again, model=Net(scheduler=make), ckpt_path=path, **options)
        assert same(everything_of(fitted), expected)
        assert again.run.run_id == whole.run.run_id
        assert (again.run.state.epoch, again.run.state.step) == (lived.epoch, lived.step)
        assert again.run.state.slot(SLOT).stage is Stage.FOSSILIZED
        assert again.run.state.slot(SLOT).outcomes == lived.slot(SLOT).outcomes
        taken_back = rewinds(tmp_path, again.run)
        assert len(taken_back) == number + 1
        assert taken_back[-1].epoch == epoch + 1


def test_a_checkpoint_within_an_epoch_keeps_the_steps_taken_so_far(tmp_path):
    saving = keeping(
        tmp_path, filename="{step}", every_n_train_steps=1, save_on_train_epoch_end=False
    )
    first = growth(tmp_path, planted())
    fit(first, saving, model=fresh(), epochs=3, saving=True)
    again = growth(tmp_path, planted())
    fit(again, model=fresh(), epochs=3, ckpt_path=tmp_path / "step=8.ckpt")
    assert (again.run.state.epoch, again.run.state.step) == (3, 15)
    (taken_back,) = rewinds(tmp_path, again.run)
    assert (taken_back.epoch, again.run.state.slot(SLOT).germinations) == (1, 1)


def test_a_seed_that_draws_goes_on_with_its_random_numbers(tmp_path):
    plan = planted(blueprint="attention")
    whole = growth(tmp_path, plan)
    expected = everything_of(fit(whole, keeping(tmp_path), model=fresh(), epochs=4, saving=True))
    again = growth(tmp_path, plan)
    path = tmp_path / "epoch=1.ckpt"
    assert same(everything_of(fit(again, model=fresh(), epochs=4, ckpt_path=path)), expected)


def test_an_error_leaves_the_run_open_and_it_goes_on_from_the_last_checkpoint(tmp_path):
    class Failing(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 13:
                raise RuntimeError("the power went")

    whole = growth(tmp_path, planted(), name="whole")
    expected = everything_of(fit(whole, model=fresh(), epochs=5))
    first, model = growth(tmp_path, planted()), fresh()
    saving = keeping(tmp_path / "checkpoints", save_last=True)
    with pytest.raises(RuntimeError, match="the power went"):
        fit(first, Failing(), saving, model=model, epochs=5, saving=True)
    assert not first.run.state.closed
    assert "on_load_checkpoint" not in vars(model)
    again = growth(tmp_path, planted())
    path = tmp_path / "checkpoints" / "last.ckpt"
    assert same(everything_of(fit(again, model=fresh(), epochs=5, ckpt_path=path)), expected)
    assert again.run.run_id == first.run.run_id
    assert again.run.state.closed


def test_what_is_saved_after_the_end_can_be_trained_further(tmp_path):
    path = tmp_path / "after.ckpt"
    whole = growth(tmp_path, planted(), name="whole")
    expected = everything_of(fit(whole, model=fresh(), epochs=5))
    first = growth(tmp_path, planted())
    fit(first, model=fresh(), epochs=3).save_checkpoint(path)
    assert first.run.state.closed
    again = growth(tmp_path, planted())
    fitted = fit(again, model=fresh(), epochs=5, ckpt_path=path)
    assert same(everything_of(fitted), expected)
    assert again.run.state.epoch == 5


def test_a_finished_training_that_is_resumed_is_finished_again(tmp_path):
    path = tmp_path / "after.ckpt"
    first = growth(tmp_path, planted())
    fit(first, model=fresh(), epochs=3).save_checkpoint(path)
    again = growth(tmp_path, planted())
    fit(again, model=fresh(), epochs=3, ckpt_path=path)
    assert again.run.state.closed
    assert again.run.state.epoch == 3


def test_tensors_stand_in_the_file_once(tmp_path):
    wide = fresh()
    wide.net[4] = torch.nn.Linear(4, 20_000)
    fitted = fit(growth(tmp_path, planted()), model=wide, epochs=2)
    fitted.save_checkpoint(tmp_path / "with.ckpt")
    fitted.callbacks = [each for each in fitted.callbacks if not isinstance(each, Growth)]
    fitted.save_checkpoint(tmp_path / "without.ckpt")
    sizes = [(tmp_path / name).stat().st_size for name in ("with.ckpt", "without.ckpt")]
    assert sizes[0] < 1.05 * sizes[1]


class Regrowing(Net):
    """A module that grows again wherever it is loaded."""

    url = ""

    def on_load_checkpoint(self, checkpoint):
        regrow(self, checkpoint, self.url)


@pytest.mark.parametrize("epochs", [1, 2, 5, 8, EPOCHS])
def test_load_from_checkpoint_brings_the_grown_model_back(tmp_path, epochs):
    path = tmp_path / "grown.ckpt"
    fitted = fit(growth(tmp_path, planted(epoch=0)), model=fresh(), epochs=epochs)
    fitted.save_checkpoint(path)
    Regrowing.url = database(tmp_path)
    loaded, model = Regrowing.load_from_checkpoint(path).eval(), fitted.lightning_module.eval()
    assert same(loaded.state_dict(), model.state_dict())
    images = next(iter(loaders()[1]))[0]
    assert torch.equal(loaded(images), model(images))


def test_a_module_that_regrows_itself_is_trained_further_too(tmp_path):
    Regrowing.url = database(tmp_path)
    torch.manual_seed(0)
    fitted = fit(
        growth(tmp_path, planted()), keeping(tmp_path), model=Regrowing(), epochs=5, saving=True
    )
    expected = everything_of(fitted)
    path = tmp_path / "epoch=2.ckpt"
    again = fit(growth(tmp_path, planted()), model=Regrowing(), epochs=5, ckpt_path=path)
    assert same(everything_of(again), expected)


def test_a_checkpoint_is_validated_with_its_seeds(tmp_path):
    path = tmp_path / "grown.ckpt"
    fitted = fit(growth(tmp_path, planted()), model=fresh(), epochs=4)
    fitted.save_checkpoint(path)
    model = fresh()
    validating = trainer(growth(tmp_path, planted()))
    (figures,) = validating.validate(model, loaders()[1], ckpt_path=path, verbose=False)
    assert figures["val_accuracy"] == fitted.callback_metrics["val_accuracy"].item()
    assert same(model.state_dict(), fitted.lightning_module.state_dict())


def test_the_best_checkpoint_is_validated_though_the_model_has_grown_since(tmp_path):
    saving = keeping(tmp_path)
    callback = growth(tmp_path, planted())
    fitted = fit(callback, saving, model=fresh(), epochs=3, saving=True)
    path = tmp_path / "epoch=0.ckpt"
    fitted.validate(fitted.lightning_module, loaders()[1], ckpt_path=path, verbose=False)
    assert callback.run.slots[SLOT].seed is None


def test_a_checkpoint_from_before_kasmina_begins_a_new_run(tmp_path):
    path = tmp_path / "plain.ckpt"
    fit(model=fresh(grafted=False), epochs=2).save_checkpoint(path)
    callback = growth(tmp_path, planted(epoch=2))
    fit(callback, model=fresh(), epochs=4, ckpt_path=path)
    assert callback.run.state.slot(SLOT).germinations == 1
    assert (callback.run.state.epoch, callback.run.state.step) == (2, 10)


def test_a_checkpoint_that_cannot_come_back_says_why(tmp_path):
    path, weights = tmp_path / "grown.ckpt", tmp_path / "weights.ckpt"
    fitted = fit(growth(tmp_path, planted()), model=fresh(), epochs=3)
    fitted.save_checkpoint(path)
    fitted.save_checkpoint(weights, weights_only=True)
    for error, options in (
        (UnfitLoop, {"ckpt_path": weights}),
        (UnknownRun, {"ckpt_path": path, "at": tmp_path / "elsewhere"}),
        (HostMismatch, {"ckpt_path": path, "model": Wider}),
        (UnfitLoop, {"ckpt_path": path, "model": lambda: fresh(grafted=False)}),
    ):
        folder = options.get("at", tmp_path)
        folder.mkdir(exist_ok=True)
        model = options.get("model", fresh)()
        with pytest.raises(error):
            fit(growth(folder, planted()), model=model, ckpt_path=options["ckpt_path"])
    entry = torch.load(path, weights_only=True)
    entry["kasmina"]["digest"] = "00" * 32
    torch.save(entry, path)
    with pytest.raises(CheckpointError, match="event"):
        fit(growth(tmp_path, planted()), model=fresh(), ckpt_path=path)


@pytest.mark.slow
def test_the_example_trains_and_goes_on_where_it_was(tmp_path):
    example = Path(__file__).parents[2] / "examples" / "lightning_digits.py"
    command = [sys.executable, str(example), "--fast", "--folder", str(tmp_path / "run")]
    told = [
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
        for _ in range(2)
    ]
    assert "stage1 TRAINING" in told[0]
    assert "nothing left to train" in told[1]
    assert told[0].split()[-1] == told[1].split()[-1]  # one run


class Wider(Net):
    """The same tensors, with a slot more."""

    def __init__(self):
        super().__init__(grafted=False)
        graft(self.net, {SLOT: Topology.CNN, "0.0": Topology.CNN})
