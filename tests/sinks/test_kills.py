"""Followers that are killed at any moment, again and again, show what one does that never was."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from kasmina.infra.event_store import open_store
from tests.sinks import test_mlflow, test_tensorboard
from tests.sinks.logs import many, write

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),  # MLflow's
]

HEADER = """
import os
import sys
from pathlib import Path
from kasmina.adapters.cli.render.sentences import sentence
from kasmina.adapters.sinks.follower import Follower
from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store

def tell(sink):
    for _ in Follower(store, sink, page=25).pages():
        os.write(1, b".")
        os.read(0, 1)  # waits to be let go on, where somebody may

url, target, experiment = sys.argv[1:]
"""
TENSORBOARD = """
from kasmina.adapters.sinks.tensorboard import TensorBoardSink
with open_store(url, access=Access.READ) as store:
    with TensorBoardSink(Path(target), words=sentence) as sink:
        tell(sink)
"""
MLFLOW = """
from kasmina.adapters.sinks.mlflow import MlflowSink
with open_store(url, access=Access.READ) as store:
    tell(MlflowSink(target, experiment=experiment, words=sentence))
"""
OPENTELEMETRY = """
from opentelemetry.sdk.trace.export import ConsoleSpanExporter
from kasmina.adapters.sinks.opentelemetry import OpenTelemetrySink
out = open(target, "a")
out.write(chr(10))  # after a line that was cut off
exporter = ConsoleSpanExporter(out=out, formatter=lambda span: span.to_json(None) + chr(10))
with open_store(url, access=Access.READ) as store:
    state = Path(target).with_suffix(".state")
    with OpenTelemetrySink(store, exporter, state=state, words=sentence) as sink:
        tell(sink)
"""


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return written(tmp_path_factory, copies=5, epochs=400)


@pytest.fixture(scope="module")
def short_log(tmp_path_factory):
    return written(tmp_path_factory, copies=3, epochs=150)  # MLflow takes its time over each event


def written(folders, *, copies, epochs):
    url = f"sqlite:///{folders.mktemp('log') / 'kasmina.db'}"
    with open_store(url) as store:
        write(store, many(copies=copies, epochs=epochs))
    return url


def start(script, *arguments, told):
    return subprocess.Popen(
        [sys.executable, "-c", HEADER + script, *map(str, arguments)],
        stdin=told,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    )


def follow_to_the_end(script, *arguments):
    with start(script, *arguments, told=subprocess.DEVNULL) as process:
        process.communicate()
    assert process.returncode == 0


def follow_under_kills(script, *arguments, kills):
    """Each follower is killed some pages after its start, at any moment of the next."""
    chance = random.Random(len(script))
    for _ in range(kills):
        pages = chance.randint(1, 5)
        with start(script, *arguments, told=subprocess.PIPE) as process:
            process.stdin.write(b"." * pages)  # however late the kill is, it goes no further
            process.stdin.flush()
            process.stdout.read(pages)
            time.sleep(chance.random() * 0.01)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    follow_to_the_end(script, *arguments)


def test_tensorboard_holds_everything_once(log, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    follow_to_the_end(TENSORBOARD, log, whole, "")
    follow_under_kills(TENSORBOARD, log, killed, "", kills=16)
    assert test_tensorboard.held(killed) == test_tensorboard.held(whole)
    files = [len(list(run.iterdir())) for run in killed.iterdir() if run.is_dir()]
    assert max(files) > 2, "no kill came while events were written"


def test_mlflow_holds_everything_once(short_log, tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    follow_to_the_end(MLFLOW, short_log, uri, "whole")
    follow_under_kills(MLFLOW, short_log, uri, "killed", kills=6)
    assert test_mlflow.held(client, "killed") == test_mlflow.held(client, "whole")


def test_opentelemetry_gets_everything_and_repetitions_alone_are_equal(log, tmp_path):
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    follow_to_the_end(OPENTELEMETRY, log, whole, "")
    follow_under_kills(OPENTELEMETRY, log, killed, "", kills=10)
    assert spans(killed) == spans(whole)


def spans(path):
    """What was exported, by its identifiers; one identifier never has two contents."""
    found = {}
    for line in path.read_text().splitlines():
        try:
            span = json.loads(line)
        except ValueError:
            continue  # cut off by a kill
        identity = (span["context"]["trace_id"], span["context"]["span_id"])
        assert found.setdefault(identity, line) == line
    return found
