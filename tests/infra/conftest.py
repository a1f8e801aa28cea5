"""What the tests of the store share."""

import sqlite3
from contextlib import closing

import pytest

from kasmina.infra.event_store import open_store
from kasmina.testing import FixedClock, epochs, run_opened


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.db"


@pytest.fixture
def url(path):
    return f"sqlite:///{path}"


@pytest.fixture
def store(url):
    with open_store(url, clock=FixedClock()) as store:
        yield store


@pytest.fixture
def recorded(url):
    """A database with one run of six events, and nobody working on it."""
    with open_store(url, clock=FixedClock()) as store:
        store.append("digits-1", [run_opened()], expected=0, batch="w.1")
        store.append("digits-1", epochs(5), expected=1, batch="w.2")
    return url


@pytest.fixture
def sql(path):
    """Run statements on the database as any other program could."""

    def run(statement, *parameters):
        with closing(sqlite3.connect(path)) as connection, connection:
            return connection.execute(statement, parameters).fetchall()

    return run
