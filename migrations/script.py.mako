"""${message}.

Stored events are never rewritten: a change of meaning is an upcaster's. Batch mode rebuilds a
table without its triggers and its AUTOINCREMENT: make them anew.
"""

import sqlalchemy as sa
from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}

RELEASE = "the first release of kasmina that has it"


def upgrade() -> None:
    """Apply."""
    ${upgrades if upgrades else "pass"}
    op.execute(
        sa.text("INSERT INTO kasmina_releases (revision, release) VALUES (:revision, :release)")
        .bindparams(revision=revision, release=RELEASE)
    )


def downgrade() -> None:
    """Undo, where no event is lost by it."""
    ${downgrades if downgrades else "pass"}
    op.execute(
        sa.text("DELETE FROM kasmina_releases WHERE revision = :revision")
        .bindparams(revision=revision)
    )
