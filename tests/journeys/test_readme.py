"""What the README shows works as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kasmina import GatePolicy

README = Path(__file__).parents[2] / "README.md"


def programs(document: Path = README) -> list[str]:
    """The README's are the loop, and the blueprint."""
    return re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)


def commands() -> list[str]:
    return re.findall(r"^\$ kasmina (.+)$", README.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the README's program has been run."""
    place = tmp_path_factory.mktemp("readme")
    loop, _ = programs()
    done = subprocess.run(
        [sys.executable, "-c", loop], cwd=place, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "TRAINING -> " in done.stdout
    return place


@pytest.mark.parametrize("command", [c for c in commands() if "my-first" in c])
def test_the_commands_after_the_loop_work_on_its_run(folder: Path, command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kasmina", *command.split()],
        cwd=folder,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_loop_with_the_line_more_rehearses_its_seed(tmp_path: Path) -> None:
    (loop, _), told = programs(), README.read_text(encoding="utf-8")
    (change,) = re.findall(r"```diff\n(.*?)```", told, re.DOTALL)
    germination, rehearsal = change.split("...\n")
    before, after = (
        "".join(line[1:] for line in germination.splitlines(keepends=True) if line[0] == sign)
        for sign in "-+"
    )
    kept = [f"{line[1:]}\n" for line in rehearsal.splitlines() if line[0] == " "]
    whole = "".join(f"{line[1:]}\n" for line in rehearsal.splitlines())
    for old, new in ((before, after), ("".join(kept), whole)):
        assert old in loop
        loop = loop.replace(old, new)
    program = f"from kasmina import IncubationPlan, Incubator\n{loop}"
    audit = ["-m", "kasmina", "audit", "my-first", "--gate", "G2", "--json"]
    for arguments in (["-c", program], audit):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "run.rehearse" in program
    assert '"seed_gradient_norm"' in done.stdout, "which nobody else gave it"
    assert not re.search(r'"seed_gradient_norm",\s+"measured": (null|0\.0,)', done.stdout)


def test_the_diagram_is_the_machine_s_own() -> None:
    drawn = subprocess.run(
        [sys.executable, "-m", "kasmina", "stages"], text=True, capture_output=True, check=True
    )
    lines = [line.rstrip() for line in drawn.stdout.splitlines()]
    assert "\n".join(lines).strip("\n") in README.read_text(encoding="utf-8")


@pytest.mark.parametrize("text", programs(README.parent / "docs" / "lifecycle.md"))
def test_the_policies_in_the_documentation_can_be_built(text: str) -> None:
    made: dict[str, object] = {}
    exec(text, made)
    assert isinstance(made["policy"], GatePolicy)


def test_the_blueprint_of_one_s_own_can_be_planted_and_is_the_example() -> None:
    _, own = programs()
    assert own in (README.parent / "examples" / "blueprint.py").read_text(encoding="utf-8")
    used = """
from kasmina.adapters.torch.blueprints import blueprints
seed = blueprints.build(Topology.CNN, "shift", 3)
x = torch.randn(2, 3, 4, 4)
assert torch.equal(seed(x), x)
"""
    subprocess.run([sys.executable, "-c", own + used], check=True)
