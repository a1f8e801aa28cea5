"""Points in a run's past: which event they end at, and which of them cut a decision in two."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given as each
from hypothesis import strategies as st

from kasmina.domain import events as e
from kasmina.domain.evolve import surviving
from kasmina.domain.points import (
    AtEpoch,
    AtEvent,
    AtTime,
    InsideDecision,
    NoSuchPoint,
    NotAPoint,
    Reversal,
    decision_around,
    parse_point,
    reversal,
    sequence_at,
    together,
)
from kasmina.domain.ports import Recorded
from kasmina.testing import caught, epochs, run_opened

START = datetime(2026, 11, 23, 10, tzinfo=UTC)


def history(*events, seconds=None):
    """The events a second apart, or at the seconds given."""
    stamps = range(len(events)) if seconds is None else seconds
    return [
        Recorded(
            position=sequence,
            run_id="a",
            sequence=sequence,
            recorded_at=START + timedelta(seconds=second),
            event=event,
            digest=bytes(32),
        )
        for sequence, (event, second) in enumerate(zip(events, stamps, strict=True), 1)
    ]


def rewound(to, *, head, epoch):
    return e.RunRewound(epoch=epoch, step=10 * epoch, to=to, head=head)


def at(seconds):
    return AtTime(moment=START + timedelta(seconds=seconds))


# --- events and epochs ---------------------------------------------------------------------


def test_an_event_is_itself_and_only_those_that_are_there():
    past = history(run_opened("a"), *epochs(2))
    assert [sequence_at(past, AtEvent(sequence=n)) for n in (1, 2, 3)] == [1, 2, 3]
    for sequence in (-1, 0, 4):
        error = caught(NoSuchPoint, sequence_at, past, AtEvent(sequence=sequence))
        assert (error.unit, error.asked, error.first, error.last) == ("event", sequence, 1, 3)


def test_an_epoch_is_its_last_event_that_no_rewind_took_back():
    past = history(
        run_opened("a"),
        *epochs(3),
        rewound(3, head=4, epoch=2),
        *epochs(1, first=3),
        rewound(3, head=6, epoch=2),
    )
    assert [sequence_at(past, AtEpoch(epoch=n)) for n in (0, 1, 2)] == [1, 2, 7]
    error = caught(NoSuchPoint, sequence_at, past, AtEpoch(epoch=3))
    assert (error.first, error.last) == (0, 2)


@pytest.mark.parametrize("epoch", [1, 4])
def test_a_fork_has_no_epochs_before_its_own(epoch):
    past = history(*epochs(2, first=2))
    error = caught(NoSuchPoint, sequence_at, past, AtEpoch(epoch=epoch))
    assert str(error) == f"run 'a' has no epoch {epoch}: it has 2 to 3"


# --- time ----------------------------------------------------------------------------------


def test_a_time_is_the_last_event_stamped_until_then():
    past = history(run_opened("a"), *epochs(3))
    assert [sequence_at(past, at(s)) for s in (0, 0.9, 1, 2.5, 3, 1e6)] == [1, 1, 2, 3, 4, 4]


def test_before_the_first_event_there_is_nothing():
    error = caught(NoSuchPoint, sequence_at, history(run_opened("a")), at(-1))
    assert error.asked == "2026-11-23T09:59:59+00:00"


def test_after_a_clock_was_set_back_nothing_stamped_later_belongs_to_a_time():
    past = history(run_opened("a"), *epochs(3), seconds=(0, 10, 5, 20))
    assert [sequence_at(past, at(s)) for s in (5, 9, 10, 15, 20)] == [1, 1, 3, 3, 4]


@each(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.integers(0, 50))
def test_a_time_holds_no_later_event_and_grows_with_the_time(stamps, second):
    past = history(*epochs(len(stamps)), seconds=stamps)
    if second < stamps[0]:
        caught(NoSuchPoint, sequence_at, past, at(second))
        return
    until = sequence_at(past, at(second))
    assert all(stamp <= second for stamp in stamps[:until])
    assert until == len(stamps) or stamps[until] > second
    assert sequence_at(past, at(second + 1)) >= until


def test_a_time_needs_a_zone():
    with pytest.raises(ValueError, match="moment must have a time zone"):
        AtTime(moment=datetime(2026, 11, 23))  # noqa: DTZ001 - that is what is refused


# --- text ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("12", AtEvent(sequence=12)),
        ("-1", AtEvent(sequence=-1)),
        ("epoch:3", AtEpoch(epoch=3)),
        ("time:2026-11-23T10:00", AtTime(moment=START)),
        ("time:2026-11-23T11:00+01:00", AtTime(moment=START)),
        ("time:2026-11-23T10:00:00.5Z", at(0.5)),
        ("time:2026-11-23", at(-36_000)),
    ],
)
def test_a_point_is_written_in_three_ways(text, point):
    assert parse_point(text) == point


TEXTS = ["", "two", "epoch:", "epoch:two", "epch:3", "time:", "time:noon", "time:25:00"]


@pytest.mark.parametrize("text", [*TEXTS, "9" * 5000, "time:0001-01-01T00:00+14:00"])
def test_other_text_is_no_point(text):
    assert caught(NotAPoint, parse_point, text).text == text


@each(st.text(max_size=30) | st.text(max_size=20).map("time:".__add__))
def test_any_text_is_a_point_or_a_clear_error(text):
    with suppress(NotAPoint):
        assert isinstance(parse_point(text), AtEvent | AtEpoch | AtTime)


# --- decisions -----------------------------------------------------------------------------


def test_events_of_one_instant_epoch_and_step_were_recorded_together():
    first, same, later = history(*epochs(1), *epochs(1), *epochs(1), seconds=(0, 0, 1))
    assert together(first, same)
    assert not together(same, later)
    before, after = history(*epochs(2), seconds=(0, 0))
    assert not together(before, after)


def test_a_decision_is_all_that_was_recorded_with_an_event():
    past = history(*epochs(1), *epochs(1), *epochs(1), *epochs(1), seconds=(0, 1, 1, 2))
    assert [decision_around(past, n) for n in (1, 2, 3, 4)] == [(1, 1), (2, 3), (2, 3), (4, 4)]


def test_a_point_inside_a_decision_names_both_of_its_ends():
    assert str(InsideDecision("a", 5, first=4, last=6)).endswith("events 4 to 6; take 3 or 6")
    assert str(InsideDecision("a", 1, first=1, last=3)).endswith("events 1 to 3; take 3")


# --- rewinds -------------------------------------------------------------------------------


def test_a_rewind_takes_back_what_lies_beyond_its_point():
    turned = reversal([(6, 2)])
    assert turned == Reversal(undone=((3, 5),), restored=())
    assert [n for n in range(1, 8) if turned.concerns(n)] == [3, 4, 5]


def test_a_rewind_into_what_was_taken_back_brings_it_back():
    assert reversal([(6, 2), (9, 4)]) == Reversal(undone=((6, 8),), restored=((3, 4),))


def test_a_rewind_to_the_head_takes_back_nothing():
    assert reversal([(6, 5)]) == Reversal(undone=(), restored=())


@st.composite
def rewinds(draw):
    sequence, found = 1, []
    for _ in range(draw(st.integers(1, 6))):
        sequence += draw(st.integers(1, 6))
        found.append((sequence, draw(st.integers(1, sequence - 1))))
    return found


@each(rewinds())
def test_what_counts_after_a_rewind_is_what_counted_and_what_it_turned(found):
    def counting(past, head):
        return {
            n for after, until in surviving(past, head=head) for n in range(after + 1, until + 1)
        }

    def spread(ranges):
        return {n for first, last in ranges for n in range(first, last + 1)}

    sequence, turned = found[-1][0], reversal(found)
    before = counting(found[:-1], sequence - 1)
    assert spread(turned.undone) <= before
    assert not spread(turned.restored) & before
    after = before - spread(turned.undone) | spread(turned.restored) | {sequence}
    assert after == counting(found, sequence)
