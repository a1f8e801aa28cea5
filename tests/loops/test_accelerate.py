"""In a loop of Accelerate: the host undisturbed, steps counted, states saved and loaded whole."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DataLoaderConfiguration
from attrs import define, field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from kasmina import Run, Slots, Stage, Topology, graft
from kasmina.adapters.loops.accelerate import StateOfAnotherMoment, growing
from kasmina.adapters.loops.opening import UnfitLoop
from kasmina.domain.errors import CheckpointError, InvalidCommand
from tests.journeys.loop import ACCURACY, LENIENT, PATIENT, build_host
from tests.loops import scripts

SLOT = "2"


def fresh_accelerator(**settings: Any) -> Accelerator:
    """One as a new process would make it: these classes share their state."""
    for kind in (AcceleratorState, GradientState, PartialState):
        kind._reset_state()
    # The order of data is then a matter of seed and epoch, also in a resumed training.
    order = DataLoaderConfiguration(use_seedable_sampler=True)
    return Accelerator(cpu=True, dataloader_config=order, **settings)


@define
class Loop:
    """What a user of Accelerate has: everything prepared, and the loop over it."""

    accelerator: Accelerator
    slots: Slots | None
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    loader: DataLoader
    losses: list[float] = field(factory=list)

    @classmethod
    def made(cls, *, grafted: bool = True, **settings: Any) -> "Loop":
        accelerator = fresh_accelerator(**settings)
        torch.manual_seed(0)
        host = build_host()
        slots = graft(host, {"0": Topology.CNN, SLOT: Topology.CNN}) if grafted else None
        optimizer = torch.optim.AdamW(host.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
        draws = torch.Generator().manual_seed(1)
        images = torch.randn(60, 1, 6, 6, generator=draws)
        labels = torch.randint(0, 3, (60,), generator=draws)
        data = DataLoader(TensorDataset(images, labels), batch_size=12, shuffle=True)
        prepared = accelerator.prepare(host, optimizer, scheduler, data)
        return cls(accelerator, slots, *prepared)

    def growing(self, folder: Path, **options: Any) -> Any:
        settings = {"name": "accelerated", "objective": ACCURACY, "policy": LENIENT, **options}
        url = f"sqlite:///{folder}/runs.db"
        assert self.slots is not None
        return growing(
            self.accelerator,
            url,
            slots=self.slots,
            optimizer=self.optimizer,
            sample_every=2,
            **settings,
        )

    def train(self, rehearse: Callable[..., None] = lambda *_: None) -> None:
        """An epoch, as Accelerate's documentation writes it."""
        self.model.train()
        for images, labels in self.loader:
            with self.accelerator.accumulate(self.model):
                loss = self.loss(images, labels)
                self.accelerator.backward(loss)
                rehearse(self.loss, images, labels)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), 0.1)
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()
            self.losses.append(loss.item())

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.model(images), labels)

    def evaluate(self) -> dict[str, float]:
        images, labels = self.loader.dataset.tensors
        self.model.eval()
        with torch.no_grad():
            right = (self.model(images).argmax(1) == labels).double().mean().item()
        self.model.train()
        return {"val_accuracy": 100 * right}

    def epochs(self, run: Run, until: int, states: Path | None = None) -> None:
        while run.state.epoch < until:
            slot = run.state.slot(SLOT)
            if run.state.epoch >= 1 and slot.stage is Stage.DORMANT and not slot.germinations:
                run.germinate(SLOT, "conv_light")
            self.loader.set_epoch(run.state.epoch)
            self.train(run.rehearse)
            run.end_epoch(self.evaluate)
            if states is not None:
                self.accelerator.save_state(str(states / str(run.state.epoch)))


def tensors(loop: Loop, *, host_only: bool = False) -> dict[str, Tensor]:
    model = loop.accelerator.unwrap_model(loop.model)
    own = {name: each for name, each in model.named_parameters() if "kasmina." not in name}
    state = loop.optimizer.state
    moments = {
        f"{name}/{key}": value
        for name, parameter in (own if host_only else dict(model.named_parameters())).items()
        for key, value in state[parameter].items()
    }
    kept = {k: v for k, v in model.state_dict().items() if not (host_only and "kasmina." in k)}
    return {**kept, **moments, "random": torch.get_rng_state()}


def decisions(run: Run) -> dict[str, Any]:
    """Where each slot stands, and every figure on which its gates decided."""
    return {name: (slot.stage, slot.outcomes) for name, slot in run.state.slots.items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


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


def test_many_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.utils import DistributedType

    loop = Loop.made()
    monkeypatch.setattr(loop.accelerator.state, "distributed_type", DistributedType.MULTI_CPU)
    with pytest.raises(UnfitLoop, match="MULTI_CPU"), loop.growing(tmp_path):
        pass


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
