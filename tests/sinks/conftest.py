"""Logs, in memory and on disk, and what receivers hold of them."""

import os
from datetime import timedelta

import pytest

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # MLflow reads it when it is imported

from kasmina.infra.event_store import open_store
from kasmina.testing import FixedClock, MemoryEventStore
from tests.sinks.logs import told


@pytest.fixture
def clock():
    return FixedClock(step=timedelta(seconds=1, microseconds=1))


@pytest.fixture
def store(clock):
    return told(MemoryEventStore(clock))


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'kasmina.db'}"


@pytest.fixture
def database(url, clock):
    with open_store(url, clock=clock) as store:
        yield told(store)
