"""Growth in Lightning's real Trainer: nothing of the host's training changes, every seed learns."""

from copy import deepcopy

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.plugins.precision import MixedPrecision
from torch.nn import functional as F

from kasmina import IncubationPlan, Incubator, Slots, Stage, Topology, open_run, open_store
from kasmina.domain import events as e
from kasmina.infra.engine import Access
from tests.journeys.loop import PATIENT
from tests.loops.lit import (
    ACCURACY,
    SLOT,
    Net,
    cosine,
    database,
    fit,
    fresh,
    growth,
    host_of,
    lambdas,
    loaders,
    one_cycle,
    planted,
    plateau,
    same,
    sequence,
)

pytestmark = [
    # Lightning's advice on workers, logging intervals and hardware; and torch's on its internals.
    pytest.mark.filterwarnings("ignore::pytorch_lightning.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*litlogger.*"),
]


SCHEDULERS = [cosine, one_cycle, plateau, lambdas, sequence]
# What makes the Trainer step, clip and validate in another way.
WAYS = {
    "plain": {},
    "norm": {"gradient_clip_val": 0.5},
    "value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "accumulating": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5},
    "often": {"val_check_interval": 0.5},
    "rarely": {"check_val_every_n_epoch": 2},
    "half": {"precision": "bf16-mixed"},
}


def records(folder, run):
    with open_store(database(folder), access=Access.READ) as store:
        assert store.verify(run.run_id).problems == ()
        return [record.event for record in store.read(run.run_id)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("plan", [[], planted()], ids=["empty", "incubating"])
def test_the_host_trains_to_the_bits_of_a_training_without_kasmina(tmp_path, way, plan):
    alone, grown = fresh(grafted=False, scheduler=cosine), fresh(scheduler=cosine)
    reference = fit(model=alone, **WAYS[way])
    random = torch.get_rng_state()
    callback = growth(tmp_path, plan, policy=PATIENT)
    fitted = fit(callback, model=grown, **WAYS[way])
    assert same(host_of(grown), host_of(alone))
    assert grown.losses == alone.losses
    assert fitted.callback_metrics == reference.callback_metrics
    assert torch.equal(torch.get_rng_state(), random)
    learnt = {**reference.optimizers[0].state}.values()
    kept = list(fitted.optimizers[0].state.values())[: len(learnt)]
    assert all(same(*pair) for pair in zip(learnt, kept, strict=True))
    seed = callback.run.state.slot(SLOT).seed
    assert (seed is not None) == bool(plan)
    assert seed is None or seed.gradient_norm > 0


def test_a_seed_lives_from_germination_to_fossil_and_lightning_s_epochs_are_the_run_s(tmp_path):
    callback = growth(tmp_path, planted())
    fitted = fit(callback, model=fresh(), epochs=11)
    events = records(tmp_path, callback.run)
    changes = [event.target for event in events if isinstance(event, e.StageChanged)]
    assert changes[-1] is Stage.FOSSILIZED
    ended = [event for event in events if isinstance(event, e.EpochRecorded)]
    assert [event.epoch for event in ended] == list(range(1, 12))  # not the sanity check's
    assert ended[-1].objective == fitted.callback_metrics["val_accuracy"].item()
    assert isinstance(events[-1], e.RunClosed)
    (germinated,) = (event for event in events if isinstance(event, e.SeedGerminated))
    assert (germinated.epoch, germinated.step) == (1, 5)
    shadows = [event for event in events if isinstance(event, e.ShadowEvaluated)]
    assert shadows
    assert all(-1 <= event.agreement <= 1 for event in shadows)


def test_a_seed_learns_as_in_a_loop_of_one_s_own(tmp_path):
    """Gradients are final where kasmina looks at them, though Lightning computes them in step()."""
    callback = growth(tmp_path, planted(epoch=0), policy=PATIENT)
    lit = fresh()
    fit(callback, model=lit, epochs=2, num_sanity_val_steps=0)

    own = fresh()
    torch.manual_seed(7)
    slots = Slots(own.net)
    optimizer = own.configure_optimizers()
    training, held_out = loaders()
    run = open_run(
        database(tmp_path),
        name="own",
        slots=slots,
        optimizer=optimizer,
        objective=ACCURACY,
        policy=PATIENT,
        sample_every=2,
    )
    with run:
        run.germinate(SLOT, "conv_light")
        for _ in range(2):
            own.train()
            for batch in training:
                optimizer.zero_grad()
                F.cross_entropy(own(batch[0]), batch[1]).backward()
                optimizer.step()
                run.step()
            for _ in held_out:  # draws a number, as each validation does
                pass
            run.end_epoch(lambda: {"val_accuracy": 1.0})
    assert same(own.state_dict(), lit.state_dict())
    norms = [
        [
            seed.gradient_norm
            for event in records(tmp_path, each)
            if isinstance(event, e.EpochRecorded)
            for seed in event.seeds
        ]
        for each in (run, callback.run)
    ]
    assert norms[0] == norms[1]


@pytest.mark.parametrize("make", SCHEDULERS, ids=lambda make: make.__name__)
def test_schedulers_keep_the_host_s_rate_and_the_seed_follows_it(tmp_path, make):
    alone, grown = fresh(scheduler=make), fresh(scheduler=make)
    callback = growth(tmp_path, planted(incubation=IncubationPlan(warmup_steps=0)), policy=PATIENT)
    host, seed = [], []

    class Rates(pl.Callback):
        def __init__(self, seen):
            self.seen = seen

        def on_train_batch_end(self, trainer, *_):
            self.seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    fit(Rates(host), model=alone, epochs=6)
    fit(Rates(seed), callback, model=grown, epochs=6)
    assert [rates[0] for rates in seed] == [rates[0] for rates in host]
    assert len({rates[0] for rates in host}) > 1
    assert [len(rates) for rates in seed] == [1] * 5 + [2] * 25
    assert same(host_of(grown), host_of(alone))


def test_optimizer_steps_are_counted_and_not_batches(tmp_path):
    callback = growth(tmp_path, planted())
    fitted = fit(callback, model=fresh(), accumulate_grad_batches=2)
    assert callback.run.state.step == fitted.global_step == 3 * 3  # five batches an epoch


def test_a_step_that_the_scaler_skips_is_not_counted(tmp_path):
    class Exploding(Net):
        def training_step(self, batch):
            loss = super().training_step(batch)
            return loss * float("inf") if len(self.losses) in (2, 8) else loss

    torch.manual_seed(0)
    model = Exploding()
    callback = growth(tmp_path, planted())
    precision = MixedPrecision("bf16-mixed", "cpu")
    precision.scaler = torch.amp.GradScaler("cpu")
    fit(callback, model=model, plugins=[precision], num_sanity_val_steps=0)
    assert callback.run.state.step == 15 - 2


class Adversaries(Net):
    """Two optimizers, stepped by hand, the second at every other batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.other = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        loss = F.cross_entropy(self(batch[0]), batch[1])
        first.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(first, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
        first.step()
        if batch_idx % 2:
            second.zero_grad()
            self.manual_backward(self.other(torch.ones(1, 1)).sum())
            second.step()

    def configure_optimizers(self):
        return [
            torch.optim.AdamW(self.net.parameters(), lr=1e-2),
            torch.optim.SGD(self.other.parameters(), lr=1e-2),
        ]


def test_steps_by_hand_are_those_of_the_chosen_optimizer(tmp_path):
    torch.manual_seed(0)
    alone = Adversaries()
    torch.manual_seed(0)
    grown = Adversaries()
    callback = growth(tmp_path, planted(), optimizer=0, policy=PATIENT)
    fit(model=alone)
    fit(callback, model=grown)
    assert callback.run.state.step == 15
    assert same(host_of(grown), host_of(alone))
    assert callback.run.state.slot(SLOT).seed.gradient_norm > 0


def test_a_seed_that_learns_by_rehearsal_rehearses_each_batch(tmp_path):
    def loss(module, images, labels):
        return F.cross_entropy(module(images), labels)

    incubation = IncubationPlan(incubator=Incubator.REHEARSAL)
    plan = planted(blueprint="conv_inline", incubation=incubation)
    alone, grown = fresh(), fresh()
    callback = growth(tmp_path, plan, rehearsal=loss, policy=PATIENT)
    fit(model=alone, accumulate_grad_batches=2)
    fit(callback, model=grown, accumulate_grad_batches=2)
    assert same(host_of(grown), host_of(alone))
    assert callback.run.state.slot(SLOT).seed.gradient_norm > 0


def test_targets_graft_a_module_that_knows_nothing_of_it(tmp_path):
    model = fresh(grafted=False)
    plan = [*planted()]
    callback = growth(
        tmp_path,
        lambda run, epoch: run.germinate("net.0", plan[0].blueprint) if epoch == 1 else None,
        targets={"net.0": Topology.CNN},
    )
    fit(callback, model=model)
    assert callback.run.state.slot("net.0").seed is not None


def test_a_model_in_training_can_be_copied(tmp_path):
    copies = []

    class Copying(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            trained, module.trainer = module.trainer, None
            copies.append(deepcopy(module))
            module.trainer = trained

    model = fresh()
    fit(growth(tmp_path, planted()), Copying(), model=model, epochs=2)
    assert same(copies[-1].state_dict(), model.state_dict())
    assert "on_load_checkpoint" not in vars(model)


def test_fast_dev_run_records_nothing_that_stays(tmp_path):
    callback = growth(tmp_path, planted(epoch=0), policy=PATIENT)
    fit(callback, model=fresh(), fast_dev_run=True)
    assert callback.run.state.slot(SLOT).stage is Stage.TRAINING
    assert list(tmp_path.iterdir()) == []
    fit(callback, model=fresh())
    assert records(tmp_path, callback.run)


def test_the_progress_bar_tells_of_the_seeds(tmp_path):
    told = []

    class Bar(pl.callbacks.TQDMProgressBar):
        def on_train_batch_end(self, trainer, module, *_):
            told.append(self.get_metrics(trainer, module)["seeds"])

    fit(growth(tmp_path, planted()), Bar(), model=fresh(), epochs=4, enable_progress_bar=True)
    assert told[0] == "no seed in 1 slot"
    assert told[5] == "0 TRAINING"
    assert told[-1].startswith("0 BLENDING α 0.")


@pytest.mark.parametrize("make", [cosine, plateau], ids=lambda make: make.__name__)
def test_a_monitor_of_rates_sees_the_seed_s_from_its_germination(tmp_path, make):
    monitor = LearningRateMonitor("step")
    logger = pl.loggers.CSVLogger(tmp_path / "logs")
    shown = {"logger": logger, "log_every_n_steps": 1}
    fit(growth(tmp_path, planted()), monitor, model=fresh(scheduler=make), **shown)
    assert {name: len(rates) for name, rates in monitor.lrs.items()} == {
        "lr-AdamW/pg1": 15,
        "lr-AdamW/pg2": 10,
    }
