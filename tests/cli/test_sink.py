"""``kasmina sink`` as a person or a script meets it."""

import gzip
import json
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from kasmina.domain.events import RunClosed
from kasmina.infra.event_store import open_store
from kasmina.testing import epochs, run_opened


@pytest.fixture
def logdir(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state.json"


def events_in(url):
    with open_store(url) as store:
        return len(store.follow())


def test_runs_are_passed_on_once(call, url, logdir):
    done = call("sink", "tensorboard", str(logdir))
    assert (done.code, done.out, done.err) == (0, "", f"{events_in(url)} events passed on\n")
    assert call("sink", "tensorboard", str(logdir)).err == "0 events passed on\n"


def test_one_run_can_be_passed_on_alone(call, logdir, digits):
    call("sink", "tensorboard", str(logdir), "--run", "digits")
    assert [path.name for path in logdir.iterdir() if path.is_dir()] == [digits]


def test_an_unknown_run_passes_nothing_on(call, logdir):
    done = call("sink", "tensorboard", str(logdir), "--run", "nobody")
    assert done.code == 2
    assert "there is no run 'nobody'" in done.err
    assert not logdir.exists()


def test_spans_are_printed_as_a_json_line_each(call, url, state):
    done = call("sink", "opentelemetry", "--state", str(state))
    spans = [json.loads(line) for line in done.out.splitlines()]
    assert {"run", "seed conv_light", "BLENDING"} <= {span["name"] for span in spans}
    assert done.err == f"{events_in(url)} events passed on\n"
    assert call("sink", "opentelemetry", "--state", str(state)).out == ""


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow's own
def test_mlflow_gets_the_runs_in_an_experiment_of_a_given_name(call, tmp_path, digits, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert call("sink", "mlflow", uri, "--experiment", "growth").code == 0
    client = MlflowClient(uri)
    found = client.get_experiment_by_name("growth")
    runs = client.search_runs([found.experiment_id])
    assert digits in {run.data.tags["kasmina.run_id"] for run in runs}


def test_a_receiver_that_cannot_be_reached_is_an_error_that_says_what_to_do(call, logdir):
    logdir.touch()
    done = call("sink", "tensorboard", str(logdir))
    assert done.code != 0
    assert "cannot be read or written" in done.err
    assert "check the path" in done.err


@pytest.mark.parametrize(
    ("arguments", "blocked", "extra"),
    [
        (("tensorboard", "runs"), "tensorboard", "tensorboard"),
        (("mlflow", "sqlite:///m.db"), "mlflow", "mlflow"),
        (("opentelemetry",), "opentelemetry", "opentelemetry"),
        (
            ("opentelemetry", "--endpoint", "http://localhost:1/v1/traces"),
            "opentelemetry.exporter",
            "opentelemetry",
        ),
    ],
    ids=str,
)
def test_a_missing_extra_is_named(call, monkeypatch, arguments, blocked, extra):
    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name == blocked:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in list(sys.modules):
        ours = f"kasmina.adapters.sinks.{extra}"
        if name == blocked or name.startswith((f"{blocked}.", ours)):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    done = call("sink", *arguments)
    assert done.code == 2
    assert f"pip install 'kasmina[{extra}]'" in done.err


def test_following_shows_what_is_recorded_meanwhile_until_it_is_interrupted(url, logdir):
    command = [sys.executable, "-m", "kasmina", "sink", "opentelemetry"]
    state = logdir.with_suffix(".json")
    with subprocess.Popen(
        [*command, "--state", str(state), "--follow", "--database", url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr.readline() == "following, until Ctrl-C\n"
        assert process.stdout.readline()
        with open_store(url) as store:
            closed = RunClosed(epoch=2, step=20)
            store.append("later", [run_opened("later"), *epochs(2), closed], expected=0)
        assert any('"later"' in line for line in iter(process.stdout.readline, ""))
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == 130


def test_help_names_the_receivers_and_loads_none(call):
    done = call("sink", "--help")
    assert done.code == 0
    for receiver in ("tensorboard", "mlflow", "opentelemetry"):
        assert receiver in done.out


class Receiver(BaseHTTPRequestHandler):
    """What takes OTLP over HTTP, and keeps the names of the spans it was sent."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        request = ExportTraceServiceRequest.FromString(body)
        for spans in (scope.spans for each in request.resource_spans for scope in each.scope_spans):
            self.server.spans.extend(span.name for span in spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def receiver():
    with HTTPServer(("127.0.0.1", 0), Receiver) as server:
        server.spans = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_spans_are_sent_to_an_endpoint_once(call, receiver, tmp_path):
    endpoint = f"http://127.0.0.1:{receiver.server_port}/v1/traces"
    arguments = ("--endpoint", endpoint, "--state", str(tmp_path / "state.json"))
    assert call("sink", "opentelemetry", *arguments).code == 0
    sent = list(receiver.spans)
    assert len(sent) > 3
    again = call("sink", "opentelemetry", *arguments)
    assert (again.code, again.err) == (0, "0 events passed on\n")
    assert receiver.spans == sent


def test_an_endpoint_that_nobody_answers_at_is_a_clear_error(call, tmp_path, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        port = taken.getsockname()[1]
        endpoint = f"http://127.0.0.1:{port}/v1/traces"
        state = tmp_path / "state.json"
        done = call("sink", "opentelemetry", "--endpoint", endpoint, "--state", str(state))
    assert done.code == 3
    assert "the next attempt goes on where this one stopped" in done.err
