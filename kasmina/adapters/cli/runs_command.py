"""``kasmina runs``."""

from kasmina.adapters.cli.documents import runs_document
from kasmina.adapters.cli.options import DEFAULT_DATABASE, Database, Json
from kasmina.adapters.cli.output import show, show_document
from kasmina.adapters.cli.reading import open_reader, state_of
from kasmina.adapters.cli.render.runs import render_runs


def runs(*, database: Database = DEFAULT_DATABASE, json: Json = False) -> None:
    """List the runs of a database, oldest first, and where each of them stands."""
    with open_reader(database) as store:
        found = [(first, state_of(store, first.run_id)) for first in store.runs()]
        if json:
            show_document(runs_document(found))
        else:
            show(render_runs([state for _, state in found], store.url))
