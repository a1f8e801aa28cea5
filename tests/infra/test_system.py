"""The machine's clock, identifiers, and their deterministic fakes."""

from datetime import UTC, datetime, timedelta

import pytest

from kasmina.infra.system import RandomIdentifiers, SystemClock
from kasmina.testing import CountingIdentifiers, FixedClock


def test_the_clock_shows_the_present_in_utc():
    now = SystemClock().now()
    assert now.utcoffset() == timedelta(0)
    assert abs(now - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("digits", "digits"),
        ("Größe & Co. (v2)", "groe-co-v2"),
        ("../../etc/passwd", "etc-passwd"),
        ("学習", "run"),
        ("", "run"),
        ("x" * 100, "x" * 40),
        ("x" * 39 + " y", "x" * 39),
    ],
)
def test_a_runs_identifier_begins_with_its_name_as_a_slug(name, slug):
    head, _, tail = RandomIdentifiers().run_id(name).rpartition("-")
    assert head == slug
    assert len(tail) == 8
    assert tail.isalnum()


def test_identifiers_are_short_and_never_the_same():
    new = RandomIdentifiers()
    for kind in (new.seed_id, new.batch, lambda: new.run_id("digits")):
        made = {kind() for _ in range(1000)}
        assert len(made) == 1000
        assert max(map(len, made)) <= 16
    assert new.seed_id()[0] == "s"


def test_counted_identifiers_are_the_same_every_time():
    new = CountingIdentifiers()
    assert [new.run_id("digits"), new.seed_id(), new.batch()] == ["digits-1", "s2", "b3"]


def test_a_fixed_clock_moves_only_by_its_step():
    still, moving = FixedClock(), FixedClock(step=timedelta(seconds=2))
    assert still.now() == still.now()
    assert moving.now() + timedelta(seconds=2) == moving.now()
