"""A damaged file is never taken for a whole one, and never ends in another error than our own."""

import sqlite3
from collections import Counter
from contextlib import closing

import pytest

from kasmina.domain.errors import SchemaMismatch, StoreError, StoreUnavailable, UnreadableEvent
from kasmina.infra import schema
from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store
from kasmina.infra.integrity import Flaw
from kasmina.testing import FixedClock, caught, epochs
from tests.faults.damage import PAGE, damaged
from tests.faults.plans import Plan
from tests.infra.released import write_database


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a database with every type of event, and the seals of its runs."""
    path = tmp_path_factory.mktemp("whole") / "runs.db"
    write_database(path)
    with open_store(f"sqlite:///{path}", clock=FixedClock()) as store:
        for run in ("a", "b", "c"):
            store.append(run, epochs(60), expected=0)
        seals = tuple(store.verify(run).seal for run in store.run_ids())
    return path.read_bytes(), seals


def read(url, seals):
    """All that can be read, by every way to read it, and whether it is what was sealed."""
    with open_store(url, access=Access.READ) as store:
        sound = all(store.verify(seal.run_id, seal=seal).sound for seal in seals)
        records = [record for seal in seals for record in store.read(seal.run_id)]
        assert len(list(store.runs())) <= len(store.follow(limit=10**6))
        heads = [store.head(run) for run in store.run_ids()]
    contents = [(r.run_id, r.sequence, r.recorded_at, repr(r.event), r.digest) for r in records]
    return sound, contents, heads


def write(url):
    with open_store(url) as store:
        for run in ("a", "new"):
            store.append(run, epochs(3), expected=store.head(run).sequence)


def outcome(act, *arguments):
    try:
        return act(*arguments)
    except StoreError as error:
        return error


@pytest.mark.parametrize(
    "numbers",
    [range(200), pytest.param(range(200, 1500), marks=pytest.mark.slow)],
    ids=["some", "many"],
)
def test_damage_is_told_or_does_no_harm(path, url, whole, numbers):
    """A file that seems sound under its seals holds to the last bit what was recorded."""
    content, seals = whole
    path.write_bytes(content)
    intact = read(url, seals)
    assert intact[0]
    seen = Counter()
    for number in numbers:
        path.write_bytes(damaged(content, number))
        found = outcome(read, url, seals)
        match found:
            case (True, *_):
                assert found == intact, f"damage {number} was not noticed"
            case StoreUnavailable() | SchemaMismatch():
                assert found.mend
        seen[type(found) if isinstance(found, Exception) else found[0]] += 1
        outcome(write, url)
        for other in path.parent.glob(f"{path.name}-*"):
            other.unlink()
    assert {True, False, StoreUnavailable, UnreadableEvent} <= set(seen)


def test_a_file_may_be_cut_at_every_page(path, url, whole):
    content, seals = whole
    for size in range(PAGE, len(content), PAGE):
        path.write_bytes(content[:size])
        error = caught((StoreUnavailable, SchemaMismatch), read, url, seals)
        assert error.mend


def test_pages_that_are_overwritten_under_an_open_store_are_noticed(path, url):
    """What it had read it may still know; what it reads anew it does not trust."""
    with open_store(url) as store:
        store.append("a", epochs(3000), expected=0)
        seal = store.verify("a").seal
    content = path.read_bytes()
    middle = PAGE * (len(content) // PAGE // 2)
    with open_store(url) as store:
        assert store.head("a").sequence == 3000
        with path.open("r+b") as file:
            file.seek(middle)
            file.write(b"\xa5" * 10 * PAGE)
        error = caught(StoreUnavailable, store.verify, "a")
        assert "damaged" in error.problem
        assert "restore it from a backup" in error.mend
        path.write_bytes(content)
    with open_store(url) as store:
        assert store.verify("a", seal=seal).sound
        store.append("a", epochs(1, first=3001), expected=3000)


def test_a_write_ahead_log_that_was_removed_is_missed_by_a_seal_only(path, url, start):
    """Without it the file is a whole one, as it was earlier: keep seals elsewhere."""
    with open_store(url) as store:
        store.append("victim", epochs(3), expected=0, batch="w:0")
    process = start("die_before_acknowledging", url)
    process.go()
    process.dies()
    with open_store(url, access=Access.READ) as store:
        seal = store.verify("victim").seal
        assert seal.length == 23
        path.with_name(f"{path.name}-wal").unlink()
    with open_store(url) as store:
        assert store.verify("victim").sound
        (problem,) = store.verify("victim", seal=seal).problems
        assert (problem.sequence, problem.flaw) == (4, Flaw.CUT)
        store.append("victim", epochs(1, first=4), expected=3)


def test_a_damaged_write_ahead_log_loses_its_tail_and_never_half_a_batch(path, url, start):
    """As after a power cut: what is not whole there was never committed."""
    plan = Plan(run="a", seed=1)
    process = start("live", url, plan.run, plan.seed, 0)
    process.go()
    while process.says() < 40:
        pass
    process.kill()
    log = path.with_name(f"{path.name}-wal")
    content, written = path.read_bytes(), log.read_bytes()
    ends = [plan.end(number) for number in range(len(written) // PAGE)]
    seen = set()
    for number in range(60):
        path.write_bytes(content)
        log.write_bytes(damaged(written, number))
        path.with_name(f"{path.name}-shm").unlink(missing_ok=True)
        with open_store(url) as store:
            found = [record.event for record in store.read("a")]
            assert len(found) in ends
            assert found == plan.events(len(found))
            assert store.verify("a").sound
            store.append("a", epochs(1), expected=len(found))
        seen.add(len(found))
    assert len(seen) > 10


class TestWhatTheSweepHasFound:
    @pytest.fixture
    def sql(self, path, url):
        """A statement on a database with three events, past whatever guards it."""
        with open_store(url) as store:
            store.append("a", epochs(3), expected=0)

        def run(*statements):
            with closing(sqlite3.connect(path)) as connection, connection:
                for trigger in schema.TRIGGERS:
                    connection.execute(f"DROP TRIGGER {trigger}")
                for statement in statements:
                    connection.execute(statement)

        return run

    def read_run(self, url):
        with open_store(url, access=Access.READ) as store:
            return list(store.read("a"))

    @pytest.mark.parametrize("time", [2**62, -(2**62)])
    def test_a_time_that_is_no_date_is_unreadable(self, url, sql, time):
        sql(f"UPDATE events SET recorded_at = {time} WHERE sequence = 2")
        error = caught(UnreadableEvent, self.read_run, url)
        assert "sequence 2" in error.problem

    @pytest.mark.parametrize("column", ["type", "schema_version", "recorded_at"])
    def test_a_column_without_its_value_is_unreadable(self, url, sql, column):
        """As where a part of a page is blank."""
        sql(
            "PRAGMA writable_schema = 1",
            "UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '') WHERE name = 'events'",
            "PRAGMA writable_schema = RESET",
            f"UPDATE events SET {column} = NULL WHERE sequence = 2",
        )
        error = caught(UnreadableEvent, self.read_run, url)
        assert "sequence 2" in error.problem

    @pytest.mark.parametrize("access", Access)
    def test_a_schema_that_is_no_text_is_a_damaged_file(self, path, url, sql, access):
        """SQLite quotes it in its message, which Python cannot decode then."""
        sql()
        content = path.read_bytes()
        path.write_bytes(
            content.replace(b"CREATE TABLE events", b"CREATE \xff\xfe\xfd\xfc\xfb events")
        )
        error = caught(StoreUnavailable, open_store, url, access=access)
        assert "damaged" in error.problem

    @pytest.mark.parametrize("revision", ["0", "0000"])
    def test_a_revision_that_never_was_is_a_schema_mismatch(self, url, sql, revision):
        sql(f"UPDATE {schema.VERSION_TABLE} SET version_num = '{revision}'")
        error = caught(SchemaMismatch, open_store, url)
        assert error.mend

    def test_nothing_is_acknowledged_into_a_write_ahead_log_that_was_deleted(self, url, start):
        process = start("append_after_its_log_was_deleted", url)
        process.go()
        told = process.says()
        process.dies()
        with open_store(url) as store:
            assert isinstance(told, str) or store.head("a").sequence == told
