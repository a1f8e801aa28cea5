"""``kasmina import``."""

from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from kasmina.adapters.cli.documents.exchange import transfers_document
from kasmina.adapters.cli.options import DEFAULT_DATABASE, Database, Json
from kasmina.adapters.cli.output import show, show_document
from kasmina.adapters.cli.render.exchange import render_transfers
from kasmina.infra.exchange.files import STANDARD_INPUT, opened
from kasmina.infra.exchange.jsonl import LONGEST_LINE


def import_(
    file: Annotated[
        str,
        Parameter(
            allow_leading_hyphen=True, help="JSON lines, plain or gzipped; - is the standard input."
        ),
    ],
    /,
    *,
    max_line: Annotated[
        int, Parameter(validator=Number(gte=1), help="The bytes that a line may have.")
    ] = LONGEST_LINE,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Take in what `kasmina export --to jsonl` wrote: all of it, every digest checked, or nothing.

    Events that the database has already must be the same, and are not added again. The database
    is created if need be.
    """
    from kasmina.infra.event_store import open_store
    from kasmina.infra.exchange.importing import import_lines

    source = "the standard input" if file == STANDARD_INPUT else file
    with opened(file) as stream, open_store(database) as store:
        transfers = import_lines(store, stream, source, longest=max_line)
    if json:
        show_document(transfers_document(transfers))
    else:
        show(render_transfers(transfers))
