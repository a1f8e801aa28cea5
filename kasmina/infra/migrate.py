"""Creating a database and bringing it up to date, with Alembic.

To add a revision, in a checkout::

    from alembic import command
    from kasmina.infra import migrate

    command.revision(migrate.config(), message="what changes", rev_id="0002")

then raise ``schema.REVISION``, and add a golden database.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection

from kasmina.domain.errors import KasminaError, SchemaMismatch
from kasmina.infra import engine, revision, schema
from kasmina.infra.engine import Database, Durability, translated

_PACKAGE = Path(__file__).parents[1]


def scripts() -> Path:
    """The folder of the migrations: the wheel's copy, or the checkout's own."""
    for folder in (_PACKAGE / "_migrations", _PACKAGE.parent / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise KasminaError(
        f"kasmina at {_PACKAGE} was installed without its migrations; install it again from a "
        f"wheel or a checkout"
    )


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration; migrating needs the ``connection`` to do it on."""
    made = Config()
    made.set_main_option("script_location", str(scripts()).replace("%", "%%"))
    made.set_main_option("path_separator", "os")
    made.attributes["connection"] = connection
    return made


def current(url: str) -> str | None:
    """The revision of the database, ``None`` where it is empty. Creates and changes nothing."""
    database = engine.locate(url)
    database.require_readable()
    return revision.peek(database)


def upgrade(url: str) -> str:
    """Create the tables, or bring them up to date, and return their revision.

    One transaction under a lock: another process that does the same waits, and finds it done.
    Raises ``StoreUnavailable`` and ``SchemaMismatch``, with nothing changed.
    """
    database = engine.locate(url)
    database.require_writable()
    if database.exists():
        revision.peek(database)  # another program's file must not even be switched to WAL
    writer = database.writer(Durability.FULL, create=True)
    try:
        with translated(database), writer.begin() as connection:
            database.lock_schema(connection)
            revision.require_not_newer(connection, database)
            if revision.found(connection, database) != schema.REVISION:
                _upgrade(connection, database)
                _require_guards(connection, database)
    finally:
        writer.dispose()
    return schema.REVISION


def _upgrade(connection: Connection, database: Database) -> None:
    try:
        command.upgrade(config(connection), "head")
    except CommandError as error:
        raise SchemaMismatch(
            database.url,
            found=f"a schema of which no release knows ({error})",
            expected=schema.REVISION,
            mend="nothing was changed in it; restore it from a backup",
        ) from error


def _require_guards(connection: Connection, database: Database) -> None:
    if missing := database.missing_guards(connection):
        raise SchemaMismatch(
            database.url,
            found=f"a schema without {', '.join(missing)}",
            expected=schema.REVISION,
            mend="the migration was undone; it must make them anew when it rebuilds a table",
        )
