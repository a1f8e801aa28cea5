"""Opening a store for reading, and finding in it what a command names."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from kasmina.adapters.cli.errors import AmbiguousRun, NoSuchPoint
from kasmina.domain import events as e
from kasmina.domain.errors import CorruptHistory, UnknownRun
from kasmina.domain.evolve import surviving
from kasmina.domain.ports import EventStore, Recorded
from kasmina.domain.state import RunState
from kasmina.service import load

if TYPE_CHECKING:
    from kasmina.infra.event_store import SqlEventStore

LATEST = "latest"


def open_reader(database: str) -> "SqlEventStore":
    """The store, for reading only. Raises ``StoreUnavailable`` and ``SchemaMismatch``."""
    from kasmina.infra.engine import Access
    from kasmina.infra.event_store import open_store

    return open_store(database, access=Access.READ)


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
        raise UnknownRun(run_id, (record.run_id for record in store.runs()))
    return state


def sequence_of_epoch(history: Sequence[Recorded], epoch: int) -> int:
    """The last event up to the end of ``epoch``, among those that no rewind took back.

    Raises ``NoSuchPoint``.
    """
    rewinds = [
        (record.sequence, record.event.to)
        for record in history
        if isinstance(record.event, e.RunRewound)
    ]
    kept = [
        record
        for after, until in surviving(rewinds, head=len(history))
        for record in history[after:until]
    ]
    first, last = kept[0].event.epoch, kept[-1].event.epoch
    if not first <= epoch <= last:
        raise NoSuchPoint(history[0].run_id, "epoch", asked=epoch, first=first, last=last)
    return max(record.sequence for record in kept if record.event.epoch <= epoch)


def follow(
    store: EventStore, run_id: str, *, after: int, wait: Callable[[], None]
) -> Iterator[Recorded]:
    """The run's events after ``after`` as they are recorded, until the run is closed.

    ``wait`` is called whenever there are none yet.
    """
    while True:
        for record in store.read(run_id, after=after):
            after = record.sequence
            yield record
            if isinstance(record.event, e.RunClosed):
                return
        wait()
