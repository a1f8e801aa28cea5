"""Databases of every kind, and processes that end with the test."""

from contextlib import ExitStack
from itertools import count

import pytest

from kasmina.infra import sqlite
from tests.faults.processes import Process


@pytest.fixture(params=["sqlite", "postgresql"])
def new_database(request, tmp_path):
    """``new_database()`` is the URL of a database that is not there yet, another at each call.

    Whatever is tested with it, or with ``database``, holds for a database of any kind.
    """
    numbers = count()
    match request.param:
        case "sqlite":
            return lambda: f"sqlite:///{tmp_path / f'runs-{next(numbers)}.db'}"
        case "postgresql":
            return request.getfixturevalue("postgres").database


@pytest.fixture
def database(new_database):
    return new_database()


@pytest.fixture
def path(tmp_path):
    """A SQLite file that is not there yet, for faults that only a file has."""
    return tmp_path / "runs.db"


@pytest.fixture
def url(path):
    return f"sqlite:///{path}"


@pytest.fixture
def start():
    """``start("role", ...)`` is a process that waits to be told to go."""
    with ExitStack() as ending:

        def begin(role, *arguments):
            process = Process(role, *arguments)
            ending.callback(process.end)
            return process

        yield begin


@pytest.fixture
def impatient(monkeypatch):
    """A store waits for the lock of another process, but not for long."""
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.05)
