"""Growing a small CNN on digits over as many processes as you like: the same on all, or sharded.

    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # restarts of gloo ranks need it (torch 2.13)
    torchrun --nproc-per-node 2 --max-restarts 3 examples/ddp_digits.py runs/digits

Every process makes the same calls. A worker that dies is started again with the others by
torchrun, and the run goes on from its last checkpoint. CPUs do; with GPUs, one for each process.
With ``--shard`` each process holds a part of the network, and of its seeds, by ``fully_shard``.
With ``--url`` many such trainings share a database: docs/many-hosts.md has them on several hosts.
"""

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from kasmina import Objective, Topology, graft, open_run

BATCH = 32  # for each process
HELD_OUT = 397
Wrap = Callable[[nn.Module], nn.Module]


def build_host() -> nn.Sequential:
    """A CNN that is too small for the task."""
    host = nn.Sequential()
    host.add_module("stage0", nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()))
    host.add_module("pool", nn.MaxPool2d(2))
    host.add_module("stage1", nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()))
    host.add_module("head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)))
    return host


def digits(device: torch.device) -> tuple[Tensor, Tensor]:
    """Images ``(1797, 1, 8, 8)`` in [0, 1] and their labels, in one order on every rank."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    return images[order].to(device), torch.tensor(data.target)[order].to(device)


def batches(epoch: int, count: int) -> tuple[Tensor, ...]:
    """This rank's batches of an epoch: every rank has as many, and no two the same images."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(epoch))
    own = order[dist.get_rank() :: dist.get_world_size()]
    steps = count // (BATCH * dist.get_world_size())
    return own[: steps * BATCH].split(BATCH)


def spread(host: nn.Sequential) -> nn.Module:
    """The host, of which each process holds a part."""
    for module in (host.stage0, host.stage1, host):
        fully_shard(module)
    return host


def train(folder: Path, wrap: Wrap, *, url: str, name: str, epochs: int) -> None:
    """The whole training, or what a restart has left of it."""
    local = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    torch.manual_seed(0)
    images, labels = digits(device)
    held, seen = slice(0, HELD_OUT), slice(HELD_OUT, None)

    host = build_host().to(device)
    slots = graft(host, {"stage0": Topology.CNN, "stage1": Topology.CNN})  # before the wrapper
    model = wrap(host)
    optimizer = torch.optim.AdamW(slots.host_parameters(), lr=1e-2)

    def evaluate() -> Mapping[str, float]:
        """Each rank on its share; the figures of all are averaged."""
        host.eval()
        share = slice(dist.get_rank(), None, dist.get_world_size())
        with torch.no_grad():  # the host, not the wrapper, which synchronises its buffers
            right = host(images[held][share]).argmax(1) == labels[held][share]
        host.train()
        return {"val_accuracy": 100 * right.double().mean().item()}

    begun = folder / "run_id"  # read by every rank before any of them can write it
    with open_run(
        url,  # opened by rank 0 alone
        name=name,
        slots=slots,
        optimizer=optimizer,
        objective=Objective.maximize("val_accuracy", unit="percent"),
        resume=begun.read_text() if begun.exists() else None,
    ) as run:
        if dist.get_rank() == 0:
            begun.write_text(run.run_id)
        for epoch in range(run.state.epoch, epochs):
            if epoch == 1:
                run.germinate("stage1", "conv_inline")
            for batch in batches(epoch, len(images[seen])):
                optimizer.zero_grad()
                x, y = images[seen][batch], labels[seen][batch]
                F.cross_entropy(model(x), y).backward()  # host's and seeds' gradients averaged
                slots.clip_grad_norm_(1.0)
                optimizer.step()
                run.step()
            report = run.end_epoch(evaluate)
            run.checkpoint(folder / "run.pt")  # written by rank 0, with every rank's randomness
            if dist.get_rank() == 0:
                stages = {slot_id: slot.stage.value for slot_id, slot in run.state.slots.items()}
                print(f"epoch {report.epoch}: {report.objective:.1f} %  {stages}", flush=True)  # noqa: T201
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for checkpoints: storage that all hosts share")
    parser.add_argument("--url", help="the database; by default a SQLite file in the folder")
    parser.add_argument("--name", default="ddp-digits")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--shard", action="store_true", help="hold a part on each process")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    url = arguments.url or f"sqlite:///{folder / 'kasmina.db'}"
    wrap = spread if arguments.shard else DistributedDataParallel
    train(folder, wrap, url=url, name=arguments.name, epochs=arguments.epochs)
