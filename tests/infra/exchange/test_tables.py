"""The log as CSV and Parquet: every value as it is stored, null told from empty text."""

import csv
import io
import math
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasmina.domain import events as e
from kasmina.domain.evidence import Check, Comparison, GateOutcome
from kasmina.domain.ports import EMPTY_HEAD
from kasmina.domain.stages import Gate
from kasmina.infra import codec
from kasmina.infra.exchange import csv_lines, parquet
from kasmina.infra.exchange.errors import UnexportableEvent
from kasmina.infra.exchange.tables import COLUMNS, Table, records
from kasmina.infra.integrity import Row, link
from kasmina.testing import caught, epochs, run_opened

AT = 1_767_225_600_000_001
CHECKS = (
    Check.of("improvement", 1.25, Comparison.AT_LEAST, 0.1),
    Check.of("rehearsal", None, Comparison.AT_LEAST, -0.5),
    Check.of("gradient_norm", math.nan, Comparison.FINITE, None),
    Check.of("loss", -math.inf, Comparison.AT_MOST, math.inf),
)
ASKED = e.GateEvaluated(
    epoch=5,
    step=50,
    slot_id='layer"2',
    seed_id="",
    outcome=GateOutcome.of(Gate.G2, CHECKS, 0.25),
)


def linked(*events):
    rows = link("digits-1", list(map(codec.encode, events)), after=EMPTY_HEAD, at=AT, batch="w")
    return [row._replace(position=10 + n) for n, row in enumerate(rows)]


def altered(row, **columns):
    return row._replace(columns=row.columns._replace(**columns))


ROWS = linked(run_opened(), ASKED, *epochs(2))


def written(table, rows):
    return csv_lines.header(table) + b"".join(csv_lines.lines(table, rows))


class TestTables:
    def test_an_event_is_a_row_as_it_is_stored(self):
        found = dict(zip(COLUMNS[Table.EVENTS], next(records(Table.EVENTS, ROWS[1:])), strict=True))
        columns = ROWS[1].columns
        assert found == {
            "position": 11,
            "run_id": "digits-1",
            "sequence": 2,
            "slot_id": 'layer"2',
            "seed_id": "",
            "type": "GateEvaluated",
            "schema_version": 1,
            "epoch": 5,
            "recorded_at": AT,
            "payload": columns.payload.decode(),
            "batch": None,
            "digest": ROWS[1].digest,
        }

    def test_a_check_is_a_row_and_other_events_are_none(self):
        found = list(records(Table.GATE_OUTCOMES, ROWS))
        decision = ("digits-1", 2, 'layer"2', "", 5, "G2", False, 0.25)
        assert [row[:8] for row in found] == [decision] * 4
        assert repr([row[8:] for row in found]) == repr(
            [
                ("improvement", 1.25, ">=", 0.1, True),
                ("rehearsal", None, ">=", -0.5, False),
                ("gradient_norm", math.nan, "finite", None, False),
                ("loss", -math.inf, "<=", math.inf, False),
            ]
        )

    def test_gate_outcomes_has_the_columns_of_the_view(self, store, sql):
        view = [name for _, name, *_ in sql("PRAGMA table_info(gate_outcomes)")]
        assert list(COLUMNS[Table.GATE_OUTCOMES]) == view

    def test_events_has_the_columns_of_the_table(self, store, sql):
        table = [name for _, name, *_ in sql("PRAGMA table_info(events)")]
        assert list(COLUMNS[Table.EVENTS]) == table

    @pytest.mark.parametrize(
        ("table", "columns", "problem"),
        [
            (Table.EVENTS, {"payload": b"\xff"}, "can't decode"),
            (Table.EVENTS, {"type": None}, "decode"),
            (Table.GATE_OUTCOMES, {"payload": b"{}"}, "required field"),
            (Table.GATE_OUTCOMES, {"run_id": b"\xff"}, "can't decode"),
            (Table.GATE_OUTCOMES, {"schema_version": 9}, "only a newer release"),
        ],
    )
    def test_what_cannot_be_read_is_named_by_run_and_sequence(self, table, columns, problem):
        error = caught(UnexportableEvent, list, records(table, [altered(ROWS[1], **columns)]))
        assert error.sequence == 2
        assert problem in error.problem
        assert "`kasmina verify`" in str(error)

    def test_what_cannot_be_read_is_still_an_event(self):
        (row,) = records(Table.EVENTS, [altered(ROWS[1], payload=b"{", schema_version=9)])
        assert row[9] == "{"


class TestCsv:
    def test_is_as_the_standard_has_it(self):
        head, first, *_ = written(Table.EVENTS, ROWS[1:2]).decode().split("\r\n")
        assert head == ",".join(COLUMNS[Table.EVENTS])
        payload = ROWS[1].columns.payload.decode().replace('"', '""')
        assert first == (
            f'11,"digits-1",2,"layer""2","","GateEvaluated",1,5,2026-01-01T00:00:00.000001Z,'
            f'"{payload}",,{ROWS[1].digest.hex()}'
        )

    def test_figures_are_exact_and_what_was_not_measured_is_nothing(self):
        lines = list(csv_lines.lines(Table.GATE_OUTCOMES, ROWS))
        assert [line.split(b'"G2",false,0.25,')[1] for line in lines] == [
            b'"improvement",1.25,">=",0.1,true\r\n',
            b'"rehearsal",,">=",-0.5,false\r\n',
            b'"gradient_norm",nan,"finite",,false\r\n',
            b'"loss",-inf,"<=",inf,false\r\n',
        ]

    @given(st.text(), st.text(), st.text())
    def test_any_text_comes_back(self, run_id, slot_id, payload):
        texts = {"run_id": run_id, "slot_id": slot_id, "payload": payload}
        row = altered(ROWS[2], **{name: text.encode() for name, text in texts.items()})
        text = written(Table.EVENTS, [row]).decode()
        (found,) = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        assert {name: found[name] for name in texts} == texts

    def test_null_is_not_empty_text(self):
        (line,) = csv_lines.lines(Table.EVENTS, [altered(ROWS[2], slot_id=b"", seed_id=None)])
        assert line.startswith(b'12,"digits-1",3,"",,"EpochRecorded",')

    def test_a_time_beyond_the_calendar_is_named(self):
        for at in (2**63 - 1, -(2**63)):
            lines = csv_lines.lines(Table.EVENTS, [ROWS[0], altered(ROWS[2], recorded_at=at)])
            error = caught(UnexportableEvent, list, lines)
            assert error.sequence == 3
            assert "years" in error.problem

    def test_the_year_has_four_digits(self):
        early = altered(ROWS[2], recorded_at=-62_135_596_800_000_000)
        (line,) = csv_lines.lines(Table.EVENTS, [early])
        assert b",0001-01-01T00:00:00.000000Z," in line


class TestParquet:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "table.parquet"

    def test_holds_events_with_sensible_types(self, path):
        assert parquet.write(path, Table.EVENTS, ROWS) == 4
        table = pq.read_table(path)
        assert list(table.schema.names) == list(COLUMNS[Table.EVENTS])
        types = {field.name: field.type for field in table.schema}
        assert types["recorded_at"] == pa.timestamp("us", tz="UTC")
        assert (types["digest"], types["payload"]) == (pa.binary(), pa.string())
        assert {types[name] for name in ("position", "sequence", "epoch")} == {pa.int64()}
        row = table.to_pylist()[1]
        assert row["recorded_at"] == datetime(2026, 1, 1, 0, 0, 0, 1, tzinfo=UTC)
        assert row["digest"] == ROWS[1].digest
        assert (row["slot_id"], row["seed_id"], row["batch"]) == ('layer"2', "", None)

    def test_holds_figures_as_floats_and_verdicts_as_truth_values(self, path):
        assert parquet.write(path, Table.GATE_OUTCOMES, ROWS) == 4
        table = pq.read_table(path)
        assert repr(table["measured"].to_pylist()) == repr([1.25, None, math.nan, -math.inf])
        assert table["required"].to_pylist() == [0.1, -0.5, None, math.inf]
        assert table["check_passed"].to_pylist() == [True, False, False, False]
        assert table["passed"].type == pa.bool_()

    def test_is_written_in_groups_of_a_bounded_number_of_rows(self, path, monkeypatch):
        monkeypatch.setattr(parquet, "GROUP_ROWS", 3)
        rows = linked(run_opened(), *epochs(6))
        assert parquet.write(path, Table.EVENTS, rows) == 7
        found = pq.ParquetFile(path)
        groups = [found.metadata.row_group(n).num_rows for n in range(found.num_row_groups)]
        assert groups == [3, 3, 1]
        assert pq.read_table(path)["sequence"].to_pylist() == list(range(1, 8))

    def test_a_group_of_large_events_has_fewer_rows(self, path, monkeypatch):
        monkeypatch.setattr(parquet, "GROUP_BYTES", len(ROWS[0].columns.payload))
        parquet.write(path, Table.EVENTS, ROWS)
        assert pq.ParquetFile(path).num_row_groups == 2

    def test_nothing_is_an_empty_table_with_its_columns(self, path):
        assert parquet.write(path, Table.GATE_OUTCOMES, []) == 0
        assert pq.read_table(path).schema.names == list(COLUMNS[Table.GATE_OUTCOMES])

    def test_any_stored_time_can_be_written(self, path):
        parquet.write(path, Table.EVENTS, [altered(ROWS[2], recorded_at=2**63 - 1)])
        assert pq.read_table(path)["recorded_at"].cast(pa.int64()).to_pylist() == [2**63 - 1]


def test_rows_are_read_one_at_a_time():
    def endless():
        while True:
            yield Row(*ROWS[1])

    for lines in (csv_lines.lines(Table.EVENTS, endless()), records(Table.EVENTS, endless())):
        assert next(lines)
