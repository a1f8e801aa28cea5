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
from sqlalchemy import Connection, text

from kasmina.domain.errors import KasminaError, SchemaMismatch
from kasmina.infra import engine, revision, schema
from kasmina.infra.faults import translated

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
    location = engine.locate(url)
    engine.require_file(location)
    return _peek(location)


def upgrade(url: str) -> str:
    """Create the database, or bring it up to date, and return its revision.

    One transaction under the database's write lock: another process that does the same waits, and
    finds it done. Raises ``StoreUnavailable`` and ``SchemaMismatch``, with nothing changed.
    """
    location = engine.locate(url)
    engine.require_writable(location)
    if location.path.exists():
        _peek(location)  # another program's file must not even be switched to WAL
    writer = engine.writer(location, engine.Durability.FULL, create=True)
    try:
        with translated(location.url), writer.begin() as connection:
            revision.require_not_newer(connection, location.url)
            if revision.found(connection, location.url) != schema.REVISION:
                command.upgrade(config(connection), "head")
                _require_guards(connection, location.url)
    finally:
        writer.dispose()
    return schema.REVISION


def _peek(location: engine.Location) -> str | None:
    reader = engine.reader(location)
    try:
        with translated(location.url), reader.connect() as connection:
            return revision.found(connection, location.url)
    finally:
        reader.dispose()


def _require_guards(connection: Connection, target: str) -> None:
    """Alembic's batch mode rebuilds a table without its triggers and its AUTOINCREMENT."""
    made = connection.execute(text("SELECT name, sql FROM sqlite_master"))
    statements = {name: sql for name, sql in made}  # noqa: C416 - dict() does not type-check
    missing = [name for name in schema.TRIGGERS if name not in statements]
    if "AUTOINCREMENT" not in statements["events"]:
        missing.append("AUTOINCREMENT of events")
    if missing:
        raise SchemaMismatch(
            target,
            found=f"a schema without {', '.join(missing)}",
            expected=schema.REVISION,
            mend="the migration was undone; it must make them anew when it rebuilds a table",
        )
