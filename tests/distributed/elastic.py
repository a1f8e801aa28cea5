"""A training for torchrun in which rank 1 dies once, in the midst of an epoch."""

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from kasmina import IncubationPlan, Incubator
from tests.distributed.loop import Training

EPOCHS = 6
LAST = 3


def main(folder: Path, *, fatal: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    begun = folder / "run_id"
    resumed = begun.read_text() if begun.exists() else None
    training = Training.fresh(wrapper={}, adam=True)
    with training.open(folder, resume=resumed) as run:
        if dist.get_rank() == 0:
            begun.write_text(run.run_id)
        if run.state.epoch == 0:
            run.germinate("1", "conv_light", incubation=STRAIGHT)
        while run.state.epoch < EPOCHS:
            if fatal and resumed is None and run.state.epoch == LAST and dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            training.epoch(run)
            run.checkpoint(folder / "run.pt")
    torch.save(training.tensors(), folder / f"tensors-{dist.get_rank()}.pt")
    dist.destroy_process_group()


STRAIGHT = IncubationPlan(incubator=Incubator.STRAIGHT_THROUGH)

if __name__ == "__main__":
    main(Path(sys.argv[1]), fatal=sys.argv[2] == "fatal")
