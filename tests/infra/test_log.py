"""One structured line for each event, once it is durable, and never in the writer's way."""

import json
import subprocess
import sys

import pytest
import structlog
from structlog.testing import capture_logs

from kasmina.domain import events as e
from kasmina.domain.errors import ConcurrentAppend
from kasmina.domain.evidence import Check, Comparison, GateOutcome
from kasmina.domain.stages import Gate, Stage, Topology, Trigger
from kasmina.infra.log import LogFormat, LoggingEventStore, configure_logging
from kasmina.testing import MemoryEventStore, caught, epochs

SEED = {"epoch": 3, "step": 30, "slot_id": "layer2", "seed_id": "s1"}
CHECKS = (Check.of("improvement", 0.2, Comparison.AT_LEAST, 0.5),)
EVENTS = (
    e.RunClosed(epoch=3, step=30),
    e.SlotOpened(epoch=3, step=30, slot_id="layer2", topology=Topology.CNN, width=8),
    e.GateEvaluated(**SEED, outcome=GateOutcome.of(Gate.G2, CHECKS, 0.4)),
    e.StageChanged(**SEED, trigger=Trigger.CULL, source=Stage.TRAINING, target=Stage.CULLED),
)


@pytest.fixture(autouse=True)
def _defaults():
    yield
    structlog.reset_defaults()


def test_a_line_says_what_was_recorded_where():
    store = LoggingEventStore(MemoryEventStore())
    with capture_logs() as lines:
        recorded = store.append("digits-1", EVENTS, expected=0)
    common = {"event": "recorded", "log_level": "info", "run_id": "digits-1", "epoch": 3}
    seed = {"slot": "layer2", "seed": "s1"}
    expected = [
        {"type": "RunClosed"},
        {"type": "SlotOpened", "slot": "layer2"},
        {"type": "GateEvaluated", **seed, "gate": "G2", "passed": False},
        {"type": "StageChanged", **seed, "stage": "CULLED"},
    ]
    for n, (line, own, record) in enumerate(zip(lines, expected, recorded, strict=True), 1):
        assert line == common | own | {"sequence": n, "digest": record.digest.hex()[:12]}


def test_what_was_not_recorded_is_not_logged():
    store = LoggingEventStore(MemoryEventStore())
    with capture_logs() as lines:
        caught(ConcurrentAppend, store.append, "digits-1", epochs(2), expected=4)
    assert lines == []


@pytest.mark.parametrize("failure", [BrokenPipeError(), ValueError("I/O on closed file")])
def test_a_log_that_cannot_be_written_does_not_undo_an_append(failure):
    def broken(*_):
        raise failure

    structlog.configure(processors=[broken])
    store = LoggingEventStore(MemoryEventStore())
    assert len(store.append("digits-1", epochs(2), expected=0)) == 2


def test_json_lines_go_to_the_standard_error(capsys):
    configure_logging(LogFormat.JSON)
    LoggingEventStore(MemoryEventStore()).append("digits-1", EVENTS[2:3], expected=0)
    captured = capsys.readouterr()
    assert captured.out == ""
    line = json.loads(captured.err)
    assert (line["event"], line["level"], line["gate"]) == ("recorded", "info", "G2")
    assert line["timestamp"].endswith("Z")


def test_console_lines_are_for_people(capsys):
    configure_logging(LogFormat.CONSOLE)
    LoggingEventStore(MemoryEventStore()).append("digits-1", EVENTS, expected=0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(EVENTS)
    assert "gate=G2" in lines[2]


def test_importing_the_log_sets_nothing_up():
    code = "import kasmina.infra.log, structlog; assert not structlog.is_configured()"
    subprocess.run([sys.executable, "-c", code], check=True)
