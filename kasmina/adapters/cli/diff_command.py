"""``kasmina diff``."""

from typing import Annotated

from attrs import frozen
from cyclopts import Parameter

from kasmina.adapters.cli.documents.comparison import diff_document
from kasmina.adapters.cli.errors import NothingNamed
from kasmina.adapters.cli.options import DEFAULT_DATABASE, Database, Json
from kasmina.adapters.cli.output import show, show_document
from kasmina.adapters.cli.reading import find_place, open_reader, state_of
from kasmina.adapters.cli.render.comparison import render_diff
from kasmina.domain.comparison import Parting, Stretch, differences, parting
from kasmina.domain.points import Point
from kasmina.domain.ports import EventStore
from kasmina.domain.projections import Moment, timeline
from kasmina.domain.state import RunState
from kasmina.history import lineage, locate


@frozen
class _Place:
    state: RunState
    lineage: tuple[Stretch, ...]


def diff(
    before: Annotated[
        str,
        Parameter(
            help="A RUN as it is, or RUN@12 (an event), RUN@epoch:3, RUN@time:2026-11-23T10:00."
        ),
    ],
    after: Annotated[
        str | None,
        Parameter(help="Another, or a point of it. Left out: the first RUN as it is."),
    ] = None,
    /,
    *,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Show what differs between two points of a run, or between two runs, and what led there."""
    with open_reader(database) as store:
        run_id, point = find_place(store, before)
        if after is None and point is None:
            raise NothingNamed((f"a point, such as {before}@epoch:1", "a second RUN"))
        one = _place(store, run_id, point)
        other = _place(store, *((run_id, None) if after is None else find_place(store, after)))
        parted = parting(one.lineage, other.lineage)
        histories = _histories(store, parted)
    found = differences(one.state, other.state)
    if json:
        show_document(diff_document(one.state, other.state, found, parted, histories))
    else:
        show(render_diff(one.state, other.state, found, parted, histories))


def _place(store: EventStore, run_id: str, point: Point | None) -> _Place:
    until = locate(store, run_id, point)
    state = state_of(store, run_id, until=until)
    return _Place(state, lineage(store, run_id, until=until))


def _histories(store: EventStore, parted: Parting | None) -> dict[Stretch, list[Moment]]:
    if parted is None:
        return {}
    return {stretch: _moments(store, stretch) for stretch in (*parted.before, *parted.after)}


def _moments(store: EventStore, stretch: Stretch) -> list[Moment]:
    """The timeline of a stretch, undone as far as it was at the stretch's end."""
    history = list(store.read(stretch.run_id, until=stretch.until))
    return [moment for moment in timeline(history) if moment.sequence > stretch.after]
