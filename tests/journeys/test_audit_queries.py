"""Every command and every query in docs/data.md does, on a real log, what it says there."""

import re
import shlex
import sqlite3
from contextlib import closing
from pathlib import Path

import duckdb
import polars as pl
import pytest

from kasmina.adapters.cli import app
from kasmina.domain import events as e
from kasmina.domain.projections import gate_ledger
from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store
from kasmina.testing import FixedClock
from tests.cli.conftest import DIGITS, SECOND, Story, filled

DOCUMENT = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
BLIND = "blind-1f0c9d3e"
COUNTS = {"epochs_in_stage", "nonfinite_values", "shadow_evaluations"}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)


QUERIES = blocks("sql")
IN_SQLITE = [query for query in QUERIES if ".parquet" not in query]
IN_DUCKDB = [query for query in QUERIES if ".parquet" in query]


def unmeasured(story):
    """A gate is asked about a seed whose gradient nobody has sampled."""
    story.slots("stem")
    story.epoch(80.0)
    story.germinate("stem", "s1", "norm", 32)
    story.epoch(81.0, gradient=None)
    story.advance("stem")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands of the document have been run, one after the other."""
    place = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.delenv("KASMINA_DATABASE", raising=False)
        with open_store("sqlite:///kasmina.db", clock=FixedClock(step=SECOND)) as store:
            filled(store)
            unmeasured(Story(store, BLIND, name="blind"))
        for command in "".join(blocks("sh")).splitlines():
            assert app.run(shlex.split(command)[1:]) == 0, command
    return place


@pytest.fixture(scope="module")
def history(folder):
    with open_store(f"sqlite:///{folder / 'kasmina.db'}", access=Access.READ) as store:
        return list(store.read(DIGITS))


@pytest.fixture(scope="module")
def decisions(folder, history):
    """Of all runs, by run and sequence."""
    with open_store(f"sqlite:///{folder / 'kasmina.db'}", access=Access.READ) as store:
        return [*gate_ledger(list(store.read(BLIND))), *gate_ledger(history)]


@pytest.fixture(scope="module")
def answers(folder):
    """What SQLite answers, query by query, as rows of names and values."""
    with closing(sqlite3.connect(folder / "kasmina.db")) as connection:
        connection.row_factory = sqlite3.Row
        return [[dict(row) for row in connection.execute(query)] for query in IN_SQLITE]


@pytest.fixture
def polars_answers(folder, monkeypatch):
    monkeypatch.chdir(folder)
    made = []
    for program in blocks("python"):
        names = {}
        exec(program, names)
        made.append(names)
    return made


def asked(folder, query):
    """What DuckDB answers, with its own name for every column."""
    with closing(duckdb.connect()) as connection:
        connection.execute(
            query.replace("FROM '", f"FROM '{folder}/").replace("JOIN '", f"JOIN '{folder}/")
        )
        names = [column[0] for column in connection.description]
        return [dict(zip(names, row, strict=True)) for row in connection.fetchall()]


def checks(decisions):
    return [(decision, check) for decision in decisions for check in decision.outcome.checks]


def test_the_document_has_as_many_queries_as_are_tested_here():
    assert (len(IN_SQLITE), len(IN_DUCKDB), len(blocks("python"))) == (6, 2, 2)


def test_the_copies_that_the_commands_made_are_whole(folder):
    for name in ("other.db", "third.db", "backup.db"):
        with open_store(f"sqlite:///{folder / name}", access=Access.READ) as store:
            assert store.run_ids()
            assert all(store.verify(run_id).sound for run_id in store.run_ids())


def test_which_check_refuses_most(answers, decisions):
    failed = [(d.outcome.gate.value, c.name) for d, c in checks(decisions) if not c.passed]
    counts = {(row["gate"], row["check_name"]): row["refusals"] for row in answers[0]}
    assert counts == {pair: failed.count(pair) for pair in failed}
    assert [row["refusals"] for row in answers[0]] == sorted(counts.values(), reverse=True)


def test_the_closest_calls_are_those_of_the_audit(answers, decisions):
    margins = sorted(
        abs(check.margin)
        for _, check in checks(decisions)
        if check.margin is not None and check.name not in COUNTS and abs(check.margin) < 1e300
    )
    assert [abs(row["margin"]) for row in answers[1]] == pytest.approx(margins[:10])
    assert len(answers[1]) == 10


def test_decisions_on_unmeasured_figures(answers, decisions):
    nothing = [(d.sequence, c.name) for d, c in checks(decisions) if c.measured is None]
    assert [(row["sequence"], row["check_name"]) for row in answers[2]] == sorted(nothing)
    assert "seed_gradient_norm" in {name for _, name in nothing}


def test_no_gate_lets_an_unmeasured_figure_pass(answers):
    assert {row["passed"] for row in answers[2]} == {0}


def test_the_time_from_germination_to_fossilization(answers, history):
    (kept,) = [r for r in history if isinstance(r.event, e.SeedFossilized)]
    (born,) = [
        record
        for record in history
        if isinstance(record.event, e.SeedGerminated) and record.event.seed_id == kept.event.seed_id
    ]
    assert answers[3] == [
        {
            "blueprint": born.event.blueprint_id,
            "seeds": 1,
            "epochs": kept.event.epoch - born.event.epoch,
            "seconds": (kept.recorded_at - born.recorded_at).total_seconds(),
        }
    ]


def test_what_each_run_kept_and_what_leaked(answers, history):
    kept = [r.event for r in history if isinstance(r.event, e.SeedFossilized)]
    leaked = [r.event.count for r in history if isinstance(r.event, e.IsolationViolated)]
    found = {row["run_id"]: row for row in answers[4]}
    assert found[DIGITS]["fossilized"] == len(kept) == 1
    assert found[DIGITS]["contribution"] == pytest.approx(kept[0].contribution)
    assert found[DIGITS]["violations"] == sum(leaked) > 0
    assert [row["violations"] for name, row in found.items() if name != DIGITS] == [0, 0]


def test_decisions_that_a_rewind_took_back(answers, decisions):
    undone = [decision.sequence for decision in decisions if decision.undone]
    assert [row["sequence"] for row in answers[5]] == undone
    assert undone


@pytest.mark.parametrize(("in_duckdb", "in_sqlite"), [(0, 0), (1, 3)])
def test_duckdb_answers_from_parquet_as_sqlite_does(folder, answers, in_duckdb, in_sqlite):
    assert asked(folder, IN_DUCKDB[in_duckdb]) == answers[in_sqlite]


def test_polars_answers_from_parquet_as_sqlite_does(polars_answers, answers):
    refusals, closest = polars_answers
    assert refusals["refusals"].to_dicts() == answers[0]
    assert closest["closest"]["margin"].to_list() == pytest.approx(
        [row["margin"] for row in answers[1]]
    )


def test_polars_sees_every_check_with_its_figures(folder, decisions):
    columns = ("check_name", "measured", "comparison", "required", "check_passed")
    found = pl.read_parquet(folder / "gate_outcomes.parquet").select(columns).rows()
    expected = [
        (check.name, check.measured, check.comparison.value, check.required, check.passed)
        for _, check in checks(decisions)
    ]
    assert sorted(map(repr, found)) == sorted(map(repr, expected))  # NaN equals not even itself


def test_csv_reads_as_parquet_does_null_and_empty_text_kept_apart(folder):
    expected = pl.read_parquet(folder / "gate_outcomes.parquet")
    path = folder / "gate_outcomes.csv"
    found = pl.read_csv(path, schema_overrides=expected.schema)
    assert found.equals(expected)
    query = f"SELECT * FROM read_csv('{path}', allow_quoted_nulls = false)"
    with closing(duckdb.connect()) as connection:
        assert repr(connection.execute(query).fetchall()) == repr(expected.rows())
