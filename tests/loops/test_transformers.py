"""In the real ``Trainer``: the host undisturbed, seeds looked after, nothing silently neglected."""

from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from kasmina import IncubationPlan, Incubator, Stage, Topology, graft
from kasmina.adapters.loops.opening import UnfitLoop
from kasmina.adapters.loops.transformers import attach
from kasmina.adapters.torch.measurement import MissingObjective
from kasmina.domain import events as e
from kasmina.domain.errors import InvalidCommand
from kasmina.domain.objective import Objective
from tests.journeys.loop import PATIENT
from tests.loops.texts import (
    BLOCK,
    LOSS,
    Grown,
    Texts,
    gpt2,
    host_tensors,
    losses,
    plant,
    recorded,
    same,
    tensors,
    trainer,
)

SETTINGS = {
    "plain": {},
    "unclipped": {"max_grad_norm": 0.0},
    "accumulating, with a remainder": {"gradient_accumulation_steps": 2},
    "bfloat16": {"bf16": True},
}


# --- the host ---


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_without_a_germination_training_is_the_same_to_the_bit(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    model = gpt2()
    alone = trainer(model, tmp_path / "alone", **settings)
    alone.train()
    expected = tensors(model, alone)

    grown = Grown.made(tmp_path, **settings)
    grown.trainer.train()
    assert same(tensors(grown.model, grown.trainer), expected)
    assert losses(grown.trainer) == losses(alone)


@pytest.mark.parametrize(
    ("settings", "incubator"),
    [
        *((settings, Incubator.PROXIMAL) for settings in SETTINGS.values()),
        (SETTINGS["accumulating, with a remainder"], Incubator.REHEARSAL),
    ],
    ids=[*SETTINGS, "rehearsed"],
)
def test_a_host_does_not_notice_a_seed_in_training(
    tmp_path: Path, settings: dict[str, object], incubator: Incubator
) -> None:
    model = gpt2()
    alone = trainer(model, tmp_path / "alone", **settings)
    alone.train()
    expected = tensors(model, alone)

    plan = plant(1, incubation=IncubationPlan(incubator=incubator), learning_rate=0.1)
    grown = Grown.made(tmp_path, plan, run={"policy": PATIENT}, **settings)
    grown.trainer.train()
    assert grown.growth.run.state.slot(BLOCK).stage is Stage.TRAINING
    assert all(norm > 0 for norm in gradient_norms(tmp_path, grown))
    assert same(host_tensors(grown), expected)
    assert losses(grown.trainer) == losses(alone)


def gradient_norms(folder: Path, grown: Grown) -> list[float]:
    epochs = [event for event in recorded(folder, grown) if isinstance(event, e.EpochRecorded)]
    norms = [seed.gradient_norm for epoch in epochs for seed in epoch.seeds]
    assert norms
    return norms


# --- growing ---


@pytest.mark.parametrize(("accumulated", "steps"), [(1, 30), (2, 18), (3, 12)])
def test_a_seed_goes_through_its_life_and_optimizer_steps_are_counted(
    tmp_path: Path, accumulated: int, steps: int
) -> None:
    # 5 batches an epoch: the last step of an epoch accumulates what is left.
    grown = Grown.made(
        tmp_path, plant(1), num_train_epochs=6, gradient_accumulation_steps=accumulated
    )
    grown.trainer.train()
    state = grown.growth.run.state
    assert (state.epoch, state.step, grown.trainer.state.global_step) == (6, steps, steps)
    assert state.closed
    changes = [event for event in recorded(tmp_path, grown) if isinstance(event, e.StageChanged)]
    assert [change.target for change in changes][:3] == [
        Stage.GERMINATED,
        Stage.TRAINING,
        Stage.BLENDING,
    ]
    assert changes[0].step == steps // 6
    assert state.slot(BLOCK).stage is not Stage.TRAINING


def test_an_epoch_of_the_run_is_an_evaluation_whatever_its_strategy(tmp_path: Path) -> None:
    grown = Grown.made(tmp_path, eval_strategy="steps", eval_steps=4)
    grown.trainer.train()
    epochs = [ev for ev in recorded(tmp_path, grown) if isinstance(ev, e.EpochRecorded)]
    assert [epoch.step for epoch in epochs] == [4, 8, 12, 16, 20]


def test_an_evaluation_before_the_first_step_ends_no_epoch(tmp_path: Path) -> None:
    grown = Grown.made(tmp_path, eval_on_start=True)
    grown.trainer.train()
    grown.trainer.evaluate()
    assert grown.growth.run.state.epoch == 4


def test_the_metrics_on_record_are_those_the_trainer_logs(tmp_path: Path) -> None:
    grown = Grown.made(tmp_path, plant())
    grown.trainer.train()
    logged = [log["eval_loss"] for log in grown.trainer.state.log_history if "eval_loss" in log]
    epochs = [ev for ev in recorded(tmp_path, grown) if isinstance(ev, e.EpochRecorded)]
    assert [epoch.objective for epoch in epochs] == logged


def test_several_sets_of_data_are_one_evaluation(tmp_path: Path) -> None:
    grown = Grown.made(
        tmp_path,
        plant(),
        run={"objective": Objective.minimize("eval_hard_loss")},
        eval_dataset={"easy": Texts(8, 2), "hard": Texts(8, 3)},
    )
    grown.trainer.train()
    first = next(ev for ev in recorded(tmp_path, grown) if isinstance(ev, e.EpochRecorded))
    assert grown.growth.run.state.epoch == 4
    assert {"eval_easy_loss", "eval_hard_loss"} <= {metric.name for metric in first.metrics}
    contrasts = [ev for ev in recorded(tmp_path, grown) if isinstance(ev, e.CounterfactualMeasured)]
    assert contrasts


class Counts(TrainerCallback):
    """How many batches were seen to be evaluated."""

    def __init__(self) -> None:
        self.batches = 0

    def on_prediction_step(self, args, state, control, **kwargs):
        self.batches += 1


def test_the_run_s_own_evaluations_are_seen_by_no_callback_and_in_no_log(tmp_path: Path) -> None:
    alone, grown = Counts(), Counts()
    plain = trainer(gpt2(), tmp_path / "alone", callbacks=[alone])
    plain.train()
    watched = Grown.made(tmp_path, plant(), callbacks=[grown])
    watched.trainer.train()
    events = recorded(tmp_path, watched)
    assert any(isinstance(event, e.CounterfactualMeasured) for event in events)
    assert grown.batches == alone.batches
    assert len(watched.trainer.state.log_history) == len(plain.state.log_history)


def test_the_plan_is_asked_once_for_each_epoch_also_in_a_resumed_training(tmp_path: Path) -> None:
    asked: list[int] = []
    settings = {"save_strategy": "epoch", "num_train_epochs": 3}
    for resume in (None, str(tmp_path / "checkpoint-5")):
        grown = Grown.made(tmp_path, lambda run: asked.append(run.state.epoch), **settings)
        grown.trainer.train(resume_from_checkpoint=resume)
    assert asked == [0, 1, 2, 3, 2, 3]


class Masked:
    """A collator that hides other tokens in every evaluation, as for masked language models."""

    def __call__(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        tokens = torch.stack([row["input_ids"] for row in rows])
        return {"input_ids": tokens, "labels": tokens.where(torch.rand(tokens.shape) < 0.5, -100)}


def test_an_evaluation_that_draws_is_compared_on_the_same_draws(tmp_path: Path) -> None:
    # A seed that stays as it was born, as the identity, makes no difference at all.
    plan = plant(0, "mlp_small", learning_rate=1e-30)
    grown = Grown.made(tmp_path, plan, num_train_epochs=8, data_collator=Masked())
    grown.trainer.train()
    pairs = [
        (event.objective_with, event.objective_without)
        for event in recorded(tmp_path, grown)
        if isinstance(event, e.CounterfactualMeasured)
    ]
    assert len(pairs) > 1
    assert all(one == other for one, other in pairs)


SCHEDULES = ("linear", "cosine", "polynomial", "reduce_lr_on_plateau")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_goes_on_and_the_seed_follows_it(tmp_path: Path, schedule: str) -> None:
    alone = trainer(gpt2(), tmp_path / "alone", lr_scheduler_type=schedule)
    alone.train()
    grown = Grown.made(tmp_path, plant(1, learning_rate=1e-3), lr_scheduler_type=schedule)
    grown.trainer.train()
    assert rates(grown.trainer) == rates(alone)
    *host, seed = grown.trainer.optimizer.param_groups
    assert len(host) == 2
    assert seed["kasmina_ratio"] == pytest.approx(1e-3 / 3e-3)


def rates(made: object) -> list[float]:
    return [log["learning_rate"] for log in made.state.log_history if "learning_rate" in log]


def test_the_progress_bar_says_where_the_seeds_stand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grown = Grown.made(tmp_path, plant(1), num_train_epochs=6, disable_tqdm=False)
    grown.trainer.train()
    told = capsys.readouterr().err
    assert "no seed in 2 slots" in told
    assert f"{BLOCK} TRAINING" in told
    assert f"{BLOCK} BLENDING α 0." in told


# --- what would be silent ---


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"eval_strategy": "no"}, "never evaluates"),
        ({"auto_find_batch_size": True}, "another batch size"),
    ],
)
def test_a_trainer_that_would_neglect_seeds_is_refused(
    tmp_path: Path, settings: dict[str, object], problem: str
) -> None:
    with pytest.raises(UnfitLoop, match=problem):
        Grown.made(tmp_path, **settings)


def test_a_model_that_was_split_when_it_was_loaded_is_refused(tmp_path: Path) -> None:
    made = trainer(gpt2(), tmp_path)
    made.is_distributed_loading_by_transformers = True  # as with a tp_plan
    slots = graft(made.model, {BLOCK: Topology.TRANSFORMER})
    with pytest.raises(UnfitLoop, match="split over processes"):
        attach(made, "sqlite://", slots=slots, name="texts", objective=LOSS)


def test_a_second_run_for_one_trainer_is_refused(tmp_path: Path) -> None:
    grown = Grown.made(tmp_path)
    with pytest.raises(UnfitLoop, match="already"):
        attach(grown.trainer, "sqlite://", slots=grown.slots, name="texts", objective=LOSS)


def test_a_model_that_was_not_grafted_is_refused(tmp_path: Path) -> None:
    grown = Grown.made(tmp_path)
    grown.trainer.model = grown.trainer.model_wrapped = gpt2()
    with pytest.raises(UnfitLoop, match="another model"):
        grown.trainer.train()


def test_an_objective_that_is_never_measured_is_named(tmp_path: Path) -> None:
    grown = Grown.made(tmp_path, run={"objective": Objective.minimize("loss")})
    with pytest.raises(MissingObjective, match="eval_loss"):
        grown.trainer.train()


def test_a_model_that_has_grown_is_not_trained_in_a_second_run(tmp_path: Path) -> None:
    grown = Grown.made(tmp_path, plant(), num_train_epochs=1)
    grown.trainer.train()
    with pytest.raises(InvalidCommand, match="earlier run"):
        grown.trainer.train()


def test_a_run_is_asked_for_only_once_there_is_one(tmp_path: Path) -> None:
    with pytest.raises(UnfitLoop, match="train"):
        _ = Grown.made(tmp_path).growth.run
