"""``kasmina fork``."""

from typing import Annotated

from cyclopts import Parameter

from kasmina.adapters.cli.documents.comparison import fork_document
from kasmina.adapters.cli.errors import NothingNamed
from kasmina.adapters.cli.options import DEFAULT_DATABASE, Database, Json, Run
from kasmina.adapters.cli.output import show, show_document
from kasmina.adapters.cli.reading import chosen_point, find_run, open_writer, state_of
from kasmina.adapters.cli.render.comparison import render_fork
from kasmina.domain.events import CheckpointSaved
from kasmina.domain.points import TensorsNotSaved
from kasmina.domain.ports import EventStore
from kasmina.history import locate, saved_tensors
from kasmina.service import fork as fork_run


def fork(
    run: Run,
    /,
    *,
    name: Annotated[str, Parameter(help="What the new run is to be called.")],
    at: Annotated[int | None, Parameter(help="Fork after the event of this sequence.")] = None,
    epoch: Annotated[int | None, Parameter(help="Fork at the end of this epoch.")] = None,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Begin a new run from a point of another, which stays as it is.

    To train it, resume it with the host of the other: its tensors are those of the checkpoint that
    was taken at that point.
    """
    from kasmina.infra.system import RandomIdentifiers

    point = chosen_point(at=at, epoch=epoch, time=None)
    if point is None:
        raise NothingNamed(("--at", "--epoch"))
    new_id = RandomIdentifiers().run_id(name)
    with open_writer(database) as store:
        parent = find_run(store, run)
        sequence = locate(store, parent, point)
        forked = fork_run(store, parent, at=sequence, run_id=new_id, name=name)
        state = state_of(store, new_id)
        tensors = _tensors(store, parent, sequence)
    if json:
        show_document(fork_document(state, forked, tensors))
    else:
        show(render_fork(state, forked, tensors))


def _tensors(store: EventStore, run_id: str, at: int) -> CheckpointSaved | TensorsNotSaved | None:
    try:
        return saved_tensors(store, run_id, at=at)
    except TensorsNotSaved as missing:
        return missing
