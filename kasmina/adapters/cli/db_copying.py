"""``kasmina db copy`` and ``kasmina db backup``."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kasmina.adapters.cli.documents.exchange import backup_document, transfers_document
from kasmina.adapters.cli.errors import Exit
from kasmina.adapters.cli.options import DEFAULT_DATABASE, Database, Json
from kasmina.adapters.cli.output import say, show, show_document
from kasmina.adapters.cli.reading import find_run, open_reader
from kasmina.adapters.cli.render.exchange import render_transfer, told_backup
from kasmina.adapters.cli.render.verification import render_verifications


def copy(
    source: Annotated[str, Parameter(help="The database to copy from, as a SQLAlchemy URL.")],
    target: Annotated[str, Parameter(help="The database to copy into; created if need be.")],
    /,
    *runs: Annotated[str, Parameter(help="Runs to copy; without any, all of them.")],
    json: Json = False,
) -> None:
    """Copy runs into another database, digests and all; a fork with the runs it came from.

    Repeated, it goes on where it stopped, and adds what was recorded since.
    """
    from kasmina.infra.copying import copy_runs, every_run, with_parents
    from kasmina.infra.event_store import open_store

    done = []
    with open_reader(source) as origin:
        named = [find_run(origin, run) for run in runs]
        run_ids = with_parents(origin, named) if runs else every_run(origin)
        with open_store(target) as destination:
            for transfer in copy_runs(origin, destination, run_ids):
                done.append(transfer)
                if not json:
                    show(render_transfer(transfer))
    if json:
        show_document(transfers_document(done))


def backup(
    file: Annotated[Path, Parameter(help="The file to make.")],
    /,
    *,
    replace: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Replace a file of that name.")
    ] = False,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> Exit:
    """Copy a whole SQLite database into one file while others write to it, and check the copy.

    Exit code 1 where the copy holds runs that are broken, as they are in the database.
    """
    from kasmina.infra.backup import Existing, back_up

    made = back_up(database, file, existing=Existing.REPLACE if replace else Existing.KEEP)
    broken = [run for run in made.runs or () if not run.sound]
    if json:
        show_document(backup_document(made))
    else:
        say(told_backup(made))
        if broken:
            show(render_verifications(broken))
    return Exit.NO if broken else Exit.FINE
