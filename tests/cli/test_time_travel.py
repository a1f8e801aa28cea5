"""A run at any point, two points side by side, forks, and a run that is followed as it is lived."""

import json
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from threading import Timer

import pytest
from attrs import evolve

from kasmina.adapters.cli import replay_command
from kasmina.adapters.cli.output import plain
from kasmina.adapters.cli.render.comparison import render_diff
from kasmina.adapters.cli.render.state import render_state
from kasmina.adapters.cli.render.timeline import render_record, render_timeline
from kasmina.domain import commands as c
from kasmina.domain import events as e
from kasmina.domain.comparison import differences
from kasmina.domain.evidence import Comparison
from kasmina.domain.policies import GatePolicy, MetricCheck
from kasmina.domain.projections import timeline
from kasmina.domain.stages import Gate
from kasmina.history import load
from kasmina.infra.event_store import open_store
from kasmina.service import fork
from kasmina.testing import FixedClock, MemoryEventStore, epochs, run_opened

GOLDEN = Path(__file__).parent / "golden"
PATIENCE = 60
KASMINA = [sys.executable, "-c", "from kasmina.adapters.cli.app import main; main()"]


def document(call, *arguments):
    done = call(*arguments, "--json")
    assert (done.code, done.err) == (0, "")
    return json.loads(done.out, parse_constant=pytest.fail)


@pytest.fixture
def golden(call, monkeypatch, request):
    """What a command prints, to the letter, at 80 and at 120 columns."""

    def check(name, *arguments):
        for width in (80, 120):
            monkeypatch.setenv("COLUMNS", str(width))
            file, text = GOLDEN / f"{name}-{width}.txt", call(*arguments).out
            assert max(map(len, text.splitlines())) <= width
            if os.environ.get("KASMINA_GOLDEN") == "write":
                file.write_text(text, encoding="utf-8")
            assert text == file.read_text(encoding="utf-8")

    return check


@pytest.fixture
def child(url):
    """A fork of the prepared run, at the record of its checkpoint, with an epoch of its own."""
    with open_store(url) as store:
        fork(store, "digits-k3v7qx2a", at=28, run_id="child-1", name="child")
        lived = e.EpochRecorded(epoch=5, step=115, objective=83.0)
        store.append("child-1", [lived], expected=1)
    return "child-1"


# --- replay --------------------------------------------------------------------------------


class TestReplay:
    @pytest.mark.parametrize(
        ("time", "sequence"),
        [
            ("2026-01-01T00:00", 1),
            ("2026-01-01T00:00:04.5", 7),
            ("2026-01-01T01:00:20+01:00", 32),  # before the rewind that came a second later
            ("2026-01-01T00:00:21Z", 33),
            ("2027-01-01", 68),
        ],
    )
    def test_goes_back_to_a_time(self, call, time, sequence):
        shown = document(call, "replay", "digits", "--time", time)
        assert (shown["sequence"], shown["head"]) == (sequence, 68)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--time", "2025-12-31T23:59"), "has no time 2025-12-31T23:59:00+00:00: it has 2026"),
            (("--time", "noon"), "'time:noon' is not a point in a run"),
            (("--time", "2026-01-01", "--epoch", "3"), "--epoch and --time do not go together"),
            (("--time", "2026-01-01", "--follow"), "--time and --follow do not go together"),
        ],
        ids=str,
    )
    def test_a_time_that_makes_no_sense(self, call, arguments, said):
        done = call("replay", "digits", *arguments)
        assert (done.code, done.out) == (2, "")
        assert said in done.err

    def test_says_where_a_run_was_forked_from(self, call, child):
        shown = document(call, "replay", child)
        assert shown["forked_from"]["run_id"] == "digits-k3v7qx2a"
        assert shown["forked_from"]["sequence"] == 28
        assert len(bytes.fromhex(shown["forked_from"]["digest"])) == 32
        assert document(call, "replay", "digits")["forked_from"] is None

    def test_shows_a_fork_with_the_slots_of_its_parent(self, golden, child):
        golden("replay-fork", "replay", child)


# --- diff ----------------------------------------------------------------------------------


class TestDiff:
    def test_a_point_and_the_head(self, golden):
        golden("diff-head", "diff", "digits@epoch:4")

    def test_two_points_around_a_rewind(self, golden):
        golden("diff-rewind", "diff", "digits@32", "digits@33")

    def test_a_run_and_its_fork(self, golden, child):
        golden("diff-fork", "diff", "digits@epoch:5", child)

    def test_two_runs_of_nothing_in_common(self, golden):
        golden("diff-strangers", "diff", "blank", "digits@3")

    def test_is_a_document_for_programs(self, call):
        shown = document(call, "diff", "digits@epoch:4", "digits@time:2026-01-01T00:00:20")
        assert shown["before"] == {
            "run_id": "digits-k3v7qx2a",
            "name": "digits",
            "sequence": 33,  # the end of epoch 4 that counts
            "epoch": 4,
            "step": 92,
        }
        assert shown["after"]["sequence"] == 32
        assert shown["parting"]["run_id"] == "digits-k3v7qx2a"
        assert (shown["parting"]["sequence"], shown["parting"]["after"]) == (32, [])
        (rewind,) = shown["parting"]["before"]
        assert (rewind["type"], rewind["sequence"], rewind["event"]["to"]) == ("RunRewound", 33, 28)
        stage = {"path": ["slots", "body", "stage"], "before": "TRAINING", "after": "BLENDING"}
        assert stage in shown["differences"]
        latest = {"path": ["latest"], "before": "NaN", "after": 83.5}
        assert latest in shown["differences"]

    def test_what_is_on_one_side_only_has_no_value_on_the_other(self, call):
        found = document(call, "diff", "digits@1", "digits@2")["differences"]
        (opened,) = [each for each in found if each["path"] == ["slots", "stem"]]
        assert "before" not in opened
        assert opened["after"]["stage"] == "DORMANT"

    def test_says_where_a_fork_and_its_parent_part(self, call, child):
        parting = document(call, "diff", child, "digits")["parting"]
        assert (parting["run_id"], parting["sequence"]) == ("digits-k3v7qx2a", 28)
        assert [moment["type"] for moment in parting["before"]] == ["RunForked"]
        assert {moment["run_id"] for moment in parting["after"]} == {"digits-k3v7qx2a"}
        assert [m["sequence"] for m in parting["after"] if m["undone"]] == [31, 32]

    def test_strangers_never_part(self, call):
        assert document(call, "diff", "blank", "digits")["parting"] is None

    def test_the_same_point_does_not_differ(self, call):
        shown = document(call, "diff", "digits@68", "digits")
        assert (shown["differences"], shown["parting"]["after"]) == ([], [])
        assert "no differences" in call("diff", "digits@68", "digits").out

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("digits",), "give a point, such as digits@epoch:1 or a second RUN"),
            (("digits@99",), "has no event 99: it has 1 to 68"),
            (("digits@epoch:10", "blank"), "has no epoch 10: it has 0 to 9"),
            (("digits@epch:3",), "'epch:3' is not a point in a run"),
            (("digtis@3",), "did you mean 'digits'"),
        ],
        ids=str,
    )
    def test_a_request_that_makes_no_sense(self, call, arguments, said):
        done = call("diff", *arguments)
        assert (done.code, done.out) == (2, "")
        assert said in done.err

    def test_figures_that_differ_read_as_different(self):
        state = load_epochs(1)
        text = shown_difference(state, latest=51.000001)
        assert "51.0 " in text
        assert "51.000001" in text

    def test_other_values_are_shown_on_a_line(self):
        state = load_epochs(1)
        check = MetricCheck(gate=Gate.G5, metric="a", comparison=Comparison.BELOW, required=2.0)
        text = shown_difference(state, policy=GatePolicy(extra_checks=(check,)), closed=True)
        assert "G5 a < 2" in text
        assert text.split("closed", 1)[1].split()[:2] == ["no", "yes"]


def load_epochs(count):
    store = MemoryEventStore()
    store.append("a", [run_opened("a"), *epochs(count)], expected=0)
    return load(store, "a")


def shown_difference(state, **changes):
    after = evolve(state, **changes)
    return plain(render_diff(state, after, differences(state, after), None, {}), width=80)


# --- fork ----------------------------------------------------------------------------------


class TestFork:
    def test_begins_a_run_that_other_commands_know(self, call, url):
        forked = document(call, "fork", "digits", "--at", "28", "--name", "what-if")
        assert forked["run_id"].startswith("what-if-")
        assert (forked["sequence"], forked["epoch"], forked["step"]) == (1, 4, 92)
        assert forked["forked_from"]["sequence"] == 28
        assert (forked["trainable"], forked["checkpoint"]) == (True, "checkpoints/digits-4.pt")
        assert document(call, "verify", "what-if")["sound"]
        assert document(call, "replay", "what-if")["run_id"] == forked["run_id"]
        assert document(call, "diff", "what-if", "digits@28")["differences"] != []
        assert document(call, "replay", "digits")["head"] == 68

    def test_is_listed_with_its_parent(self, call, child):
        listed = document(call, "runs")["runs"]
        assert [run["forked_from"] and run["forked_from"]["sequence"] for run in listed] == [
            None,
            None,
            28,
        ]
        assert "↳ digits-k3v7qx2a" in " ".join(call("runs").out.split())

    def test_says_how_to_go_on(self, call):
        out = call("fork", "digits", "--epoch", "4", "--name", "x").out.split()
        said = "  forked from digits-k3v7qx2a at #33, epoch 4 open_run(..., resume="
        assert " ".join(out[1:9]) + " resume=" == " ".join(said.split())
        assert " ".join(out[9:]) == f"resume='{out[0]}') goes on from checkpoints/digits-4.pt"

    def test_says_when_nobody_can_go_on(self, call):
        done = call("fork", "digits", "--epoch", "7", "--name", "x")
        assert done.code == 0
        text = " ".join(done.out.split())
        assert "last point before it that can be trained from is event 28" in text
        shown = document(call, "fork", "digits", "--epoch", "7", "--name", "x")
        assert (shown["trainable"], shown["checkpoint"]) == (False, None)

    def test_at_the_beginning_a_new_host_will_do(self, call):
        done = call("fork", "blank", "--at", "1", "--name", "x")
        assert "begins with a new host" in " ".join(done.out.split())
        shown = document(call, "fork", "blank", "--at", "1", "--name", "x")
        assert (shown["trainable"], shown["checkpoint"]) == (True, None)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--at", "30", "--name", "x"), "inside one decision, events 30 to 32; take 29 or 32"),
            (("--at", "69", "--name", "x"), "has no event 69: it has 1 to 68"),
            (("--epoch", "10", "--name", "x"), "has no epoch 10"),
            (("--at", "1", "--epoch", "1", "--name", "x"), "--at and --epoch do not go together"),
            (("--name", "x"), "give --at or --epoch"),
            (("--at", "1"), "--name"),
        ],
        ids=str,
    )
    def test_a_request_that_makes_no_sense_begins_nothing(self, call, arguments, said):
        done = call("fork", "digits", *arguments)
        assert (done.code, done.out) == (2, "")
        assert said in done.err
        assert len(document(call, "runs")["runs"]) == 2

    def test_creates_no_database(self, call, tmp_path):
        path = tmp_path / "missing.db"
        database = ("--database", f"sqlite:///{path}")
        assert call("fork", "digits", "--at", "1", "--name", "x", *database).code == 3
        assert not path.exists()


# --- following -----------------------------------------------------------------------------


@pytest.fixture
def live(url, story, monkeypatch):
    """A run that is lived while it is followed: each act between two looks at it."""
    with open_store(url, clock=FixedClock(step=timedelta(seconds=1))) as store:
        told = story(store, "live", name="live")
        told.slots("body")
        acts = []

        def act():
            acts.pop(0)()

        monkeypatch.setattr(replay_command, "_wait", act)
        yield told, acts


class TestFollowing:
    def test_a_rewind_marks_what_it_undid_and_what_counts_again(self, call, live):
        told, acts = live
        acts += [
            lambda: told.epoch(70.0),
            lambda: told.germinate("body", "s1", "norm", 32),
            lambda: told.rewind(3),
            lambda: told.rewind(8),
            lambda: told.handle(c.CloseRun),
        ]
        out = " ".join(call("replay", "live", "--follow").out.split())
        undone, again = out.split("rewound to #3; #4 to #8 undone ")[1:]
        assert "DORMANT → GERMINATED (undone)" in undone
        assert "GERMINATED → TRAINING (undone)" in undone
        assert "rewound to #8; #9 undone #5 epoch 1 body seed s1" in undone
        assert "DORMANT → GERMINATED (counts again)" in undone
        assert again.startswith("(undone)")

    def test_programs_are_told_which_events_a_rewind_turned(self, call, live):
        told, acts = live
        acts += [
            lambda: told.epoch(70.0),
            lambda: told.rewind(2),
            lambda: told.rewind(3),
            lambda: told.handle(c.CloseRun),
        ]
        out = call("replay", "live", "--follow", "--json").out
        lines = [json.loads(line) for line in out.splitlines()]
        first, second = [line for line in lines if line["type"] == "RunRewound"]
        assert (first["undone"], first["restored"]) == ([{"first": 3, "last": 3}], [])
        assert second["undone"] == [{"first": 4, "last": 4}]
        assert second["restored"] == [{"first": 3, "last": 3}]
        assert all("undone" not in line for line in lines if line["type"] != "RunRewound")

    def test_a_fork_is_followed_from_its_parent_s_state(self, call, url, child, monkeypatch):
        def act():
            with open_store(url) as store:
                closed = e.RunClosed(epoch=5, step=115)
                store.append(child, [closed], expected=2)

        monkeypatch.setattr(replay_command, "_wait", act)
        out = call("replay", child, "--follow").out
        assert out.count("forked from") == 3  # twice in the state, once in the timeline
        assert out.index("child-1  open") < out.index("child-1  closed")


WRITER = """
import sys
from kasmina import open_store
from kasmina.domain import commands as c
from kasmina.service import Journal, fork
from kasmina.testing import run_opened

with open_store(sys.argv[1]) as store:
    store.append("live", [run_opened("live", name="live")], expected=0)
    journal = Journal.open(store, "live", writer="w")
    acts = {
        "epoch": lambda: journal.handle(
            c.RecordEpoch(
                step=journal.state.step + 10, epoch=journal.state.epoch + 1, objective=1.0
            )
        ),
        "rewind": lambda: journal.rewind(2),
        "fork": lambda: fork(store, "live", at=2, run_id="child", name="child"),
        "close": lambda: journal.handle(c.CloseRun(step=journal.state.step)),
    }
    print("ready", flush=True)
    for line in sys.stdin:
        acts[line.strip()]()
"""


@pytest.fixture
def processes(url):
    """Starts processes whose input and output are pipes, and ends those that are left."""
    started, clocks = [], []
    environment = {**os.environ, "KASMINA_DATABASE": url, "COLUMNS": "80"}

    def start(*command):
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        clocks.append(Timer(PATIENCE, process.kill))  # so that no line is waited for in vain
        clocks[-1].start()
        return process

    yield start
    for clock in clocks:
        clock.cancel()
    for process in started:
        process.kill()
        process.communicate()


def test_a_run_is_followed_while_another_process_writes_it(processes, url):
    writer = processes(sys.executable, "-c", WRITER, url)
    assert writer.stdout.readline() == "ready\n"
    reader = processes(*KASMINA, "replay", "live", "--follow", "--json")
    lines = [json.loads(reader.stdout.readline())]
    for act, recorded in (
        ("epoch", True),
        ("epoch", True),
        ("rewind", True),
        ("fork", False),
        ("epoch", True),
        ("close", True),
    ):
        writer.stdin.write(f"{act}\n")
        writer.stdin.flush()
        if recorded:
            lines.append(json.loads(reader.stdout.readline()))
    out, complaint = reader.communicate(timeout=30)
    assert (reader.returncode, out, complaint) == (0, "", "")
    assert [line["sequence"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in lines] == [0, 1, 2, 1, 2, 2]
    assert lines[3]["undone"] == [{"first": 3, "last": 3}]
    assert lines[-1]["type"] == "RunClosed"
    _, complaint = writer.communicate(timeout=30)
    assert (writer.returncode, complaint) == (0, "")


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["for people", "for programs"])
def test_ctrl_c_ends_following_without_a_traceback(processes, options):
    reader = processes(*KASMINA, "replay", "blank", "--follow", *options)
    assert "blank" in reader.stdout.readline()
    reader.send_signal(signal.SIGINT)
    _, complaint = reader.communicate(timeout=30)
    assert (reader.returncode, complaint) == (130, "")


# --- events of a newer release -------------------------------------------------------------


def test_an_event_of_a_newer_release_is_shown_by_its_stored_type():
    unknown = e.UnknownEvent(
        epoch=1, step=10, type="SeedSplit", schema_version=1, payload="{}", slot_id="body"
    )
    store = MemoryEventStore()
    store.append("a", [run_opened("a"), *epochs(1)], expected=0)
    history = list(store.read("a"))
    record = history[-1]._replace(event=unknown)
    said = "SeedSplit (version 1), of a newer release"
    assert plain(render_record(record), width=80).split(maxsplit=3)[3] == f"body  {said}\n"
    text = plain(render_timeline(timeline([history[0], record])), width=80)
    assert ["#2", "1", "body", *said.split()] == text.splitlines()[-1].split()


def test_a_state_says_how_many_events_it_is_without():
    state = evolve(load_epochs(1), unknown_events=2)
    text = plain(render_state(state, head=4), width=80)
    assert "2 events that only a newer release can read" in text
