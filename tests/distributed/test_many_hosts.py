"""Trainings on several hosts, played on loopback, that write to one PostgreSQL at the same time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kasmina import open_store
from kasmina.domain import events as e
from kasmina.infra.engine import Access
from kasmina.infra.integrity import Scrutiny
from tests.distributed.agents import ROOT, agent, ended
from tests.postgres import free_port

EXAMPLE = "examples/ddp_digits.py"
EPOCHS = 4


def two_hosts(folder: Path, url: str) -> list[subprocess.Popen[str]]:
    """Two agents with a worker each, that meet as those of two hosts do."""
    meeting = [
        *("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=pair"),
        *(f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--local-addr=127.0.0.1"),
    ]
    training = [EXAMPLE, folder, "--url", url, "--name", "pair", "--epochs", EPOCHS]
    return [agent(*meeting, *training) for _ in range(2)]


def one_host(folder: Path, url: str) -> subprocess.Popen[str]:
    training = [EXAMPLE, folder, "--url", url, "--name", "single", "--epochs", EPOCHS]
    return agent("--standalone", "--nproc-per-node=1", *training)


def kasmina_runs(url: str) -> list[dict]:
    told = subprocess.run(
        [sys.executable, "-m", "kasmina", "runs", "--json", "--database", url],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(told.stdout)["runs"]


@pytest.mark.slow
def test_trainings_on_several_hosts_share_a_database_and_do_not_disturb_each_other(
    tmp_path: Path, postgres
) -> None:
    url, alone = postgres.database(), f"sqlite:///{tmp_path / 'alone.db'}"
    pair, single = tmp_path / "pair", tmp_path / "single"
    first, second, other = ended([*two_hosts(pair, url), one_host(single, url)])
    assert sorted(["epoch 4" in first, "epoch 4" in second]) == [False, True]  # rank 0 alone tells
    assert "epoch 4" in other
    listed = {each["name"]: each for each in kasmina_runs(url)}
    assert listed.keys() == {"pair", "single"}
    assert all(each["closed"] and each["epochs"] == EPOCHS for each in listed.values())
    for name, folder in {"pair": pair, "single": single}.items():
        assert listed[name]["run_id"] == (folder / "run_id").read_text()
        recorded = told(url, name)
        assert [x.epoch for x in recorded if isinstance(x, e.EpochRecorded)] == [*range(1, 5)]
        assert sum(isinstance(each, e.SeedGerminated) for each in recorded) == 1
        assert isinstance(recorded[-1], e.RunClosed)

    ended([one_host(tmp_path / "again", alone)])
    assert outline(told(url, "single")) == outline(told(alone, "single"))


def told(url: str, name: str) -> list[e.Event]:
    """What happened in the run of that name, which is exactly as it was recorded."""
    with open_store(url, access=Access.READ) as store:
        (run_id,) = (each for each in store.run_ids() if each.startswith(f"{name}-"))
        assert store.verify(run_id, scrutiny=Scrutiny.HISTORY).problems == ()
        return [record.event for record in store.read(run_id)]


def outline(recorded: list[e.Event]) -> list[tuple[type, int, int, float | None]]:
    """What happened when, and every epoch's accuracy; the names of seeds differ."""
    return [
        (
            type(each),
            each.epoch,
            each.step,
            each.objective if isinstance(each, e.EpochRecorded) else None,
        )
        for each in recorded
    ]
