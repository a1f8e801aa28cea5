"""The commands as a person or a script meets them: output, exit codes, errors."""

import json
import sqlite3

import pytest

from kasmina.adapters.cli import replay_command
from kasmina.domain import commands as c
from kasmina.domain.machine import EDGES
from kasmina.infra.event_store import open_store

READING = [
    ("runs",),
    ("replay", "digits"),
    ("replay", "latest"),
    ("audit", "digits"),
    ("diff", "digits@epoch:3"),
    ("verify", "--all"),
    ("blueprints",),
    ("stages",),
    ("db", "current"),
]


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
class TestEveryReadingCommand:
    def test_fits_the_terminal(self, call, arguments):
        done = call(*arguments)
        assert (done.code, done.err) == (0, "")
        assert max(map(len, done.out.splitlines())) <= 80

    def test_prints_one_json_document_when_asked(self, call, arguments):
        done = call(*arguments, "--json")
        assert (done.code, done.err) == (0, "")
        assert json.loads(done.out, parse_constant=pytest.fail)

    def test_explains_itself(self, call, arguments):
        done = call(*(a for a in arguments if a.isalpha() and a not in {"digits", "latest"}), "-h")
        assert done.code == 0
        assert "--json" in done.out


class TestRuns:
    def test_tells_where_every_run_stands(self, call):
        first, second = json.loads(call("runs", "--json").out)["runs"]
        assert first["run_id"] == "digits-k3v7qx2a"
        assert first["slots"] == {"stem": "TRAINING", "body": "FOSSILIZED"}
        assert (first["epochs"], first["events"], first["closed"]) == (9, 68, True)
        assert first["opened_at"] == "2026-01-01T00:00:00.000000+00:00"
        assert (second["slots"], second["objective"]["latest"]) == ({}, None)

    def test_an_empty_database_is_no_error(self, call, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)  # a path as long as a test's own would be folded
        url = "sqlite:///empty.db"
        assert call("db", "upgrade", "--database", url).code == 0
        done = call("runs", "--database", url)
        assert (done.code, done.out.split()) == (0, [url, "holds", "no", "runs", "yet"])
        assert json.loads(call("runs", "--database", url, "--json").out) == {
            "runs": [],
            "older_than": None,
        }


class TestReplay:
    def test_ends_at_the_head(self, call):
        shown = json.loads(call("replay", "digits", "--json").out)
        assert (shown["sequence"], shown["head"], shown["closed"]) == (68, 68, True)
        body = shown["slots"][1]
        assert (body["stage"], body["stage_code"], body["seed"]["alpha"]) == ("FOSSILIZED", 7, 1.0)
        assert body["gates"]["G4"] == {"passed": True, "score": 0.9731}

    def test_says_how_a_seed_learnt_and_what_its_rehearsals_were_worth(self, call):
        seed = json.loads(call("replay", "digits", "--json").out)["slots"][1]["seed"]
        assert seed["incubation"]["incubator"] == "rehearsal"
        assert (seed["blend"]["search"], seed["target"]) == ([0.5, 1.0], 1.0)
        best = {"alpha": 1.0, "contribution": pytest.approx(0.4)}
        assert (seed["rehearsals"], seed["best_rehearsal"]) == ([best], best)
        unrehearsed = json.loads(call("replay", "digits", "--at", "6", "--json").out)
        assert unrehearsed["slots"][1]["seed"]["best_rehearsal"] is None

    def test_goes_back_to_a_sequence(self, call):
        shown = json.loads(call("replay", "digits", "--at", "6", "--json").out)
        assert shown["sequence"] == 6
        assert [slot["stage"] for slot in shown["slots"]] == ["DORMANT", "DORMANT"]
        assert max(moment["sequence"] for moment in shown["timeline"]) == 6

    def test_goes_back_to_the_end_of_an_epoch(self, call):
        shown = json.loads(call("replay", "digits", "--epoch", "5", "--json").out)
        assert (shown["epoch"], shown["rewinds"]) == (5, 1)
        assert shown["slots"][0]["stage"] == "EMBARGOED"

    def test_before_a_rewind_nothing_is_undone(self, call):
        def undone(*arguments):
            timeline = json.loads(call("replay", "digits", "--json", *arguments).out)["timeline"]
            return [moment["sequence"] for moment in timeline if moment["undone"]]

        assert undone("--at", "32") == []
        assert undone() == [31, 32]
        assert "TRAINING → BLENDING (undone)" in call("replay", "digits").out

    def test_non_finite_numbers_are_strings(self, call):
        shown = json.loads(call("replay", "digits", "--epoch", "4", "--json").out)
        assert shown["objective"]["latest"] == "NaN"

    def test_following_a_closed_run_ends_at_once(self, call):
        assert call("replay", "digits", "--follow").out == call("replay", "digits").out

    def test_following_as_json_prints_every_event_on_a_line(self, call):
        lines = call("replay", "digits", "--follow", "--json").out.splitlines()
        events = [json.loads(line) for line in lines]
        assert [event["sequence"] for event in events] == list(range(1, 69))
        assert events[0]["type"] == "RunOpened"
        assert events[-1]["type"] == "RunClosed"
        assert len(bytes.fromhex(events[-1]["digest"])) == 32

    def test_follows_a_run_until_it_is_closed(self, call, url, story, monkeypatch):
        with open_store(url) as store:
            written = story(store, "live-1", name="live")
            written.slots("body")
            acts = [
                lambda: written.epoch(70.0),
                lambda: written.germinate("body", "s1", "norm", 32),
                lambda: written.handle(c.CloseRun),
            ]

            def act():
                acts.pop(0)()

            monkeypatch.setattr(replay_command, "_wait", act)
            done = call("replay", "live", "--follow")
        assert (done.code, acts) == (0, [])
        assert "epoch recorded, objective 70" in done.out
        assert "G1 passed, score 1.00" in done.out
        assert done.out.index("live-1  open") < done.out.index("live-1  closed")

    def test_ctrl_c_ends_following(self, call, monkeypatch):
        def interrupted():
            raise KeyboardInterrupt

        monkeypatch.setattr(replay_command, "_wait", interrupted)
        assert call("replay", "blank", "--follow").code == 130


class TestAudit:
    def test_shows_every_decision_with_its_checks(self, call):
        shown = json.loads(call("audit", "digits", "--json").out)
        assert shown["summary"] == {"decisions": 21, "passed": 11, "refused": 10, "undone": 1}
        refusal = next(d for d in shown["decisions"] if d["sequence"] == 18)
        assert (refusal["gate"], refusal["slot_id"], refusal["passed"]) == ("G2", "body", False)
        assert refusal["checks"][2] == {
            "name": "improvement",
            "measured": pytest.approx(0.2),
            "comparison": ">=",
            "required": 0.5,
            "margin": pytest.approx(-0.3),
            "passed": False,
        }

    @pytest.mark.parametrize(
        ("arguments", "sequences"),
        [
            (("--slot", "stem", "--refused"), [19, 22, 27, 39, 66]),
            (("--gate", "G4"), [54]),
            (("--gate", "g5", "--slot", "body"), [63]),
            (("--gate", "G5", "--refused"), []),
        ],
        ids=str,
    )
    def test_chooses(self, call, arguments, sequences):
        decisions = json.loads(call("audit", "digits", "--json", *arguments).out)["decisions"]
        assert [decision["sequence"] for decision in decisions] == sequences

    def test_ends_with_a_count(self, call):
        last = call("audit", "digits").out.splitlines()[-1]
        assert last == "21 decisions: 11 passed, 10 refused; 1 undone by a rewind"

    def test_a_run_without_decisions_is_no_error(self, call):
        assert call("audit", "blank").out == "0 decisions: 0 passed, 0 refused\n"


class TestVerify:
    def test_says_that_a_run_is_intact(self, call):
        done = call("verify", "digits")
        assert done.code == 0
        assert done.out.startswith("✓ digits-k3v7qx2a  intact, 68 events, head digest ")

    def test_names_the_first_bad_sequence(self, call, url):
        tamper(url, "UPDATE events SET epoch = 3 WHERE sequence = 18")
        done = call("verify", "--all")
        assert done.code == 1
        assert "✗ digits-k3v7qx2a  broken at event #18" in done.out
        assert "✓ blank-77aa22bb  intact" in done.out

    def test_says_so_to_programs(self, call, url):
        tamper(url, "DELETE FROM events WHERE sequence = 18")
        done = call("verify", "digits", "--json")
        shown = json.loads(done.out)
        assert (done.code, shown["sound"]) == (1, False)
        assert shown["runs"][0]["problems"][0]["sequence"] == 18
        assert shown["runs"][0]["problems"][0]["flaw"] == "missing"


class TestCatalogue:
    def test_blueprints_by_topology_and_width(self, call):
        arguments = ("--topology", "transformer", "--width", "32", "--json")
        shown = json.loads(call("blueprints", *arguments).out)
        assert shown["width"] == 32
        assert {blueprint["topology"] for blueprint in shown["blueprints"]} == {"transformer"}
        assert {b["name"]: b["parameters"] for b in shown["blueprints"]}["norm"] == 64

    def test_stages_as_json(self, call):
        shown = json.loads(call("stages", "--json").out)
        assert shown["stages"][0] == {"stage": "DORMANT", "code": 1}
        assert len(shown["edges"]) == len(EDGES)

    def test_stages_as_mermaid(self, call):
        assert call("stages", "--mermaid").out.startswith("stateDiagram-v2\n    [*] --> DORMANT\n")


class TestDatabase:
    def test_a_database_that_is_up_to_date(self, call):
        assert json.loads(call("db", "current", "--json").out)["up_to_date"] is True

    def test_an_empty_file_is_not_up_to_date(self, call, tmp_path):
        (tmp_path / "empty.db").touch()
        url = f"sqlite:///{tmp_path / 'empty.db'}"
        assert call("db", "current", "--database", url).code == 1
        assert call("db", "upgrade", "--database", url).code == 0
        assert call("db", "current", "--database", url).code == 0


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ((), "Usage: kasmina"),
            (("db",), "Usage: kasmina db"),
        ],
        ids=str,
    )
    def test_no_command_is_a_call_for_help(self, call, arguments, said):
        done = call(*arguments)
        assert (done.code, done.out.startswith(said)) == (0, True)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("nonsense",), 'Unknown command "nonsense"'),
            (("runs", "--jsn"), "Did you mean --json?"),
            (("replay",), "RUN requires an argument"),
            (("replay", "digtis"), "did you mean 'digits'"),
            (("replay", ""), "there is no run ''"),
            (("replay", "digits", "--at", "0"), "has no event 0: it has 1 to 68"),
            (("replay", "digits", "--at", "69"), "has no event 69: it has 1 to 68"),
            (("replay", "digits", "--epoch", "10"), "has no epoch 10: it has 0 to 9"),
            (("replay", "digits", "--at", "two"), 'unable to convert "two" into int'),
            (("replay", "digits", "--at", "2", "--follow"), "--at and --follow do not go together"),
            (("audit", "digits", "--gate", "G7"), 'Choose from: "G0", "G1"'),
            (("audit", "digits", "--slot", "stam"), "did you mean 'stem'?"),
            (("verify",), "give a RUN or --all"),
            (("verify", "digits", "--all"), "RUN and --all do not go together"),
            (("blueprints", "--width", "0"), "Must be >= 1"),
            (("blueprints", "--topology", "rnn"), 'Choose from: "cnn", "transformer"'),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_a_request_that_makes_no_sense(self, call, arguments, said):
        done = call(*arguments)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("error: ")
        assert said in done.err
        assert done.err.count("\n") == 1

    def test_an_ambiguous_run_lists_its_candidates(self, call, url, story):
        with open_store(url) as store:
            story(store, "digits-zz", name="digits")
        done = call("audit", "digits")
        assert done.code == 2
        assert "could be any of 2 runs; name one: digits-k3v7qx2a, digits-zz" in done.err

    @pytest.mark.parametrize("command", [("runs",), ("replay", "latest"), ("verify", "--all")])
    def test_a_store_that_cannot_be_read(self, call, tmp_path, command):
        path = tmp_path / "other.db"
        missing = call(*command, "--database", f"sqlite:///{path}")
        path.write_text("not a database, and longer than the header of one " * 20)
        foreign = call(*command, "--database", f"sqlite:///{path}")
        nonsense = call(*command, "--database", "kasmina.db")
        for done, said in (
            (missing, "there is no such file"),
            (foreign, "not a SQLite database"),
            (nonsense, "not a database URL"),
        ):
            assert (done.code, done.out) == (3, "")
            assert said in done.err

    def test_a_newer_schema(self, call, url):
        tamper(url, "UPDATE kasmina_schema SET version_num = '9999'")
        done = call("runs")
        assert done.code == 3
        assert "newer" in done.err

    def test_an_event_that_cannot_be_read(self, call, url):
        tamper(url, "UPDATE events SET payload = '{' WHERE sequence = 18")
        done = call("replay", "digits")
        assert (done.code, done.out) == (3, "")
        assert "sequence 18" in done.err

    def test_programs_get_errors_as_json(self, call):
        done = call("audit", "nosuch", "--json")
        assert (done.code, done.out) == (2, "")
        error = json.loads(done.err)["error"]
        assert (error["type"], error["exit_code"]) == ("UnknownRun", 2)
        assert "there is no run 'nosuch'" in error["message"]

    def test_an_error_cannot_steer_the_terminal(self, call):
        assert "\x1b" not in call("--\x1b[31m").err


def tamper(url, statement):
    """Change the database as its triggers would not have it."""
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        triggers = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        for (name,) in triggers.fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(statement)
    connection.close()
