"""How a command finds the run and the point that it was given."""

from datetime import timedelta

import pytest

from kasmina.adapters.cli.errors import AmbiguousRun, ContradictoryOptions
from kasmina.adapters.cli.reading import (
    chosen_point,
    find_place,
    find_run,
    follow,
    open_writer,
    run_name,
    state_of,
)
from kasmina.domain import commands as c
from kasmina.domain.errors import CorruptHistory, StoreUnavailable, UnknownRun
from kasmina.domain.points import AtEpoch, AtEvent, NotAPoint
from kasmina.service import fork
from kasmina.testing import FixedClock, MemoryEventStore, epochs, run_opened


@pytest.fixture
def several():
    store = MemoryEventStore()
    for run_id, name in (("ab-1", "ab"), ("ab-12", "ab"), ("xyz-3", "xyz"), ("ab", "other")):
        store.append(run_id, [run_opened(run_id, name=name)], expected=0)
    return store


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("ab-1", "ab-1"),  # an identifier, though it begins another
        ("ab", "ab"),  # an identifier, though it is the name of others
        ("xyz", "xyz-3"),
        ("other", "ab"),
        ("xy", "xyz-3"),
        ("latest", "ab"),
    ],
)
def test_a_run_is_found_by_identifier_then_name_then_beginning(several, asked, found):
    assert find_run(several, asked) == found


def test_a_name_or_a_beginning_of_several_runs_is_ambiguous(several):
    with pytest.raises(AmbiguousRun) as caught:
        find_run(several, "a")
    assert caught.value.candidates == ("ab-1", "ab-12", "ab")


def test_many_candidates_are_not_all_listed():
    error = AmbiguousRun("a", [f"a-{n}" for n in range(40)])
    assert len(error.candidates) == 40
    assert str(error).endswith("a-11, ...")


@pytest.mark.parametrize("asked", ["", "ab-2", "latest"])
def test_an_unknown_run_is_an_error_with_the_nearest(asked):
    store = MemoryEventStore()
    if asked == "ab-2":
        store.append("ab-1", [run_opened("ab-1", name="ab")], expected=0)
    with pytest.raises(UnknownRun) as caught:
        find_run(store, asked)
    assert caught.value.nearest == (("ab-1", "ab") if asked == "ab-2" else ())


def test_a_run_of_no_events_has_no_state():
    with pytest.raises(UnknownRun):
        state_of(MemoryEventStore(), "nosuch")


def test_a_run_that_does_not_begin_with_its_opening_is_corrupt():
    store = MemoryEventStore()
    (record,) = store.append("a", epochs(1), expected=0)
    with pytest.raises(CorruptHistory, match="begins with EpochRecorded"):
        run_name(record)


def test_a_fork_is_listed_by_its_own_name_and_continues_its_parent(several):
    several.append("ab-1", epochs(3), expected=1)
    fork(several, "ab-1", at=3, run_id="ab-f", name="forked")
    assert find_run(several, "forked") == "ab-f"
    assert state_of(several, "ab-f").epoch == 2


@pytest.mark.parametrize(
    ("asked", "run_id", "point"),
    [
        ("xyz", "xyz-3", None),
        ("xyz@12", "xyz-3", AtEvent(sequence=12)),
        ("xy@epoch:3", "xyz-3", AtEpoch(epoch=3)),
        ("latest@1", "ab", AtEvent(sequence=1)),
        ("me@home", "m-1", None),  # a name with an @ in it
        ("me@home@2", "m-1", AtEvent(sequence=2)),
        ("me@3", "m-2", None),
    ],
)
def test_a_place_is_a_run_or_a_run_and_a_point(several, asked, run_id, point):
    if asked.startswith("me"):
        for number, name in ((1, "me@home"), (2, "me@3")):
            several.append(f"m-{number}", [run_opened(f"m-{number}", name=name)], expected=0)
    assert find_place(several, asked) == (run_id, point)


def test_a_place_says_which_of_its_parts_makes_no_sense(several):
    with pytest.raises(UnknownRun, match="'xyzz'"):
        find_place(several, "xyzz@12")
    with pytest.raises(NotAPoint, match="'epch:3'"):
        find_place(several, "xyz@epch:3")


def test_options_name_one_point_at_most():
    assert chosen_point(at=None, epoch=None, follow=True) is None
    assert chosen_point(at=0, epoch=None) == AtEvent(sequence=0)
    assert chosen_point(at=None, epoch=0) == AtEpoch(epoch=0)
    assert chosen_point(at=None, epoch=None, time="2026-11-23").moment.day == 23
    with pytest.raises(ContradictoryOptions) as caught:
        chosen_point(at=1, epoch=None, time="noon", follow=True)
    assert caught.value.options == ("--at", "--time", "--follow")


def test_following_waits_only_when_there_is_nothing_new(story):
    store = MemoryEventStore()
    told = story(store, "a")
    waits = []

    def wait():
        waits.append(told.state.sequence)
        if len(waits) == 3:
            told.slots("one", "two")
            told.handle(c.CloseRun)

    seen = [record.sequence for record in follow(store, "a", after=0, wait=wait)]
    assert seen == [1, 2, 3, 4]
    assert waits == [1, 1, 1]


def test_a_run_that_was_closed_and_went_on_is_followed_further(story):
    store = MemoryEventStore(FixedClock(step=timedelta(seconds=1)))
    told = story(store, "a")
    told.handle(c.CloseRun)
    told.rewind(1)

    def wait():
        told.handle(c.CloseRun)

    assert [record.sequence for record in follow(store, "a", after=0, wait=wait)] == [1, 2, 3, 4]


def test_a_store_to_write_to_must_be_there_already(tmp_path):
    path = tmp_path / "missing.db"
    with pytest.raises(StoreUnavailable):
        open_writer(f"sqlite:///{path}")
    assert not path.exists()
