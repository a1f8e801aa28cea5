"""Hostile files: nothing but clear errors, and no code is ever run from data."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import kasmina

ROOT = Path(__file__).parents[3]
# It unpickles, but lets in a few classes alone, as test_sharded_checkpoint.py tries.
WARY = {"sober.py"}
FILES = sorted(
    each for each in Path(kasmina.__file__).parent.rglob("*.py") if each.name not in WARY
)
RUNNING_CODE = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}


@pytest.mark.parametrize(
    "runs", [2_000, pytest.param(100_000, marks=pytest.mark.slow)], ids=["some", "many"]
)
@pytest.mark.skipif(not importlib.util.find_spec("atheris"), reason="atheris is not installed")
def test_a_fuzzer_that_is_told_what_it_reached_finds_nothing(tmp_path, runs):
    program = [sys.executable, "-m", "tests.fuzz.fuzz_import", str(tmp_path / "corpus")]
    options = [f"-runs={runs}", "-max_len=8192", "-timeout=20", "-max_total_time=20"]
    done = subprocess.run([*program, *options], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-4000:]
    assert b"DONE" in done.stderr


def dangers(tree):
    """Lines that import what runs code from data, or load tensors without forbidding it."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), names=names):
                modules = [module for alias in names if not alias.name.endswith("Error")]
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load")):
                given = {keyword.arg: keyword.value for keyword in node.keywords}
                match given.get("weights_only"):
                    case ast.Constant(value=True):
                        continue
                found.append(node.lineno)
                continue
            case _:
                continue
        if RUNNING_CODE & {module.partition(".")[0] for module in modules}:
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(FILES[0].parent)))
def test_no_code_is_run_from_data(file):
    assert dangers(ast.parse(file.read_text(encoding="utf-8"))) == []


def test_the_detector_detects():
    code = """
import json, pickle
from marshal import loads
import pickle as p
from pickle import UnpicklingError
torch.load(path)
torch.load(path, weights_only=False)
torch.load(path, weights_only=True)
from kasmina import pickle_free
"""
    assert dangers(ast.parse(code)) == [2, 3, 4, 6, 7]
