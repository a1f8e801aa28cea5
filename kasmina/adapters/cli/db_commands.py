"""``kasmina db``: the schema of a database."""

from kasmina.adapters.cli.errors import Exit
from kasmina.adapters.cli.options import DEFAULT_DATABASE, Database, Json
from kasmina.adapters.cli.output import show, show_document


def upgrade(*, database: Database = DEFAULT_DATABASE) -> None:
    """Create a database, or bring it up to date."""
    from kasmina.infra.migrate import upgrade as migrated

    show(f"{database} has schema {migrated(database)}")


def current(*, database: Database = DEFAULT_DATABASE, json: Json = False) -> Exit:
    """Show a database's schema; exit code 1 where it is not the one this kasmina writes."""
    from kasmina.infra.migrate import current as revision
    from kasmina.infra.schema import REVISION

    found = revision(database)
    if json:
        show_document(
            {"schema": found, "expected": REVISION, "up_to_date": found == REVISION},
        )
    elif found == REVISION:
        show(f"schema {found}, up to date")
    elif found is None:
        show(f"no schema yet, expected {REVISION}: `kasmina db upgrade` creates it")
    else:
        show(f"schema {found}, expected {REVISION}")
    return Exit.FINE if found == REVISION else Exit.NO
