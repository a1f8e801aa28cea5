"""A clock may say what it likes: the order of a run is that of its sequence."""

from datetime import UTC, datetime, timedelta

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kasmina.infra.event_store import open_store
from kasmina.testing import FixedClock, epochs

START = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_clock_that_goes_backwards_is_recorded_as_it_went(database):
    clock = FixedClock(START, timedelta(days=-1, microseconds=-1))
    with open_store(database, clock=clock) as store:
        for sequence in range(10):
            store.append("a", epochs(1, first=sequence + 1), expected=sequence)
        records = list(store.read("a"))
        assert [record.sequence for record in records] == list(range(1, 11))
        assert [record.event.epoch for record in records] == list(range(1, 11))
        assert [record.recorded_at for record in records] == [
            START - n * timedelta(days=1, microseconds=1) for n in range(10)
        ]
        assert list(store.follow()) == records
        assert store.verify("a").sound


class Hands:
    """A clock that shows what it was set to."""

    def __init__(self):
        self.moment = START

    def now(self):
        return self.moment


moments = st.datetimes(timezones=st.just(UTC))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(shown=st.lists(moments, min_size=1, max_size=5))
def test_whatever_a_clock_shows_is_accepted_and_read_back(new_database, shown):
    hands = Hands()
    with open_store(new_database(), clock=hands) as store:
        for sequence, moment in enumerate(shown):
            hands.moment = moment
            store.append("a", epochs(1, first=sequence + 1), expected=sequence)
        assert [record.recorded_at for record in store.read("a")] == shown
        assert store.verify("a").sound
