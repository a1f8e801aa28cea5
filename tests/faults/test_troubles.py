"""What keeps an open store from appending is told, changes nothing, and may go away again."""

import pytest
from attrs import frozen

from kasmina.domain import commands as c
from kasmina.domain.errors import SchemaMismatch, StoreUnavailable
from kasmina.domain.evidence import Metric
from kasmina.domain.policies import GatePolicy
from kasmina.domain.stages import Topology
from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store
from kasmina.service import Journal
from kasmina.testing import MemoryEventStore, caught, epochs
from tests.domain.scenario import ACCURACY, HOST, germinate
from tests.faults.troubles import TROUBLES, FullDisk, SizeLimit, Trouble


@frozen
class Case:
    """A database, and the trouble that it will be in."""

    trouble: Trouble
    path: object
    start: object

    @property
    def url(self):
        return f"sqlite:///{self.path}"

    def in_trouble(self):
        return self.trouble.begun(self.path, self.start)

    def refuses(self, act, *arguments, **settings):
        error = caught(StoreUnavailable, act, *arguments, **settings)
        assert self.trouble.problem in error.problem
        assert self.trouble.mend in error.mend
        assert error.target == self.url


@pytest.fixture(params=TROUBLES, ids=lambda trouble: type(trouble).__name__)
def case(request, tmp_path, start, impatient):
    with request.param.place(tmp_path) as folder:
        yield Case(request.param, folder / "runs.db", start)


def test_a_store_refuses_and_goes_on_when_it_can(case):
    batch = {"expected": 3, "batch": "w:3"}
    with open_store(case.url) as store, open_store(case.url, access=Access.READ) as reader:
        store.append("a", epochs(3), expected=0)
        before = list(store.read("a"))
        with case.in_trouble():
            for _ in range(3):
                case.refuses(store.append, "a", epochs(500, first=4), **batch)
            for other in (store, reader):
                if case.trouble.readable:
                    assert list(other.read("a")) == before
                    assert other.verify("a").sound
                else:
                    case.refuses(other.head, "a")
        assert list(store.read("a")) == list(reader.read("a")) == before
        recorded = store.append("a", epochs(500, first=4), **batch)
        assert store.append("a", epochs(500, first=4), **batch) == recorded
        assert recorded[-1].sequence == 503
    with open_store(case.url, access=Access.READ) as store:
        assert list(store.read("a")) == [*before, *recorded]
        assert store.verify("a").sound


def opened(store):
    journal = Journal(store, "run-1", writer="w", state=None)
    journal.handle(
        c.OpenRun(
            step=0,
            run_id="run-1",
            name="digits",
            objective=ACCURACY,
            policy=GatePolicy(),
            host=HOST,
            random_seed=7,
        ),
        c.OpenSlot(step=0, slot_id="layer2", topology=Topology.CNN, width=8),
    )
    return journal


def measured(epoch):
    """An epoch with so many figures that no gap in a file is large enough for them."""
    metrics = tuple(Metric(name=f"metric {n}", value=n / 7) for n in range(2000))
    return c.RecordEpoch(step=10 * epoch, epoch=epoch, objective=50.0, metrics=metrics)


def test_a_journal_is_as_it_was_and_goes_on_as_if_nothing_had_been(case):
    with open_store(case.url) as store:
        journal, undisturbed = opened(store), opened(MemoryEventStore())
        for each in (journal, undisturbed):
            each.handle(measured(1))
        state, head = journal.state, journal.head()
        with case.in_trouble():
            case.refuses(journal.handle, measured(2), germinate(at=2))
            case.refuses(journal.rewind, 2)
            assert journal.state is state
        assert journal.head() == head
        for each in (journal, undisturbed):
            each.handle(measured(2), germinate(at=2))
        assert journal.state == undisturbed.state != state
        assert Journal.open(store, "run-1", writer="x").state == journal.state
        written = [[record.event for record in each.read()] for each in (journal, undisturbed)]
        assert written[0] == written[1]


@pytest.mark.parametrize("case", [FullDisk(), SizeLimit()], indirect=True, ids=["disk", "limit"])
def test_a_database_for_which_there_is_no_room_can_be_created_when_there_is(case):
    with case.in_trouble():
        case.refuses(open_store, case.url)
        for access in Access:
            caught((StoreUnavailable, SchemaMismatch), open_store, case.url, access=access)
    with open_store(case.url) as store:
        store.append("a", epochs(3), expected=0)
        assert store.verify("a").sound


def test_a_database_that_another_process_keeps_to_itself_is_told_to_be_locked(
    path, url, start, impatient
):
    """SQLite's exclusive mode shuts out those who would only read, too."""
    with open_store(url) as store:
        store.append("a", epochs(3), expected=0)
    holder = start("hold_a_lock", path, "PRAGMA locking_mode = EXCLUSIVE", "BEGIN EXCLUSIVE")
    holder.go()
    assert holder.says() == "ready"
    for access in Access:
        error = caught(StoreUnavailable, open_store, url, access=access)
        assert "locked" in error.problem
        assert "wait for that process" in error.mend
    holder.kill()
    with open_store(url) as store:
        assert store.head("a").sequence == 3


def test_a_file_that_was_deleted_for_good_is_begun_anew_by_whoever_opens_it(path, url):
    with open_store(url) as store:
        store.append("a", epochs(3), expected=0)
        path.unlink()
        for _ in range(2):
            error = caught(StoreUnavailable, store.append, "a", epochs(1), expected=3)
            assert "deleted or replaced" in error.problem
            assert "open the store again to begin a new file" in error.mend
    with open_store(url) as store:
        assert list(store.follow()) == []
        store.append("a", epochs(1), expected=0)


def test_a_limit_on_file_sizes_that_is_met_while_writing_is_a_full_disk(url, start):
    """Wherever it is met, all that was acknowledged before it is there, and nothing else."""
    for limit in (60_000, 300_000, 1_000_000):
        process = start("write_under_a_limit", url, f"run-{limit}", limit)
        process.go()
        ((problem, acknowledged, head, sound),) = process.says_at_last()
        assert "disk" in problem
        assert acknowledged == head
        assert sound
