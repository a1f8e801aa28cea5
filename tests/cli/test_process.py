"""What only a process of its own can show: pipes, signals, the terminal, what is loaded."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

KASMINA = [sys.executable, "-c", "from kasmina.adapters.cli.app import main; main()"]
FULL = Path("/dev/full")
LOADED = """
import sys
from kasmina.adapters.cli.app import run
code = run(sys.argv[1:])
names = ("alembic", "msgspec", "numpy", "psycopg", "sqlalchemy", "structlog", "torch")
names += ("sqlalchemy.dialects.postgresql",)
sys.stderr.write(" ".join(name for name in names if name in sys.modules))
sys.exit(code)
"""


@pytest.fixture
def environment(url):
    return {**os.environ, "KASMINA_DATABASE": url, "COLUMNS": "80", "TERM": "xterm-256color"}


def kasmina(environment, *arguments, **options):
    return subprocess.run(
        [*KASMINA, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        (("--help",), set()),
        (("--version",), set()),
        (("runs", "--help"), {"msgspec"}),
        (("stages",), {"msgspec"}),
        (("blueprints",), {"msgspec"}),
        (("runs",), {"msgspec", "sqlalchemy"}),
        (("replay", "digits"), {"msgspec", "sqlalchemy"}),
        (("audit", "digits"), {"msgspec", "sqlalchemy"}),
        (("diff", "digits@epoch:3"), {"msgspec", "sqlalchemy"}),
        (("fork", "digits", "--at", "28", "--name", "x"), {"msgspec", "sqlalchemy"}),
        (("verify", "--all"), {"msgspec", "sqlalchemy"}),
        (("export", "digits", "--to", "csv"), {"msgspec", "sqlalchemy"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_command_loads_only_what_it_needs(environment, arguments, allowed):
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stderr.split()) <= allowed


def test_a_reader_that_leaves_is_no_error(environment):
    with subprocess.Popen(
        [*KASMINA, "audit", "digits"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.close()
        complaint = process.stderr.read()
    assert (process.returncode, complaint) == (141, "")


@pytest.mark.skipif(not FULL.exists(), reason="needs a device that is always full")
def test_output_that_cannot_be_written_is_an_error(environment):
    with FULL.open("w") as full:
        done = subprocess.run(
            [*KASMINA, "audit", "digits"],
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 3
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_ctrl_c_ends_a_followed_run_quietly(environment):
    with subprocess.Popen(
        [*KASMINA, "replay", "blank", "--follow", "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert json.loads(process.stdout.readline())["type"] == "RunOpened"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, complaint = process.communicate(timeout=30)
    assert (process.returncode, out, complaint) == (130, "", "")


def test_a_letter_that_the_terminal_lacks_is_replaced(environment):
    done = kasmina({**environment, "PYTHONIOENCODING": "ascii"}, "replay", "digits")
    assert (done.returncode, done.stderr) == (0, "")
    assert "TRAINING ? BLENDING" in done.stdout


def coloured(environment):
    """What ``kasmina runs`` prints to a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.run([*KASMINA, "runs"], env=environment, stdout=theirs, check=True)
    os.close(theirs)
    assert process.returncode == 0
    with os.fdopen(ours, "rb") as terminal:
        return terminal.read1(65536).decode()


def test_colour_is_for_terminals_that_want_it(environment):
    environment = {key: value for key, value in environment.items() if key != "NO_COLOR"}
    assert "\x1b[1;32mFOSSILIZED" in coloured(environment)
    assert "\x1b[1;32m" not in coloured({**environment, "NO_COLOR": "1"})
    assert "\x1b" not in kasmina(environment, "runs").stdout


def test_the_version_is_the_packages(environment):
    assert kasmina(environment, "--version").stdout.strip().count(".") == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command(shell):
    from kasmina.adapters.cli.app import app

    script = app.generate_completion(shell=shell)
    for word in ("replay", "audit", "verify", "blueprints", "stages", "upgrade", "--refused"):
        assert word.lstrip("-") in script
