"""What docs/store.md shows of fleets runs, and shares transactions as it says."""

import re
from pathlib import Path

import pytest

from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store
from kasmina.infra.integrity import Scrutiny

DOCUMENT = Path(__file__).parents[2] / "docs" / "store.md"
BLOCKS = re.findall(
    r"<!-- executed by tests/infra/test_fleets.py -->\n```python\n(.*?)```",
    DOCUMENT.read_text(encoding="utf-8"),
    re.DOTALL,
)


@pytest.fixture
def shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in BLOCKS:
        exec(compile(block, DOCUMENT, "exec"), namespace)
    with open_store(f"sqlite:///{tmp_path / 'fleet.db'}", access=Access.READ) as store:
        yield store


def test_every_run_is_recorded_whole(shown):
    assert len(BLOCKS) == 2
    runs = shown.run_ids()
    assert len(runs) == 200
    for run_id in runs:
        found = shown.verify(run_id, scrutiny=Scrutiny.HISTORY)
        assert (found.sound, found.events) == (True, 4)


def test_runs_that_commit_together_lie_together(shown):
    """One transaction for each of the four steps: every run once, then every run again."""
    together = [r.run_id for r in shown.follow(limit=400)]
    assert together == [f"cartpole-{n:03}" for n in range(100)] * 4
