"""Several processes on one file, and processes that die: nothing acknowledged is lost."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store

HEADER = """
import json
import os
import resource
import signal
import sys
from kasmina.domain.errors import ConcurrentAppend, StoreUnavailable
from kasmina.infra import engine
from kasmina.infra.event_store import open_store
from kasmina.testing import epochs

url, *arguments = sys.argv[1:]
"""

OWN_RUN = """
with open_store(url) as store:
    for sequence in range(100):
        store.append(arguments[0], epochs(1, first=sequence + 1), expected=sequence)
"""

SAME_RUN = """
won = []
with open_store(url) as store:
    while len(won) < 100:
        expected = store.head("shared").sequence
        try:
            store.append("shared", epochs(1), expected=expected)
            won.append(expected + 1)
        except ConcurrentAppend as error:
            assert error.found > error.expected == expected
print(json.dumps(won))
"""

CREATE = """
for n in range(12):
    with open_store(f"{url}-{n}") as store:
        store.append(arguments[0], epochs(1), expected=0)
"""

ENDLESS = """
with open_store(url) as store:
    for n in range(10**6):
        store.append("victim", epochs(3, first=n + 1), expected=3 * n, batch=f"w.{n}")
        os.write(1, b"%d\\n" % (3 * n + 3))
"""

FILE_SIZE_LIMIT = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with open_store(url) as store:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    sequence = 0
    try:
        while True:
            sequence = store.append("digits-1", epochs(100), expected=sequence)[-1].sequence
    except StoreUnavailable as error:
        problem = error.problem
    head = store.head("digits-1").sequence
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    store.append("digits-1", epochs(100), expected=head)
    sound = store.verify("digits-1").sound
print(json.dumps([problem, sequence, head, sound]))
"""


def start(script, *arguments):
    command = [sys.executable, "-W", "error", "-c", HEADER + script, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*processes):
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [(p.returncode, err) for p, (_, err) in zip(processes, outputs, strict=True)] == [
        (0, "") for _ in processes
    ]
    return [out for out, _ in outputs]


def test_writers_of_different_runs_all_succeed(url):
    finish(start(OWN_RUN, url, "a"), start(OWN_RUN, url, "b"))
    with open_store(url, access=Access.READ) as store:
        for run in ("a", "b"):
            verification = store.verify(run)
            assert (verification.events, verification.problems) == (100, ())
        positions = [record.position for record in store.follow()]
    assert positions == list(range(1, 201))


def test_of_two_writers_of_one_run_exactly_one_wins_each_sequence(url):
    outputs = finish(start(SAME_RUN, url), start(SAME_RUN, url))
    won = [sequence for output in outputs for sequence in json.loads(output)]
    assert sorted(won) == list(range(1, 201))
    with open_store(url, access=Access.READ) as store:
        assert store.verify("shared").sound


def test_two_processes_may_create_the_same_new_database(url):
    finish(start(CREATE, url, "a"), start(CREATE, url, "b"))
    for n in range(12):
        with open_store(f"{url}-{n}", access=Access.READ) as store:
            assert sorted(record.run_id for record in store.runs()) == ["a", "b"]


@pytest.mark.parametrize(
    "patience", [0.02, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (0.1, 0.2, 0.4))]
)
def test_a_killed_writer_loses_nothing_that_was_acknowledged(url, patience):
    process = start(ENDLESS, url)
    assert process.stdout.readline()
    time.sleep(patience * (1 + random.random()))
    process.send_signal(signal.SIGKILL)
    out, _ = process.communicate()
    acknowledged = int(([*out.split()] or ["3"])[-1])
    with open_store(url) as store:
        verification = store.verify("victim")
        assert verification.sound
        assert verification.events in (acknowledged, acknowledged + 3)  # no half batch
        store.append("victim", [next(store.read("victim")).event], expected=verification.events)


def test_a_limit_on_file_sizes_is_a_full_disk_and_can_be_lifted(url):
    (output,) = finish(start(FILE_SIZE_LIMIT, url))
    problem, acknowledged, head, sound = json.loads(output)
    assert "disk" in problem
    assert acknowledged == head > 0
    assert sound


def test_readers_do_not_stop_a_writer_and_see_all_it_wrote(url):
    with open_store(url):
        pass
    writer = start(OWN_RUN, url, "a")
    seen = []
    with open_store(url, access=Access.READ) as store:
        while len(seen) < 100:
            seen += [record.position for record in store.follow(after=seen[-1] if seen else 0)]
            assert writer.poll() in (None, 0)
    finish(writer)
    assert seen == list(range(1, 101))
