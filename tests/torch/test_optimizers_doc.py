"""docs/optimizers.md lists what is tested, and nothing else; its program works as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torch.continuity import AVERAGES, CLIPS, WAYS
from tests.torch.optimizers import OPTIMIZERS, REFUSED, SCHEDULERS

DOCUMENT = (Path(__file__).parents[2] / "docs" / "optimizers.md").read_text("utf-8")


def variants(names):
    """``| class | the ways it was built |``, in the order of the tests."""
    found = {}
    for name in names:
        kind, _, variant = name.partition(", ")
        found.setdefault(kind, []).append(variant or "plain")
    return [f"| {kind} | {'; '.join(each)} |" for kind, each in found.items()]


def one_by_one(names):
    return [f"| {name} |" for name in names]


TABLES = {
    "optimizer": variants(OPTIMIZERS),
    "refused": [f"| {name} | {why} |" for name, (_, why) in REFUSED.items()],
    "scheduler": variants(SCHEDULERS),
    "loop": one_by_one(WAYS),
    "clipping": one_by_one(CLIPS),
    "average": one_by_one(AVERAGES),
}


def table(first):
    """The rows of the table whose first column is headed so."""
    (rows,) = re.findall(rf"^\| {first} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", DOCUMENT, re.MULTILINE)
    return rows.splitlines()


@pytest.mark.parametrize("first", TABLES)
def test_every_table_is_the_list_that_the_tests_go_through(first):
    assert table(first) == TABLES[first]


def test_the_program_runs_as_it_stands(tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "in the average: True\n"
