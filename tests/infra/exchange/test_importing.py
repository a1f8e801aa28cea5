"""What was exported is taken in whole, with its digests, or not at all."""

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasmina.domain.errors import BrokenChain, KasminaError, StoreUnavailable
from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store
from kasmina.infra.exchange import jsonl
from kasmina.infra.exchange.continuation import Transfer
from kasmina.infra.exchange.errors import MissingEvents, OtherHistory, UnreadableLine
from kasmina.infra.exchange.importing import import_lines
from kasmina.testing import FixedClock, caught, epochs, run_opened


@pytest.fixture
def take_in(stream):
    return lambda store, lines: import_lines(store, stream(lines), "a.jsonl")


@pytest.fixture
def lines(source, exported):
    """The runs of ``source``, the second one first."""
    return exported(source, "digits-2", "digits-1")


def contents(store):
    """Everything but the positions, which are a database's own."""
    return {
        run_id: [(row.columns, row.digest) for row in store.rows(run_id)]
        for run_id in store.run_ids()
    }


def added(events, *, present=0, run_id="digits-1"):
    return Transfer(run_id=run_id, added=events, present=present)


def altered(line, **columns):
    return json.dumps(json.loads(line) | columns, separators=(",", ":")).encode() + b"\n"


class TestImporting:
    def test_a_run_comes_with_every_digest(self, source, target, take_in, lines):
        assert take_in(target, lines) == (added(6), added(6, run_id="digits-2"))
        assert contents(target) == contents(source)
        assert all(target.verify(run_id).sound for run_id in target.run_ids())

    def test_runs_are_begun_in_the_order_of_the_file(self, target, take_in, lines):
        take_in(target, lines)
        assert [record.run_id for record in target.runs()] == ["digits-2", "digits-1"]

    def test_a_file_imported_twice_adds_nothing(self, source, target, take_in, lines):
        take_in(target, lines)
        here = added(0, present=6), added(0, present=6, run_id="digits-2")
        assert take_in(target, lines) == here
        assert take_in(source, lines) == here

    def test_a_file_in_which_a_run_has_gone_on_adds_the_rest(self, source, target, take_in, lines):
        take_in(target, lines[:9])
        assert take_in(target, lines) == (
            added(3, present=3),
            added(0, present=6, run_id="digits-2"),
        )
        assert contents(target) == contents(source)

    def test_a_file_that_holds_the_rest_alone_adds_it(self, source, target, take_in, lines):
        take_in(target, lines[:8])
        assert take_in(target, lines[8:]) == (added(4),)
        assert contents(target) == contents(source)

    def test_a_file_that_holds_less_than_the_database_adds_nothing(self, source, take_in, lines):
        assert take_in(source, lines[2:5]) == (added(0, present=3, run_id="digits-2"),)

    def test_a_run_that_went_on_here_is_as_it_was(self, source, target, take_in, lines):
        take_in(target, lines)
        target.append("digits-1", epochs(3, first=6), expected=6)
        before = contents(target)
        take_in(target, lines)
        assert contents(target) == before

    @given(order=st.permutations([0] * 6 + [1] * 6))
    @settings(max_examples=10)
    def test_runs_may_come_in_turns(self, tmp_path_factory, order):
        folder = tmp_path_factory.mktemp("turns")
        runs = []
        with open_store(f"sqlite:///{folder / 'a.db'}", clock=FixedClock()) as source:
            for run_id in ("a", "b"):
                source.append(run_id, [run_opened(run_id), *epochs(5)], expected=0)
                runs.append(jsonl.lines(source.rows(run_id)))
            path = folder / "turns.jsonl"
            path.write_bytes(b"".join(next(runs[run]) for run in order))
            with open_store(f"sqlite:///{folder / 'b.db'}") as target, path.open("rb") as file:
                import_lines(target, file, "turns")
                assert contents(target) == contents(source)
                file.seek(0)
                assert sum(run.present for run in import_lines(target, file, "turns")) == 12


class TestRefusing:
    def refused(self, kind, target, take_in, lines):
        """The error; nothing of the file is in the database."""
        before = contents(target)
        error = caught(kind, take_in, target, lines)
        assert contents(target) == before
        return error

    def test_a_history_that_contradicts_is_named_where_it_does(self, target, take_in, lines):
        target.append("digits-1", [run_opened()], expected=0, batch="digits-1.0")
        target.append("digits-1", epochs(2), expected=1)
        target.append("digits-1", epochs(2, first=7), expected=3)
        error = self.refused(OtherHistory, target, take_in, lines)
        assert (error.run_id, error.sequence) == ("digits-1", 4)

    def test_an_event_that_is_here_with_another_digest_is_refused(self, source, take_in, lines):
        lines[2] = altered(lines[2], digest="00" * 32)
        error = self.refused(OtherHistory, source, take_in, lines)
        assert (error.run_id, error.sequence) == ("digits-2", 3)

    @pytest.mark.parametrize(
        "columns",
        [{"recorded_at": 5}, {"batch": "w.9"}, {"type": "RunPromoted"}, {"digest": "00" * 32}],
        ids=str,
    )
    def test_an_altered_event_breaks_the_chain(self, target, take_in, lines, columns):
        lines[8] = altered(lines[8], **columns)
        error = self.refused(BrokenChain, target, take_in, lines)
        assert (error.run_id, error.sequence) == ("digits-1", 3)

    @pytest.mark.parametrize("gone", [0, 3])
    def test_an_event_left_out_is_missed(self, target, take_in, lines, gone):
        error = self.refused(MissingEvents, target, take_in, lines[:gone] + lines[gone + 1 :])
        assert (error.run_id, error.expected, error.found) == ("digits-2", gone + 1, gone + 2)

    def test_the_rest_of_a_run_that_is_not_here_is_refused(self, target, take_in, lines):
        take_in(target, lines[:2])
        error = self.refused(MissingEvents, target, take_in, lines[4:6])
        assert (error.expected, error.found) == (3, 5)

    def test_events_out_of_their_order_are_refused(self, source, target, take_in, lines):
        swapped = [*lines[:2], lines[3], lines[2], *lines[4:]]
        self.refused(MissingEvents, target, take_in, swapped)
        assert self.refused(OtherHistory, source, take_in, swapped).sequence == 3

    def test_an_event_that_comes_twice_is_refused(self, source, target, take_in, lines):
        twice = [*lines[:3], lines[2], *lines[3:]]
        assert self.refused(MissingEvents, target, take_in, twice).found == 3
        self.refused(OtherHistory, source, take_in, twice)

    def test_a_last_line_that_is_cut_off_refuses_the_file(self, target, take_in, lines):
        lines[-1] = lines[-1][:-20]
        assert self.refused(UnreadableLine, target, take_in, lines).line == 12

    def test_a_store_that_only_reads_takes_nothing_in(self, source, url, take_in, lines):
        with open_store(url, access=Access.READ) as reader:
            caught(StoreUnavailable, take_in, reader, lines)


@given(at=st.integers(0, 11), where=st.floats(0, 1, exclude_max=True), byte=st.binary(max_size=3))
def test_a_damaged_file_is_refused_or_is_no_other(damaged, at, where, byte):
    damaged(at, where, byte)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A try to import the two runs, one of their lines damaged, into an empty database."""
    folder = tmp_path_factory.mktemp("damaged")
    with open_store(f"sqlite:///{folder / 'empty.db'}"):
        pass
    with open_store(f"sqlite:///{folder / 'whole.db'}", clock=FixedClock()) as source:
        for run_id in ("a", "b"):
            source.append(run_id, [run_opened(run_id), *epochs(5)], expected=0)
        whole = contents(source)
        lines = [line for run_id in ("a", "b") for line in jsonl.lines(source.rows(run_id))]

    def attempt(at, where, byte):
        line, place = lines[at], int(where * len(lines[at]))
        altered = line[:place] + byte + line[place + len(byte) :]
        path = folder / "damaged.jsonl"
        path.write_bytes(b"".join([*lines[:at], altered, *lines[at + 1 :]]))
        database = shutil.copy(folder / "empty.db", folder / "damaged.db")
        with open_store(f"sqlite:///{database}") as target, path.open("rb") as file:
            try:
                import_lines(target, file, "damaged")
            except KasminaError:
                assert contents(target) == {}
            else:
                assert contents(target) == whole

    return attempt


class TestIntoPostgresql:
    @pytest.fixture
    def target(self, postgres):
        with open_store(postgres.database()) as target:
            yield target

    def test_a_file_is_taken_in_once(self, source, target, take_in, lines):
        assert sum(run.added for run in take_in(target, lines)) == 12
        assert sum(run.added for run in take_in(target, lines)) == 0
        assert contents(target) == contents(source)

    def test_nothing_is_there_of_a_file_that_is_refused(self, target, take_in, lines):
        lines[10] = altered(lines[10], recorded_at=5)
        caught(BrokenChain, take_in, target, lines)
        assert target.run_ids() == ()

    def test_text_that_it_cannot_hold_is_refused(self, source, target, take_in, exported):
        source.append("a\x00b", epochs(2), expected=0)
        caught(StoreUnavailable, take_in, target, exported(source, "a\x00b"))
        assert target.run_ids() == ()
