"""What the store on PostgreSQL adds to the contract: many writers, and a server that goes away."""

import math
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.engine import make_url

from kasmina import infra
from kasmina.domain.errors import ConcurrentAppend, SchemaMismatch, StoreUnavailable
from kasmina.domain.ports import Append
from kasmina.infra import migrate, queries, schema
from kasmina.infra.engine import Access, Durability, locate
from kasmina.infra.event_store import open_store
from kasmina.infra.statements import Statement
from kasmina.testing import caught, epochs, run_opened
from tests.infra.released import EVENTS, RUN
from tests.postgres import Server


@pytest.fixture
def url(postgres):
    return postgres.database()


@pytest.fixture
def store(url):
    with open_store(url) as store:
        yield store


@pytest.fixture
def connect(url):
    """Connections of the driver's own, as any other program would have them."""
    made = []

    def connect():
        connection = psycopg.connect(url)
        made.append(connection)
        return connection

    yield connect
    for connection in made:
        connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET epoch = 7",
        "DELETE FROM events",
        "DELETE FROM events WHERE sequence = 9",
        "TRUNCATE events",
        """
        INSERT INTO events SELECT * FROM events
        ON CONFLICT (position) DO UPDATE SET payload = 'x'
        """,
    ],
)
def test_the_database_itself_refuses_changes(store, connect, statement):
    store.append("a", epochs(2), expected=0)
    with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
        connect().execute(statement)


def test_the_view_shows_what_it_shows_on_sqlite(store, connect, tmp_path):
    events = [event for name, event in EVENTS.items() if name != "RunForked"]
    shown = "SELECT * FROM gate_outcomes ORDER BY sequence, check_name"
    store.append(RUN, events, expected=0)
    server = connect().execute(shown).fetchall()
    with open_store(f"sqlite:///{tmp_path / 'runs.db'}") as local:
        local.append(RUN, events, expected=0)
        with local._connections.reading() as cursor:
            file = cursor.execute(shown).fetchall()
    assert server
    # SQLite's view shows figures that are not finite as text, PostgreSQL's as themselves.
    assert [tuple(map(_as_text, row)) for row in server] == file


def _as_text(figure):
    not_finite = isinstance(figure, float) and not math.isfinite(figure)
    return str(figure) if not_finite else figure


class TestFollowing:
    def test_stops_at_a_writer_that_is_not_done(self, store, url):
        with open_store(url) as slow, slow._connections.writing() as cursor:
            slow._database.insert(cursor, [_row("slow", 1)])
            store.append("quick", epochs(3), expected=0)
            assert store.head("quick").sequence == 3
            assert store.follow() == ()
        assert [r.run_id for r in store.follow()] == ["slow", "quick", "quick", "quick"]

    def test_goes_on_when_a_writer_has_given_up(self, store, url):
        def give_up():
            with open_store(url) as slow, slow._connections.writing() as cursor:
                slow._database.insert(cursor, [_row("slow", 1)])
                store.append("quick", epochs(1), expected=0)
                raise RuntimeError("changed my mind")

        caught(RuntimeError, give_up)
        assert [r.run_id for r in store.follow()] == ["quick"]

    def test_is_held_up_by_no_other_programs_locks(self, store, connect):
        store.append("a", epochs(1), expected=0)
        connect().execute("SELECT pg_advisory_lock(7), pg_advisory_lock(7, 7)")
        assert len(store.follow()) == 1

    def test_misses_nothing_while_many_write(self, url, store):
        """Eight writers commit out of order for as long as the follower needs to see it all."""
        runs, appends, size = 8, 25, (1, 12)

        def write(number):
            run_id = f"run-{number}"
            with open_store(url, durability=Durability.RELAXED) as own:
                at = 0
                for turn in range(appends):
                    count = size[(turn + number) % 2]
                    own.append(run_id, epochs(count, first=at + 1), expected=at)
                    at += count
            return at

        with ThreadPoolExecutor(runs) as threads:
            writing = [threads.submit(write, number) for number in range(runs)]
            seen = []
            while not all(each.done() for each in writing):
                seen += store.follow(after=seen[-1].position if seen else 0, limit=50)
            total = sum(each.result() for each in writing)
        while page := store.follow(after=seen[-1].position if seen else 0):
            seen += page
        assert len(seen) == total
        positions = [r.position for r in seen]
        assert positions == sorted(set(positions))
        for number in range(runs):
            own = [r.sequence for r in seen if r.run_id == f"run-{number}"]
            assert own == list(range(1, len(own) + 1))

    def test_a_standby_is_refused(self, store):
        class Standby:
            def execute(self, statement, *_):
                return self

            def fetchone(self):
                return 5, True

        error = caught(StoreUnavailable, store._database.settled, Standby())
        assert "primary" in error.mend


class TestManyWriters:
    def test_on_different_runs_all_succeed(self, url, store):
        def write(run_id):
            with open_store(url) as own:
                for sequence in range(20):
                    own.append(run_id, epochs(1), expected=sequence)

        runs = [f"run-{number}" for number in range(16)]
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(write, runs))
        assert store.run_ids() == tuple(sorted(runs))
        assert all(store.head(run_id).sequence == 20 for run_id in runs)

    def test_on_one_run_exactly_one_wins_each_sequence(self, url, store):
        start = threading.Barrier(8)

        def write(_):
            won = []
            with open_store(url) as own:
                start.wait()
                while (head := own.head("a").sequence) < 40:
                    try:
                        own.append("a", epochs(2), expected=head)
                    except ConcurrentAppend as error:
                        assert error.expected == head < error.found  # noqa: PT017
                    else:
                        won.append(head)
            return won

        with ThreadPoolExecutor(8) as threads:
            won = sorted(sequence for each in threads.map(write, range(8)) for sequence in each)
        assert won == list(range(0, 40, 2))
        assert store.head("a").sequence == 40

    def test_a_repeated_batch_that_was_overtaken_by_itself_is_written_once(self, url, store):
        start = threading.Barrier(6)

        def write(_):
            with open_store(url) as own:
                start.wait()
                return own.append("a", epochs(3), expected=0, batch="w.1")

        with ThreadPoolExecutor(6) as threads:
            recorded = list(threads.map(write, range(6)))
        assert len({tuple(r.digest for r in each) for each in recorded}) == 1
        assert store.head("a").sequence == 3

    def test_two_that_take_in_the_same_rows_at_once(self, url, store, tmp_path):
        with open_store(f"sqlite:///{tmp_path / 'runs.db'}") as local:
            local.append("a", epochs(3), expected=0)
            rows = list(local.rows("a"))
        with open_store(url) as first, first._connections.writing() as cursor:
            first._database.insert(cursor, list(map(queries.parameters, rows)))
            with ThreadPoolExecutor(1) as threads:
                second = threads.submit(store.adopt, rows)
                cursor.connection.commit()
                error = second.exception(20)
        assert isinstance(error, StoreUnavailable | ConcurrentAppend)
        assert store.head("a").sequence == 3


def _row(run_id, sequence):
    return (
        run_id,
        sequence,
        None,
        None,
        "RunClosed",
        1,
        1,
        1,
        '{"epoch":1,"objective":null,"step":1}',
        None,
        bytes(32),
    )


def test_many_that_create_the_tables_at_once_agree(postgres):
    url = postgres.database()
    start = threading.Barrier(8)

    def create(number):
        start.wait()
        with open_store(url) as store:
            return len(store.append(f"run-{number}", epochs(1), expected=0))

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(create, range(8))) == [1] * 8
    assert migrate.current(url) == schema.REVISION


class TestAServerThatGoesAway:
    @pytest.fixture
    def own_server(self, postgres):  # `postgres` skips where none is installed
        server = Server()
        yield server
        server.close()

    def test_is_a_clear_error_and_writing_goes_on_when_it_is_back(self, own_server):
        url = own_server.database()
        with open_store(url) as store:
            store.append("a", epochs(2), expected=0, batch="w.1")
            own_server.stop()
            for act in (
                lambda: store.append("a", epochs(1), expected=2, batch="w.2"),
                lambda: store.head("a"),
                store.follow,
            ):
                error = caught(StoreUnavailable, act)
                assert "cannot be reached" in error.problem
                assert "the server runs" in error.mend
            own_server.start()
            assert store.append("a", epochs(1, first=3), expected=2, batch="w.2")
            assert [r.sequence for r in store.read("a")] == [1, 2, 3]
            assert store.verify("a").head == store.head("a")

    def test_in_the_middle_of_a_transaction_loses_all_of_it_and_nothing_else(self, own_server):
        url = own_server.database()
        with open_store(url) as store:
            store.append("a", epochs(2), expected=0)

            def rows():
                with open_store(f"{url}") as other:
                    other.append("source", epochs(2), expected=0)
                    yield from ()
                own_server.stop()
                yield from _adoptable(3)

            caught(StoreUnavailable, store.adopt, rows())
            own_server.start()
            assert store.run_ids() == ("a", "source")
            assert store.head("a").sequence == 2


def _adoptable(count):
    from kasmina.testing import MemoryEventStore

    memory = MemoryEventStore()
    memory.append("adopted", epochs(count), expected=0)
    return memory.rows("adopted")


class TestWhatCannotBeDone:
    def test_no_server(self):
        error = caught(StoreUnavailable, open_store, "postgresql://me:secret@127.0.0.1:9/runs")
        assert "cannot be reached" in error.problem
        assert "secret" not in str(error)

    def test_no_such_database(self, url):
        error = caught(StoreUnavailable, open_store, f"{url}_missing")
        assert "createdb" in error.mend

    def test_another_programs_events(self, url, connect):
        with connect() as connection:
            connection.execute("CREATE TABLE events (id int)")
        error = caught(SchemaMismatch, open_store, url)
        assert "another program (events)" in error.found

    def test_other_tables_may_lie_beside(self, url, connect):
        with connect() as connection:
            connection.execute("CREATE TABLE accounts (id int)")
        with open_store(url) as store:
            assert store.append("a", epochs(1), expected=0)

    def test_a_schema_of_ones_own(self, url, connect):
        with connect() as connection:
            connection.execute("CREATE SCHEMA growth")
        own = f"{url}?options=-csearch_path%3Dgrowth"
        with open_store(own) as store:
            store.append("a", epochs(1), expected=0)
        assert migrate.current(url) is None
        assert connect().execute("SELECT count(*) FROM growth.events").fetchone() == (1,)

    def test_a_user_who_may_only_read(self, url, store, connect):
        store.append("a", epochs(1), expected=0)
        with connect() as connection:
            connection.execute("DROP ROLE IF EXISTS auditor")
            connection.execute("CREATE ROLE auditor LOGIN")
            connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO auditor")
        own = make_url(url).set(username="auditor").render_as_string()
        with open_store(own, access=Access.READ) as reading:
            assert reading.head("a").sequence == 1
        with open_store(own) as writing:
            error = caught(StoreUnavailable, writing.append, "a", epochs(1), expected=1)
            assert "may not be used so" in error.problem
        with connect() as connection:
            connection.execute("DROP OWNED BY auditor")
            connection.execute("DROP ROLE auditor")

    @pytest.mark.parametrize("run_id", ["nul\x00", random.Random(0).randbytes(9000).hex()])
    def test_an_identifier_that_it_cannot_hold(self, store, run_id):
        error = caught(StoreUnavailable, store.append, run_id, epochs(1), expected=0)
        assert "cannot be stored" in error.problem
        assert store.run_ids() == ()

    def test_a_table_that_is_locked(self, url, store, connect):
        own = f"{url}?options=-clock_timeout%3D50"
        connect().execute("LOCK TABLE events")
        with open_store(own, access=Access.READ) as reading:
            error = caught(StoreUnavailable, reading.head, "a")
        assert "locked for too long" in error.problem

    def test_without_psycopg(self, monkeypatch):
        monkeypatch.delattr(infra, "postgresql")
        monkeypatch.setitem(sys.modules, "kasmina.infra.postgresql", None)
        error = caught(StoreUnavailable, locate, "postgresql://me:secret@host/runs")
        assert error.mend == "pip install 'kasmina[postgres]'"
        assert "secret" not in str(error)


@pytest.mark.parametrize(("durability", "commit"), [("FULL", "on"), ("RELAXED", "off")])
def test_a_writer_commits_as_it_was_told(url, durability, commit):
    with (
        open_store(url, durability=Durability[durability]) as store,
        store._connections.writing() as cursor,
    ):
        assert cursor.execute("SHOW synchronous_commit").fetchone() == (commit,)


def test_a_reader_cannot_write(url, store):
    with open_store(url, access=Access.READ) as reading:
        caught(StoreUnavailable, reading.append, "a", epochs(1), expected=0)
        with (
            pytest.raises(StoreUnavailable, match="may not be used so"),
            reading._connections.reading() as cursor,
        ):
            cursor.execute("CREATE TABLE mine (id int)")


def test_a_long_run_is_streamed_from_the_server(store):
    store.append("a", epochs(2500), expected=0)
    pages = store.pages("a")
    assert len(next(pages)) == 1000
    store.append("a", epochs(1), expected=2500)
    assert sum(map(len, pages)) == 1500  # one state of the database
    assert store.verify("a").events == 2501


class TestMigrations:
    @pytest.fixture
    def connection(self, url):
        writer = locate(url).writer(Durability.FULL)
        with writer.begin() as connection:
            yield connection
        writer.dispose()

    def test_up_down_and_up_again_is_the_same(self, connection):
        def made():
            listed = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
            functions = "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
            return {
                name
                for query in (listed, functions)
                for (name,) in connection.exec_driver_sql(query)
            }

        config = migrate.config(connection)
        command.upgrade(config, "head")
        first = made()
        command.downgrade(config, "base")
        assert {name for name in made() if "kasmina_schema" not in name} == set()
        command.upgrade(config, "head")
        assert made() == first

    def test_the_tables_in_code_are_those_in_the_database(self, connection):
        command.upgrade(migrate.config(connection), "head")
        options = {"version_table": schema.VERSION_TABLE, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, schema.metadata) == []

    def test_the_index_of_beginnings_holds_first_events_alone(self, connection):
        command.upgrade(migrate.config(connection), "head")
        shown = "SELECT indexdef FROM pg_indexes WHERE indexname = 'events_beginnings'"
        (definition,) = connection.exec_driver_sql(shown).one()
        assert definition.endswith("WHERE (sequence = 1)")

    def test_a_lost_trigger_undoes_the_migration(self, url, connection):
        command.upgrade(migrate.config(connection), "head")
        assert locate(url).missing_guards(connection) == []
        connection.exec_driver_sql("DROP TRIGGER events_refuse_delete ON events")
        assert locate(url).missing_guards(connection) == ["events_refuse_delete"]


@pytest.mark.parametrize(
    "name",
    ["head", "read", "stretch", "follow", "beginnings", "latest_beginnings"],
)
def test_no_query_reads_all_events_or_sorts_them(store, connect, name):
    given = {"run_id": "a", "after": 0, "until": 9, "limit": 9, "before": 9}
    statement: Statement = getattr(store._queries, name)
    wanted = statement.parameters()
    connection = connect()
    connection.execute("SET enable_seqscan = off")  # an empty table is always scanned
    parameters = statement.parameters(**{k: v for k, v in given.items() if k in wanted})
    plan = connection.execute(f"EXPLAIN {statement.text}", parameters).fetchall()
    lines = [line for (line,) in plan]
    assert any("Index" in line for line in lines)
    assert not [line for line in lines if "Seq Scan" in line or "Sort" in line]


def test_fleets_write_in_one_transaction(store, connect):
    store.append_all(
        [Append(run_id=f"r{n}", events=[run_opened(f"r{n}")], expected=0) for n in range(50)]
    )
    assert connect().execute("SELECT count(DISTINCT xmin::text) FROM events").fetchone() == (1,)


def test_the_options_of_the_url_are_kept(url, store):
    named = f"{url}?application_name=trainer-7"
    with open_store(named) as own, own._connections.reading() as cursor:
        (name,) = cursor.execute("SHOW application_name").fetchone()
    assert name == "trainer-7"
    assert conninfo_to_dict(url)["user"] == "kasmina"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (psycopg.errors.DiskFull("no space left"), "disk is full"),
        (psycopg.errors.DeadlockDetected("deadlock detected"), "locked for too long"),
        (psycopg.errors.RaiseException("events are append-only"), "the database refused"),
    ],
)
def test_what_the_server_refuses_is_told(url, error, told):
    fault = locate(url).fault(error)
    assert told in fault.problem
    assert fault.mend


def test_rows_that_another_took_in_meanwhile_are_a_clear_error(url, store, monkeypatch):
    def overtaken(cursor, rows):
        raise psycopg.errors.UniqueViolation("events_run_sequence")

    monkeypatch.setattr(store._database, "insert", overtaken)
    error = caught(StoreUnavailable, store.adopt, _adoptable(2))
    assert "being taken in" in error.problem
    assert "repeat it" in error.mend
