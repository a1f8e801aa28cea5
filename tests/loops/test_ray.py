"""The example with Ray Tune: a run for each trial, in one database, whole again after a kill."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kasmina import open_store
from kasmina.domain import events as e
from kasmina.domain.evolve import surviving
from kasmina.infra.engine import Access
from kasmina.infra.integrity import Scrutiny
from tests.loops.clusters import run

EXAMPLE = "examples/ray_digits.py"
EPOCHS = 5
RUNS = {
    "stage0-conv_light": "conv_light",
    "stage1-conv_light": "conv_light",
    "stage1-depthwise": "depthwise",
    "stage1-conv_inline": "conv_inline",
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def database(postgres, tmp_path_factory) -> tuple[str, str]:
    """A database with the runs of the example, and what it printed."""
    url, folder = postgres.database(), tmp_path_factory.mktemp("trials")
    return url, run(EXAMPLE, "--folder", folder, "--url", url, "--epochs", EPOCHS)


def test_four_trials_are_four_whole_runs_in_one_database(database) -> None:
    url, printed = database
    listed = {each["name"]: each for each in kasmina("runs", url)["runs"]}
    assert listed.keys() == RUNS.keys()
    for name, each in listed.items():
        assert each["closed"]
        assert each["epochs"] == EPOCHS
        assert f"{each['objective']['latest']:.1f} %  {each['run_id']}" in printed
        history = recorded(url, each["run_id"])
        (germinated,) = (x for x in history if isinstance(x, e.SeedGerminated))
        assert germinated.slot_id == name.split("-")[0]
        assert germinated.blueprint_id == RUNS[name]
        assert counted(history) == history  # nothing was taken back


def test_the_printed_comparison_can_be_made(database) -> None:
    url, printed = database
    command, one, best = printed.splitlines()[-1].split()[1:]
    document = kasmina(command, url, one, best)
    assert [document[side]["run_id"] for side in ("before", "after")] == [one, best]
    ranked = [line.split()[-1] for line in printed.splitlines() if " %  " in line]
    assert [ranked[-1], ranked[0]] == [one, best]


def test_a_trial_that_is_killed_is_resumed_to_the_same_run_and_figures(
    database, postgres, tmp_path: Path
) -> None:
    url = postgres.database()
    run_id, epoch = run("tests/loops/fatal_trial.py", tmp_path, url, EPOCHS).split()[-2:]
    assert (tmp_path / "killed").exists()
    assert int(epoch) == EPOCHS
    (only,) = kasmina("runs", url)["runs"]  # no second one, which a retry might have begun
    assert only["run_id"] == run_id
    assert only["closed"]

    history = recorded(url, run_id)
    (rewound,) = (each for each in history if isinstance(each, e.RunRewound))
    assert not any(isinstance(each, e.RunForked) for each in history)
    assert [x.epoch for x in counted(history[: history.index(rewound)])][-1] == 3
    assert objectives(counted(history)).keys() == {*range(1, EPOCHS + 1)}

    undisturbed = next(
        x["run_id"] for x in kasmina("runs", database[0])["runs"] if x["name"] == only["name"]
    )
    assert objectives(counted(history)) == objectives(recorded(database[0], undisturbed))


def recorded(url: str, run_id: str) -> list[e.Event]:
    """All events of a run, which is exactly as it was recorded."""
    with open_store(url, access=Access.READ) as store:
        assert store.verify(run_id, scrutiny=Scrutiny.HISTORY).problems == ()
        return [record.event for record in store.read(run_id)]


def counted(history: list[e.Event]) -> list[e.Event]:
    """Those that no rewind took back."""
    rewinds = [(n, each.to) for n, each in enumerate(history, 1) if isinstance(each, e.RunRewound)]
    kept = surviving(rewinds, head=len(history))
    return [each for after, until in kept for each in history[after:until]]


def objectives(history: list[e.Event]) -> dict[int, float | None]:
    """The accuracy by epoch; fails where one was recorded twice."""
    epochs = [each for each in history if isinstance(each, e.EpochRecorded)]
    found = {each.epoch: each.objective for each in epochs}
    assert len(found) == len(epochs)
    return found


def kasmina(command: str, url: str, *arguments: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "kasmina", command, *arguments, "--json"],
        env={**os.environ, "KASMINA_DATABASE": url},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)
