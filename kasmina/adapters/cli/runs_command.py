"""``kasmina runs``."""

from typing import Annotated

from cyclopts import Parameter, validators
from rich.console import Group as Lines

from kasmina.adapters.cli.documents import runs_document
from kasmina.adapters.cli.options import DEFAULT_DATABASE, Database, Json
from kasmina.adapters.cli.output import show, show_document
from kasmina.adapters.cli.reading import find_run, open_reader, state_of
from kasmina.adapters.cli.render.runs import render_older, render_runs
from kasmina.domain.events import RunForked


def runs(
    *,
    limit: Annotated[
        int, Parameter(validator=validators.Number(gte=1), help="How many, at most.")
    ] = 50,
    before: Annotated[
        str | None, Parameter(help="Only runs begun before this one: the next page.")
    ] = None,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """List the runs begun last, oldest first, and where each of them stands."""
    with open_reader(database) as store:
        until = None
        if before is not None:
            (first,) = store.read(find_run(store, before), until=1)
            until = first.position
        page = store.latest_runs(before=until, limit=limit + 1)
        shown = page[:limit][::-1]
        found = [(first, state_of(store, first.run_id)) for first in shown]
        older = shown[0].run_id if len(page) > limit else None
        if json:
            show_document(runs_document(found, older_than=older))
            return
        forks = [first.event for first, _ in found if isinstance(first.event, RunForked)]
        table = render_runs([state for _, state in found], store.url, forks=forks)
        show(table if older is None else Lines(table, "", render_older(older)))
