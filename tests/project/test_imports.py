"""What a fresh interpreter loads: importing kasmina is free, and reading never loads torch."""

import json
import resource
import subprocess
import sys

import pytest

WATCHED = ("alembic", "numpy", "sqlalchemy", "torch")
REPORT = f"""
import json
import sys

{{act}}
print("LOADED", json.dumps([name for name in {WATCHED} if name in sys.modules]))
"""
COMMAND = """
from kasmina.adapters.cli.app import main

sys.argv = ["kasmina", *{arguments!r}]
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
"""


def loaded_by(act):
    code = REPORT.format(act=act)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.rpartition("LOADED")[2]))


def loaded_by_command(*arguments):
    return loaded_by(COMMAND.format(arguments=list(arguments)))


@pytest.fixture
def database(tmp_path):
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    loaded_by_command("db", "upgrade", "--database", url)
    return url


def test_importing_kasmina_loads_no_framework():
    assert loaded_by("import kasmina") == set()


@pytest.mark.parametrize("arguments", [("--help",), ("stages",)], ids=" ".join)
def test_a_command_without_a_database_loads_no_framework(arguments):
    assert loaded_by_command(*arguments) == set()


def test_listing_runs_loads_the_store_and_never_torch(database):
    loaded = loaded_by_command("runs", "--database", database)
    assert "sqlalchemy" in loaded
    assert not loaded & {"torch", "numpy"}


def test_a_reading_command_starts_well_under_half_a_second(database):
    def cpu_seconds():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [
            sys.executable,
            "-c",
            "from kasmina.adapters.cli.app import main; main()",
            "runs",
            "--database",
            database,
        ]
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # CPU time, and the best of a few: shared machines stall, they do not speed up.
    assert min(cpu_seconds() for _ in range(3)) < 0.5


def test_the_probe_sees_what_is_loaded():
    assert loaded_by("import sqlalchemy") >= {"sqlalchemy"}
