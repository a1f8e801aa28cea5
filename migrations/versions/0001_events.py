"""The table of events, append-only, and the view for people who audit with SQL."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

RELEASE = "0.1.0"

REFUSE_SQLITE = """
CREATE TRIGGER events_refuse_{action} BEFORE {action} ON events BEGIN
    SELECT RAISE(ABORT, 'events are append-only: {action} refused');
END
"""

REFUSAL_POSTGRESQL = """
CREATE FUNCTION events_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING MESSAGE = 'events are append-only: ' || lower(TG_OP) || ' refused';
END
$$
"""

REFUSE_POSTGRESQL = """
CREATE TRIGGER events_refuse_{action} BEFORE {action} ON events
    FOR EACH STATEMENT EXECUTE FUNCTION events_refuse()
"""

# A position is taken before its row is written, by the store itself.
SEQUENCE = "CREATE SEQUENCE events_position OWNED BY events.position"

# Non-finite figures are stored as {"$float": "nan"}: the view shows nan, and NULL for unmeasured.
VIEW_SQLITE = """
CREATE VIEW gate_outcomes AS
SELECT
    events.run_id,
    events.sequence,
    events.slot_id,
    events.seed_id,
    events.epoch,
    json_extract(events.payload, '$.outcome.gate') AS gate,
    json_extract(events.payload, '$.outcome.passed') AS passed,
    json_extract(events.payload, '$.outcome.score') AS score,
    json_extract(checked.value, '$.name') AS check_name,
    coalesce(
        json_extract(checked.value, '$.measured."$float"'),
        json_extract(checked.value, '$.measured')
    ) AS measured,
    json_extract(checked.value, '$.comparison') AS comparison,
    coalesce(
        json_extract(checked.value, '$.required."$float"'),
        json_extract(checked.value, '$.required')
    ) AS required,
    json_extract(checked.value, '$.passed') AS check_passed
FROM events, json_each(events.payload, '$.outcome.checks') AS checked
WHERE events.type = 'GateEvaluated'
"""


VIEW_POSTGRESQL = """
CREATE VIEW gate_outcomes AS
SELECT
    events.run_id,
    events.sequence,
    events.slot_id,
    events.seed_id,
    events.epoch,
    stored.outcome ->> 'gate' AS gate,
    (stored.outcome ->> 'passed')::boolean::integer AS passed,
    (stored.outcome ->> 'score')::double precision AS score,
    checked.value ->> 'name' AS check_name,
    coalesce(
        checked.value -> 'measured' ->> '$float', checked.value ->> 'measured'
    )::double precision AS measured,
    checked.value ->> 'comparison' AS comparison,
    coalesce(
        checked.value -> 'required' ->> '$float', checked.value ->> 'required'
    )::double precision AS required,
    (checked.value ->> 'passed')::boolean::integer AS check_passed
FROM events
CROSS JOIN LATERAL (SELECT events.payload::json -> 'outcome' AS outcome) AS stored
CROSS JOIN LATERAL json_array_elements(stored.outcome -> 'checks') AS checked (value)
WHERE events.type = 'GateEvaluated'
"""


def upgrade() -> None:
    """Create everything."""
    integer = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    # By bytes, as SQLite has it, whatever the server's language.
    identifier = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    dialect = op.get_context().dialect.name
    op.create_table(
        "events",
        # On PostgreSQL autoincrement would make a second sequence.
        sa.Column("position", integer, primary_key=True, autoincrement=dialect == "sqlite"),
        sa.Column("run_id", identifier, nullable=False),
        sa.Column("sequence", integer, nullable=False),
        sa.Column("slot_id", sa.Text),
        sa.Column("seed_id", sa.Text),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("schema_version", integer, nullable=False),
        sa.Column("epoch", integer, nullable=False),
        sa.Column("recorded_at", integer, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("batch", sa.Text),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.UniqueConstraint("run_id", "sequence", name="events_run_sequence"),
        sqlite_autoincrement=True,
        sqlite_strict=True,
    )
    releases = op.create_table(
        "kasmina_releases",
        sa.Column("revision", sa.Text, primary_key=True),
        sa.Column("release", sa.Text, nullable=False),
        sqlite_strict=True,
    )
    op.bulk_insert(releases, [{"revision": revision, "release": RELEASE}])
    if dialect == "postgresql":
        for statement in (SEQUENCE, REFUSAL_POSTGRESQL, VIEW_POSTGRESQL):
            op.execute(statement)
        for action in ("update", "delete", "truncate"):
            op.execute(REFUSE_POSTGRESQL.format(action=action))
        return
    for action in ("update", "delete"):
        op.execute(REFUSE_SQLITE.format(action=action))
    op.execute(VIEW_SQLITE)


def downgrade() -> None:
    """Drop everything, unless something has been recorded."""
    if op.get_bind().scalar(sa.text("SELECT EXISTS (SELECT 1 FROM events)")):
        raise RuntimeError("the database holds recorded events: it is not taken down")
    op.execute("DROP VIEW gate_outcomes")
    op.drop_table("kasmina_releases")
    op.drop_table("events")
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP FUNCTION events_refuse")
