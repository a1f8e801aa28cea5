"""What goes wrong under a store is a clear error, nothing is half done, and it can go on."""

import os
import sqlite3
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import event, exc, text

from kasmina.domain.errors import ConcurrentAppend, SchemaMismatch, StoreUnavailable
from kasmina.infra import engine, migrate
from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store
from kasmina.infra.faults import fault
from kasmina.testing import caught, epochs

NOBODY = 65534


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(engine, "BUSY_SECONDS", 0.05)


@contextmanager
def permissions(path, mode):
    """Take permissions away; root, who has them all, becomes an ordinary user meanwhile."""
    before = path.stat().st_mode
    path.chmod(mode)
    user = os.getresuid()
    if user[1] == 0:
        os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(*user)
        path.chmod(before)


@pytest.fixture
def folder():
    """A folder that any user can reach and, until told otherwise, use."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o777)
        yield path


def shared(folder):
    """A database with two events that any user may read and write."""
    url = f"sqlite:///{folder / 'runs.db'}"
    with open_store(url) as store:
        store.append("digits-1", epochs(2), expected=0)
    (folder / "runs.db").chmod(0o666)
    return url


class TestFilesThatCannotBeUsed:
    @pytest.mark.parametrize("access", Access)
    def test_a_folder_that_is_not_there(self, tmp_path, access):
        url = f"sqlite:///{tmp_path / 'no' / 'runs.db'}"
        error = caught(StoreUnavailable, open_store, url, access=access)
        assert error.target == url
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("access", Access)
    def test_a_folder_in_place_of_a_file(self, tmp_path, access):
        error = caught(StoreUnavailable, open_store, f"sqlite:///{tmp_path}", access=access)
        assert "not a file" in error.problem

    def test_a_reader_does_not_create_a_file(self, tmp_path, url):
        error = caught(StoreUnavailable, open_store, url, access=Access.READ)
        assert "no such file" in error.problem
        assert "check the path" in error.mend
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("access", Access)
    @pytest.mark.parametrize("content", [b"just some text, and not a little\n" * 100, b"x" * 100])
    def test_a_file_that_is_no_database(self, path, url, content, access):
        path.write_bytes(content)
        error = caught(StoreUnavailable, open_store, url, access=access)
        assert "not a SQLite database" in error.problem
        assert path.read_bytes() == content

    @pytest.mark.parametrize("access", Access)
    def test_a_damaged_file(self, path, url, recorded, access):
        path.write_bytes(path.read_bytes()[:4096] + os.urandom(path.stat().st_size - 4096))
        error = caught(StoreUnavailable, self.read_all, url, access)
        assert "damaged" in error.problem
        assert "backup" in error.mend

    @pytest.mark.parametrize("access", Access)
    def test_a_file_cut_short(self, path, url, recorded, access):
        path.write_bytes(path.read_bytes()[:9000])
        caught(StoreUnavailable, self.read_all, url, access)

    def read_all(self, url, access):
        with open_store(url, access=access) as store:
            list(store.read("digits-1"))

    @pytest.mark.parametrize("act", [open_store, migrate.upgrade, migrate.current])
    def test_another_programs_database(self, path, url, sql, act):
        sql("CREATE TABLE bookmarks (title)")
        before = path.read_bytes()
        error = caught(SchemaMismatch, act, url)
        assert error.found == "the tables of another program (bookmarks)"
        assert path.read_bytes() == before
        assert [other.name for other in path.parent.iterdir()] == [path.name]

    def test_an_empty_file_is_a_new_database_for_a_writer_only(self, path, url):
        path.touch()
        error = caught(SchemaMismatch, open_store, url, access=Access.READ)
        assert (error.found, error.expected) == (None, "0001")
        assert "kasmina db upgrade" in error.mend
        assert path.stat().st_size == 0
        with open_store(url) as store:
            store.append("digits-1", epochs(1), expected=0)


class TestPermissions:
    def test_a_file_that_may_only_be_read(self, folder):
        url = shared(folder)
        with permissions(folder / "runs.db", 0o444):
            error = caught(StoreUnavailable, open_store, url)
            assert f"{folder / 'runs.db'} may only be read" in error.problem
            with open_store(url, access=Access.READ) as store:
                assert store.verify("digits-1").sound

    def test_a_folder_that_may_only_be_read(self, folder):
        url = shared(folder)
        with permissions(folder, 0o555):
            assert "may only be read" in caught(StoreUnavailable, open_store, url).problem
            new = f"sqlite:///{folder / 'new.db'}"
            assert "may only be read" in caught(StoreUnavailable, open_store, new).problem
            error = caught(StoreUnavailable, open_store, url, access=Access.READ)
            assert "copy it to a folder of your own" in error.mend
        with open_store(url) as store:
            assert store.head("digits-1").sequence == 2

    def test_a_file_that_may_not_be_read(self, folder):
        url = shared(folder)
        with permissions(folder / "runs.db", 0o000):
            error = caught(StoreUnavailable, open_store, url, access=Access.READ)
            assert "cannot be opened" in error.problem


class TestWhileInUse:
    def test_a_store_opened_for_reading_does_not_write(self, recorded):
        with open_store(recorded, access=Access.READ) as store:
            error = caught(StoreUnavailable, store.append, "a", epochs(1), expected=0)
        assert "Access.WRITE" in error.mend

    def test_a_closed_store_says_so(self, recorded):
        with open_store(recorded) as store:
            pass
        for act in (lambda: store.append("a", epochs(1), expected=0), lambda: store.head("a")):
            assert "closed" in caught(StoreUnavailable, act).problem

    def test_a_lock_that_another_process_keeps(self, recorded, path, impatient):
        with open_store(recorded) as store:
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                error = caught(StoreUnavailable, store.append, "digits-1", epochs(1), expected=6)
                assert "locked" in error.problem
                assert store.head("digits-1").sequence == 6  # readers do not wait
            store.append("digits-1", epochs(1), expected=6)

    def test_a_lock_on_everything_while_opening(self, recorded, path, impatient):
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("PRAGMA locking_mode = EXCLUSIVE")
            other.execute("BEGIN EXCLUSIVE")
            for access in Access:
                error = caught(StoreUnavailable, open_store, recorded, access=access)
                assert "locked" in error.problem

    def test_a_deleted_file(self, recorded, path):
        with open_store(recorded) as store:
            path.unlink()
            for act in (
                lambda: store.append("digits-1", epochs(1), expected=6),
                lambda: store.head("digits-1"),
            ):
                assert "deleted or replaced" in caught(StoreUnavailable, act).problem
        with open_store(recorded) as store:
            assert store.head("digits-1").sequence == 0

    def test_a_file_deleted_while_waiting_for_the_lock(self, recorded, path):
        with open_store(recorded) as store:
            event.listen(store._writer, "begin", lambda connection: path.unlink())
            error = caught(StoreUnavailable, store.append, "digits-1", epochs(1), expected=6)
            assert "deleted or replaced" in error.problem

    def test_a_file_replaced_by_another(self, recorded, path, tmp_path):
        with open_store(recorded) as store:
            copy = tmp_path / "copy"
            copy.write_bytes(path.read_bytes())
            copy.rename(path)
            error = caught(StoreUnavailable, store.append, "digits-1", epochs(1), expected=6)
            assert "deleted or replaced" in error.problem

    def test_a_full_disk(self, recorded):
        with open_store(recorded) as store:
            pages = self.pragma(store, "page_count")
            self.pragma(store, f"max_page_count = {pages + 4}")
            error = caught(StoreUnavailable, store.append, "digits-1", epochs(500), expected=6)
            assert "the disk is full" in error.problem
            assert store.head("digits-1").sequence == 6
            self.pragma(store, "max_page_count = 1000000")
            store.append("digits-1", epochs(500), expected=6)
            assert store.verify("digits-1").sound

    def pragma(self, store, name):
        with store._writer.connect() as connection:
            value = connection.scalar(text(f"PRAGMA {name}"))
            connection.rollback()
            return value

    def test_an_error_in_the_middle_of_an_append_leaves_nothing(self, recorded, monkeypatch):
        with open_store(recorded) as store:
            monkeypatch.setattr(store, "_insertion", "INSERT INTO nowhere VALUES (?)")
            error = caught(StoreUnavailable, store.append, "digits-1", epochs(1), expected=6)
            assert "the database refused" in error.problem
            monkeypatch.undo()
            assert store.append("digits-1", epochs(1), expected=6)[0].sequence == 7

    def test_a_refused_append_leaves_the_connection_usable(self, recorded):
        with open_store(recorded) as store:
            for _ in range(20):
                caught(ConcurrentAppend, store.append, "digits-1", epochs(1), expected=0)
            store.append("digits-1", epochs(1), expected=6)


class TestTranslation:
    @pytest.mark.parametrize(
        ("code", "problem"),
        [
            (sqlite3.SQLITE_BUSY, "locked"),
            (sqlite3.SQLITE_BUSY_SNAPSHOT, "locked"),
            (sqlite3.SQLITE_LOCKED, "locked"),
            (sqlite3.SQLITE_FULL, "full"),
            (sqlite3.SQLITE_IOERR_WRITE, "could not be read or written"),
            (sqlite3.SQLITE_READONLY_DIRECTORY, "only be read"),
            (sqlite3.SQLITE_CORRUPT, "damaged"),
            (sqlite3.SQLITE_NOTADB, "not a SQLite database"),
            (sqlite3.SQLITE_CANTOPEN, "cannot be opened"),
            (sqlite3.SQLITE_MISUSE, "refused: what it said"),
        ],
    )
    def test_each_code_is_told_in_words(self, code, problem):
        cause = sqlite3.OperationalError("what it said")
        cause.sqlite_errorcode = code
        error = fault(exc.OperationalError("SELECT", {}, cause), "sqlite:///runs.db")
        assert problem in error.problem
        assert "what it said" in error.problem
        assert error.target == "sqlite:///runs.db"

    def test_errors_without_a_code_are_told_too(self):
        for cause in (sqlite3.ProgrammingError("closed"), ValueError("closed")):
            error = fault(exc.OperationalError("SELECT", {}, cause), "sqlite:///runs.db")
            assert "refused: closed" in error.problem
        assert "no turn" in fault(exc.TimeoutError("no turn"), "sqlite:///runs.db").problem
        assert "else" in fault(exc.SQLAlchemyError("something else"), "sqlite:///runs.db").problem
