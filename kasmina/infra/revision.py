"""Which schema a database has, and what to do where it is not this one. Never loads Alembic."""

from sqlalchemy import Connection, Text, column, inspect, select, table

from kasmina.domain.errors import SchemaMismatch
from kasmina.infra import schema
from kasmina.infra.engine import Database, translated

_VERSION = select(column("version_num", Text)).select_from(table(schema.VERSION_TABLE))


def found(connection: Connection, database: Database) -> str | None:
    """The database's revision, ``None`` where it has none of kasmina's tables.

    Raises ``SchemaMismatch`` where it is another program's.
    """
    tables = inspect(connection).get_table_names()
    if schema.VERSION_TABLE in tables:
        return connection.scalar(_VERSION)
    if strangers := database.strangers(tables):
        listed = ", ".join(sorted(strangers)[:3])
        raise SchemaMismatch(
            database.url,
            found=f"the tables of another program ({listed})",
            expected=schema.REVISION,
            mend="nothing was changed in it; give another path",
        )
    return None


def peek(database: Database) -> str | None:
    """The same, by a connection of its own that changes nothing."""
    reader = database.reader()
    try:
        with translated(database), reader.connect() as connection:
            return found(connection, database)
    finally:
        reader.dispose()


def require_present(connection: Connection, database: Database) -> None:
    """Raise ``SchemaMismatch`` where the schema is not the one this code reads."""
    revision = found(connection, database)
    if revision != schema.REVISION:
        require_not_newer(connection, database)
        raise SchemaMismatch(
            database.url,
            found=revision and f"the older schema {revision}",
            expected=schema.REVISION,
            mend="`kasmina db upgrade` brings it up to date, or creates it where it is empty",
        )


def require_not_newer(connection: Connection, database: Database) -> None:
    """Raise ``SchemaMismatch`` where a newer kasmina has migrated the database."""
    revision = found(connection, database)
    if revision is None or revision <= schema.REVISION:
        return
    releases = schema.releases.c
    release = connection.scalar(select(releases.release).where(releases.revision == revision))
    raise SchemaMismatch(
        database.url,
        found=f"the newer schema {revision}",
        expected=schema.REVISION,
        mend=f"install kasmina>={release}" if release else "install a newer kasmina",
    )
