"""A training that may be killed at any moment and started again: ``python -m``, in its folder.

Four slots, every incubator and every blend, seeds that draw, that pause and that are culled, and
beside the model all that a loop draws from and keeps: three random streams, a scheduler, an
average. It says each step that it took, and at the end writes all its tensors plainly.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kasmina import (
    Blend,
    BlendPlan,
    BlueprintKind,
    IncubationPlan,
    Incubator,
    Run,
    Topology,
    blueprint,
    open_run,
    open_store,
)
from kasmina.domain.stages import Stage
from tests.journeys.loop import ACCURACY, LENIENT, Loop

DATABASE, CHECKPOINT, END = "sqlite:///runs.db", "run.pt", "end.pt"
EVERY = 3  # epochs from one checkpoint to the next
SLOTS = {"0": (Topology.CNN, Topology.CNN), "2": (Topology.CNN, Topology.CNN)}

# By slot: from which epoch on, what, how it learns, how it is blended.
PLAN = {
    "2": (0, "drawing", Incubator.PROXIMAL, Blend.LERP),
    "0": (2, "conv_inline", Incubator.REHEARSAL, Blend.GATED),
    "2:2": (9, "drawing", Incubator.STRAIGHT_THROUGH, Blend.MULTIPLY),
    "0:2": (15, "drawing", Incubator.NONE, Blend.LERP),
}
PAUSED = ("2:2", 11, 13)
CULLED = (("2:2", 21), ("0:2", 17), ("0:2", 30))
RAMP = 3  # steps


@blueprint(
    "drawing", topology=Topology.CNN, kind=BlueprintKind.RESIDUAL, summary="Convolution, dropout."
)
class Drawing(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.dropout = nn.Dropout(0.3)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.dropout(self.conv(features))


def main(epochs: int) -> None:
    torch.set_num_threads(1)
    random.seed(3)
    np.random.seed(4)  # noqa: NPY002 - the stream that checkpoints hold
    loop = Loop.fresh(targets=SLOTS)
    ema = AveragedModel(loop.host, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    run = open_run(
        DATABASE,
        name="killed",
        slots=loop.slots,
        optimizer=loop.optimizer,
        objective=ACCURACY,
        policy=LENIENT,
        sample_every=2,
        extra={"scheduler": loop.scheduler, "ema": ema},
        resume=next(iter(begun()), None),
    )
    with run:
        while run.state.epoch < epochs:
            act(run)
            epoch(loop, run)
            ema.update_parameters(loop.host)
            if run.state.epoch % EVERY == 0:
                run.checkpoint(CHECKPOINT)
    torch.save(everything(loop, ema), END)


def begun() -> tuple[str, ...]:
    if not Path("runs.db").exists():
        return ()
    with open_store(DATABASE) as store:
        return tuple(store.run_ids())


def act(run: Run) -> None:
    """What this loop does of its own accord in the epoch that begins."""
    for slot_id, (since, name, incubator, blend) in PLAN.items():
        if run.state.slot(slot_id).stage is Stage.DORMANT and run.state.epoch >= since:
            run.germinate(
                slot_id,
                name,
                incubation=IncubationPlan(incubator=incubator, warmup_steps=6),
                blend=BlendPlan(blend=blend, epochs=2.0),
            )
    slot_id, since, until = PAUSED
    if run.state.epoch == since:
        run.pause(slot_id)
    if run.state.epoch == until:
        run.resume_seed(slot_id)
    for slot_id, when in CULLED:
        if run.state.epoch == when and run.state.slot(slot_id).stage is not Stage.FOSSILIZED:
            run.cull(slot_id, "to see it go", ramp_steps=RAMP)


def epoch(loop: Loop, run: Run) -> None:
    def step() -> None:
        # Wobbles that depend on the streams of Python and NumPy.
        loop.images[0] += 1e-3 * (random.gauss() + np.random.randn())  # noqa: NPY002
        run.step()
        print(len(loop.losses), flush=True)  # noqa: T201 - who reads it may kill this process

    clean = loop.images[0].clone()
    loop.train(step, run.rehearse)
    loop.images[0] = clean
    run.end_epoch(loop.evaluate)


def everything(loop: Loop, ema: nn.Module) -> dict[str, torch.Tensor]:
    return dict(
        _flat(
            "",
            {
                "model": loop.host.state_dict(),
                "optimizer": loop.optimizer.state_dict(),
                "scheduler": loop.scheduler.state_dict(),
                "ema": ema.state_dict(),
                "torch": torch.get_rng_state(),
                "python": random.getstate(),
                "numpy": np.random.get_state(legacy=False),  # noqa: NPY002
                "seeds": {k: slot.stream.state() for k, slot in loop.slots.items() if slot.stream},
            },
        )
    )


def _flat(where: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _flat(f"{where}/{key}", each)
    elif isinstance(value, list | tuple):
        for position, each in enumerate(value):
            yield from _flat(f"{where}/{position}", each)
    else:
        yield where, torch.from_numpy(value) if isinstance(value, np.ndarray) else value


if __name__ == "__main__":
    main(int(sys.argv[1]))
