"""The house rules that a machine can hold, over every file of the package."""

import ast
from pathlib import Path

import pytest

import kasmina

PACKAGE = Path(kasmina.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 400


def probes(tree: ast.AST) -> list[int]:
    """Lines that ask whether a name exists instead of asking for the type they need."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = [(call, call.func.id) for call in calls if isinstance(call.func, ast.Name)]
    return [
        call.lineno
        for call, name in named
        if name == "hasattr" or (name == "getattr" and len(call.args) + len(call.keywords) > 2)
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
class TestEveryFile:
    def test_asks_for_types_and_never_probes(self, file):
        assert probes(ast.parse(file.read_text(encoding="utf-8"))) == []

    def test_fits_in_the_head(self, file):
        assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST

    def test_hides_nothing_from_coverage(self, file):
        assert "pragma: no" + " cover" not in file.read_text(encoding="utf-8")


def test_the_probe_detector_detects():
    assert probes(ast.parse("hasattr(a, 'b')\ngetattr(a, 'b', None)\ngetattr(a, 'b')")) == [1, 2]
