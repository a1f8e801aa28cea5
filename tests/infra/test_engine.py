"""Connections are set up as they must be, or say what is in the way."""

import sqlite3

import pytest
from sqlalchemy import text

from kasmina.domain.errors import StoreUnavailable
from kasmina.infra import engine, sqlite
from kasmina.infra.engine import Durability, locate
from kasmina.testing import caught


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("kasmina.db", "not a database URL"),
        ("", "not a database URL"),
        ("data/kasmina.db", "not a database URL"),
        ("mysql://host/db", "only SQLite and PostgreSQL"),
        ("postgresql+asyncpg://host/db", "only SQLite and PostgreSQL"),
        ("sqlite+aiosqlite:///kasmina.db", "only SQLite"),
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite://kasmina.db", "a path and nothing else"),
        ("sqlite:///kasmina.db?mode=ro", "a path and nothing else"),
    ],
)
def test_a_url_that_names_no_file_is_a_clear_error(url, problem):
    error = caught(StoreUnavailable, locate, url)
    assert problem in error.problem
    assert "sqlite:///kasmina.db" in error.mend


def test_a_password_is_not_repeated():
    assert "secret" not in str(caught(StoreUnavailable, locate, "mysql://me:secret@host/db"))


def test_a_relative_path_is_fixed_when_it_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate("sqlite:///runs.db").path == tmp_path / "runs.db"


def test_an_old_sqlite_is_refused_by_its_version(monkeypatch):
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    assert "but 3.38.0 is needed" in caught(StoreUnavailable, locate, "sqlite:///a.db").problem


@pytest.mark.parametrize("durability", Durability)
def test_a_writer_has_every_setting(recorded, durability):
    writer = locate(recorded).writer(durability)
    with writer.connect() as connection:
        settings = {
            name: connection.scalar(text(f"PRAGMA {name}"))
            for name in ("journal_mode", "synchronous", "recursive_triggers", "foreign_keys")
        }
        waits = connection.scalar(text("PRAGMA busy_timeout"))
    writer.dispose()
    assert settings == {
        "journal_mode": "wal",
        "synchronous": {Durability.FULL: 2, Durability.RELAXED: 1}[durability],
        "recursive_triggers": 1,
        "foreign_keys": 1,
    }
    assert waits == 1000 * engine.BUSY_SECONDS


def test_a_reader_cannot_write(recorded):
    reader = locate(recorded).reader()
    with reader.connect() as connection:
        assert connection.scalar(text("PRAGMA query_only")) == 1
        with pytest.raises(Exception, match="readonly database"):
            connection.execute(text("DELETE FROM events"))
    reader.dispose()


def test_a_setting_that_does_not_hold_is_an_error(recorded, monkeypatch):
    monkeypatch.setattr(sqlite, "patiently", lambda act: None)
    writer = locate(recorded).writer(Durability.RELAXED)
    error = caught(StoreUnavailable, writer.connect)
    assert "SQLite set synchronous to 2 instead of 1" in error.problem
    assert "local disk" in error.mend


class TestSwitchingToWal:
    def busy(self, code=sqlite3.SQLITE_BUSY):
        error = sqlite3.OperationalError("database is locked")
        error.sqlite_errorcode = code
        return error

    def test_is_tried_until_the_lock_is_free(self):
        tries = iter([self.busy(), self.busy(), None])

        def act():
            if error := next(tries):
                raise error

        sqlite.patiently(act)
        assert list(tries) == []

    def test_gives_up_in_the_end(self, monkeypatch):
        monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.03)
        error = self.busy()
        assert caught(sqlite3.OperationalError, sqlite.patiently, self.raising(error)) is error

    def test_does_not_repeat_what_will_not_change(self):
        error = self.busy(sqlite3.SQLITE_READONLY)
        assert caught(sqlite3.OperationalError, sqlite.patiently, self.raising(error)) is error

    def raising(self, error):
        def act():
            raise error

        return act


@pytest.mark.parametrize("name", ["plain", "sp ace", "größe", "100%", "what?", "a#b", "a&b=c"])
def test_a_file_may_have_any_name(tmp_path, name):
    database = locate(f"sqlite:///{tmp_path / 'runs.db'}")
    database.path = tmp_path / name
    writer = database.writer(Durability.FULL, create=True)
    with writer.begin() as connection:
        connection.execute(text("CREATE TABLE t (c)"))
    writer.dispose()
    assert [path.name for path in tmp_path.iterdir()] == [name]
