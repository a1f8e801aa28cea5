"""A backup holds all that was committed, however busy the database is, and is checked."""

import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from kasmina.domain.errors import SchemaMismatch, StoreUnavailable
from kasmina.infra import schema
from kasmina.infra.backup import Existing, back_up
from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store
from kasmina.infra.exchange.errors import UnwritableFile
from kasmina.testing import caught, epochs, run_opened

WRITER = """
import os, sys
from kasmina.infra.event_store import open_store
from kasmina.testing import epochs
with open_store(sys.argv[1]) as store:
    for n in range(10**6):
        store.append("busy", epochs(5, first=5 * n + 1), expected=5 * n)
        os.write(1, b"%d\\n" % (5 * n + 5))
"""

LIMITED = """
import resource, signal, sys
from pathlib import Path
from kasmina.infra.backup import back_up
from kasmina.infra.exchange.errors import UnwritableFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    back_up(sys.argv[1], Path(sys.argv[2]))
except UnwritableFile as error:
    print(error)
"""


@pytest.fixture
def copy(tmp_path):
    return tmp_path / "backup.db"


@pytest.fixture
def writer(url):
    """A process that appends five events at a time and says so, until it is killed."""
    command = [sys.executable, "-c", WRITER, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        yield process
        process.send_signal(signal.SIGKILL)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def tamper(path, statement):
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"DROP TRIGGER events_refuse_update; {statement}")


class TestABackup:
    def test_is_the_database_in_one_file(self, recorded, copy, path):
        made = back_up(recorded, copy)
        assert (made.path, made.schema, made.size) == (copy, schema.REVISION, copy.stat().st_size)
        assert [(run.run_id, run.events, run.sound) for run in made.runs] == [("digits-1", 6, True)]
        assert [name for name in names(copy.parent) if "backup" in name] == ["backup.db"]
        with open_store(recorded) as store, open_store(f"sqlite:///{copy}") as other:
            assert list(other.rows("digits-1")) == list(store.rows("digits-1"))

    def test_holds_what_is_in_the_wal_alone(self, store, url, copy, path, tmp_path):
        store.append("digits-1", [run_opened(), *epochs(40)], expected=0)
        shutil.copy(path, tmp_path / "naive.db")
        (run,) = back_up(url, copy).runs
        assert run.events == 41
        with closing(sqlite3.connect(tmp_path / "naive.db")) as naive:
            tables = naive.execute("SELECT count(*) FROM sqlite_master").fetchone()
            events = naive.execute("SELECT count(*) FROM events").fetchone() if tables[0] else (0,)
        assert events == (0,), "a copy of the file alone would have done"

    def test_needs_no_other_file_beside_it(self, recorded, copy):
        back_up(recorded, copy)
        with closing(sqlite3.connect(f"{copy.as_uri()}?immutable=1", uri=True)) as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
            assert connection.execute("SELECT count(*) FROM events").fetchone() == (6,)
        with open_store(f"sqlite:///{copy}", access=Access.READ) as store:
            assert store.verify("digits-1").sound
        assert not [name for name in names(copy.parent) if name.startswith("backup.db-")]

    def test_can_be_written_to_like_any_database(self, recorded, copy):
        back_up(recorded, copy)
        with open_store(f"sqlite:///{copy}") as store:
            store.append("digits-1", epochs(1, first=6), expected=6)
            assert store.verify("digits-1").sound

    def test_is_whole_while_another_process_writes(self, writer, url, tmp_path):
        for number in range(8):
            before = int(writer.stdout.readline())
            (run,) = back_up(url, tmp_path / f"{number}.db").runs
            assert run.sound
            assert run.events % 5 == 0, "half a transaction"
            assert run.events >= before, "an acknowledged event is missing"
        assert writer.poll() is None

    def test_says_which_runs_are_broken_in_the_database_itself(self, recorded, copy, path):
        tamper(path, "UPDATE events SET epoch = 99 WHERE sequence = 3")
        (run,) = back_up(recorded, copy).runs
        assert run.problems[0].sequence == 3
        assert copy.exists()

    def test_of_another_schema_is_made_and_only_its_pages_are_checked(self, recorded, copy, path):
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(f"UPDATE {schema.VERSION_TABLE} SET version_num = '0000'")
        made = back_up(recorded, copy)
        assert (made.schema, made.runs) == ("0000", None)


class TestRefusing:
    def test_a_file_that_is_there_is_kept_unless_it_is_to_be_replaced(self, recorded, copy):
        copy.write_bytes(b"before")
        error = caught(UnwritableFile, back_up, recorded, copy)
        assert "--replace" in error.mend
        assert copy.read_bytes() == b"before"
        assert back_up(recorded, copy, existing=Existing.REPLACE).size == copy.stat().st_size

    def test_the_database_itself_is_never_replaced(self, recorded, path, tmp_path):
        link = tmp_path / "link.db"
        link.symlink_to(path)
        for name in (path, link):
            error = caught(UnwritableFile, back_up, recorded, name, existing=Existing.REPLACE)
            assert "the database itself" in error.problem

    def test_a_database_in_use_is_never_replaced(self, recorded, copy):
        with open_store(f"sqlite:///{copy}") as other:
            other.append("other", [run_opened("other")], expected=0)
            error = caught(UnwritableFile, back_up, recorded, copy, existing=Existing.REPLACE)
            assert "backup.db-wal" in error.problem
            assert other.verify("other").events == 1

    def test_a_wal_that_was_left_behind_would_be_taken_for_the_backups(self, recorded, copy):
        copy.with_name("backup.db-wal").write_bytes(b"left")
        caught(UnwritableFile, back_up, recorded, copy)

    def test_a_folder_that_is_not_there_is_told(self, recorded, copy):
        assert "No such" in caught(UnwritableFile, back_up, recorded, copy / "a.db").problem

    def test_a_full_disk_is_told_and_leaves_nothing_behind(self, url, copy):
        with open_store(url) as store:
            store.append("digits-1", [run_opened(), *epochs(2000)], expected=0)
            command = [sys.executable, "-c", LIMITED, url, str(copy)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "backup.db was not written" in done.stdout
        assert [name for name in names(copy.parent) if "backup" in name] == []

    def test_a_database_that_is_not_there_is_not_created(self, url, path, copy):
        caught(StoreUnavailable, back_up, url, copy)
        assert names(copy.parent) == []

    def test_what_is_no_database_of_kasminas_is_refused(self, url, path, copy):
        path.touch()
        assert caught(SchemaMismatch, back_up, url, copy).found is None
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE theirs (a)")
        assert "theirs" in caught(SchemaMismatch, back_up, url, copy).found
        path.write_bytes(b"no database at all" * 100)
        caught(UnwritableFile, back_up, url, copy)
        assert names(copy.parent) == ["runs.db"]

    def test_a_damaged_copy_is_not_kept(self, recorded, path, copy):
        data = bytearray(path.read_bytes())
        with closing(sqlite3.connect(path)) as connection:
            (page,) = connection.execute(
                "SELECT rootpage FROM sqlite_master WHERE name = 'events_run_sequence'"
                " OR name = 'sqlite_autoindex_events_1'"
            ).fetchone()
        data[4096 * (page - 1) + 8 : 4096 * page] = bytes(4096 - 8)
        path.write_bytes(data)
        error = caught(UnwritableFile, back_up, recorded, copy)
        assert "damaged" in error.problem
        assert not copy.exists()

    def test_on_postgresql_says_what_to_do_instead(self, copy):
        error = caught(StoreUnavailable, back_up, "postgresql://someone@nowhere/runs", copy)
        assert "pg_dump" in error.mend
        assert "kasmina db copy" in error.mend
