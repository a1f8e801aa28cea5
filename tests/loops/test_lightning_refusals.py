"""A Trainer in which seeds would silently do nothing is refused; evaluations leave no trace."""

import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from pytorch_lightning.strategies.xla import XLAStrategy
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from kasmina import Objective, Topology, graft, open_store
from kasmina.adapters.loops.lightning import Germination, Growth
from kasmina.adapters.loops.lightning_fit import require_fit
from kasmina.adapters.loops.lightning_validation import Validation
from kasmina.adapters.loops.opening import UnfitLoop
from kasmina.domain import events as e
from kasmina.domain.errors import InvalidCommand, UnknownBlueprint, UnknownSlot
from kasmina.infra.engine import Access
from tests.journeys.loop import PATIENT
from tests.loops.lit import (
    ACCURACY,
    SLOT,
    Net,
    database,
    fit,
    fresh,
    growth,
    host_of,
    loaders,
    planted,
    same,
    trainer,
)

pytestmark = [
    # Lightning's advice on workers, logging intervals and hardware; and torch's on its internals.
    pytest.mark.filterwarnings("ignore::pytorch_lightning.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*litlogger.*"),
]


class Two(Net):
    """Two optimizers, the second of which trains the slot's module."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.idle = torch.nn.Linear(1, 1)

    def training_step(self, batch):
        optimizer = self.optimizers()[1]
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()

    def configure_optimizers(self):
        rest = torch.optim.SGD([*self.idle.parameters(), *self.net[4].parameters()], lr=0.1)
        return [rest, torch.optim.SGD(self.net[0].parameters(), lr=0.1)]


class Headless(Net):
    """Its optimizer holds nothing of the grafted model."""

    def __init__(self):
        super().__init__()
        self.idle = torch.nn.Linear(1, 1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.idle.parameters(), lr=0.1)


class Unvalidated(Net):
    validation_step = LightningModule.validation_step


class TwiceGrafted(Net):
    def __init__(self):
        super().__init__()
        graft(self, {"net.0.0": Topology.CNN})


def late(epoch):
    return [Germination(epoch=epoch, slot_id=SLOT, blueprint="conv_light")]


REFUSED = {
    "no slots": (UnfitLoop, "has no slots", lambda: fresh(grafted=False), {}, {}),
    "grafted twice": (UnfitLoop, "2 grafted models", TwiceGrafted, {}, {}),
    "which optimizer": (UnfitLoop, "2 optimizers, and seeds", Two, {}, {}),
    "no such optimizer": (UnfitLoop, "none at index 2", Two, {"optimizer": 2}, {}),
    "other optimizer": (UnfitLoop, r"Growth\(optimizer=1\)", Two, {"optimizer": 0}, {}),
    "not optimized": (InvalidCommand, "none of the host's parameters", Headless, {}, {}),
    "no validation": (UnfitLoop, "validates at no epoch's end", Unvalidated, {}, {}),
    "skipped validation": (UnfitLoop, "validates at no", Net, {}, {"limit_val_batches": 0}),
    "unaligned": (
        UnfitLoop,
        "validates at no",
        Net,
        {},
        {"check_val_every_n_epoch": None, "val_check_interval": 3},
    ),
    "no step": (UnfitLoop, "without a single step", Net, {}, {"limit_train_batches": 0}),
    "too late": (UnfitLoop, "ends after 3 epochs", Net, {"plan": late(3)}, {}),
    "slot": (
        UnknownSlot,
        "there is no slot",
        Net,
        {"plan": [Germination(epoch=0, slot_id="1", blueprint="conv_light")]},
        {},
    ),
    "blueprint": (
        UnknownBlueprint,
        "conv_light",
        Net,
        {"plan": [Germination(epoch=0, slot_id=SLOT, blueprint="conv_lite")]},
        {},
    ),
}


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no:UserWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_a_fit_that_would_grow_nothing_is_refused_before_it_trains(tmp_path, case):
    error, text, make, options, ways = REFUSED[case]
    model = make()
    before = host_of(model)
    with pytest.raises(error, match=text):
        fit(growth(tmp_path, **options), model=model, **ways)
    assert same(host_of(model), before)
    assert "on_load_checkpoint" not in vars(model)


@pytest.mark.parametrize(
    "strategy", [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy, XLAStrategy]
)
def test_a_strategy_that_splits_the_model_is_refused_by_name(monkeypatch, strategy):
    made = trainer()
    monkeypatch.setattr(made._accelerator_connector, "strategy", strategy.__new__(strategy))
    with pytest.raises(UnfitLoop, match=f"trains by {strategy.__name__}.*strategy=.ddp"):
        require_fit(made, evaluates=True)


@pytest.mark.parametrize("name", ["ddp_spawn", "ddp_fork"])
@pytest.mark.parametrize("devices", [1, 2])
def test_processes_that_end_with_the_fit_would_drop_the_seeds_and_are_refused(name, devices):
    with pytest.raises(UnfitLoop, match="brings only the host back"):
        require_fit(trainer(strategy=name, devices=devices), evaluates=True)


@pytest.mark.parametrize("options", [{}, {"strategy": "ddp"}, {"strategy": "ddp", "devices": 2}])
def test_copies_of_the_model_are_fit_for_growing(options):
    require_fit(trainer(**options), evaluates=True)


def test_averaging_by_position_is_refused(tmp_path):
    with pytest.raises(UnfitLoop, match="pairs parameters by their position"):
        fit(growth(tmp_path, planted()), EMAWeightAveraging(), model=fresh())


def test_two_growths_cannot_share_slots(tmp_path):
    with pytest.raises(UnfitLoop, match="Growth twice"):
        fit(growth(tmp_path), growth(tmp_path), model=fresh())


def test_an_epoch_without_a_step_of_the_slots_optimizer_is_an_error(tmp_path):
    class Pausing(Two):
        def training_step(self, batch):
            if self.current_epoch != 1:
                super().training_step(batch)

    with pytest.raises(UnfitLoop, match="without a step of the optimizer that trains the slots"):
        fit(growth(tmp_path, optimizer=1), model=Pausing())


def test_a_grown_model_is_not_fitted_again_as_if_it_were_new(tmp_path):
    model = fresh()
    fit(growth(tmp_path, planted()), model=model)
    with pytest.raises(InvalidCommand, match="hold seeds of an earlier run"):
        fit(growth(tmp_path, planted()), model=model)


def test_run_is_there_after_fit_only(tmp_path):
    with pytest.raises(UnfitLoop, match="has opened no run yet"):
        _ = growth(tmp_path).run


# --- evaluation ---


class Measuring(Net):
    """Logs in all the ways that a contrast must understand, and keeps what it has seen."""

    def __init__(self):
        super().__init__()
        self.metric = MulticlassAccuracy(3)
        self.seen = []

    def validation_step(self, batch, batch_idx):
        scores = self(batch[0])
        self.metric(scores, batch[1])
        self.seen.append(F.cross_entropy(scores, batch[1]))
        self.log("loss", self.seen[-1])
        self.log("synced", self.seen[-1], sync_dist=True)
        self.log_dict({"weighed": scores.mean(), "other": 1.0}, batch_size=7)
        self.log("metric", self.metric)

    def on_validation_epoch_end(self):
        self.log("mean", torch.stack(self.seen).mean())
        self.seen.clear()


@pytest.mark.parametrize("name", ["loss", "synced", "weighed", "metric", "mean"])
def test_a_validation_done_again_measures_the_same_and_leaves_no_trace(tmp_path, name):
    again = []

    class Repeating(Growth):
        def on_validation_end(self, trainer, module):
            if not trainer.sanity_checking:
                passes = Validation(trainer, module, name)
                before, state = dict(trainer.callback_metrics), torch.get_rng_state()
                counted = module.metric.update_count
                again.append((passes()[name], passes()[name]))
                torch.set_rng_state(state)
                assert dict(trainer.callback_metrics) == before
                assert (module.metric.update_count, module.seen) == (counted, [])
            super().on_validation_end(trainer, module)

    torch.manual_seed(0)
    callback = Repeating(
        database(tmp_path),
        plan=planted(),
        name="again",
        objective=Objective.minimize(name),
        policy=PATIENT,
    )
    torch.manual_seed(0)
    grown = Measuring()
    torch.manual_seed(0)
    alone = Measuring()
    fitted = fit(callback, model=grown, epochs=5)
    reference = fit(model=alone, epochs=5)
    assert len(again) == 5
    assert all(first == second for first, second in again)
    assert len(set(again)) > 1
    assert fitted.callback_metrics == reference.callback_metrics
    assert same(host_of(grown), host_of(alone))
    rehearsed = callback.run.state.slot(SLOT).seed.rehearsals
    assert set(rehearsed) == {1.0}


@pytest.mark.parametrize("share", [0, 1.0], ids=["unvalidated", "validated"])
def test_a_function_measures_in_eval_mode_and_without_gradient(tmp_path, share):
    seen = []

    def evaluate(module):
        seen.append((module.training, torch.is_grad_enabled()))
        module(next(iter(loaders()[1]))[0])
        return {"val_accuracy": 1.0, "more": float(len(seen))}

    class Looking(Growth):
        def _end_epoch(self, measure):
            assert torch.is_grad_enabled()  # seeds are looked at with gradients
            super()._end_epoch(measure)

    model = fresh()
    callback = Looking(
        database(tmp_path), name="looking", objective=ACCURACY, plan=planted(), evaluate=evaluate
    )
    fit(callback, model=model, limit_val_batches=share, num_sanity_val_steps=0)
    assert set(seen) == {(False, False)}
    assert model.training
    assert callback.run.state.metrics["more"] >= 3
    assert callback.run.state.epoch == 3


def test_epochs_without_a_validation_are_recorded_as_unmeasured(tmp_path):
    callback = growth(tmp_path, planted())
    fit(callback, model=fresh(), epochs=4, check_val_every_n_epoch=2)
    with open_store(database(tmp_path), access=Access.READ) as store:
        events = [record.event for record in store.read(callback.run.run_id)]
    measured = [event.objective for event in events if isinstance(event, e.EpochRecorded)]
    assert [objective is None for objective in measured] == [True, False, True, False]


@pytest.mark.parametrize(
    ("log", "text"),
    [
        (lambda module, value: None, "does not log 'val_accuracy'"),
        (lambda module, value: module.log("val_accuracy", value, reduce_fx="max"), "not as a mean"),
    ],
    ids=["unlogged", "maximum"],
)
def test_a_validation_that_cannot_be_done_again_says_so(tmp_path, log, text):
    class Odd(Net):
        again = False

        def validation_step(self, batch, batch_idx):
            value = self(batch[0]).mean()
            if self.again:
                log(self, value)
            else:
                self.log("val_accuracy", value)

        def on_validation_end(self):
            self.again = False

        def on_validation_epoch_end(self):
            self.again = True

    with pytest.raises(UnfitLoop, match=text):
        fit(growth(tmp_path, planted()), model=Odd(), num_sanity_val_steps=0)


def test_several_validation_loaders_need_a_function(tmp_path):
    class Indexed(Net):
        def validation_step(self, batch, batch_idx, dataloader_idx):
            name = "val_accuracy" if dataloader_idx == 0 else "other"
            self.log(name, self(batch[0]).mean(), add_dataloader_idx=False)

    training, held_out = loaders()
    fitted = trainer(growth(tmp_path, planted()))
    with pytest.raises(UnfitLoop, match="2 dataloaders"):
        fitted.fit(Indexed(), training, [held_out, held_out])
