"""The program in docs/sinks.md works as it stands there."""

import re
from pathlib import Path

from kasmina.infra.event_store import open_store
from tests.sinks.logs import told

DOCUMENT = Path(__file__).parents[2] / "docs" / "sinks.md"


def test_the_program_in_the_document_shows_the_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_store("sqlite:///kasmina.db") as store:
        told(store)
    (program,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(program, str(DOCUMENT), "exec"), {})
    assert {path.name for path in Path("runs").iterdir()} >= {"grown-1", "fork"}
