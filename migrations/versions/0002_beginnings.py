"""An index of the first event of every run, so that ten thousand runs are listed at once."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

RELEASE = "0.2.0"


def upgrade() -> None:
    """Add the index: it holds one entry for each run, and costs an append nothing else."""
    condition = sa.text("sequence = 1")
    op.create_index(
        "events_beginnings",
        "events",
        ["position"],
        sqlite_where=condition,
        postgresql_where=condition,
    )
    releases = sa.table("kasmina_releases", sa.column("revision"), sa.column("release"))
    op.bulk_insert(releases, [{"revision": revision, "release": RELEASE}])


def downgrade() -> None:
    """Drop the index."""
    op.drop_index("events_beginnings", "events")
    releases = sa.table("kasmina_releases", sa.column("revision"))
    op.execute(sa.delete(releases).where(releases.c.revision == revision))
