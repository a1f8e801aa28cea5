"""What the processes of these tests do: ``python -m tests.faults.roles ROLE ARGUMENTS``.

Each says that it is ready, waits to be told to go, and says what it found in JSON lines.
"""

import json
import resource
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from kasmina.domain.errors import ConcurrentAppend, SchemaMismatch, StoreUnavailable
from kasmina.infra import engine
from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store
from kasmina.infra.statements import Statement
from kasmina.testing import epochs
from tests.faults.plans import Moment, Plan, marked
from tests.faults.processes import kill_self, suspend_self

ROLES: dict[str, Callable[..., None]] = {}


def role(act):
    ROLES[act.__name__] = act
    return act


def say(found):
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def be_told_to_go():
    say("ready")
    sys.stdin.readline()


def at(moment, url, act):
    """Do ``act`` once, when a store at ``url`` next comes to ``moment``."""
    owner = Statement if moment is Moment.READING else type(engine.locate(url))
    done = vars(owner)[moment.value]
    acts = [act]

    def doing(*arguments, **settings):
        found = done(*arguments, **settings)
        if acts:
            acts.pop()()
        return found

    setattr(owner, moment.value, doing)


@role
def write_a_run(url, run, count):
    """Batches of three events to a run of its own."""
    with open_store(url) as store:
        for turn in range(int(count)):
            store.append(run, epochs(3, first=3 * turn + 1), expected=3 * turn)
    say(3 * int(count))


@role
def compete_for_a_run(url, writer, wins):
    """Append batches that bear the writer's number, until so many were the first."""
    won, lost = [], []
    with open_store(url) as store:
        while len(won) < int(wins):
            expected = store.head("shared").sequence
            time.sleep(0.001)  # for another to come first
            try:
                recorded = store.append("shared", marked(int(writer), 3), expected=expected)
                won.append(recorded[0].sequence)
            except ConcurrentAppend as error:
                lost.append([expected, error.expected, error.found])
    say([won, lost])


@role
def create_databases(writer, *urls):
    for url in urls:
        with open_store(url) as store:
            store.append(f"run-{writer}", epochs(2), expected=0)
    say(len(urls))


@role
def read_databases_that_are_being_created(*urls):
    """Try until there is something to read in each; what was in the way until then."""
    hindrances = set()
    for url in urls:
        runs = ()
        while not runs:
            try:
                with open_store(url, access=Access.READ) as store:
                    runs = store.run_ids()
            except (StoreUnavailable, SchemaMismatch) as error:
                hindrances.add(str(error).removeprefix(url))
    say(sorted(hindrances))


@role
def live(url, run, seed, acknowledged):
    """Go on with a plan after the last batch that was acknowledged, until the end comes."""
    with open_store(url) as store:
        for batch in Plan(run=run, seed=int(seed)).batches(after=int(acknowledged)):
            store.append(run, batch.events, expected=batch.expected, batch=batch.key)
            say(batch.number)


@role
def die_while_appending(url, moment):
    with open_store(url) as store:
        store.append("victim", epochs(3), expected=0, batch="w:0")
        at(Moment[moment], url, kill_self)
        store.append("victim", epochs(20, first=4), expected=3, batch="w:3")


@role
def die_before_acknowledging(url):
    with open_store(url) as store:
        store.append("victim", epochs(3), expected=0, batch="w:0")
        store.append("victim", epochs(20, first=4), expected=3, batch="w:3")
        kill_self()


@role
def be_suspended_while_appending(url, moment):
    with open_store(url) as store:
        at(Moment[moment], url, suspend_self)
        store.append("suspended", epochs(20), expected=0)
        say([store.head("suspended").sequence, store.verify("suspended").sound])


@role
def be_suspended_while_reading(url, run, way):
    with open_store(url, access=Access.READ) as store:
        if way == "rows":
            rows = iter(store.rows(run))
            seen = [next(rows)]
            suspend_self()
            say(len([*seen, *rows]))
            return
        at(Moment.READING, url, suspend_self)
        match way:
            case "read":
                say(len(list(store.read(run))))
            case "runs":
                say(len(list(store.runs())))
            case "follow":
                say(len(store.follow()))


@role
def append_after_its_log_was_deleted(url):
    path = Path(url.removeprefix("sqlite:///"))
    with open_store(url) as store:
        store.append("a", epochs(3), expected=0)
        path.with_name(path.name + "-wal").unlink()
        try:
            say(store.append("a", epochs(3, first=4), expected=3)[-1].sequence)
        except StoreUnavailable as error:
            say(error.problem)
        kill_self()


@role
def hold_a_lock(path, *statements):
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement).fetchall()
        be_told_to_go()


@role
def write_under_a_limit(url, run, limit):
    """Until a file would be longer than ``limit`` bytes, and on when it may."""
    with open_store(url) as store:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), hard))
        sequence, problem = 0, None
        while problem is None:
            try:
                sequence = store.append(run, epochs(100), expected=sequence)[-1].sequence
            except StoreUnavailable as error:
                problem = error.problem
        head = store.head(run).sequence
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        store.append(run, epochs(100), expected=head)
        say([problem, sequence, head, store.verify(run).sound])


if __name__ == "__main__":
    name, *given = sys.argv[1:]
    be_told_to_go()
    ROLES[name](*given)
