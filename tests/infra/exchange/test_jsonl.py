"""JSON lines carry the stored bytes, and nothing that is not an event comes through them."""

import gzip
import io
import json
import math

import pytest
from attrs import evolve as changed_event
from hypothesis import example, given
from hypothesis import strategies as st

from kasmina.domain import events as e
from kasmina.domain.errors import KasminaError, UnreadableEvent
from kasmina.domain.evidence import Metric
from kasmina.domain.ports import EMPTY_HEAD
from kasmina.infra import codec
from kasmina.infra.exchange import jsonl
from kasmina.infra.exchange.errors import UnexportableEvent, UnreadableLine
from kasmina.infra.integrity import Columns, Row, chain, link
from kasmina.testing import MemoryEventStore, caught
from tests.infra.released import EVENTS, RUN

KEYS = ["run_id", "sequence", "slot_id", "seed_id", "type", "schema_version"]
KEYS += ["epoch", "recorded_at", "payload", "batch", "digest"]


def every_event():
    events = EVENTS | {"RunForked": changed_event(EVENTS["RunForked"], run_id=RUN)}
    encoded = [codec.encode(event) for event in events.values()]
    return link(RUN, encoded, after=EMPTY_HEAD, at=1_767_225_600_000_000, batch="w.1")


ROWS = every_event()
LINES = list(jsonl.lines(ROWS))
LINE = LINES[6]


def read(*lines, **options):
    return list(jsonl.rows(io.BytesIO(b"".join(lines)), "a.jsonl", **options))


def refused(*lines, **options):
    return caught(UnreadableLine, read, *lines, **options)


def changed(**columns):
    """A line whose columns are others; the payload's bytes stay as they are."""
    document = json.loads(LINE) | columns
    return json.dumps(document).encode()


def unusual(**columns):
    """A row as only tampering leaves it, with a digest that fits."""
    altered = ROWS[6].columns._replace(**columns)
    return Row(7, altered, chain(bytes(32), altered))


class TestWriting:
    def test_a_line_is_an_object_with_every_column_but_the_position(self):
        document = json.loads(LINE)
        assert list(document) == KEYS
        assert document["digest"] == ROWS[6].digest.hex()
        assert document["payload"] == json.loads(ROWS[6].columns.payload)

    def test_the_payload_stands_there_byte_for_byte(self):
        for line, row in zip(LINES, ROWS, strict=True):
            assert b'"payload":' + row.columns.payload + b',"batch"' in line
            assert line.count(b"\n") == 1

    def test_a_payload_of_a_type_that_nobody_knows_is_carried_as_it_is(self):
        row = unusual(type=b"RunPromoted", payload=b'{"epoch":5,"step":1e2,"what":[ 1 ]}')
        (line,) = jsonl.lines([row])
        assert json.loads(line)["payload"]["what"] == [1]

    @pytest.mark.parametrize(
        ("columns", "problem"),
        [
            ({"payload": b"{"}, "truncated"),
            ({"payload": b""}, "truncated"),
            ({"payload": b'{"epoch":NaN}'}, "invalid character"),
            ({"payload": b'{"epoch":1} {}'}, "trailing"),
            ({"payload": b' {"epoch":1}'}, "white space"),
            ({"payload": b'{"epoch":\n1}'}, "white space"),
            ({"payload": b'{"a":"\xff"}'}, "can't decode"),
            ({"payload": b"[" * 100_000}, "recursion"),
            ({"type": b"\xff"}, "can't decode"),
            ({"slot_id": b"\xff"}, "can't decode"),
            ({"batch": b"\xff"}, "can't decode"),
        ],
        ids=str,
    )
    def test_what_no_line_can_hold_is_named_by_run_and_sequence(self, columns, problem):
        row = unusual(**columns)
        error = caught(UnexportableEvent, list, jsonl.lines([ROWS[0], row]))
        assert (error.run_id, error.sequence) == ("digits-k3v7qx2a", 7)
        assert problem in error.problem
        assert "`kasmina verify`" in str(error)

    def test_a_column_of_another_type_than_its_own_is_named_too(self):
        row = ROWS[6]._replace(columns=ROWS[6].columns._replace(payload=None))
        assert caught(UnexportableEvent, list, jsonl.lines([row])).sequence == 7

    def test_the_lines_before_it_are_there(self):
        lines = jsonl.lines([ROWS[0], unusual(payload=b"{")])
        assert next(lines) == LINES[0]


class TestReading:
    def test_every_event_comes_back_as_it_was_stored(self):
        assert read(*LINES) == ROWS

    def test_lines_may_be_ended_as_others_end_them(self):
        assert read(*(line.replace(b"\n", b"\r\n") for line in LINES)) == ROWS
        assert read(*LINES[:-1], LINES[-1].rstrip()) == ROWS

    def test_the_order_of_keys_and_the_space_between_them_do_not_matter(self):
        document = json.loads(LINES[0])
        payload = ROWS[0].columns.payload.decode()
        parts = [f'"payload" : {payload}']
        parts += [f'"{key}": {json.dumps(v)}' for key, v in document.items() if key != "payload"]
        assert read(("{ " + " , ".join(parts) + " }").encode()) == ROWS[:1]

    def test_nothing_is_no_rows(self):
        assert read() == []

    @given(st.text(), st.floats(), st.integers(0, 2**53))
    def test_whatever_an_event_holds_comes_back(self, text, number, epoch):
        store = MemoryEventStore()
        metrics = (Metric(name=f"m{text}", value=number),)
        event = e.EpochRecorded(epoch=epoch, step=1, objective=math.nan, metrics=metrics)
        store.append(f"run {text}", [event], expected=0, batch=text)
        rows = [row._replace(position=0) for row in store.rows(f"run {text}")]
        assert read(*jsonl.lines(rows)) == rows

    def test_a_line_that_is_too_long_is_refused_and_the_limit_can_be_raised(self):
        error = refused(*LINES[:2], longest=len(LINES[1]))
        assert (error.source, error.line) == ("a.jsonl", 1)
        assert f"longer than {len(LINES[1])} bytes" in error.problem
        assert read(LINES[1], longest=len(LINES[1])) == ROWS[1:2]

    def test_an_endless_line_is_given_up_at_the_limit(self):
        class Endless(io.BytesIO):
            given = 0

            def readline(self, size=-1):
                assert size >= 0
                self.given += size
                return b"[" * size

        stream = Endless()
        error = caught(UnreadableLine, list, jsonl.rows(stream, "-", longest=1000))
        assert "longer than 1,000 bytes" in error.problem
        assert stream.given == 1001

    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            (b"\n", "truncated"),
            (b"[]\n", "Expected `object`"),
            (b"null\n", "Expected `object`"),
            (LINE[:-9], "truncated"),
            (b"\xef\xbb\xbf" + LINE, "malformed"),
            (LINE.rstrip() + b"{}\n", "trailing"),
            (LINE.replace(b'"epoch":5', b'"epoch":NaN', 1), "malformed"),
            (LINE.replace(b'"epoch":5', b'"epoch":5,"epoch":6', 1), "'epoch' more than once"),
            (LINE.replace(b'{"epoch":5', b'{"epoch":9,"epoch":5', 1), "'epoch' more than once"),
            (LINE.replace(b"digits-k", b"\xff"), "can't decode"),
            (LINE.replace(b'"loss"', b'"l\xffss"'), "can't decode"),
            (LINE.replace(b'"payload":{', b'"payload":{"x":' + b"[" * 10**5), "recursion"),
            (changed(position=3), "unknown field `position`"),
            (changed(sequence=0), ">= 1"),
            (changed(sequence="1"), "Expected `int`"),
            (changed(sequence=1.5), "Expected `int`"),
            (changed(sequence=True), "Expected `int`"),
            (changed(sequence=2**63), "<= 9223372036854775807"),
            (changed(epoch=10**30), "int"),
            (changed(epoch=-1), ">= 0"),
            (changed(schema_version=0), ">= 1"),
            (changed(recorded_at=2**63 - 1), "<= 253402300799999999"),
            (changed(recorded_at=-(2**63)), ">= -62135596800000000"),
            (changed(digest="ab"), "matching regex"),
            (changed(digest="AB" * 32), "matching regex"),
            (changed(digest="ab" * 32 + "\n"), "matching regex"),
            (changed(digest=None), "Expected `str`"),
            (changed(run_id=None), "Expected `str`"),
            (changed(slot_id=4), "Expected `str | null`"),
            (changed(slot_id="layer2"), "not that of its payload"),
            (changed(epoch=6), "not that of its payload"),
        ],
        ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else value,
    )
    def test_what_is_no_event_is_refused_by_its_line(self, line, problem):
        error = refused(*LINES[:3], line)
        assert error.line == 4
        assert problem in error.problem

    @pytest.mark.parametrize("missing", KEYS)
    def test_a_column_that_is_missing_is_refused(self, missing):
        document = json.loads(LINE)
        del document[missing]
        assert f"required field `{missing}`" in refused(json.dumps(document).encode()).problem

    def test_a_payload_that_is_not_its_types_is_refused_by_run_and_sequence(self):
        error = caught(UnreadableEvent, read, changed(payload={"epoch": 5}))
        assert "(run 'digits-k3v7qx2a', sequence 7)" in str(error)

    def test_the_beginning_of_another_run_is_refused(self):
        document = json.loads(LINES[0]) | {"run_id": "other"}
        assert "not that of its payload" in refused(json.dumps(document).encode()).problem

    def test_events_of_a_newer_release_are_kept(self):
        rows = [
            unusual(type=b"RunPromoted", payload=b'{"epoch":5,"step":1,"weight":1.50e0}'),
            unusual(schema_version=9),
        ]
        rows = [row._replace(position=0) for row in rows]
        assert read(*jsonl.lines(rows)) == rows

    def test_a_figure_may_be_too_large_for_any_float(self):
        row = unusual(type=b"RunPromoted", payload=b'{"epoch":5,"step":1,"x":' + b"9" * 9999 + b"}")
        assert read(*jsonl.lines([row]))[0].columns == row.columns

    @pytest.mark.parametrize("cut", [2, 12, -9, -1])
    def test_a_gzipped_file_that_is_cut_off_is_refused(self, cut):
        zipped = gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(b"".join(LINES))[:cut]))
        caught(UnreadableLine, list, jsonl.rows(zipped, "a.gz"))

    def test_a_gzipped_file_that_is_damaged_is_refused(self):
        data = bytearray(gzip.compress(b"".join(LINES)))
        data[len(data) // 2] ^= 0xFF
        zipped = gzip.GzipFile(fileobj=io.BytesIO(bytes(data)))
        caught(UnreadableLine, list, jsonl.rows(zipped, "a.gz"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(KEYS), inner),
    max_leaves=8,
)


class TestHostileLines:
    @given(st.binary())
    @example(b"\x1f\x8b")
    def test_any_bytes_give_rows_or_an_error_that_says_why(self, data):
        try:
            read(data)
        except KasminaError:
            return
        assert data == b""

    @given(st.dictionaries(st.sampled_from(KEYS), JSON))
    def test_any_columns_give_rows_or_an_error_of_kasminas(self, columns):
        try:
            rows = read(changed(**columns))
        except KasminaError:
            return
        assert [row.columns.type for row in rows]

    @given(st.integers(0, len(LINE) - 1), st.integers(0, 255))
    def test_an_altered_byte_is_refused_or_breaks_the_digest_or_changes_nothing(self, at, byte):
        data = bytearray(LINE)
        data[at] = byte
        try:
            found = read(bytes(data))
        except KasminaError:
            return
        before = ROWS[5].digest
        for row in found:
            same = row == ROWS[6]
            assert (chain(before, row.columns) == row.digest) == same


def test_columns_are_those_of_the_digest():
    assert [*Columns._fields, "digest"] == KEYS
