"""The suite that every event store passes.

To hold a store of your own to it::

    class TestMyStore(EventStoreContract):
        @pytest.fixture
        def store(self):
            with MyStore() as store:
                yield store
"""
# ruff: noqa: D102, PLR2004, S101 - a suite asserts, its tests are named for what they hold

import math
from datetime import timedelta
from typing import ParamSpec, TypeVar

from kasmina.domain import events as e
from kasmina.domain.errors import ConcurrentAppend
from kasmina.domain.evidence import Metric
from kasmina.domain.ports import EMPTY_HEAD, Append, EventStore, Head, Recorded
from kasmina.infra import codec
from kasmina.testing.samples import caught, epochs, run_opened

P = ParamSpec("P")
E = TypeVar("E", bound=Exception)


class EventStoreContract:
    """What every event store does. A subclass provides the fixture ``store``, empty each time."""

    def test_what_was_appended_is_read_back_in_order(self, store: EventStore) -> None:
        events = (run_opened(), *epochs(3))
        recorded = store.append("digits-1", events, expected=0)
        assert tuple(store.read("digits-1")) == recorded
        assert tuple(r.event for r in recorded) == events
        assert [r.sequence for r in recorded] == [1, 2, 3, 4]
        assert {r.run_id for r in recorded} == {"digits-1"}

    def test_each_append_goes_on_where_the_last_one_ended(self, store: EventStore) -> None:
        for sequence, event in enumerate((run_opened(), *epochs(4))):
            (recorded,) = store.append("digits-1", [event], expected=sequence)
            assert recorded.sequence == sequence + 1
        assert [r.sequence for r in store.read("digits-1")] == [1, 2, 3, 4, 5]

    def test_a_range_leaves_out_its_start_and_holds_its_end(self, store: EventStore) -> None:
        store.append("digits-1", epochs(5), expected=0)

        def sequences(after: int, until: int | None) -> list[int]:
            return [r.sequence for r in store.read("digits-1", after=after, until=until)]

        assert sequences(2, None) == [3, 4, 5]
        assert sequences(0, 2) == [1, 2]
        assert sequences(1, 3) == [2, 3]
        assert sequences(3, 3) == sequences(5, None) == sequences(9, 12) == []

    def test_a_long_run_is_read_whole(self, store: EventStore) -> None:
        recorded = store.append("digits-1", epochs(2500), expected=0)
        assert tuple(store.read("digits-1")) == recorded

    def test_a_run_may_grow_while_it_is_read(self, store: EventStore) -> None:
        store.append("digits-1", epochs(3), expected=0)
        reading = store.read("digits-1")
        assert next(reading).sequence == 1
        store.append("digits-1", epochs(1, first=4), expected=3)
        assert [r.sequence for r in reading][:2] == [2, 3]

    def test_the_head_is_the_last_event(self, store: EventStore) -> None:
        recorded = store.append("digits-1", epochs(3), expected=0)
        assert store.head("digits-1") == Head(sequence=3, digest=recorded[-1].digest)

    def test_an_unknown_run_is_empty(self, store: EventStore) -> None:
        store.append("digits-1", epochs(1), expected=0)
        assert store.head("nobody") == EMPTY_HEAD
        assert list(store.read("nobody")) == []

    def test_an_empty_store_is_empty(self, store: EventStore) -> None:
        assert list(store.runs()) == []
        assert store.follow() == ()

    def test_an_append_of_nothing_writes_nothing(self, store: EventStore) -> None:
        assert store.append("digits-1", (), expected=0) == ()
        assert list(store.runs()) == []

    def test_runs_are_listed_by_their_first_events_in_the_order_they_began(
        self, store: EventStore
    ) -> None:
        for run_id in ("zebra", "ant", "mole"):
            store.append(run_id, [run_opened(run_id)], expected=0)
        for run_id in ("ant", "zebra"):
            store.append(run_id, epochs(2), expected=1)
        assert [(r.run_id, r.sequence) for r in store.runs()] == [
            ("zebra", 1),
            ("ant", 1),
            ("mole", 1),
        ]

    def test_followers_see_all_runs_in_one_order_and_go_on_where_they_stopped(
        self, store: EventStore
    ) -> None:
        written: list[Recorded] = []
        for turn in range(3):
            for run_id in ("a", "b"):
                written += store.append(run_id, epochs(2), expected=2 * turn)
        seen: list[Recorded] = []
        while page := store.follow(after=seen[-1].position if seen else 0, limit=5):
            assert len(page) <= 5
            seen += page
        assert seen == written
        assert [r.position for r in seen] == sorted({r.position for r in seen})

    def test_a_writer_with_an_old_head_is_refused_and_told_both_numbers(
        self, store: EventStore
    ) -> None:
        store.append("digits-1", epochs(3), expected=0)
        for expected in (-1, 0, 2, 4):
            error = caught(ConcurrentAppend, store.append, "digits-1", epochs(2), expected=expected)
            assert (error.run_id, error.expected, error.found) == ("digits-1", expected, 3)
        assert store.head("digits-1").sequence == 3

    def test_runs_do_not_disturb_each_other(self, store: EventStore) -> None:
        store.append("a", epochs(2), expected=0)
        store.append("b", epochs(1), expected=0)
        store.append("a", epochs(1), expected=2)
        assert (store.head("a").sequence, store.head("b").sequence) == (3, 1)

    def test_a_batch_with_an_event_that_cannot_be_stored_leaves_nothing(
        self, store: EventStore
    ) -> None:
        broken = e.EpochRecorded(epoch=2, step=2, objective="high")  # type: ignore[arg-type]
        events = [*epochs(1), broken]
        error = caught(codec.UnwritableEvent, store.append, "digits-1", events, expected=0)
        assert error.event is broken
        assert store.head("digits-1") == EMPTY_HEAD

    def test_a_repeated_batch_is_written_once(self, store: EventStore) -> None:
        store.append("digits-1", [run_opened()], expected=0, batch="w.1")
        first = store.append("digits-1", epochs(3), expected=1, batch="w.2")
        store.append("digits-1", epochs(2, first=4), expected=4, batch="w.3")
        assert store.append("digits-1", epochs(3), expected=1, batch="w.2") == first
        assert store.head("digits-1").sequence == 6

    def test_only_the_same_batch_of_the_same_events_is_a_repetition(
        self, store: EventStore
    ) -> None:
        store.append("digits-1", epochs(3), expected=0, batch="w.1")
        for events, batch in (
            (epochs(3), "w.2"),
            (epochs(3), None),
            (epochs(3, first=2), "w.1"),
            (epochs(4), "w.1"),
        ):
            caught(ConcurrentAppend, store.append, "digits-1", events, expected=0, batch=batch)
        assert store.head("digits-1").sequence == 3

    def test_appends_to_many_runs_are_one(self, store: EventStore) -> None:
        store.append("a", epochs(2), expected=0)
        recorded = store.append_all(
            (
                Append(run_id="b", events=epochs(2), expected=0),
                Append(run_id="a", events=epochs(1, first=3), expected=2),
                Append(run_id="c", events=(), expected=0),
                Append(run_id="b", events=epochs(1, first=3), expected=2),
            )
        )
        assert [[r.sequence for r in each] for each in recorded] == [[1, 2], [3], [], [3]]
        assert tuple(store.read("b")) == (*recorded[0], *recorded[3])
        assert [r.run_id for r in store.follow(after=2)] == ["b", "b", "a", "b"]

    def test_where_one_of_many_appends_fails_none_is_done(self, store: EventStore) -> None:
        store.append("a", epochs(2), expected=0, batch="w.1")
        appends = (
            Append(run_id="b", events=epochs(2), expected=0),
            Append(run_id="a", events=epochs(1), expected=1),
        )
        error = caught(ConcurrentAppend, store.append_all, appends)
        assert (error.run_id, error.expected, error.found) == ("a", 1, 2)
        assert store.head("b") == EMPTY_HEAD
        assert len(store.follow()) == 2

    def test_a_repeated_batch_among_many_appends_is_written_once(self, store: EventStore) -> None:
        first = store.append("a", epochs(2), expected=0, batch="w.1")
        again, new = store.append_all(
            (
                Append(run_id="a", events=epochs(2), expected=0, batch="w.1"),
                Append(run_id="b", events=epochs(1), expected=0, batch="w.2"),
            )
        )
        assert (again, [r.sequence for r in new]) == (first, [1])
        assert len(store.follow()) == 3

    def test_every_digest_depends_on_all_that_came_before(self, store: EventStore) -> None:
        for run_id, first in (("a", 1), ("b", 2)):
            store.append(run_id, epochs(1, first=first), expected=0)
            store.append(run_id, epochs(2, first=5), expected=1)
        digests = [r.digest for r in store.follow()]
        assert {len(digest) for digest in digests} == {32}
        assert len(set(digests)) == len(digests)

    def test_times_are_aware_in_utc_and_exact_to_the_microsecond(self, store: EventStore) -> None:
        (recorded,) = store.append("digits-1", epochs(1), expected=0)
        (read,) = store.read("digits-1")
        assert recorded.recorded_at.utcoffset() == timedelta(0)
        assert read.recorded_at == recorded.recorded_at

    def test_non_finite_figures_are_not_unmeasured_ones(self, store: EventStore) -> None:
        values = (math.nan, math.inf, -math.inf, None, -0.0)
        events = [e.RunClosed(epoch=1, step=1, objective=value) for value in values]
        store.append("digits-1", events, expected=0)
        assert repr([r.event for r in store.read("digits-1")]) == repr(events)

    def test_any_text_and_any_amount_of_it_survives(self, store: EventStore) -> None:
        texts = ("größer\u2028\x00 🌱", '{"$float":"nan"}', "$float", "null", "x" * 1_000_000)
        events: list[e.Event] = [
            e.RunForked(
                epoch=1,
                step=1,
                run_id="b",
                name=text,
                parent_run_id="größer",
                parent_sequence=1,
                parent_digest="",
            )
            for text in texts
        ]
        many = tuple(Metric(name=f"metric {n}", value=n / 7) for n in range(5000))
        events.append(e.EpochRecorded(epoch=2, step=2, objective=None, metrics=many))
        store.append("läufe/1", events, expected=0)
        assert [r.event for r in store.read("läufe/1")] == events
