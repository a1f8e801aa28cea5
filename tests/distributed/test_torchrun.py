"""Under the real torchrun: the example, and a worker that dies and comes back."""

from pathlib import Path

import pytest
import torch

from kasmina import open_store
from kasmina.domain import events as e
from kasmina.infra.engine import Access
from tests.distributed.agents import torchrun
from tests.distributed.loop import equal


def events(folder: Path, database: str):
    with open_store(f"sqlite:///{folder / database}", access=Access.READ) as store:
        (first,) = store.runs()
        assert store.verify(first.run_id).problems == ()
        return [record.event for record in store.read(first.run_id)]


@pytest.mark.slow
def test_a_worker_that_dies_is_restarted_and_the_run_ends_with_the_same_bits(
    tmp_path: Path,
) -> None:
    whole, fatal = tmp_path / "whole", tmp_path / "fatal"
    for folder in (whole, fatal):
        folder.mkdir()
        torchrun("tests/distributed/elastic.py", folder, folder.name, restarts=2)
    for rank in range(2):
        expected, found = (torch.load(f / f"tensors-{rank}.pt") for f in (whole, fatal))
        assert equal(expected, found)
    recorded = events(fatal, "runs.db")
    assert [each.epoch for each in recorded if isinstance(each, e.EpochRecorded)] == [*range(1, 7)]
    assert not any(isinstance(each, e.RunForked) for each in recorded)
    assert isinstance(recorded[-1], e.RunClosed)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [(), ("--shard",)], ids=["whole", "sharded"])
def test_the_example_grows_a_network_on_two_processes(tmp_path: Path, layout) -> None:
    said = torchrun("examples/ddp_digits.py", tmp_path, "--epochs", 3, *layout)
    assert "epoch 3" in said
    assert "'stage1': 'TRAINING'" in said
    recorded = events(tmp_path, "kasmina.db")
    assert sum(isinstance(each, e.SeedGerminated) for each in recorded) == 1
