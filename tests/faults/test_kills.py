"""A process may die between any two instructions: what it was told was recorded is there."""

import random
import time

import pytest

from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store
from kasmina.testing import epochs
from tests.faults.plans import WRITING, Plan

RUNS = 5


class Writer:
    """The writer of one run, in one life after another."""

    def __init__(self, url, number):
        self.url = url
        self.plan = Plan(run=f"run-{number}", seed=number)
        self.acknowledged = 0

    def live(self, start):
        arguments = (self.url, self.plan.run, self.plan.seed, self.acknowledged)
        process = start("live", *arguments)
        process.go()
        return process

    def head(self, store):
        """Where the run ends: with the last batch acknowledged, or the one it died over."""
        head = store.head(self.plan.run).sequence
        assert head in (self.plan.end(self.acknowledged), self.plan.end(self.acknowledged + 1))
        return head


@pytest.mark.parametrize(
    ("lives", "appends"),
    [(6, 300), pytest.param(50, 10_000, marks=pytest.mark.slow)],
    ids=["six lives", "fifty lives"],
)
def test_appends_in_lives_that_all_end_by_a_kill(database, start, lives, appends):
    """Each life first sends again what the last one was not told was recorded."""
    chance = random.Random(lives)
    writers = [Writer(database, number) for number in range(RUNS)]
    share = appends // lives
    for _ in range(lives // 2):
        pair = chance.sample(writers, 2)
        for writer, process in [(writer, writer.live(start)) for writer in pair]:
            for _ in range(chance.randint(share, share + share // 4)):
                writer.acknowledged = process.says()
            time.sleep(chance.random() / 500)
            writer.acknowledged = [writer.acknowledged, *process.kill()][-1]
        with open_store(database, access=Access.READ) as store:
            for writer in pair:
                writer.head(store)
    assert sum(writer.acknowledged for writer in writers) >= appends
    with open_store(database, access=Access.READ) as store:
        total = sum(writer.head(store) for writer in writers)
        assert len(store.follow(limit=2 * total)) == total
        for writer in writers:
            found = [record.event for record in store.read(writer.plan.run)]
            assert found == writer.plan.events(len(found))
            assert store.verify(writer.plan.run).sound


def sent_again(store):
    return store.append("victim", epochs(20, first=4), expected=3, batch="w:3")


@pytest.mark.parametrize("moment", WRITING, ids=lambda moment: moment.name)
def test_a_writer_that_dies_in_a_transaction_leaves_nothing_of_it(database, start, moment):
    process = start("die_while_appending", database, moment.name)
    process.go()
    process.dies()
    with open_store(database) as store:
        assert [record.sequence for record in store.read("victim")] == [1, 2, 3]
        assert sent_again(store)[-1].sequence == 23
        assert store.verify("victim").sound


def test_a_batch_whose_acknowledgement_died_with_its_writer_is_not_written_twice(database, start):
    process = start("die_before_acknowledging", database)
    process.go()
    process.dies()
    with open_store(database) as store:
        assert store.head("victim").sequence == 23
        before = list(store.read("victim"))
        assert list(sent_again(store)) == before[3:]
        assert list(store.read("victim")) == before
        assert store.verify("victim").sound


def test_the_dead_stand_in_nobodys_way(database, start):
    """A lock dies with its process: the next append waits for nothing."""
    process = start("be_suspended_while_appending", database, "INSERTED")
    process.go()
    assert process.is_suspended()
    process.kill()
    with open_store(database) as store:
        store.append("suspended", epochs(1), expected=0)
        assert [record.sequence for record in store.follow()] == [1]
