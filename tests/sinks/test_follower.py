"""Following: every event once, in the order of its run, and in nobody's way."""

import sqlite3
import threading
from contextlib import closing, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasmina.adapters.sinks.errors import SinkDiverged, SinkUnavailable
from kasmina.adapters.sinks.follower import Follower
from kasmina.domain.errors import CorruptHistory
from kasmina.history import load
from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store
from kasmina.testing import MemoryEventStore, epochs, run_opened
from tests.sinks.logs import rewound, told


class Notebook:
    """A receiver that writes everything down, and fails when it is told to."""

    def __init__(self):
        self.entries = []
        self.failures = 0

    def marks(self):
        return {entry.record.run_id: entry.mark for entry in self.entries}

    def show(self, entries):
        if self.failures:
            self.failures -= 1
            self.entries.append(entries[0])  # the first part may have come through
            raise SinkUnavailable("notebook", "it is closed", "open it")
        self.entries += entries

    @property
    def places(self):
        return places(entry.record for entry in self.entries)


def places(records):
    """Which events, and in which order; not the events themselves, for a NaN is not itself."""
    return [(record.position, record.run_id, record.digest) for record in records]


def test_every_event_of_every_run_is_told_once_in_the_order_of_the_log(store):
    notebook = Notebook()
    assert Follower(store, notebook, page=7).catch_up() == len(notebook.entries)
    assert notebook.places == places(store.follow())


def test_nothing_is_left_to_tell_a_second_time(store):
    notebook = Notebook()
    follower = Follower(store, notebook)
    follower.catch_up()
    assert follower.catch_up() == 0
    assert Follower(store, notebook).catch_up() == 0


def test_each_entry_holds_the_state_of_its_run_after_the_event(store):
    notebook = Notebook()
    Follower(store, notebook, page=5).catch_up()
    for entry in notebook.entries:
        record = entry.record
        assert repr(entry.state) == repr(load(store, record.run_id, until=record.sequence))


def test_one_run_can_be_followed_alone_and_the_others_later(store):
    notebook = Notebook()
    Follower(store, notebook, run_id="grown-1").catch_up()
    assert notebook.places == places(store.read("grown-1"))
    Follower(store, notebook).catch_up()
    assert sorted(notebook.places) == places(store.follow())


def test_a_run_that_is_awaited_need_not_have_begun():
    store, notebook = MemoryEventStore(), Notebook()
    follower = Follower(store, notebook, run_id="b")
    assert follower.catch_up() == 0
    for run_id in ("a", "b"):
        store.append(run_id, [run_opened(run_id), *epochs(2)], expected=0)
    assert follower.catch_up() == 3


@settings(max_examples=60)
@given(st.data())
def test_any_split_into_sessions_pages_and_failures_tells_the_same(data):
    store, notebook = MemoryEventStore(), Notebook()
    waiting = list(told(MemoryEventStore()).follow())
    follower = Follower(store, notebook)
    while waiting:
        for _ in range(data.draw(st.integers(1, 40))):
            if waiting:
                record = waiting.pop(0)
                store.append(record.run_id, [record.event], expected=record.sequence - 1)
        if data.draw(st.booleans()):
            follower = Follower(store, notebook, page=data.draw(st.integers(1, 30)))
        notebook.failures = data.draw(st.integers(0, 2))
        for _ in range(notebook.failures):
            with suppress(SinkUnavailable):
                follower.catch_up()
        notebook.failures = 0
        if data.draw(st.booleans()):
            follower.catch_up()
    follower.catch_up()
    assert notebook.places == places(store.follow())
    for entry in notebook.entries:
        record = entry.record
        assert repr(entry.state) == repr(load(store, record.run_id, until=record.sequence))


def test_another_history_of_a_run_is_refused(store):
    notebook = Notebook()
    Follower(store, notebook).catch_up()
    replaced = MemoryEventStore()
    replaced.append("grown-1", [run_opened("grown-1"), *epochs(60)], expected=0)
    with pytest.raises(SinkDiverged, match="not the one in this log") as raised:
        Follower(replaced, notebook).catch_up()
    assert (raised.value.run_id, raised.value.sequence) == ("grown-1", 31)


def test_a_log_that_lost_its_end_is_refused(store):
    notebook = Notebook()
    Follower(store, notebook).catch_up()
    cut = MemoryEventStore()
    cut.append("grown-1", [record.event for record in store.read("grown-1", until=30)], expected=0)
    with pytest.raises(SinkDiverged):
        Follower(cut, notebook).catch_up()


def test_a_copy_of_the_log_with_other_positions_goes_on_where_the_log_stopped():
    store, copy, notebook = told(MemoryEventStore()), MemoryEventStore(), Notebook()
    Follower(store, notebook, run_id="grown-1").catch_up()
    copy.append("grown-1", [record.event for record in store.read("grown-1")], expected=0)
    copy.append("grown-1", [rewound(30, 31, at=11)], expected=31)
    assert copy.head("grown-1").sequence != list(store.read("grown-1"))[-1].position
    assert Follower(copy, notebook).catch_up() == 1


def test_the_writer_may_append_while_the_receiver_takes_its_time(database, url, tmp_path):
    """SQLite can truncate its WAL only while nobody reads, so the follower holds nothing then."""
    other = sqlite3.connect(tmp_path / "kasmina.db", timeout=0)
    held = []

    class Slow(Notebook):
        def show(self, entries):
            if len(held) < 5:
                database.append(f"meanwhile-{len(held)}", [run_opened("m")], expected=0)
            busy, *_ = other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            held.append(busy)
            super().show(entries)

    notebook = Slow()
    with closing(other), open_store(url, access=Access.READ) as reader:
        Follower(reader, notebook, page=20).catch_up()
    assert len(held) >= 5
    assert set(held) == {0}
    assert notebook.places == places(database.follow())


def test_a_failed_receiver_keeps_its_place_and_goes_on_when_it_is_back(store):
    notebook = Notebook()
    follower = Follower(store, notebook, page=10)
    notebook.failures = 2
    for _ in range(2):
        with pytest.raises(SinkUnavailable, match="the next attempt goes on") as raised:
            follower.catch_up()
        assert (raised.value.target, raised.value.mend) == ("notebook", "open it")
    follower.catch_up()
    assert notebook.places == places(store.follow())


def test_following_for_ever_outlives_outages_and_tells_of_each_once(store):
    notebook, stop, told_of = Notebook(), threading.Event(), []
    notebook.failures = 3
    everything = len(list(store.follow()))

    def troubled(error):
        told_of.append(str(error))

    class UntilAllIsTold(Notebook):
        def show(self, entries):
            notebook.show(entries)
            if len(notebook.entries) >= everything:
                stop.set()

        def marks(self):
            return notebook.marks()

    follower = Follower(store, UntilAllIsTold(), page=10)
    thread = threading.Thread(
        target=follower.follow, args=(stop,), kwargs={"troubled": troubled, "seconds": 0.001}
    )
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert notebook.places == places(store.follow())
    assert len(told_of) == 1


def test_a_second_outage_is_told_of_again(store):
    notebook, told_of = Notebook(), []
    everything = len(store.follow())

    class AsEventsArrive(threading.Event):
        """Waits by writing the next event, at which the receiver fails twice."""

        def wait(self, timeout=None):
            if len(notebook.entries) == everything and len(told_of) < 2:
                store.append("later", [run_opened("later")], expected=0)
                notebook.failures = 2
            elif len(notebook.entries) > everything:
                self.set()

    notebook.failures = 2
    Follower(store, notebook).follow(AsEventsArrive(), troubled=told_of.append)
    assert len(told_of) == 2
    assert notebook.places == places(store.follow())


def test_following_ends_between_two_pages_when_it_is_stopped(store):
    notebook, stop = Notebook(), threading.Event()

    class StopsAtOnce(Notebook):
        def show(self, entries):
            notebook.show(entries)
            stop.set()

    Follower(store, StopsAtOnce(), page=3).follow(stop, troubled=pytest.fail)
    assert notebook.places == places(store.follow(limit=3))


def test_a_log_whose_events_are_gone_a_moment_later_is_refused(store):
    store.read = lambda *_arguments, **_options: iter(())
    with pytest.raises(CorruptHistory, match="cannot be read again"):
        Follower(store, Notebook()).catch_up()


def test_a_run_without_its_beginning_is_refused():
    store = MemoryEventStore()
    store.append("headless", epochs(3), expected=0)
    with pytest.raises(CorruptHistory):
        Follower(store, Notebook()).catch_up()
