"""Runs that are copied keep their digests, and a copy that was cut short is gone on with."""

import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from kasmina.domain import events as e
from kasmina.domain.errors import BrokenChain, StoreUnavailable, UnreadableEvent
from kasmina.infra import copying
from kasmina.infra.copying import copy_runs, every_run, with_parents
from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store
from kasmina.infra.exchange.continuation import Transfer
from kasmina.infra.exchange.errors import OtherHistory, UnexportableEvent
from kasmina.infra.integrity import chain
from kasmina.testing import FixedClock, caught, epochs, run_opened
from tests.infra.released import EVENTS, RUN
from tests.infra.test_backup import WRITER


@pytest.fixture
def source(store):
    for run_id in ("digits-2", "digits-1"):
        store.append(run_id, [run_opened(run_id), *epochs(6)], expected=0, batch="w")
    return store


@pytest.fixture
def target(tmp_path):
    with open_store(f"sqlite:///{tmp_path / 'target.db'}", clock=FixedClock()) as target:
        yield target


def fork(store, run_id, parent):
    head = store.head(parent)
    forked = e.RunForked(
        epoch=0,
        step=0,
        run_id=run_id,
        name="fork",
        parent_run_id=parent,
        parent_sequence=head.sequence,
        parent_digest=head.digest.hex(),
    )
    store.append(run_id, [forked], expected=0)


def contents(store, run_id):
    return [(row.columns, row.digest) for row in store.rows(run_id)]


def copied(source, target, *run_ids):
    return list(copy_runs(source, target, run_ids))


def transfer(run_id, added, present=0):
    return Transfer(run_id=run_id, added=added, present=present)


def tamper(path, statement):
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            f"DROP TRIGGER events_refuse_update; DROP TRIGGER events_refuse_delete; {statement}"
        )


class TestCopying:
    def test_runs_keep_every_byte_and_digest(self, source, target):
        assert copied(source, target, "digits-2", "digits-1") == [
            transfer("digits-2", 7),
            transfer("digits-1", 7),
        ]
        for run_id in source.run_ids():
            assert contents(target, run_id) == contents(source, run_id)
            assert target.verify(run_id).sound

    def test_copying_again_adds_nothing(self, source, target):
        copied(source, target, "digits-1")
        assert copied(source, target, "digits-1") == [transfer("digits-1", 0, present=7)]

    def test_what_was_recorded_since_is_added(self, source, target):
        copied(source, target, "digits-1")
        source.append("digits-1", epochs(2, first=7), expected=7)
        assert copied(source, target, "digits-1") == [transfer("digits-1", 2, present=7)]
        assert contents(target, "digits-1") == contents(source, "digits-1")

    def test_a_run_that_went_on_in_the_target_stays_as_it_is(self, source, target):
        copied(source, target, "digits-1")
        target.append("digits-1", epochs(2, first=7), expected=7)
        assert copied(source, target, "digits-1") == [transfer("digits-1", 0, present=7)]
        assert target.head("digits-1").sequence == 9

    def test_a_run_with_another_history_is_refused_where_it_parts(self, source, target):
        target.append("digits-1", [run_opened(), *epochs(2)], expected=0, batch="w")
        target.append("digits-1", epochs(1, first=9), expected=3)
        before = contents(target, "digits-1")
        error = caught(OtherHistory, copied, source, target, "digits-2", "digits-1")
        assert (error.run_id, error.sequence) == ("digits-1", 4)
        assert contents(target, "digits-1") == before
        assert target.head("digits-2").sequence == 7, "the run before it was copied"

    def test_a_run_that_nobody_has_is_nothing(self, source, target):
        assert copied(source, target, "nobody") == [transfer("nobody", 0)]

    def test_a_copy_that_was_cut_short_goes_on_where_it_stopped(self, source, target, monkeypatch):
        for first in (7, 9, 11):
            source.append("digits-1", epochs(2, first=first), expected=first, batch=f"w.{first}")
        monkeypatch.setattr(copying, "CHUNK", 3)
        adopt, taken = target.adopt, []

        def interrupted(rows):
            if len(taken) == 2:
                raise KeyboardInterrupt
            taken.append(adopt(rows))
            return taken[-1]

        monkeypatch.setattr(target, "adopt", interrupted)
        caught(KeyboardInterrupt, copied, source, target, "digits-1")
        assert taken == [7, 4], "no append is torn"
        assert target.verify("digits-1").sound
        monkeypatch.setattr(target, "adopt", adopt)
        assert copied(source, target, "digits-1") == [transfer("digits-1", 2, present=11)]
        assert contents(target, "digits-1") == contents(source, "digits-1")

    def test_a_run_that_was_altered_is_not_copied(self, source, target, path):
        tamper(path, "UPDATE events SET epoch = 9 WHERE run_id = 'digits-1' AND sequence = 4")
        error = caught(BrokenChain, copied, source, target, "digits-1")
        assert (error.run_id, error.sequence) == ("digits-1", 4)

    def test_text_that_is_none_is_not_copied_though_its_digest_fits(self, source, target, path):
        row = list(source.rows("digits-1"))[-1]
        columns = row.columns._replace(sequence=8, batch=b"\xff")
        tamper(
            path,
            "INSERT INTO events (run_id, sequence, type, schema_version, epoch, recorded_at,"
            " payload, batch, digest) SELECT run_id, 8, type, schema_version, epoch, recorded_at,"
            f" payload, CAST(x'ff' AS TEXT), x'{chain(row.digest, columns).hex()}'"
            " FROM events WHERE run_id = 'digits-1' AND sequence = 7",
        )
        error = caught(UnexportableEvent, copied, source, target, "digits-1")
        assert (error.run_id, error.sequence) == ("digits-1", 8)

    def test_a_source_is_only_read(self, source, target, url):
        with open_store(url, access=Access.READ) as reader:
            copied(reader, target, "digits-1")
            target.append("digits-1", epochs(1, first=7), expected=7)
            caught(StoreUnavailable, copied, target, reader, "digits-1")

    def test_of_a_run_that_is_being_written_whole_transactions_are_copied(self, url, target):
        command = [sys.executable, "-c", WRITER, url]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            sizes = []
            while len(sizes) < 5:
                acknowledged = int(writer.stdout.readline())
                with open_store(url, access=Access.READ) as source:
                    (done,) = copied(source, target, "busy")
                sizes.append(done.added + done.present)
                assert sizes[-1] >= acknowledged
                assert target.verify("busy").events == sizes[-1]
            writer.kill()
        assert [size % 5 for size in sizes] == [0] * 5
        assert sizes == sorted(sizes)

    def test_a_copy_can_be_copied_back(self, source, target):
        copied(source, target, "digits-1")
        target.append("digits-1", epochs(2, first=7), expected=7)
        assert copied(target, source, "digits-1") == [transfer("digits-1", 2, present=7)]


class TestEveryRun:
    def test_is_in_the_order_in_which_they_were_begun(self, source):
        assert every_run(source) == ("digits-2", "digits-1")

    def test_has_those_whose_beginning_is_damaged_at_the_end(self, source, path):
        source.append("last", [run_opened("last")], expected=0)
        tamper(
            path,
            "UPDATE events SET payload = '{' WHERE run_id = 'digits-2' AND sequence = 1;"
            "DELETE FROM events WHERE run_id = 'digits-1' AND sequence = 1",
        )
        assert every_run(source) == ("last", "digits-1", "digits-2")


class TestParents:
    def test_a_fork_comes_after_the_runs_it_came_from(self, source):
        fork(source, "child", "digits-1")
        fork(source, "grandchild", "child")
        assert with_parents(source, ["grandchild"]) == ("digits-1", "child", "grandchild")
        assert with_parents(source, ["digits-2", "child"]) == ("digits-2", "digits-1", "child")

    def test_a_run_is_listed_once(self, source):
        fork(source, "child", "digits-1")
        assert with_parents(source, ["child", "digits-1", "child"]) == ("digits-1", "child")

    def test_a_parent_that_is_elsewhere_is_left_out(self, source, target):
        fork(source, "child", "digits-1")
        copied(source, target, "child")
        assert with_parents(target, ["child"]) == ("child",)

    def test_a_circle_of_forks_is_no_endless_loop(self, source, path):
        fork(source, "a", "digits-1")
        fork(source, "b", "a")
        tamper(
            path,
            "UPDATE events SET payload = replace(payload, '\"digits-1\"', '\"b\"') "
            "WHERE run_id = 'a'",
        )
        assert with_parents(source, ["b"]) == ("a", "b")

    def test_a_beginning_that_cannot_be_read_is_told(self, source, path):
        tamper(path, "UPDATE events SET payload = '{' WHERE run_id = 'digits-1'")
        caught(UnreadableEvent, with_parents, source, ["digits-1"])


class TestBetweenKindsOfDatabases:
    @pytest.fixture
    def server(self, postgres):
        with open_store(postgres.database()) as server:
            yield server

    def test_every_event_goes_to_postgresql_and_back_unchanged(self, store, server, target):
        store.append(RUN, list(EVENTS.values()), expected=0, batch="w")
        copied(store, server, RUN)
        copied(server, target, RUN)
        assert contents(target, RUN) == contents(server, RUN) == contents(store, RUN)
        assert copied(target, server, RUN) == [transfer(RUN, 0, present=len(EVENTS))]

    def test_a_run_goes_on_there(self, source, server):
        copied(source, server, "digits-1")
        server.append("digits-1", epochs(2, first=7), expected=7)
        assert copied(server, source, "digits-1") == [transfer("digits-1", 2, present=7)]

    def test_text_that_only_sqlite_holds_is_refused_and_nothing_of_it_is_there(self, store, server):
        store.append("a\x00b", epochs(2), expected=0)
        caught(StoreUnavailable, copied, store, server, "a\x00b")
        assert server.run_ids() == ()
