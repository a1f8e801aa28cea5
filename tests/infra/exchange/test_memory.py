"""A log of any length takes the same memory."""

import json
import subprocess
import sys

import pytest

from kasmina.domain import events as e
from kasmina.domain.evidence import Check, Comparison, GateOutcome
from kasmina.domain.stages import Gate
from kasmina.infra.engine import Durability
from kasmina.infra.event_store import open_store
from kasmina.testing import epochs, run_opened

FEW, MANY = 20_000, 200_000
SPARE = 80 * 2**10
"""KiB that a tenfold log may take more: Arrow keeps some buffers. Held, it would take 190 MiB."""

COMMAND = """
import json, resource, sys
from kasmina.adapters.cli.app import run
code = run(sys.argv[1:])
print(json.dumps([code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]), file=sys.stderr)
"""
OUTCOME = GateOutcome.of(
    Gate.G2,
    (
        Check.of("improvement", 1.25, Comparison.AT_LEAST, 0.5),
        Check.of("rehearsal", None, Comparison.AT_LEAST, -0.5),
    ),
    0.25,
)


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """A long log and a tenfold one: half of their events are decisions."""
    urls = {}
    for size in (FEW, MANY):
        url = urls[size] = f"sqlite:///{tmp_path_factory.mktemp('logs') / 'runs.db'}"
        with open_store(url, durability=Durability.RELAXED) as store:
            store.append("long", [run_opened("long")], expected=0)
            for start in range(1, size, 1000):
                seed = {"slot_id": "a", "seed_id": "s", "step": 10**6, "outcome": OUTCOME}
                asked = [e.GateEvaluated(epoch=start + n, **seed) for n in range(500)]
                events = [*asked, *epochs(500, first=start)][: size - start]
                store.append("long", events, expected=start)
    return urls


def peak(*arguments, stdin=None):
    """KiB that a command took at most."""
    command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    done = subprocess.run(
        command, stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    code, memory = json.loads(done.stderr)
    assert code == 0
    return memory


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    ["--to jsonl", "--to csv", "--to csv --table gate_outcomes", "--to parquet"],
)
def test_exporting_ten_times_as_much_takes_no_more_memory(logs, tmp_path, kind):
    few, many = (
        peak(
            *("export", "long", *kind.split()),
            *("--output", tmp_path / "out", "--database", logs[size]),
        )
        for size in (FEW, MANY)
    )
    assert many < few + SPARE


@pytest.mark.slow
def test_importing_and_copying_ten_times_as_much_takes_no_more_memory(logs, tmp_path):
    imported, copied, held = [], [], []
    for size in (FEW, MANY):
        lines = tmp_path / f"{size}.jsonl"
        other, third = (f"sqlite:///{tmp_path / f'{name}{size}.db'}" for name in "ab")
        peak("export", "long", "--to", "jsonl", "--output", lines, "--database", logs[size])
        imported.append(peak("import", lines, "--database", other))
        held.append(peak("import", lines, "--database", other))
        copied.append(peak("db", "copy", logs[size], third))
    for few, many in (imported, copied, held):
        assert many < few + SPARE
