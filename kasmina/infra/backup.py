"""A copy of a whole SQLite database, made while others write to it.

Copying the file alone would lose what is still in the WAL beside it.
"""

import sqlite3
from contextlib import closing
from enum import Enum
from pathlib import Path

from attrs import frozen
from sqlalchemy.engine import URL

from kasmina.domain.errors import SchemaMismatch, StoreUnavailable
from kasmina.infra import engine, revision, schema
from kasmina.infra.engine import Access, translated
from kasmina.infra.event_store import open_store
from kasmina.infra.exchange.errors import UnwritableFile
from kasmina.infra.exchange.files import replacing
from kasmina.infra.integrity import Scrutiny, Verification
from kasmina.infra.sqlite import SqliteDatabase


class Existing(Enum):
    """What becomes of a file that has the backup's name."""

    KEEP = "keep"
    REPLACE = "replace"


@frozen(kw_only=True)
class Backup:
    """A backup that was made: the chain of each of its runs was verified.

    ``runs`` is ``None`` for a database of another schema, whose pages alone were checked.
    """

    path: Path
    size: int
    schema: str
    runs: tuple[Verification, ...] | None


def back_up(url: str, path: Path, *, existing: Existing = Existing.KEEP) -> Backup:
    """Copy the database at ``url``, with all that was committed, into the file ``path``.

    Writers are not held up, and the file appears when it is complete and checked; it can be read
    from a folder that is read-only. Raises ``StoreUnavailable``, ``SchemaMismatch`` and
    ``UnwritableFile``, with ``path`` as it was.
    """
    database = engine.locate(url)
    if not isinstance(database, SqliteDatabase):
        problem = "only an SQLite database is one file"
        mend = "use its own tools (`pg_dump`), or `kasmina db copy` into a SQLite file"
        raise StoreUnavailable(database.url, problem, mend)
    database.require_readable()
    _require_free(path, database, existing)
    with replacing(path) as partial:
        _copy(database.path, partial, path)
        found = _revision(database, partial)
        runs = _verified(partial) if found == schema.REVISION else None
        size = partial.stat().st_size
    return Backup(path=path, size=size, schema=found, runs=runs)


def _require_free(path: Path, database: SqliteDatabase, existing: Existing) -> None:
    if path.exists() and path.samefile(database.path):
        raise UnwritableFile(path, "it is the database itself", "give another name")
    if path.exists() and existing is Existing.KEEP:
        problem = "there is a file of that name already"
        raise UnwritableFile(path, problem, "give another name, or --replace")
    for ending in ("-wal", "-journal"):
        beside = path.resolve().with_name(path.resolve().name + ending)
        if beside.exists():  # SQLite would take it for the backup's own
            problem = f"{beside.name} lies beside it, of a database in use or not closed"
            raise UnwritableFile(path, problem, "give another name")


def _copy(source: Path, partial: Path, path: Path) -> None:
    """Copy everything in one step, into a file that needs no other beside it."""
    try:
        with (
            closing(sqlite3.connect(f"{source.as_uri()}?mode=ro", uri=True)) as connection,
            closing(sqlite3.connect(partial, isolation_level=None)) as target,
        ):
            target.execute("PRAGMA journal_mode = OFF")  # what fails is thrown away
            connection.backup(target)
            target.execute("PRAGMA journal_mode = DELETE")  # instead of WAL, as the database has it
            damage = target.execute("PRAGMA quick_check").fetchall()
    except sqlite3.Error as error:
        mend = "check both files, their disks and the free space"
        raise UnwritableFile(path, str(error), mend) from error
    if damage != [("ok",)]:
        mend = "find out with `kasmina verify --all` whether the database itself is"
        raise UnwritableFile(path, f"the copy is damaged: {damage[0][0]}", mend)


def _revision(database: SqliteDatabase, copy: Path) -> str:
    """The schema of the copy. Raises ``SchemaMismatch`` where it is not kasmina's."""
    reader = SqliteDatabase(_url(copy)).reader()
    try:
        with translated(database), reader.connect() as connection:
            found = revision.found(connection, database)
    finally:
        reader.dispose()
    if found is None:
        mend = "it is empty, and was not copied; check its path"
        raise SchemaMismatch(database.url, found=None, expected=schema.REVISION, mend=mend)
    return found


def _verified(copy: Path) -> tuple[Verification, ...]:
    url = _url(copy).render_as_string()
    with open_store(url, access=Access.READ) as store:
        return tuple(store.verify(run_id, scrutiny=Scrutiny.CHAIN) for run_id in store.run_ids())


def _url(path: Path) -> URL:
    return URL.create("sqlite", database=str(path))
