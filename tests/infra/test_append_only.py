"""The database itself refuses to change what was recorded, whoever asks."""

import sqlite3

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from kasmina.infra import engine
from kasmina.infra.event_store import open_store

CHANGES = {
    "update": "UPDATE events SET payload = '{}' WHERE sequence = 2",
    "update or replace": "UPDATE OR REPLACE events SET sequence = 1 WHERE sequence = 2",
    "delete": "DELETE FROM events WHERE sequence = 2",
    "delete all": "DELETE FROM events",
}
REPLACES = {
    "by sequence": "99, run_id, sequence",
    "by position": "position, 'other', 1",
}
REPLACE = """
    REPLACE INTO events
    SELECT {}, slot_id, seed_id, type, schema_version, epoch, 0, '{{}}', batch, digest
    FROM events WHERE sequence = 2
"""


@pytest.fixture
def rows(sql):
    return lambda: sql("SELECT * FROM events")


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_nobody_changes_an_event(recorded, rows, sql, change):
    before = rows()
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        sql(change)
    assert rows() == before


@pytest.mark.parametrize("columns", REPLACES.values(), ids=REPLACES)
def test_our_own_connections_cannot_replace_an_event_either(recorded, rows, columns):
    before = rows()
    writer = engine.locate(recorded).writer(engine.Durability.FULL)
    with pytest.raises(IntegrityError, match="append-only"), writer.begin() as connection:
        connection.execute(text(REPLACE.format(columns)))
    writer.dispose()
    assert rows() == before


def test_a_replacement_by_another_program_is_found(recorded, sql):
    sql(REPLACE.format(REPLACES["by sequence"]))
    with open_store(recorded) as store:
        assert store.verify("digits-1").problems[0].sequence == 2


def test_values_of_another_type_are_refused(recorded, sql):
    with pytest.raises(sqlite3.IntegrityError, match="cannot store"):
        sql("INSERT INTO events VALUES (99, 'r', 1, NULL, NULL, 'T', 1, 0, 0, x'7b7d', NULL, x'')")


def test_positions_are_never_used_again(recorded, sql):
    sql("DROP TRIGGER events_refuse_delete")
    sql("DELETE FROM events WHERE position = 6")
    with open_store(recorded) as store:
        (event,) = store.append("other", [next(store.read("digits-1")).event], expected=0)
    assert event.position == 7
