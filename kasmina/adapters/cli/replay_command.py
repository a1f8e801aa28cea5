"""``kasmina replay``."""

import time
from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter
from rich.console import Group as Lines

from kasmina.adapters.cli import reading
from kasmina.adapters.cli.documents import record_document, replay_document
from kasmina.adapters.cli.errors import ContradictoryOptions, NoSuchPoint
from kasmina.adapters.cli.options import DEFAULT_DATABASE, Database, Json, Run
from kasmina.adapters.cli.output import show, show_document, show_line
from kasmina.adapters.cli.reading import find_run, open_reader, sequence_of_epoch, state_of
from kasmina.adapters.cli.render.state import render_state
from kasmina.adapters.cli.render.timeline import render_record, render_timeline
from kasmina.domain.events import RunClosed
from kasmina.domain.ports import EventStore, Recorded
from kasmina.domain.projections import timeline

_POLL_SECONDS = 0.25


def replay(
    run: Run,
    /,
    *,
    at: Annotated[int | None, Parameter(help="Stop after the event of this sequence.")] = None,
    epoch: Annotated[int | None, Parameter(help="Stop at the end of this epoch.")] = None,
    follow: Annotated[
        bool,
        Parameter(negative=(), show_default=False, help="Go on as events arrive, until Ctrl-C."),
    ] = False,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Show a run as it stands, or as it stood, and what led there."""
    wishes = {"--at": at is not None, "--epoch": epoch is not None, "--follow": follow}
    given = [option for option, wished in wishes.items() if wished]
    if len(given) > 1:
        raise ContradictoryOptions(given)
    with open_reader(database) as store:
        run_id = find_run(store, run)
        if follow and json:
            for record in reading.follow(store, run_id, after=0, wait=_wait):
                show_line(record_document(record))
            return
        history = list(store.read(run_id))
        point = _point(history, at=at, epoch=epoch)
        _show(store, history, point, json=json)
        if follow and not isinstance(history[-1].event, RunClosed):
            for record in reading.follow(store, run_id, after=point, wait=_wait):
                show(render_record(record))
            show(Lines("", render_state(state_of(store, run_id), head=store.head(run_id).sequence)))


def _wait() -> None:
    time.sleep(_POLL_SECONDS)


def _point(history: Sequence[Recorded], *, at: int | None, epoch: int | None) -> int:
    if epoch is not None:
        return sequence_of_epoch(history, epoch)
    if at is None:
        return len(history)
    if not 1 <= at <= len(history):
        raise NoSuchPoint(history[0].run_id, "event", asked=at, first=1, last=len(history))
    return at


def _show(store: EventStore, history: Sequence[Recorded], point: int, *, json: bool) -> None:
    state = state_of(store, history[0].run_id, until=point)
    moments = timeline(history[:point])
    if json:
        show_document(replay_document(state, moments, head=len(history)))
    else:
        show(Lines(render_state(state, head=len(history)), "", render_timeline(moments)))
