"""What goes wrong under a store is a clear error, nothing is half done, and it can go on."""

import sqlite3

import pytest
from sqlalchemy import exc

from kasmina.domain.errors import ConcurrentAppend, SchemaMismatch, StoreUnavailable
from kasmina.infra import migrate, schema
from kasmina.infra.engine import Access, locate, translated
from kasmina.infra.event_store import open_store
from kasmina.infra.sqlite import SqliteDatabase
from kasmina.testing import caught, epochs


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
        assert (error.found, error.expected) == (None, schema.REVISION)
        assert "kasmina db upgrade" in error.mend
        assert path.stat().st_size == 0
        with open_store(url) as store:
            store.append("digits-1", epochs(1), expected=0)


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

    def test_a_file_deleted_while_waiting_for_the_lock(self, recorded, path, monkeypatch):
        with open_store(recorded) as store:
            monkeypatch.setattr(SqliteDatabase, "begin", lambda self, cursor: path.unlink())
            error = caught(StoreUnavailable, store.append, "digits-1", epochs(1), expected=6)
            assert "deleted or replaced" in error.problem

    def test_a_full_disk(self, recorded, monkeypatch):
        def begin_with_little_room(self, cursor):
            (pages,) = cursor.execute("PRAGMA page_count").fetchone()
            cursor.execute(f"PRAGMA max_page_count = {pages + 4}")
            cursor.execute("BEGIN IMMEDIATE")

        with open_store(recorded) as store:
            with monkeypatch.context() as patched:
                patched.setattr(SqliteDatabase, "begin", begin_with_little_room)
                error = caught(StoreUnavailable, store.append, "digits-1", epochs(500), expected=6)
                assert "the disk is full" in error.problem
            assert store.head("digits-1").sequence == 6
        with open_store(recorded) as store:
            store.append("digits-1", epochs(500), expected=6)
            assert store.verify("digits-1").sound

    def test_an_error_in_the_middle_of_an_append_leaves_nothing(self, recorded, monkeypatch):
        insert = SqliteDatabase.insert

        def insert_and_fail(self, cursor, rows):
            insert(self, cursor, rows)
            cursor.execute("INSERT INTO nowhere VALUES (1)")

        with open_store(recorded) as store:
            with monkeypatch.context() as patched:
                patched.setattr(SqliteDatabase, "insert", insert_and_fail)
                error = caught(StoreUnavailable, store.append, "digits-1", epochs(1), expected=6)
                assert "the database refused" in error.problem
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
        for raised in (cause, exc.OperationalError("SELECT", {}, cause)):
            error = self.told(raised)
            assert problem in error.problem
            assert "what it said" in error.problem
            assert error.target == "sqlite:///runs.db"

    def test_errors_without_a_code_are_told_too(self):
        for cause in (sqlite3.ProgrammingError("closed"), ValueError("closed")):
            error = self.told(exc.OperationalError("SELECT", {}, cause))
            assert "refused: closed" in error.problem
        assert "no turn" in self.told(exc.TimeoutError("no turn")).problem
        assert "else" in self.told(exc.SQLAlchemyError("something else")).problem

    def told(self, raised):
        def fail():
            with translated(locate("sqlite:///runs.db")):
                raise raised

        return caught(StoreUnavailable, fail)
