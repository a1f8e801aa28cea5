"""Processes that write, create and read one database at once."""

import pytest

from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store
from kasmina.testing import epochs
from tests.faults.processes import together

# What a reader may be told of a database that another process is just about to create.
NOT_YET = (": there is no such file; ", ": has no kasmina schema, ")

crowds = pytest.mark.parametrize(
    "writers", [4, *(pytest.param(many, marks=pytest.mark.slow) for many in (2, 16))]
)


@crowds
def test_writers_of_different_runs_all_succeed(database, start, writers):
    with open_store(database):
        pass
    turns = 300 // writers
    together([start("write_a_run", database, f"run-{n}", turns) for n in range(writers)])
    with open_store(database, access=Access.READ) as store:
        for n in range(writers):
            verification = store.verify(f"run-{n}")
            assert (verification.events, verification.problems) == (3 * turns, ())
        followed = [record.position for record in store.follow()]
    assert len(followed) == len(set(followed)) == 3 * turns * writers
    assert followed == sorted(followed)


@crowds
def test_of_the_writers_of_one_run_exactly_one_wins_each_sequence(database, start, writers):
    """Every other is told where it thought the run ends and where it does."""
    with open_store(database):
        pass
    wins = 160 // writers
    said = together([start("compete_for_a_run", database, n, wins) for n in range(writers)])
    winners = {sequence: n for n, (won, _) in enumerate(said) for sequence in won}
    assert sorted(winners) == list(range(1, 3 * wins * writers, 3))
    losses = [loss for _, lost in said for loss in lost]
    assert losses, "nobody was in anybody's way"
    assert all(found > told == expected for expected, told, found in losses)
    with open_store(database, access=Access.READ) as store:
        assert store.verify("shared").sound
        authors = [int(record.event.objective) for record in store.read("shared")]
    for first, winner in winners.items():
        assert authors[first - 1 : first + 2] == [winner] * 3


@pytest.mark.parametrize("creators", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_processes_may_create_the_same_databases_at_once_while_another_reads(
    new_database, start, creators
):
    urls = [new_database() for _ in range(10)]
    reader = start("read_databases_that_are_being_created", *urls)
    reader.go()
    together([start("create_databases", n, *urls) for n in range(creators)])
    (hindrances,) = reader.says_at_last()
    assert all(hindrance.startswith(NOT_YET) for hindrance in hindrances)
    for url in urls:
        with open_store(url, access=Access.READ) as store:
            assert store.run_ids() == tuple(sorted(f"run-{n}" for n in range(creators)))
            assert all(store.verify(run).events == 2 for run in store.run_ids())


def test_whoever_comes_when_a_database_is_being_created_appends_to_the_same_one(database, start):
    creator = start("create_databases", 0, database)
    creator.go()
    with open_store(database) as store:
        store.append("another", epochs(2), expected=0)
        creator.says_at_last()
        assert {record.run_id for record in store.runs()} == {"another", "run-0"}
