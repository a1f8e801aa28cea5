"""In a loop of Accelerate: the host undisturbed, steps counted, states saved and loaded whole."""

import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType, ParallelismConfig, ProjectConfiguration
from torch import nn

from kasmina import Run, Stage
from kasmina.adapters.loops.accelerate import StateOfAnotherMoment, require_copies
from kasmina.adapters.loops.opening import UnfitLoop
from kasmina.domain.errors import CheckpointError, InvalidCommand
from tests.journeys.loop import PATIENT
from tests.loops import scripts
from tests.loops.accelerated import SLOT, Loop, decisions, fresh_accelerator, same, tensors

SETTINGS = {
    "plain": {},
    "accumulating, with a remainder": {"gradient_accumulation_steps": 2},
    "bfloat16": {"mixed_precision": "bf16"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("seeds", [0, 1])
def test_a_host_does_not_notice_that_it_has_slots_or_a_seed_in_training(
    tmp_path: Path, settings: dict[str, object], seeds: int
) -> None:
    alone = Loop.made(grafted=False, **settings)
    for epoch in range(4):
        alone.loader.set_epoch(epoch)
        alone.train()
        alone.evaluate()
    expected = tensors(alone)

    loop = Loop.made(**settings)
    with loop.growing(tmp_path, policy=PATIENT) as run:
        for _ in range(seeds):
            run.germinate(SLOT, "conv_light", learning_rate=0.1)
        for epoch in range(4):
            loop.loader.set_epoch(epoch)
            loop.train()
            run.end_epoch(loop.evaluate)
        assert (run.state.slot(SLOT).stage is Stage.TRAINING) == (seeds == 1)
    assert same(tensors(loop, host_only=True), expected)
    assert loop.losses == alone.losses


@pytest.mark.parametrize(("accumulated", "steps"), [(1, 5), (2, 3), (4, 2)])
def test_steps_that_only_accumulate_are_not_counted(
    tmp_path: Path, accumulated: int, steps: int
) -> None:
    loop = Loop.made(gradient_accumulation_steps=accumulated)
    with loop.growing(tmp_path) as run:
        loop.epochs(run, 3)
        assert run.state.step == 3 * steps


def test_a_step_that_a_scaler_skips_is_not_counted(tmp_path: Path) -> None:
    loop = Loop.made()
    scaler = torch.amp.GradScaler("cpu")
    # As prepare() wraps it for fp16, which it does on accelerators alone.
    loop.optimizer = AcceleratedOptimizer(loop.optimizer.optimizer, scaler=scaler)
    images, labels = loop.loader.dataset.tensors
    with loop.growing(tmp_path) as run:
        scaler.scale(loop.loss(images, labels)).backward()
        next(loop.model.parameters()).grad.fill_(torch.inf)
        loop.optimizer.step()
        assert loop.optimizer.step_was_skipped
        with pytest.raises(InvalidCommand, match="no optimizer step"):
            run.end_epoch(loop.evaluate)
        loop.optimizer.zero_grad()
        scaler.scale(loop.loss(images, labels)).backward()
        loop.optimizer.step()
        run.end_epoch(loop.evaluate)
        assert run.state.step == 1


def test_a_seed_grows_up_in_the_middle_of_training(tmp_path: Path) -> None:
    loop = Loop.made(gradient_accumulation_steps=2)
    with loop.growing(tmp_path) as run:
        loop.epochs(run, 8)
        assert run.state.slot(SLOT).stage.exposed
    assert run.state.closed
    # A scheduler keeps a rate for each group, and the seed's follows the host's.
    host, seed = loop.optimizer.param_groups
    assert seed["lr"] != 1e-2
    assert len(loop.scheduler.scheduler.base_lrs) == 2
    assert host["lr"] < 1e-2


@pytest.mark.parametrize("stopped_at", [1, 3, 5])
def test_a_resumed_training_ends_with_the_bits_of_one_that_was_never_stopped(
    tmp_path: Path, stopped_at: int
) -> None:
    whole = Loop.made(gradient_accumulation_steps=2)
    with whole.growing(tmp_path) as run:
        whole.epochs(run, 7, tmp_path)
    expected, decided = tensors(whole), decisions(run)

    torch.manual_seed(99)
    again = Loop.made(gradient_accumulation_steps=2)
    with again.growing(tmp_path, resume=tmp_path / str(stopped_at)) as resumed:
        assert (resumed.run_id, resumed.state.epoch) == (run.run_id, stopped_at)
        again.epochs(resumed, 7)
    assert same(tensors(again), expected)
    assert again.scheduler.state_dict() == whole.scheduler.state_dict()
    assert decisions(resumed) == decided
    assert resumed.state.rewinds == 1


def test_what_is_registered_for_checkpointing_comes_back_too(tmp_path: Path) -> None:
    first = Loop.made()
    counted = nn.Linear(1, 1)
    first.accelerator.register_for_checkpointing(counted)
    with first.growing(tmp_path) as run:
        first.epochs(run, 2, tmp_path)
    again = Loop.made()
    other = nn.Linear(1, 1)
    again.accelerator.register_for_checkpointing(other)
    with again.growing(tmp_path, resume=tmp_path / "2"):
        assert torch.equal(other.weight, counted.weight)


def test_an_error_leaves_the_run_open_and_the_accelerator_as_it_was(tmp_path: Path) -> None:
    loop = Loop.made()
    runs: list[Run] = []

    def stumble() -> None:
        with loop.growing(tmp_path) as run:
            runs.append(run)
            loop.epochs(run, 2, tmp_path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stumble()
    (run,) = runs
    assert not run.state.closed
    loop.accelerator.load_state(str(tmp_path / "2"))  # no run is in the way any more
    loop.train()
    assert run.state.step == 10
    again = Loop.made()
    with again.growing(tmp_path, resume=tmp_path / "2") as resumed:
        again.epochs(resumed, 3)


# --- what would be silent ---


def test_a_state_is_not_loaded_over_a_run_with_other_seeds(tmp_path: Path) -> None:
    loop = Loop.made()
    with loop.growing(tmp_path) as run:
        loop.epochs(run, 2, tmp_path)
        with pytest.raises(StateOfAnotherMoment, match="resume="):
            loop.accelerator.load_state(str(tmp_path / "1"))
        loop.epochs(run, 3)


def test_a_state_that_was_saved_without_a_run_is_refused(tmp_path: Path) -> None:
    loop = Loop.made()
    loop.accelerator.save_state(str(tmp_path / "bare"))
    refused = pytest.raises(CheckpointError, match=r"kasmina\.pt.*missing")
    with refused, loop.growing(tmp_path, resume=tmp_path / "bare"):
        pass
    assert not list(tmp_path.glob("runs.db"))


def test_an_optimizer_that_was_not_prepared_is_refused(tmp_path: Path) -> None:
    loop = Loop.made()
    loop.optimizer = loop.optimizer.optimizer
    with pytest.raises(UnfitLoop, match="not prepared"), loop.growing(tmp_path):
        pass


SPLIT = {
    DistributedType.FSDP: "a part of the model",
    DistributedType.DEEPSPEED: "engine of its own",
    DistributedType.MEGATRON_LM: "builds the model itself",
    DistributedType.XLA: "without torch.distributed",
    DistributedType.MULTI_NPU: "ever tried",
}


@pytest.mark.parametrize(("kind", "problem"), SPLIT.items(), ids=[each.value for each in SPLIT])
def test_processes_that_hold_no_copies_of_the_model_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: DistributedType, problem: str
) -> None:
    loop = Loop.made()
    monkeypatch.setattr(loop.accelerator.state, "distributed_type", kind)
    refused = pytest.raises(UnfitLoop, match=f"{kind.value}, which .*{problem}")
    with refused, loop.growing(tmp_path):
        pass
    assert not list(tmp_path.glob("runs.db"))


def test_a_model_that_is_split_beside_its_copies_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accelerator = fresh_accelerator()
    for split in ({"tp_size": 2}, {"cp_size": 2}, {"dp_shard_size": 2}):
        config = ParallelismConfig(**split)
        monkeypatch.setattr(accelerator.state, "parallelism_config", config)
        with pytest.raises(UnfitLoop, match="over 2 processes"):
            require_copies(accelerator)
    copies = ParallelismConfig(dp_replicate_size=2)
    monkeypatch.setattr(accelerator.state, "parallelism_config", copies)
    require_copies(accelerator)


def test_states_that_each_node_keeps_for_itself_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accelerator = fresh_accelerator(project_config=ProjectConfiguration(save_on_each_node=True))
    require_copies(accelerator)
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(UnfitLoop, match="save_on_each_node=False"):
        require_copies(accelerator)


@pytest.mark.slow
def test_the_example_goes_on_from_a_saved_state_to_the_same_bits(tmp_path: Path) -> None:
    example, folder = "accelerate_digits.py", tmp_path / "accelerate-digits"
    told = scripts.run(example, tmp_path, "--epochs", "4")
    assert "epoch 4: " in told
    assert "TRAINING" in told
    assert scripts.germinated(folder / "kasmina.db")
    expected = scripts.tensors(folder / "4" / "kasmina.pt")
    shutil.rmtree(folder / "4")
    scripts.run(example, tmp_path, "--epochs", "4", "--resume", "accelerate-digits/3")
    again = scripts.tensors(folder / "4" / "kasmina.pt")
    torch.testing.assert_close(again, expected, rtol=0, atol=0)
