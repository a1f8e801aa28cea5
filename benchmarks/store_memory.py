"""What it takes of memory to replay, verify and export a run of a million events."""
# ruff: noqa: INP001, S603 - beside a script, whose own commands it runs

import subprocess
import sys
from pathlib import Path

from store_sides import BATCH, Kasmina

from kasmina.infra.engine import Durability
from kasmina.infra.event_store import open_store

EVENTS = 1_000_000
WANTED = 150
WORKS = {
    "replay": "from kasmina.history import load; load(store, 'run')",
    "verify": "store.verify('run')",
    "export to JSON lines": (
        "from kasmina.adapters.cli.app import run; "
        "run(['export', 'run', '--to', 'jsonl', '--database', url, '--output', '/dev/null'])"
    ),
}
SCRIPT = """
import resource, sys
from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store
url = sys.argv[1]
with open_store(url, access=Access.READ) as store:
    {work}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def memory(folder: Path) -> list[str]:
    """A line for each work: the peak of a process that does nothing else."""
    url = f"sqlite:///{folder / 'memory.db'}"
    with open_store(url, durability=Durability.RELAXED) as store:
        stored = Kasmina(store)
        for _ in range(EVENTS // BATCH):
            stored.append(BATCH)
    rows = []
    for name, work in WORKS.items():
        command = [sys.executable, "-c", SCRIPT.format(work=work), url]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peak = int(done.stdout.split()[-1]) / 1024
        verdict = "" if peak < WANTED else ", MISSED"
        rows.append(
            f"| {name} {EVENTS:,} events, peak memory | {peak:.0f} MB | < {WANTED} MB{verdict} |"
        )
    (folder / "memory.db").unlink()
    return rows
