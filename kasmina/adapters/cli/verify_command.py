"""``kasmina verify``."""

from typing import Annotated

from cyclopts import Parameter

from kasmina.adapters.cli.documents import verification_document
from kasmina.adapters.cli.errors import ContradictoryOptions, Exit, NothingNamed
from kasmina.adapters.cli.options import DEFAULT_DATABASE, Database, Json, Run
from kasmina.adapters.cli.output import show, show_document
from kasmina.adapters.cli.reading import find_run, open_reader
from kasmina.adapters.cli.render.verification import render_verifications


def verify(
    run: Run | None = None,
    /,
    *,
    every: Annotated[
        bool, Parameter(name="--all", negative=(), show_default=False, help="Verify every run.")
    ] = False,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> Exit:
    """Check that a run is exactly as it was recorded; exit code 1 where it is not."""
    if run is not None and every:
        raise ContradictoryOptions(("RUN", "--all"))
    if run is None and not every:
        raise NothingNamed(("a RUN", "--all"))
    with open_reader(database) as store:
        chosen = store.run_ids() if run is None else (find_run(store, run),)
        found = [store.verify(run_id) for run_id in chosen]
    if json:
        show_document(verification_document(found))
    else:
        show(render_verifications(found))
    return Exit.FINE if all(verification.sound for verification in found) else Exit.NO
