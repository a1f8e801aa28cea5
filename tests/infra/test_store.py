"""What the store on SQLite adds to the contract: threads, pages, plans, and tidiness."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateTable

from kasmina.domain.errors import BrokenChain, ConcurrentAppend, StoreUnavailable
from kasmina.infra import connections, event_store, queries, schema
from kasmina.infra.engine import Access, Durability
from kasmina.infra.event_store import open_store
from kasmina.infra.statements import Statement
from kasmina.testing import MemoryEventStore, caught, epochs


def test_threads_may_share_a_store(url):
    def work(run_id):
        for sequence in range(25):
            store.append(run_id, epochs(1), expected=sequence)
            assert len(list(store.read(run_id))) == sequence + 1

    with open_store(url, durability=Durability.RELAXED) as store, ThreadPoolExecutor(4) as threads:
        list(threads.map(work, "abcd"))
        assert all(store.verify(run_id).events == 25 for run_id in "abcd")


def test_a_run_may_be_read_while_others_are_listed(url):
    with open_store(url) as store:
        for run_id in "ab":
            store.append(run_id, epochs(3), expected=0)
        for record in store.runs():
            assert [r.sequence for r in store.read(record.run_id)] == [1, 2, 3]


@pytest.mark.parametrize("page", [1, 2, 3, 6, 7])
def test_pages_do_not_show(recorded, monkeypatch, page):
    monkeypatch.setattr(event_store, "PAGE", page)
    with open_store(recorded, access=Access.READ) as store:
        assert [r.sequence for r in store.read("digits-1")] == [1, 2, 3, 4, 5, 6]
        assert [r.sequence for r in store.read("digits-1", after=1, until=4)] == [2, 3, 4]
        assert store.verify("digits-1").events == 6


def test_a_verification_that_is_given_up_keeps_nothing_open(recorded):
    with open_store(recorded) as store:
        rows = store.rows("digits-1")
        assert next(rows).columns.sequence == 1
        rows.close()
        assert store._connections._reader.pool.checkedout() == 0


def test_a_closed_store_leaves_one_file(recorded, path):
    with open_store(recorded) as store:
        assert store.url == recorded
        list(store.read("digits-1"))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_batch_marks_its_first_event_alone(recorded, sql):
    assert [batch for (batch,) in sql("SELECT batch FROM events ORDER BY position")] == [
        "w.1",
        "w.2",
        None,
        None,
        None,
        None,
    ]


@pytest.mark.parametrize(
    "query",
    [
        queries.HEAD,
        queries.READ,
        queries.STRETCH,
        queries.WHOLE_RUN,
        queries.FOLLOW,
        queries.BEGINNINGS,
        queries.LATEST_BEGINNINGS,
        queries.RUN_IDS,
    ],
)
def test_no_query_reads_all_events_or_sorts_a_run(recorded, sql, query):
    compiled = query.compile(dialect=sqlite.dialect(paramstyle="named"))
    given = compiled.params | {"run_id": "a", "after": 0, "until": 9, "limit": 9}
    given |= {"before": 9, "start": "a"}
    text = str(compiled)
    for name in sorted(compiled.params, key=len, reverse=True):
        text = text.replace(f":{name}", repr(given[name]))
    plan = [detail for *_, detail in sql(f"EXPLAIN QUERY PLAN {text}")]
    assert not [line for line in plan if line.startswith("SCAN events")]
    assert not [line for line in plan if "TEMP B-TREE" in line]


def test_a_thread_that_never_gets_its_turn_is_told(store, monkeypatch):
    monkeypatch.setattr(connections, "BUSY_SECONDS", 0.01)
    with store._connections.writing():
        error = caught(StoreUnavailable, store.append, "a", epochs(1), expected=0)
    assert "another thread" in error.problem
    assert store.append("a", epochs(1), expected=0)


def test_a_writer_that_cannot_connect_gives_its_turn_back(recorded, monkeypatch):
    with open_store(recorded) as store:
        own = store._connections
        kept, own._kept = own._kept, None

        def refuse():
            raise sqlite3.OperationalError("no more files")

        with monkeypatch.context() as patched:
            patched.setattr(own._writer, "raw_connection", refuse)
            caught(StoreUnavailable, store.append, "b", epochs(1), expected=0)
        kept.close()
        assert store.append("b", epochs(1), expected=0)


def test_more_runs_than_a_page_are_all_listed(url, monkeypatch):
    monkeypatch.setattr(event_store, "PAGE", 3)
    with open_store(url) as store:
        for n in range(7):
            store.append(f"run-{n}", epochs(1), expected=0)
        assert [r.run_id for r in store.runs()] == [f"run-{n}" for n in range(7)]


def test_what_is_no_query_is_no_statement():
    with pytest.raises(TypeError, match="no statement that has parameters"):
        Statement(CreateTable(schema.events), sqlite.dialect())


def test_a_write_ahead_log_that_was_deleted_is_noticed(recorded, path):
    with open_store(recorded) as store:
        store.append("b", epochs(1), expected=0)
        path.with_name(f"{path.name}-wal").unlink()
        error = caught(StoreUnavailable, store.append, "b", epochs(1), expected=1)
    assert "write-ahead log" in error.problem


def test_the_latest_runs_come_page_by_page(url):
    with open_store(url) as store:
        for n in range(5):
            store.append(f"run-{n}", epochs(2), expected=0)
        newest = store.latest_runs(limit=2)
        older = store.latest_runs(limit=9, before=newest[-1].position)
    assert [r.run_id for r in newest] == ["run-4", "run-3"]
    assert [r.run_id for r in older] == ["run-2", "run-1", "run-0"]


class TestTakingRowsIn:
    @pytest.fixture
    def rows(self):
        memory = MemoryEventStore()
        memory.append("a", epochs(3), expected=0)
        return memory.rows("a")

    def test_they_go_on_from_the_head_of_their_run(self, store, rows):
        error = caught(ConcurrentAppend, store.adopt, rows[1:])
        assert (error.run_id, error.expected, error.found) == ("a", 1, 0)
        assert store.adopt(rows) == 3
        error = caught(ConcurrentAppend, store.adopt, rows)
        assert (error.expected, error.found) == (0, 3)

    def test_one_that_was_altered_leaves_nothing(self, store, rows):
        altered = rows[1]._replace(columns=rows[1].columns._replace(epoch=9))
        error = caught(BrokenChain, store.adopt, [rows[0], altered, rows[2]])
        assert (error.run_id, error.sequence) == ("a", 2)
        assert store.head("a").sequence == 0
