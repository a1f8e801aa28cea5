"""The tool that runs the examples knows each of them, and hides no failure."""

import importlib.util
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    monkeypatch.setenv("UV_COMPILE_BYTECODE", "0")  # which the tool sets for good
    spec = importlib.util.spec_from_file_location("run_examples", ROOT / "tools/run_examples.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in ("bootstrap", "wheel"):
        sys.modules.pop(name)


def ending(tool, tmp_path, text, **asked):
    script = tmp_path / "script.py"
    script.write_text(text)
    return tool.outcome(tool.Example(extras="demo", **asked), Path(sys.executable), script)


def test_every_example_is_run(tool):
    assert sorted(tool.EXAMPLES) == SCRIPTS


def test_only_extras_that_there_are_are_asked_for(tool):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {name for each in tool.EXAMPLES.values() for name in each.extras.split(",")}
    assert asked <= set(project["optional-dependencies"])


def test_an_example_that_fails_is_heard(tool, tmp_path):
    status, printed = ending(
        tool, tmp_path, "import sys; sys.exit(f'no {sys.argv[1:]}')", arguments="--epochs 2"
    )
    assert (status, printed) == (1, "no ['--epochs', '2']\n")


def test_one_that_hangs_is_ended_with_all_that_it_started(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "PATIENCE", 0.0)
    status, _ = ending(tool, tmp_path, "import time; time.sleep(600)")
    assert status is None


def test_the_checkout_is_out_of_reach(tool, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    status, printed = ending(
        tool, tmp_path, "import os, sys; print(os.environ.get('PYTHONPATH'), sys.path[0])"
    )
    assert (status, printed) == (0, f"None {tmp_path}\n")
