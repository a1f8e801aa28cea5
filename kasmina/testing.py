"""Fakes of the ports, and the suite that every event store passes.

To hold a store of your own to the contract::

    class TestMyStore(EventStoreContract):
        @pytest.fixture
        def store(self):
            with MyStore() as store:
                yield store
"""
# ruff: noqa: D102, PLR2004, S101 - a suite asserts, its tests are named for what they hold

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import ParamSpec, TypeVar

from kasmina.domain import events as e
from kasmina.domain.errors import ConcurrentAppend
from kasmina.domain.evidence import HostDescription, Metric
from kasmina.domain.objective import Objective
from kasmina.domain.policies import GatePolicy
from kasmina.domain.ports import EMPTY_HEAD, Clock, EventStore, Head, Recorded
from kasmina.infra import codec, integrity
from kasmina.infra.integrity import Row
from kasmina.infra.records import microseconds, record, repeats

P = ParamSpec("P")
E = TypeVar("E", bound=Exception)


class FixedClock:
    """A clock that shows ``start`` first, and ``step`` more at each further look."""

    def __init__(
        self,
        start: datetime = datetime(2026, 1, 1, tzinfo=UTC),
        step: timedelta = timedelta(0),
    ) -> None:
        self._next = start
        self._step = step

    def now(self) -> datetime:
        """The next moment."""
        moment = self._next
        self._next += self._step
        return moment


class CountingIdentifiers:
    """Identifiers that are the same in every run of a test: ``digits-1``, ``s2``, ``b3``."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def run_id(self, name: str) -> str:
        """``name`` and the next number."""
        return f"{name}-{next(self._numbers)}"

    def seed_id(self) -> str:
        """``s`` and the next number."""
        return f"s{next(self._numbers)}"

    def batch(self) -> str:
        """``b`` and the next number."""
        return f"b{next(self._numbers)}"


class MemoryEventStore:
    """An event store that forgets everything with the process, and is like any other until then.

    It keeps what a database would keep, so digests are those that a database would have.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or FixedClock()
        self._rows: list[Row] = []
        self._runs: dict[str, list[Row]] = {}

    def append(
        self, run_id: str, events: Sequence[e.Event], *, expected: int, batch: str | None = None
    ) -> tuple[Recorded, ...]:
        """Add events to a run; see the port."""
        encoded = [codec.encode(event) for event in events]
        run = self.rows(run_id)
        if len(run) != expected:
            rows = run[max(expected, 0) :][: len(events)]
            if not repeats(rows, encoded, batch):
                raise ConcurrentAppend(run_id, expected=expected, found=len(run))
            return tuple(map(record, rows))
        at = microseconds(self._clock.now())
        linked = integrity.link(run_id, encoded, after=self.head(run_id), at=at, batch=batch)
        rows = [
            row._replace(position=position)
            for position, row in enumerate(linked, len(self._rows) + 1)
        ]
        self._rows += rows
        self._runs.setdefault(run_id, []).extend(rows)
        return tuple(map(record, rows))

    def read(self, run_id: str, *, after: int = 0, until: int | None = None) -> Iterator[Recorded]:
        """The events of a run in a range; see the port."""
        for row in self.rows(run_id):
            if after < row.columns.sequence and (until is None or row.columns.sequence <= until):
                yield record(row)

    def head(self, run_id: str) -> Head:
        """The end of a run; see the port."""
        run = self.rows(run_id)
        return Head(sequence=len(run), digest=run[-1].digest) if run else EMPTY_HEAD

    def runs(self) -> Iterator[Recorded]:
        """The first event of every run; see the port."""
        yield from [record(row) for row in self._rows if row.columns.sequence == 1]

    def follow(self, *, after: int = 0, limit: int = 1000) -> tuple[Recorded, ...]:
        """What was recorded after a position; see the port."""
        return tuple(map(record, self._rows[max(after, 0) :][:limit]))

    def rows(self, run_id: str) -> list[Row]:
        """A run as a database would store it, for ``integrity.verify``."""
        return list(self._runs[run_id]) if run_id in self._runs else []


def run_opened(run_id: str = "digits-1", **changes: object) -> e.RunOpened:
    """The first event of a run, for tests that need one."""
    values: dict[str, object] = {
        "epoch": 0,
        "step": 0,
        "run_id": run_id,
        "name": "digits",
        "objective": Objective.maximize("val_accuracy", unit="percent"),
        "policy": GatePolicy(),
        "host": HostDescription(kind="tests.Host", parameters=858, digest="0" * 64),
        "random_seed": 7,
    }
    return e.RunOpened(**(values | changes))  # type: ignore[arg-type] # attrs checks the names


def epochs(count: int, *, first: int = 1) -> tuple[e.EpochRecorded, ...]:
    """Epochs with ten steps each and a rising objective."""
    return tuple(
        e.EpochRecorded(epoch=epoch, step=10 * epoch, objective=50.0 + epoch)
        for epoch in range(first, first + count)
    )


def caught(kind: type[E], act: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> E:
    """The error of that kind that ``act`` raises; a failed test where it raises none."""
    try:
        act(*args, **kwargs)
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised")


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
