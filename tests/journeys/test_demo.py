"""The demonstration shows what it is there to show, and its commands work on its database."""

import io
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from kasmina import Stage, open_store
from kasmina.adapters.cli.app import run as call
from kasmina.demo.study import OtherStudy, Study, resume_study
from kasmina.domain import events as e
from kasmina.domain.projections import gate_ledger
from kasmina.domain.stages import CullCause
from kasmina.history import load
from kasmina.infra.engine import Access

# Called by a path wider than the terminal, which must not break the commands to copy.
_PROGRAM = "/home/someone/" + "a-long-folder/" * 10 + "kasmina"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('demo') / 'demo.db'}"


@pytest.fixture(scope="module")
def shown(url: str) -> str:
    return _output(["demo", "--quick", "--database", url])


def _output(arguments: list[str]) -> str:
    with redirect_stdout(io.StringIO()) as said, pytest.MonkeyPatch.context() as patched:
        patched.setenv("COLUMNS", "100")
        patched.setenv("PATH", "")
        patched.setattr("sys.argv", [_PROGRAM])
        assert call(arguments) == 0
    return said.getvalue()


def test_it_ends_with_a_table_the_ledger_and_what_to_try_next(shown: str) -> None:
    assert "What the gates decided in digits-grown-0" in shown
    assert "G2 refused: rehearsed_contribution" in shown
    assert "Host alone" in shown
    assert "over 1 pair with the same steps and data order" in shown
    assert f"\n  {_PROGRAM} audit digits-grown-0-" in shown


def test_one_seed_is_fossilized_one_is_culled_by_its_gate_and_its_slot_used_again(
    shown: str, url: str
) -> None:
    assert shown
    with open_store(url, access=Access.READ) as store:
        alone, grown = (first.run_id for first in store.runs())
        history = [record.event for record in store.read(grown)]
        state = load(store, grown)
        assert all(slot.germinations == 0 for slot in load(store, alone).slots.values())
    assert any(isinstance(event, e.SeedFossilized) for event in history)
    (culled, *_) = [event for event in history if isinstance(event, e.SeedCulled)]
    assert culled.cause is CullCause.TIMED_OUT
    assert culled.reason.startswith("G2 refused for 6 epochs")
    reused = [
        event
        for event in history
        if isinstance(event, e.SeedGerminated) and event.slot_id == culled.slot_id
    ]
    assert len(reused) == 2
    assert state.slot("stage1").stage is Stage.FOSSILIZED
    assert state.closed


def test_its_figures_are_those_of_the_log(shown: str, url: str) -> None:
    with open_store(url, access=Access.READ) as store:
        for first in store.runs():
            state = load(store, first.run_id)
            assert f"{state.metrics['test_accuracy']:.1f}" in shown


@pytest.mark.parametrize(
    "command",
    [["runs"], ["replay", "latest"], ["audit", "latest", "--refused"], ["verify", "--all"]],
)
def test_the_reading_commands_work_on_its_database(
    shown: str, url: str, command: list[str]
) -> None:
    assert shown
    assert _output([*command, "--database", url]).strip()


def test_a_finished_demo_has_nothing_to_go_on_with(shown: str, url: str) -> None:
    again = _output(["demo", "--quick", "--resume", "--database", url])
    assert " → " not in again
    assert shown.split("Accuracy on")[1] == again.split("Accuracy on")[1]


def test_the_documentation_names_every_check_that_was_made(shown: str, url: str) -> None:
    documentation = (Path(__file__).parents[2] / "docs" / "lifecycle.md").read_text("utf-8")
    assert shown
    with open_store(url, access=Access.READ) as store:
        made = {
            (decision.outcome.gate.value, check.name)
            for first in store.runs()
            for decision in gate_ledger(list(store.read(first.run_id)))
            for check in decision.outcome.checks
        }
    assert {gate for gate, _ in made} == {"G0", "G1", "G2", "G3", "G4", "G5"}
    assert not {name for _, name in made if f"`{name}`" not in documentation}


def test_a_study_of_other_length_is_not_gone_on_with(shown: str, url: str) -> None:
    assert shown
    assert call(["demo", "--resume", "--database", url]) == 2
    shorter = Study(url=url, folder=Path(), random_seeds=(0,), epochs=3)
    with pytest.raises(OtherStudy):
        next(resume_study(shorter))
    assert call(["demo", "--quick", "--seed", "7", "--resume", "--database", url]) == 2
