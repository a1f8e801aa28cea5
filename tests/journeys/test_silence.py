"""A run that does nothing, or trains the wrong thing, says so; a correct loop hears nothing."""

import copy
import itertools
import math
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from kasmina import BlendPlan, GatePolicy, IncubationPlan, Incubator, Run, Stage, departure
from kasmina.adapters.torch import findings
from kasmina.adapters.torch.watch import SeedNotOptimized
from kasmina.domain.policies import G3Policy
from kasmina.silence import Silence, SilentRun
from tests.journeys.loop import LENIENT, PATIENT, Loop


@pytest.fixture
def loop() -> Loop:
    return Loop.fresh()


@pytest.fixture
def run(loop: Loop, tmp_path: Path) -> Iterator[Run]:
    """A run with a seed that goes on learning."""
    with loop.open(tmp_path / "runs.db", policy=PATIENT) as opened:
        opened.germinate("2", "conv_light")
        yield opened


@contextmanager
def told(silence: Silence, *, subject: str | None = None) -> Iterator[None]:
    """The one warning inside is this one."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield
    (only,) = [each.message for each in found]
    assert isinstance(only, SilentRun)
    assert only.silence is silence
    assert subject in (None, only.subject)
    assert str(only).startswith(f"{silence.value}: ")


def epochs(loop: Loop, run: Run, count: int, **kept: object) -> None:
    for _ in range(count):
        loop.train(run.step, run.rehearse)
        run.end_epoch(kept.get("evaluate", loop.evaluate))


# --- steps ---


def test_an_optimizer_that_was_built_anew_is_noticed(loop: Loop, run: Run) -> None:
    epochs(loop, run, 1)
    loop.optimizer = torch.optim.AdamW(loop.slots.host_parameters(), lr=1e-2)
    with told(Silence.OPTIMIZER_IDLE, subject=run.run_id):
        epochs(loop, run, 40)


def test_steps_counted_for_batches_that_are_only_accumulated_are_noticed(
    loop: Loop, run: Run
) -> None:
    def twice() -> None:
        run.step()
        run.step()

    with told(Silence.OPTIMIZER_IDLE):
        for _ in range(16):
            loop.train(twice)
            run.end_epoch(loop.evaluate)


def test_a_loop_that_never_counts_its_steps_is_told_while_it_trains(loop: Loop, run: Run) -> None:
    for _ in range(24):
        loop.train()
    with told(Silence.STEPS_UNCOUNTED):
        loop.train()
    run.step()


def test_a_loop_that_counts_every_second_step_is_told(loop: Loop, run: Run) -> None:
    turns = itertools.cycle([False, True])

    def every_second() -> None:
        if next(turns):
            run.step()

    with told(Silence.STEPS_UNCOUNTED):
        for _ in range(32):
            loop.train(every_second)
            run.end_epoch(loop.evaluate)


# --- epochs and figures ---


def test_a_run_closed_without_a_single_epoch_says_that_no_gate_was_asked(
    loop: Loop, tmp_path: Path
) -> None:
    run = loop.open(tmp_path / "runs.db")
    run.germinate("2", "conv_light")
    for _ in range(5):
        loop.train(run.step)
    with told(Silence.NO_EPOCH, subject=run.run_id):
        run.close()


def test_an_epoch_without_end_is_noticed_while_a_seed_waits(
    loop: Loop, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(findings, "LONG_EPOCH", 12)
    for _ in range(3):
        loop.train(run.step)
    with told(Silence.NO_EPOCH):
        loop.train(run.step)
    run.end_epoch(None)


def test_an_objective_that_is_never_measured_is_noticed(loop: Loop, run: Run) -> None:
    epochs(loop, run, 10, evaluate=None)
    with told(Silence.NEVER_MEASURED):
        epochs(loop, run, 2, evaluate=None)


def test_an_objective_that_is_never_a_number_is_noticed(loop: Loop, run: Run) -> None:
    def evaluate() -> dict[str, float]:
        return dict.fromkeys(loop.evaluate(), math.nan)

    epochs(loop, run, 10, evaluate=evaluate)
    with told(Silence.NEVER_MEASURED):
        epochs(loop, run, 2, evaluate=evaluate)


def test_a_first_measurement_after_ten_epochs_is_no_omission(loop: Loop, run: Run) -> None:
    epochs(loop, run, 10, evaluate=None)
    epochs(loop, run, 1)


# --- what learns ---


def test_a_seed_that_is_no_longer_in_the_optimizer_stops_the_training(loop: Loop, run: Run) -> None:
    epochs(loop, run, 1)
    kept, before = loop.optimizer.param_groups.pop(), run.state
    with pytest.raises(SeedNotOptimized, match="holds 0 of the") as caught:
        run.step()
    assert caught.value.slot_id == "2"
    assert run.state == before
    loop.optimizer.param_groups.append(kept)
    epochs(loop, run, 1)


def test_parameters_that_were_replaced_behind_the_optimizer_s_back_stop_it(
    loop: Loop, run: Run
) -> None:
    loop.train(run.step)
    loop.host.load_state_dict(copy.deepcopy(loop.host.state_dict()), assign=True)
    with pytest.raises(SeedNotOptimized):
        run.end_epoch(loop.evaluate)
    assert run.state.epoch == 0


def test_a_copy_that_trains_in_place_of_the_grafted_model_is_noticed(loop: Loop, run: Run) -> None:
    epochs(loop, run, 1)
    loop.host = copy.deepcopy(loop.host)
    with told(Silence.SLOT_NOT_RUN, subject="2"):
        epochs(loop, run, 2, evaluate=None)


def test_gradients_that_are_cleared_too_early_are_noticed(loop: Loop, run: Run) -> None:
    with told(Silence.NO_GRADIENT, subject="2"):
        loop.train(run.step, lambda *_: loop.optimizer.zero_grad())
        run.end_epoch(None)


def test_a_frozen_seed_is_noticed(loop: Loop, run: Run) -> None:
    epochs(loop, run, 1)
    next(loop.slots["2"].parameters()).requires_grad_(requires_grad=False)
    with told(Silence.SEED_FROZEN, subject="2"):
        epochs(loop, run, 1)


def test_a_learning_rate_of_zero_is_noticed(loop: Loop, run: Run) -> None:
    loop.scheduler = torch.optim.lr_scheduler.LambdaLR(loop.optimizer, lambda _: 0.0)
    with told(Silence.RATE_ZERO, subject="2"):
        epochs(loop, run, 2)


# --- alpha ---


def test_a_ramp_that_comes_to_no_step_is_noticed_before_the_seed_is_exposed(
    loop: Loop, tmp_path: Path
) -> None:
    with loop.open(tmp_path / "runs.db") as run:
        run.germinate("2", "conv_light", blend=BlendPlan(epochs=0.1))
        loop.train(run.step)
        with told(Silence.NO_RAMP, subject="2"):
            run.end_epoch(loop.evaluate)


def test_an_alpha_that_is_not_what_was_scheduled_is_noticed(loop: Loop, tmp_path: Path) -> None:
    with loop.open(tmp_path / "runs.db") as run:
        run.germinate("2", "conv_light")
        while run.state.slot("2").stage is not Stage.SHADOWING:
            epochs(loop, run, 1)
        loop.slots["2"].alpha.zero_()
        with told(Silence.ALPHA_LOST, subject="2"):
            epochs(loop, run, 1)


# --- how it is told ---


def test_a_warning_is_given_once_and_names_the_line_of_the_loop(loop: Loop, run: Run) -> None:
    loop.train(run.step, lambda *_: loop.optimizer.zero_grad())
    with pytest.warns(SilentRun, match="no-gradient") as found:
        run.end_epoch(None)
    assert found[0].filename == __file__
    loop.train(run.step, lambda *_: loop.optimizer.zero_grad())
    run.end_epoch(None)


def test_a_warning_from_within_the_optimizer_names_no_line_of_torch(loop: Loop, run: Run) -> None:
    for _ in range(24):
        loop.train()
    with pytest.warns(SilentRun) as found:
        loop.train()
    assert Path(found[0].filename).name == "loop.py"
    run.step()


def test_one_that_is_an_error_by_the_user_s_filters_leaves_the_epoch_to_be_ended(
    loop: Loop, run: Run
) -> None:
    loop.train(run.step, lambda *_: loop.optimizer.zero_grad())
    before = run.state
    with pytest.raises(SilentRun):
        run.end_epoch(None)
    assert run.state == before
    assert run.end_epoch(None).epoch == 1


# --- what a correct loop may do; every warning here would be an error ---


@pytest.mark.parametrize("incubator", Incubator)
def test_a_whole_life_is_lived_undisturbed(
    loop: Loop, tmp_path: Path, incubator: Incubator
) -> None:
    with loop.open(tmp_path / "runs.db") as run:
        run.germinate("2", "conv_light", incubation=IncubationPlan(incubator=incubator))
        while run.state.slot("2").stage is not Stage.FOSSILIZED:
            epochs(loop, run, 1)
            assert run.state.epoch < 14
        epochs(loop, run, 2)


def test_a_scaler_that_skips_its_first_steps_disturbs_nobody(loop: Loop, run: Run) -> None:
    for _ in range(4):
        for n, chosen in enumerate(torch.randperm(48).split(12)):
            loop.optimizer.zero_grad()
            loop.loss(loop.images[chosen], loop.labels[chosen]).backward()
            if run.state.epoch > 1 or n > 2:
                loop.optimizer.step()
            run.step()
        run.end_epoch(loop.evaluate)


def test_eval_mode_in_training_disturbs_nobody(loop: Loop, run: Run) -> None:
    for _ in range(2):
        loop.host.eval()
        for chosen in torch.randperm(48).split(12):
            loop.optimizer.zero_grad()
            loop.loss(loop.images[chosen], loop.labels[chosen]).backward()
            loop.optimizer.step()
            run.step()
        run.end_epoch(loop.evaluate)


def test_a_warm_up_that_begins_at_zero_disturbs_nobody(loop: Loop, run: Run) -> None:
    for step in range(8):
        loop.optimizer.param_groups[0]["lr"] = 1e-3 * step
        loop.optimizer.zero_grad()
        loop.loss(loop.images, loop.labels).backward()
        loop.optimizer.step()
        run.step()
        if step % 2:
            run.end_epoch(loop.evaluate)


def test_a_decay_that_ends_at_zero_disturbs_nobody(loop: Loop, run: Run) -> None:
    for left in (2, 1, 0):
        loop.optimizer.param_groups[0]["lr"] = 1e-3 * left
        loop.optimizer.zero_grad()
        loop.loss(loop.images, loop.labels).backward()
        loop.optimizer.step()
        run.step()
    run.end_epoch(loop.evaluate)


def test_a_seed_born_between_a_backward_and_its_step_disturbs_nobody(
    loop: Loop, tmp_path: Path
) -> None:
    with loop.open(tmp_path / "runs.db", policy=PATIENT) as run:
        loop.loss(loop.images, loop.labels).backward()
        run.germinate("2", "conv_light")
        loop.optimizer.step()
        run.step()
        run.end_epoch(None)


def test_an_optimizer_s_state_that_is_loaded_again_disturbs_nobody(loop: Loop, run: Run) -> None:
    for group in loop.optimizer.param_groups:
        group["lr"] = 0.0
    run.pause("2")
    run.resume_seed("2")
    loop.optimizer.load_state_dict(loop.optimizer.state_dict())  # in new groups
    loop.optimizer.param_groups[0]["lr"] = 1e-2
    epochs(loop, run, 1)


def test_accumulation_that_counts_the_optimizer_s_steps_disturbs_nobody(
    loop: Loop, run: Run
) -> None:
    for _ in range(40):
        loop.optimizer.zero_grad()
        for chosen in torch.randperm(48).split(12):
            (loop.loss(loop.images[chosen], loop.labels[chosen]) / 4).backward()
        loop.optimizer.step()
        run.step()
        run.end_epoch(loop.evaluate)


def test_pauses_culls_and_later_seeds_disturb_nobody(loop: Loop, tmp_path: Path) -> None:
    with loop.open(tmp_path / "runs.db", policy=PATIENT) as run:
        epochs(loop, run, 2)
        run.germinate("2", "conv_light")
        loop.train(run.step)
        run.pause("2")
        epochs(loop, run, 2, evaluate=None)
        run.resume_seed("2")
        epochs(loop, run, 1)
        run.germinate("0", "attention")
        epochs(loop, run, 2)
        run.cull("2", "enough")
        epochs(loop, run, 1)


def test_a_fossil_in_a_part_that_is_frozen_later_disturbs_nobody(
    loop: Loop, tmp_path: Path
) -> None:
    with loop.open(tmp_path / "runs.db") as run:
        run.germinate("0", "conv_light")
        while run.state.slot("0").stage is not Stage.FOSSILIZED:
            epochs(loop, run, 1)
        for parameter in loop.host.parameters():
            parameter.requires_grad_(requires_grad=False)
        for parameter in loop.host[5].parameters():
            parameter.requires_grad_(requires_grad=True)
        epochs(loop, run, 2)


def test_a_held_alpha_and_a_seed_that_waits_long_disturb_nobody(loop: Loop, tmp_path: Path) -> None:
    patient = GatePolicy(g2=LENIENT.g2, g3=G3Policy(min_epochs=99), tolerance=100.0)
    with loop.open(tmp_path / "runs.db", policy=patient) as run:
        run.germinate("2", "conv_light", blend=BlendPlan(epochs=0.0))
        epochs(loop, run, 2)
        run.override_alpha("2", 0.0)
        epochs(loop, run, 12)
        assert run.state.slot("2").stage is Stage.BLENDING


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_a_model_compiled_after_the_graft_disturbs_nobody(loop: Loop, run: Run) -> None:
    compiled = torch.compile(loop.host, backend="eager")
    for _ in range(2):
        loop.host.train()
        for chosen in torch.arange(48).split(12):
            loop.optimizer.zero_grad()
            F.cross_entropy(compiled(loop.images[chosen]), loop.labels[chosen]).backward()
            loop.optimizer.step()
            run.step()
        run.end_epoch(loop.evaluate)


# --- leaving ---

HEAD = """
import sys
from pathlib import Path
from tests.journeys.loop import Loop

loop, database = Loop.fresh(), Path(sys.argv[1])
run = loop.open(database)
loop.epoch(run)
"""
LEFT = (
    HEAD
    + """
run.checkpoint(sys.argv[1] + ".pt")
print(run.run_id)
"""
)
ENDED = (
    HEAD
    + """
run.close()
try:
    with Loop.fresh().open(database) as failing:
        failing.step()
        raise RuntimeError("the loop failed")
except RuntimeError as error:
    print(*error.__notes__)
"""
)


def process(code: str, database: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, str(database)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )


def test_a_process_that_ends_with_an_open_run_says_how_to_go_on(tmp_path: Path) -> None:
    done = process(LEFT, tmp_path / "runs.db")
    assert done.stderr.count("SilentRun: left-open: ") == 1
    assert f"open_run(..., resume={done.stdout.strip()!r})" in done.stderr
    assert f"{tmp_path / 'runs.db'}.pt" in done.stderr


def test_a_closed_run_is_silent_at_exit_and_a_failing_loop_carries_the_way_back(
    tmp_path: Path,
) -> None:
    done = process(ENDED, tmp_path / "runs.db")
    assert done.stdout.startswith("run 'journey-")
    assert "is still open; it has no checkpoint" in done.stdout
    assert done.stderr == ""


def test_a_run_is_remembered_from_its_loop_s_first_act_to_its_close(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(departure, "_OPEN", {})
    run = loop.open(tmp_path / "runs.db")
    assert departure._OPEN == {}
    run.step()
    assert len(departure._OPEN) == 1
    run.close()
    assert departure._OPEN == {}
