"""What several ranks of a framework's loop are told by torchrun, and what a test asks of them."""

import os
from pathlib import Path

import torch
import torch.distributed as dist

from kasmina import open_store
from kasmina.domain import events as e
from kasmina.infra.engine import Access


def as_by_torchrun(rank: int) -> None:
    """Let a framework find the process group that is there, as if torchrun had started it."""
    size = str(dist.get_world_size())
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "0",  # nobody listens: the group is there
        "TORCHELASTIC_RUN_ID": "test",
        "OMP_NUM_THREADS": "1",
    }


def history(database: Path, run_id: str) -> list[e.Event]:
    """All that was recorded of the database's one run, which is sound."""
    with open_store(f"sqlite:///{database}", access=Access.READ) as store:
        assert [first.run_id for first in store.runs()] == [run_id]
        assert store.verify(run_id).problems == ()
        return [record.event for record in store.read(run_id)]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
