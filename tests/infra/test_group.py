"""Appends of many runs share transactions; each knows what became of it, and none fails unheard."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from kasmina.domain.errors import ConcurrentAppend, StoreUnavailable
from kasmina.domain.events import RunClosed
from kasmina.domain.ports import Append
from kasmina.infra import group as group_module
from kasmina.infra.codec import UnwritableEvent
from kasmina.infra.event_store import open_store
from kasmina.infra.group import GroupCommit
from kasmina.testing import MemoryEventStore, caught, epochs


class Gated(MemoryEventStore):
    """A store whose appends wait for a gate, and that notes how many came in each transaction."""

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.sizes = []
        self.trouble = None

    def append_all(self, appends):
        self.entered.set()
        assert self.gate.wait(10)
        self.sizes.append(len(appends))
        if self.trouble is not None:
            raise self.trouble
        return super().append_all(appends)


@pytest.fixture
def store():
    return Gated()


@pytest.fixture
def group(store):
    with GroupCommit(store) as group:
        yield group
        store.gate.set()


def one(run_id, *, expected=0, batch=None):
    return Append(run_id=run_id, events=epochs(1), expected=expected, batch=batch)


def test_what_is_submitted_during_a_transaction_goes_into_the_next_one(store, group):
    first = group.submit(one("first"))
    assert store.entered.wait(10)
    rest = [group.submit(one(f"run-{n}")) for n in range(50)]
    assert not first.done()
    store.gate.set()
    assert [pending.result(10)[0].sequence for pending in (first, *rest)] == [1] * 51
    assert store.sizes == [1, 50]


def test_appends_to_one_run_keep_their_order(store, group):
    pending = [group.submit(one("a", expected=n)) for n in range(20)]
    store.gate.set()
    assert [each.result(10)[0].sequence for each in pending] == list(range(1, 21))


def test_a_transaction_takes_no_more_than_its_share(store, group, monkeypatch):
    monkeypatch.setattr(group_module, "LARGEST", 8)
    pending = [group.submit(one("a", expected=n)) for n in range(20)]
    store.gate.set()
    group.flush()
    assert all(each.done() for each in pending)
    assert max(store.sizes) == 8


def test_a_result_that_takes_too_long_is_still_on_its_way(store, group):
    pending = group.submit(one("a"))
    assert "ask again" in str(caught(TimeoutError, pending.result, 0.01))
    store.gate.set()
    assert pending.result(10)[0].sequence == 1
    assert pending.result() == pending.result()


def test_one_bad_append_spoils_no_other(store, group):
    blocker = group.submit(one("blocker"))
    assert store.entered.wait(10)
    good, bad, unwritable, better = (
        group.submit(append)
        for append in (
            one("good"),
            one("bad", expected=7),
            Append(run_id="odd", events=[RunClosed(epoch=1, step=1, objective="high")], expected=0),
            one("better"),
        )
    )
    store.gate.set()
    assert blocker.result(10)
    assert good.result(10)
    assert better.result(10)
    assert caught(ConcurrentAppend, bad.result, 10).found == 0
    caught(UnwritableEvent, unwritable.result, 10)
    group.flush()  # both failures have been heard


def test_a_store_that_is_gone_fails_all_at_once(store, group):
    blocker = group.submit(one("blocker"))
    assert store.entered.wait(10)
    pending = [group.submit(one(f"run-{n}")) for n in range(5)]
    store.trouble = StoreUnavailable("here", "the disk is full", "free some space")
    store.gate.set()
    for each in (blocker, *pending):
        assert caught(StoreUnavailable, each.result, 10) is store.trouble
    assert store.sizes == [1, 5]


class TestAFailureNobodyAskedFor:
    @pytest.fixture
    def failed(self, store, group):
        store.gate.set()
        pending = group.submit(one("a", expected=3))
        while not pending.done():
            threading.Event().wait(0.001)
        return pending

    def test_is_raised_by_the_next_submission_to_the_run(self, group, failed):
        caught(ConcurrentAppend, group.submit, one("a"))
        assert group.submit(one("a")).result(10)

    def test_is_raised_by_a_flush(self, group, failed):
        caught(ConcurrentAppend, group.flush)
        group.flush()

    def test_does_not_disturb_another_run(self, group, failed):
        assert group.submit(one("b")).result(10)
        assert group.append_all((one("c"),))
        caught(ConcurrentAppend, failed.result)

    def test_is_raised_at_the_end(self, store):
        store.gate.set()
        group = GroupCommit(store)
        group.submit(one("a", expected=3))
        caught(ConcurrentAppend, group.close)
        assert not group._thread.is_alive()


def test_closing_writes_what_is_waiting(store):
    group = GroupCommit(store)
    pending = [group.submit(one("a", expected=n)) for n in range(9)]
    store.gate.set()
    group.close()
    assert all(each.done() for each in pending)
    assert store.head("a").sequence == 9
    assert "was closed" in str(caught(StoreUnavailable, group.submit, one("b")))


def test_who_submits_too_much_waits_for_room(store, monkeypatch):
    monkeypatch.setattr(group_module, "MOST_WAITING", 4)
    with GroupCommit(store) as group:
        group.submit(one("first"))
        assert store.entered.wait(10)
        with ThreadPoolExecutor(1) as threads:
            going = threads.submit(lambda: [group.submit(one("a", expected=n)) for n in range(12)])
            caught(TimeoutError, going.result, 0.05)
            assert len(group._waiting) == 4
            store.gate.set()
            assert len(going.result(10)) == 12


def test_who_waits_for_room_is_told_when_it_is_closed(store, monkeypatch):
    monkeypatch.setattr(group_module, "MOST_WAITING", 1)
    group = GroupCommit(store)
    group.submit(one("first"))
    assert store.entered.wait(10)
    group.submit(one("second"))
    with ThreadPoolExecutor(1) as threads:
        third = threads.submit(group.submit, one("third"))
        caught(TimeoutError, third.result, 0.05)
        with group._turn:
            group._closed = True
            group._turn.notify_all()
        caught(StoreUnavailable, third.result, 10)
        store.gate.set()
        group.close()
    assert store.head("second").sequence == 1


def test_many_threads_on_a_file_lose_nothing(tmp_path):
    def live(run_id):
        return [group.append(run_id, epochs(2), expected=2 * n)[-1].sequence for n in range(20)]

    with open_store(f"sqlite:///{tmp_path / 'runs.db'}") as store, GroupCommit(store) as group:
        with ThreadPoolExecutor(16) as threads:
            lives = list(threads.map(live, [f"run-{n}" for n in range(16)]))
        assert lives == [list(range(2, 42, 2))] * 16
        assert all(store.verify(f"run-{n}").sound for n in range(16))
