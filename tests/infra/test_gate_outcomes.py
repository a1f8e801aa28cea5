"""The view for people who audit with SQL: one row for each check."""

import math

import pytest

from kasmina.domain import events as e
from kasmina.domain.evidence import Check, Comparison, GateOutcome
from kasmina.domain.stages import Gate

CHECKS = (
    Check.of("improvement", 1.25, Comparison.AT_LEAST, 0.5),
    Check.of("rehearsal", None, Comparison.AT_LEAST, -0.5),
    Check.of("gradient_norm", math.nan, Comparison.FINITE, None),
    Check.of("isolation", 3, Comparison.AT_MOST, 2),
)


@pytest.fixture
def rows(store, sql):
    seed = {"epoch": 5, "step": 50, "slot_id": "layer2", "seed_id": "s1"}
    asked = e.GateEvaluated(**seed, outcome=GateOutcome.of(Gate.G2, CHECKS, 0.25))
    store.append("digits-1", [e.SeedPaused(**seed), asked], expected=0)
    return lambda columns: sql(f"SELECT {columns} FROM gate_outcomes")


def test_each_row_names_the_decision(rows):
    decision = "run_id, sequence, slot_id, seed_id, epoch, gate, passed, score"
    assert rows(decision) == [("digits-1", 2, "layer2", "s1", 5, "G2", 0, 0.25)] * 4


def test_each_row_is_one_check_with_its_figures(rows):
    assert rows("check_name, measured, comparison, required, check_passed") == [
        ("improvement", 1.25, ">=", 0.5, 1),
        ("rehearsal", None, ">=", -0.5, 0),
        ("gradient_norm", "nan", "finite", None, 0),
        ("isolation", 3, "<=", 2, 0),
    ]


def test_it_has_these_columns_and_no_others(rows, sql):
    assert [name for _, name, *_ in sql("PRAGMA table_info(gate_outcomes)")] == [
        "run_id",
        "sequence",
        "slot_id",
        "seed_id",
        "epoch",
        "gate",
        "passed",
        "score",
        "check_name",
        "measured",
        "comparison",
        "required",
        "check_passed",
    ]
