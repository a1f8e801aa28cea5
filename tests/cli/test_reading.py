"""How a command finds the run and the point that it was given."""

import pytest

from kasmina.adapters.cli.errors import AmbiguousRun, NoSuchPoint
from kasmina.adapters.cli.reading import find_run, follow, run_name, sequence_of_epoch, state_of
from kasmina.domain import commands as c
from kasmina.domain.errors import CorruptHistory, UnknownRun
from kasmina.service import fork
from kasmina.testing import MemoryEventStore, epochs, run_opened


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


def test_an_epoch_is_its_last_event_that_no_rewind_took_back(store, digits):
    history = list(store.read(digits))
    ends = [sequence_of_epoch(history, epoch) for epoch in range(10)]
    assert ends[0] == 3
    assert ends == sorted(ends)
    assert ends[9] == history[-1].sequence
    assert [history[end - 1].event.epoch for end in ends] == list(range(10))


@pytest.mark.parametrize("epoch", [-1, 10])
def test_an_epoch_that_was_not_reached_is_an_error(store, digits, epoch):
    with pytest.raises(NoSuchPoint) as caught:
        sequence_of_epoch(list(store.read(digits)), epoch)
    assert (caught.value.first, caught.value.last) == (0, 9)


def test_an_epoch_that_was_taken_back_is_an_error():
    store = MemoryEventStore()
    store.append("a", [run_opened("a"), *epochs(3)], expected=0)
    history = list(store.read("a"))
    assert sequence_of_epoch(history, 3) == 4


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
