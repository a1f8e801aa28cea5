"""Stores that copy from each other."""

import io

import pytest

from kasmina.infra.event_store import open_store
from kasmina.infra.exchange import jsonl
from kasmina.testing import FixedClock, epochs, run_opened


@pytest.fixture
def source(store):
    """Two runs, one after the other."""
    for run_id in ("digits-2", "digits-1"):
        store.append(run_id, [run_opened(run_id)], expected=0, batch=f"{run_id}.0")
        store.append(run_id, epochs(5), expected=1)
    return store


@pytest.fixture
def target(tmp_path):
    with open_store(f"sqlite:///{tmp_path / 'target.db'}", clock=FixedClock()) as target:
        yield target


@pytest.fixture
def exported():
    """Runs of a store as lines."""

    def export(store, *run_ids):
        return [line for run_id in run_ids for line in jsonl.lines(store.rows(run_id))]

    return export


@pytest.fixture
def stream():
    return lambda lines: io.BytesIO(b"".join(lines))
