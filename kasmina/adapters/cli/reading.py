"""Opening a store, and finding in it what a command names."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from kasmina.adapters.cli.errors import AmbiguousRun, ContradictoryOptions
from kasmina.domain import events as e
from kasmina.domain.errors import CorruptHistory, UnknownRun
from kasmina.domain.points import AtEpoch, AtEvent, Point, parse_point
from kasmina.domain.ports import EventStore, Recorded
from kasmina.domain.state import RunState
from kasmina.history import load, unknown

if TYPE_CHECKING:
    from kasmina.infra.event_store import SqlEventStore

LATEST = "latest"


def open_reader(database: str) -> "SqlEventStore":
    """The store, for reading only. Raises ``StoreUnavailable`` and ``SchemaMismatch``."""
    from kasmina.infra.engine import Access
    from kasmina.infra.event_store import open_store

    return open_store(database, access=Access.READ)


def open_writer(database: str) -> "SqlEventStore":
    """The store, which must be there already, for writing. Raises as ``open_reader`` does."""
    from kasmina.infra.engine import Access
    from kasmina.infra.event_store import open_store

    open_reader(database).close()
    return open_store(database, access=Access.WRITE)


def find_run(store: EventStore, asked: str) -> str:
    """The identifier of the run that ``asked`` names: an identifier, a name, a beginning.

    Raises ``UnknownRun`` and ``AmbiguousRun``.
    """
    if store.head(asked).sequence:
        return asked
    names = {record.run_id: run_name(record) for record in store.runs()}
    if asked == LATEST and names:
        return list(names)[-1]
    found = [run_id for run_id, name in names.items() if name == asked]
    if asked and not found:
        found = [run_id for run_id in names if run_id.startswith(asked)]
    if len(found) > 1:
        raise AmbiguousRun(asked, found)
    if not found:
        raise UnknownRun(asked, {*names, *names.values()})
    return found[0]


def run_name(first: Recorded) -> str:
    """The name of the run that ``first`` began."""
    if isinstance(first.event, e.RunOpened | e.RunForked):
        return first.event.name
    raise CorruptHistory(
        f"run {first.run_id!r} begins with {type(first.event).__name__}, not RunOpened"
    )


def state_of(store: EventStore, run_id: str, *, until: int | None = None) -> RunState:
    """The run's state after event ``until``, or now. Raises ``UnknownRun``."""
    state = load(store, run_id, until=until)
    if state is None:
        raise unknown(store, run_id)
    return state


def find_place(store: EventStore, asked: str) -> tuple[str, Point | None]:
    """The run, and the point in it if one is named, of ``RUN``, ``RUN@12``, ``RUN@epoch:3``, ...

    A run's name may itself hold an ``@``. Raises ``UnknownRun``, ``AmbiguousRun`` and, where the
    run is there and the point makes no sense, ``NotAPoint``.
    """
    run, separator, point = asked.rpartition("@")
    if not separator:
        return find_run(store, asked), None
    try:
        return find_run(store, asked), None
    except UnknownRun:
        run_id = find_run(store, run)
    return run_id, parse_point(point)


def chosen_point(
    *, at: int | None, epoch: int | None, time: str | None = None, follow: bool = False
) -> Point | None:
    """The point that the options name, of which at most one may be given, and none to follow.

    Raises ``ContradictoryOptions`` and ``NotAPoint``.
    """
    wishes = {"--at": at is not None, "--epoch": epoch is not None, "--time": time is not None}
    given = [option for option, wished in {**wishes, "--follow": follow}.items() if wished]
    if len(given) > 1:
        raise ContradictoryOptions(given)
    if at is not None:
        return AtEvent(sequence=at)
    if epoch is not None:
        return AtEpoch(epoch=epoch)
    return None if time is None else parse_point(f"time:{time}")


def follow(
    store: EventStore, run_id: str, *, after: int, wait: Callable[[], None]
) -> Iterator[Recorded]:
    """The run's events after ``after`` as they are recorded, until the last one closes the run.

    ``wait`` is called whenever there are none yet.
    """
    while True:
        closed = False
        for record in store.read(run_id, after=after):
            after = record.sequence
            closed = isinstance(record.event, e.RunClosed)
            yield record
        if closed:
            return
        wait()
