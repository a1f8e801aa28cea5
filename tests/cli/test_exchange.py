"""Runs out of a database and in again, through the commands."""

import csv
import gzip
import io
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from kasmina.infra import exchange
from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store
from tests.cli.test_commands import tamper

KASMINA = [sys.executable, "-c", "from kasmina.adapters.cli.app import main; main()"]
BOTH = ["digits-k3v7qx2a", "blank-77aa22bb"]


@pytest.fixture
def program(url):
    """The program in a process of its own."""

    def start(*arguments, **options):
        environment = {**os.environ, "KASMINA_DATABASE": url}
        return subprocess.run(
            [*KASMINA, *arguments], env=environment, capture_output=True, check=False, **options
        )

    return start


@pytest.fixture
def other(tmp_path):
    return f"sqlite:///{tmp_path / 'other.db'}"


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def contents(url, run_id):
    with open_store(url, access=Access.READ) as store:
        return [(row.columns, row.digest) for row in store.rows(run_id)]


class TestExport:
    def test_json_lines_go_to_the_standard_output(self, call):
        done = call("export", "digits", "--to", "jsonl")
        assert (done.code, done.err) == (0, "")
        assert [line["sequence"] for line in lines(done.out)] == list(range(1, 69))

    def test_all_runs_in_the_order_in_which_they_were_begun(self, call):
        found = [line["run_id"] for line in lines(call("export", "--all", "--to", "jsonl").out)]
        assert found == [BOTH[0]] * 68 + [BOTH[1]]

    def test_several_runs_are_exported_once_each(self, call):
        done = call("export", "blank", "digits", "blank-77", "--to", "jsonl")
        assert list(dict.fromkeys(line["run_id"] for line in lines(done.out))) == BOTH[::-1]
        assert len(done.out.splitlines()) == 69

    def test_csv_of_events_and_of_decisions(self, call):
        events = call("export", "digits", "--to", "csv").out
        assert len(list(csv.DictReader(io.StringIO(events, newline="")))) == 68
        checks = call("export", "digits", "--to", "csv", "--table", "gate_outcomes").out
        rows = list(csv.DictReader(io.StringIO(checks, newline="")))
        decided = json.loads(call("audit", "digits", "--json").out)["decisions"]
        assert len(rows) == sum(len(decision["checks"]) for decision in decided)
        assert {row["gate"] for row in rows} == {decision["gate"] for decision in decided}

    def test_a_file_says_what_it_holds(self, call, tmp_path):
        path = tmp_path / "out.jsonl"
        done = call("export", "--all", "--to", "jsonl", "--output", str(path))
        assert done.out == f"69 rows of 2 runs in {path}\n"
        assert len(lines(path.read_text())) == 69

    def test_parquet_says_so_to_programs(self, call, tmp_path):
        path = tmp_path / "out.parquet"
        arguments = ("--to", "parquet", "--table", "gate_outcomes", "--output", str(path))
        document = json.loads(call("export", "digits", *arguments, "--json").out)
        table = pq.read_table(path)
        assert document == {
            "output": str(path),
            "table": "gate_outcomes",
            "rows": table.num_rows,
            "runs": [BOTH[0]],
        }

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--to", "jsonl"), "give a RUN or --all"),
            (("digits", "--all", "--to", "jsonl"), "RUN and --all do not go together"),
            (("digits",), "--to"),
            (("digits", "--to", "xlsx"), 'Choose from: "jsonl", "parquet", "csv"'),
            (("digits", "--to", "parquet"), "give --output"),
            (
                ("digits", "--to", "jsonl", "--table", "gate_outcomes"),
                "--to jsonl and --table gate_outcomes do not go together",
            ),
            (("digits", "--to", "csv", "--table", "x"), '"events", "gate_outcomes"'),
            (("nosuch", "--to", "csv"), "there is no run 'nosuch'"),
        ],
        ids=str,
    )
    def test_a_request_that_makes_no_sense(self, call, arguments, said):
        done = call("export", *arguments)
        assert (done.code, done.out) == (2, "")
        assert said in done.err

    def test_a_database_is_not_replaced_by_what_was_exported_from_it(self, call, url):
        path = url.removeprefix("sqlite:///")
        done = call("export", "digits", "--to", "csv", "--output", path)
        assert done.code == 3
        assert "kasmina.db was not written: it is a database" in done.err
        assert call("verify", "--all").code == 0

    def test_a_package_that_is_missing_is_named_with_what_to_install(
        self, call, tmp_path, monkeypatch
    ):
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        monkeypatch.delitem(sys.modules, "kasmina.infra.exchange.parquet", raising=False)
        monkeypatch.delattr(exchange, "parquet", raising=False)
        path = tmp_path / "out.parquet"
        done = call("export", "digits", "--to", "parquet", "--output", str(path))
        assert done.code == 2
        assert "pip install 'kasmina[export]'" in done.err
        assert not path.exists()

    @pytest.mark.parametrize("kind", ["jsonl", "parquet"])
    def test_a_failure_in_the_middle_leaves_the_file_that_was_there(
        self, call, url, tmp_path, kind
    ):
        tamper(url, "UPDATE events SET payload = CAST(x'ff' AS TEXT) WHERE sequence = 60")
        path = tmp_path / "out"
        path.write_text("before")
        done = call("export", "digits", "--to", kind, "--output", str(path))
        assert (done.code, done.out) == (3, "")
        assert "event 60 of run 'digits-k3v7qx2a'" in done.err
        assert "`kasmina verify`" in done.err
        assert path.read_text() == "before"
        assert list(tmp_path.glob(".out*")) == []

    @pytest.mark.parametrize("kind", ["jsonl", "parquet"])
    def test_a_full_disk_leaves_the_file_that_was_there(self, program, url, tmp_path, kind):
        path = tmp_path / "out"
        path.write_text("before")

        def limited():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

        with open_store(url):  # what SQLite keeps beside the database is there already
            done = program(
                "export", "digits", "--to", kind, "--output", str(path), preexec_fn=limited
            )
        assert done.returncode == 3
        assert b"out was not written" in done.stderr
        assert b"File too large" in done.stderr
        assert path.read_text() == "before"

    def test_a_reader_that_leaves_is_no_error(self, url):
        command = [*KASMINA, "export", "--all", "--to", "csv", "--database", url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            process.stdout.close()
            complaint = process.stderr.read()
        assert (process.returncode, complaint) == (141, b"")


class TestImport:
    @pytest.fixture
    def exported(self, call, tmp_path):
        path = tmp_path / "runs.jsonl"
        assert call("export", "--all", "--to", "jsonl", "--output", str(path)).code == 0
        return path

    def test_a_new_database_is_made_that_verifies(self, call, url, other, exported):
        done = call("import", str(exported), "--database", other)
        assert done.code == 0
        assert done.out == "blank-77aa22bb  1 event added\ndigits-k3v7qx2a  68 events added\n"
        assert call("verify", "--all", "--database", other).code == 0
        for run_id in BOTH:
            assert contents(other, run_id) == contents(url, run_id)

    def test_runs_are_shown_as_they_were(self, call, other, exported):
        call("import", str(exported), "--database", other)
        for command in (("runs",), ("replay", "digits"), ("audit", "digits")):
            shown = call(*command, "--database", other, "--json").out
            assert shown == call(*command, "--json").out

    def test_importing_twice_says_that_nothing_is_new(self, call, exported):
        done = call("import", str(exported))
        assert "digits-k3v7qx2a  nothing to add to the 68 events that were here" in done.out

    def test_a_run_that_went_on_says_so(self, call, other, exported):
        part = exported.with_name("part.jsonl")
        part.write_text("".join(exported.read_text().splitlines(keepends=True)[:50]))
        call("import", str(part), "--database", other)
        done = call("import", str(exported), "--database", other)
        assert "digits-k3v7qx2a  18 events added to the 50 that were here" in done.out
        assert json.loads(call("import", str(exported), "--database", other, "--json").out) == {
            "added": 0,
            "present": 69,
            "runs": [
                {"run_id": BOTH[1], "added": 0, "present": 1},
                {"run_id": BOTH[0], "added": 0, "present": 68},
            ],
        }

    def test_one_program_may_feed_the_other(self, program, url, other):
        out = program("export", "--all", "--to", "jsonl").stdout
        done = program("import", "-", "--database", other, input=gzip.compress(out))
        assert (done.returncode, done.stderr) == (0, b"")
        assert contents(other, BOTH[0]) == contents(url, BOTH[0])
        done = program("import", "-", "--database", other, input=out[:-30])
        assert done.returncode == 3
        assert b"the standard input, line 69" in done.stderr

    def test_a_file_without_events_says_so(self, call, tmp_path):
        (tmp_path / "empty").touch()
        assert call("import", str(tmp_path / "empty")).out == "it holds no events\n"

    def test_an_altered_file_is_refused_and_nothing_is_there(self, call, other, exported):
        text = exported.read_text()
        exported.write_text(text.replace('"objective":81.25', '"objective":91.25'))
        assert exported.read_text() != text
        done = call("import", str(exported), "--database", other)
        assert (done.code, done.out) == (3, "")
        assert "of run 'digits-k3v7qx2a' is not the one that was recorded" in done.err
        assert call("runs", "--database", other).out.endswith("holds no runs yet\n")

    def test_the_limit_on_lines_can_be_raised(self, call, exported, other):
        done = call("import", str(exported), "--database", other, "--max-line", "500")
        assert done.code == 3
        assert "runs.jsonl, line 1: it is longer than 500 bytes" in done.err
        arguments = ("--database", other, "--max-line", "50000")
        assert call("import", str(exported), *arguments).code == 0
        assert call("import", str(exported), "--max-line", "0").code == 2

    def test_a_file_that_is_not_there_makes_no_database(self, call, other, tmp_path):
        done = call("import", str(tmp_path / "nosuch"), "--database", other)
        assert done.code == 3
        assert "nosuch cannot be read: No such file" in done.err
        assert not Path(other.removeprefix("sqlite:///")).exists()


class TestCopy:
    def test_all_runs_with_their_digests(self, call, url, other):
        done = call("db", "copy", url, other)
        assert done.out == "digits-k3v7qx2a  68 events added\nblank-77aa22bb  1 event added\n"
        assert call("verify", "--all", "--database", other).code == 0
        assert contents(other, BOTH[0]) == contents(url, BOTH[0])

    def test_chosen_runs_and_again(self, call, url, other):
        call("db", "copy", url, other, "blank")
        document = json.loads(call("db", "copy", url, other, "blank", "--json").out)
        assert document["runs"] == [{"run_id": BOTH[1], "added": 0, "present": 1}]

    def test_a_run_with_another_history_is_refused(self, call, url, other, story):
        with open_store(other) as store:
            story(store, BOTH[0], name="another")
        done = call("db", "copy", url, other)
        assert done.code == 3
        assert "run 'digits-k3v7qx2a' has another history here: its event 1" in done.err

    def test_a_source_that_is_not_there_makes_no_target(self, call, other, tmp_path):
        done = call("db", "copy", f"sqlite:///{tmp_path / 'nosuch.db'}", other)
        assert (done.code, Path(other.removeprefix("sqlite:///")).exists()) == (3, False)


class TestBackup:
    def test_is_made_and_checked(self, call, tmp_path):
        path = tmp_path / "backup.db"
        done = call("db", "backup", str(path))
        assert done.code == 0
        size = f"{path.stat().st_size:,} bytes"
        assert done.out == f"{size} in {path}: 2 runs, 69 events, every digest checked\n"
        assert call("verify", "--all", "--database", f"sqlite:///{path}").code == 0

    def test_a_file_that_is_there_is_kept_unless_asked(self, call, tmp_path):
        path = tmp_path / "backup.db"
        path.write_text("before")
        done = call("db", "backup", str(path))
        assert (done.code, path.read_text()) == (3, "before")
        assert "--replace" in done.err
        document = json.loads(call("db", "backup", str(path), "--replace", "--json").out)
        assert document["bytes"] == path.stat().st_size
        assert document["verification"]["sound"] is True

    def test_a_broken_run_is_told_and_backed_up(self, call, url, tmp_path):
        tamper(url, "UPDATE events SET epoch = 3 WHERE sequence = 18")
        path = tmp_path / "backup.db"
        done = call("db", "backup", str(path))
        assert done.code == 1
        assert "2 runs, 69 events, 1 broken as in the database itself" in done.out
        assert "✗ digits-k3v7qx2a  broken at event #18" in done.out
        assert path.exists()

    def test_another_schema_is_backed_up_before_it_is_upgraded(self, call, url, tmp_path):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
            connection.execute("UPDATE kasmina_schema SET version_num = '0000'")
        path = tmp_path / "backup.db"
        done = call("db", "backup", str(path))
        assert done.code == 0
        assert "schema 0000: the pages were checked, the runs were not" in done.out
        path.unlink()
        assert json.loads(call("db", "backup", str(path), "--json").out)["verification"] is None
