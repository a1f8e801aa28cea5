"""The tables, as SQLAlchemy Core. The migrations create them; a test holds the two together.

``events.position`` is the order of the whole store, ``events.sequence`` the order of one run.
``slot_id``, ``seed_id`` and ``epoch`` are copies from the payload, for those who read with SQL.
``recorded_at`` is exact: microseconds since 1970 in UTC. ``batch`` is set on the first event of an
append that named one. STRICT (SQLite 3.37) keeps text text: what is stored is what was hashed.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

REVISION = "0002"
"""The schema this code reads and writes: the newest migration. Revisions sort as text."""

VERSION_TABLE = "kasmina_schema"
"""Where Alembic keeps the revision; not its default name, which other programs use as well."""

TRIGGERS = ("events_refuse_update", "events_refuse_delete")
"""What makes ``events`` append-only in the database itself."""

# AUTOINCREMENT wants exactly INTEGER.
_POSITION = BigInteger().with_variant(Integer(), "sqlite")
_INTEGER = BigInteger().with_variant(Integer(), "sqlite")
_IDENTIFIER = Text().with_variant(Text(collation="C"), "postgresql")

metadata = MetaData()

events = Table(
    "events",
    metadata,
    Column("position", _POSITION, primary_key=True, autoincrement=True),
    Column("run_id", _IDENTIFIER, nullable=False),
    Column("sequence", _INTEGER, nullable=False),
    Column("slot_id", Text),
    Column("seed_id", Text),
    Column("type", Text, nullable=False),
    Column("schema_version", _INTEGER, nullable=False),
    Column("epoch", _INTEGER, nullable=False),
    Column("recorded_at", _INTEGER, nullable=False),
    Column("payload", Text, nullable=False),
    Column("batch", Text),
    Column("digest", LargeBinary(32), nullable=False),
    UniqueConstraint("run_id", "sequence", name="events_run_sequence"),
    # On PostgreSQL too it holds first events alone, but to say so here would load that dialect
    # wherever SQLite is meant; the migration says it.
    Index("events_beginnings", "position", sqlite_where=text("sequence = 1")),
    sqlite_autoincrement=True,
    sqlite_strict=True,
)

releases = Table(
    "kasmina_releases",
    metadata,
    Column("revision", Text, primary_key=True),
    Column("release", Text, nullable=False),
    sqlite_strict=True,
)
"""Which release of kasmina brought each revision, so that older code can say what to install."""
