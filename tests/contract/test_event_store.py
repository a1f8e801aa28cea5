"""Every event store passes the one suite, and they agree on the digests."""

import pytest

from kasmina.domain.ports import EventStore
from kasmina.infra.event_store import open_store
from kasmina.infra.group import GroupCommit
from kasmina.infra.log import LoggingEventStore
from kasmina.testing import EventStoreContract, FixedClock, MemoryEventStore, caught, epochs


class TestMemoryEventStore(EventStoreContract):
    @pytest.fixture
    def store(self):
        return MemoryEventStore()


class TestSqliteEventStore(EventStoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        with open_store(f"sqlite:///{tmp_path / 'runs.db'}") as store:
            yield store


class TestPostgresEventStore(EventStoreContract):
    @pytest.fixture
    def store(self, postgres):
        with open_store(postgres.database()) as store:
            yield store


class TestGroupCommit(EventStoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        with open_store(f"sqlite:///{tmp_path / 'runs.db'}") as store, GroupCommit(store) as group:
            yield group


class TestLoggingEventStore(EventStoreContract):
    @pytest.fixture
    def store(self):
        return LoggingEventStore(MemoryEventStore())


def test_the_same_events_at_the_same_time_have_the_same_digests_everywhere(tmp_path, postgres):
    memory = MemoryEventStore(FixedClock())
    with (
        open_store(f"sqlite:///{tmp_path / 'runs.db'}", clock=FixedClock()) as database,
        open_store(postgres.database(), clock=FixedClock()) as server,
    ):
        stores: list[EventStore] = [memory, database, server]
        for store in stores:
            store.append("a", epochs(2), expected=0, batch="w.1")
            store.append("a", epochs(2, first=3), expected=2)
        assert list(memory.read("a")) == list(database.read("a")) == list(server.read("a"))
        assert memory.head("a") == database.head("a") == server.head("a")


def test_the_suite_notices_an_error_that_is_not_raised():
    with pytest.raises(AssertionError, match="no KeyError was raised"):
        caught(KeyError, dict)
