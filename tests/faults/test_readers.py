"""Readers and the writer never wait for each other, however long one of them stands still."""

import pytest

from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store
from kasmina.testing import epochs
from tests.faults.plans import WRITING

READ = {
    "read": lambda store: list(store.read("a")),
    "runs": lambda store: list(store.runs()),
    "follow": lambda store: store.follow(),
    "rows": lambda store: list(store.rows("a")),
    "head": lambda store: store.head("a"),
    "run_ids": lambda store: store.run_ids(),
    "verify": lambda store: store.verify("a"),
}


@pytest.fixture
def recorded(database):
    with open_store(database) as store:
        store.append("a", epochs(5), expected=0)
    return database


@pytest.mark.parametrize("moment", WRITING, ids=lambda moment: moment.name)
def test_a_writer_that_stands_still_in_a_transaction_blocks_no_reader(recorded, start, moment):
    """Readers see what was before it, and it goes on as if nothing had been."""
    with open_store(recorded, access=Access.READ) as store:
        before = {way: read(store) for way, read in READ.items()}
        writer = start("be_suspended_while_appending", recorded, moment.name)
        writer.go()
        assert writer.is_suspended()
        assert {way: read(store) for way, read in READ.items()} == before
        with open_store(recorded, access=Access.READ) as newcomer:
            assert {way: read(newcomer) for way, read in READ.items()} == before
        writer.resume()
        assert writer.says_at_last() == [[20, True]]
        assert len(store.follow()) == 25


@pytest.mark.parametrize("way", ["read", "runs", "follow", "rows"])
def test_a_reader_that_stands_still_in_the_middle_blocks_no_writer(recorded, start, way):
    """It sees the store as it was when it began, or as it is: never a part of a batch."""
    with open_store(recorded) as store:
        reader = start("be_suspended_while_reading", recorded, "a", way)
        reader.go()
        assert reader.is_suspended()
        for turn in range(100):
            store.append("a", epochs(20, first=6 + 20 * turn), expected=5 + 20 * turn)
        assert store.head("a").sequence == 2005
        reader.resume()
        assert reader.says_at_last() == [1 if way == "runs" else 5]
        assert store.verify("a").sound


def test_a_follower_sees_all_that_is_written_meanwhile_in_order(database, start):
    with open_store(database):
        pass
    writer = start("write_a_run", database, "a", 100)
    writer.go()
    seen = []
    with open_store(database, access=Access.READ) as store:
        while len(seen) < 300:
            page = store.follow(after=seen[-1].position if seen else 0, limit=7)
            seen += page
            assert page or writer.runs() or store.head("a").sequence == 300
    writer.says_at_last()
    assert [record.sequence for record in seen] == list(range(1, 301))
