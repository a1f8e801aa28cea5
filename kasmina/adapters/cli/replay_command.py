"""``kasmina replay``."""

import time
from collections.abc import Iterator, Sequence
from typing import Annotated

from cyclopts import Parameter
from rich.console import Group as Lines

from kasmina.adapters.cli import reading
from kasmina.adapters.cli.documents import origin_document, record_document, replay_document
from kasmina.adapters.cli.documents.comparison import rewind_document
from kasmina.adapters.cli.options import DEFAULT_DATABASE, Database, Json, Run
from kasmina.adapters.cli.output import show, show_document, show_line
from kasmina.adapters.cli.reading import chosen_point, find_run, open_reader, state_of
from kasmina.adapters.cli.render.state import render_state
from kasmina.adapters.cli.render.timeline import render_record, render_reversal, render_timeline
from kasmina.domain.events import RunClosed, RunRewound
from kasmina.domain.points import Reversal, reversal, sequence_at
from kasmina.domain.ports import EventStore, Recorded
from kasmina.domain.projections import timeline
from kasmina.history import origin

_POLL_SECONDS = 0.25


def replay(
    run: Run,
    /,
    *,
    at: Annotated[int | None, Parameter(help="Stop after the event of this sequence.")] = None,
    epoch: Annotated[int | None, Parameter(help="Stop at the end of this epoch.")] = None,
    when: Annotated[
        str | None,
        Parameter(
            name="--time",
            help="Stop before the first event of a later time: 2026-11-23T10:00, which is UTC, or "
            "2026-11-23T11:00:00.5+01:00.",
        ),
    ] = None,
    follow: Annotated[
        bool,
        Parameter(negative=(), show_default=False, help="Go on as events arrive, until Ctrl-C."),
    ] = False,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Show a run as it stands, or as it stood, and what led there."""
    point = chosen_point(at=at, epoch=epoch, time=when, follow=follow)
    with open_reader(database) as store:
        run_id = find_run(store, run)
        if follow and json:
            _print_lines(store, run_id)
            return
        history = list(store.read(run_id))
        until = len(history) if point is None else sequence_at(history, point)
        _show(store, history, until, json=json)
        if follow and not isinstance(history[-1].event, RunClosed):
            _show_arrivals(store, history)


def _show(store: EventStore, history: Sequence[Recorded], until: int, *, json: bool) -> None:
    run_id = history[0].run_id
    state, moments = state_of(store, run_id, until=until), timeline(history[:until])
    forked = origin(store, run_id)
    if json:
        document = replay_document(state, moments, head=len(history))
        show_document({**document, "forked_from": origin_document(forked)})
    else:
        shown = render_state(state, head=len(history), forked=forked)
        show(Lines(shown, "", render_timeline(moments)))


def _print_lines(store: EventStore, run_id: str) -> None:
    for record, turn in _arrivals(store, run_id, ()):
        show_line(record_document(record) if turn is None else rewind_document(record, turn))


def _show_arrivals(store: EventStore, history: Sequence[Recorded]) -> None:
    run_id = history[0].run_id
    for record, turn in _arrivals(store, run_id, history):
        show(render_record(record))
        if turn is not None:
            moments = timeline(list(store.read(run_id, until=record.sequence)))
            show(render_reversal([each for each in moments if turn.concerns(each.sequence)]))
    state = state_of(store, run_id)
    shown = render_state(state, head=state.sequence, forked=origin(store, run_id))
    show(Lines("", shown))


def _arrivals(
    store: EventStore, run_id: str, history: Sequence[Recorded]
) -> Iterator[tuple[Recorded, Reversal | None]]:
    """What is recorded after ``history``; a rewind with all that it takes and brings back."""
    rewinds = [
        (record.sequence, record.event.to)
        for record in history
        if isinstance(record.event, RunRewound)
    ]
    for record in reading.follow(store, run_id, after=len(history), wait=_wait):
        if isinstance(record.event, RunRewound):
            rewinds.append((record.sequence, record.event.to))
            yield record, reversal(rewinds)
        else:
            yield record, None


def _wait() -> None:
    time.sleep(_POLL_SECONDS)
