"""Programs that begin a Ray cluster of their own: run, and ended with every process of it."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 240.0


def run(program: str, *arguments: object) -> str:
    """What it prints; fails if it does not end well, or leaves a process behind."""
    with _place() as place:
        done = subprocess.run(
            [sys.executable, ROOT / program, *map(str, arguments)],
            cwd=place,
            env={
                **os.environ,
                "PYTHONPATH": f"{ROOT}:{ROOT / 'examples'}",
                "RAY_AUTH_MODE": "disabled",
                "RAY_TMPDIR": str(place),
                "RAY_USAGE_STATS_ENABLED": "0",
            },
            text=True,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert _gone(place), f"processes {list(_processes(place))} are left"
    return done.stdout


@contextmanager
def _place() -> Iterator[Path]:
    """A folder that every process of the cluster works in or is told of, with a short name."""
    place = Path(tempfile.mkdtemp(prefix="kasmina-ray-", dir="/tmp"))
    try:
        yield place
    finally:
        for process in _processes(place):
            os.kill(process, signal.SIGKILL)
        shutil.rmtree(place, ignore_errors=True)


def _gone(place: Path) -> bool:
    until = time.monotonic() + 30
    while any(_processes(place)):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def _processes(place: Path) -> Iterator[int]:
    for each in Path("/proc").glob("[0-9]*"):
        try:
            told = (each / "cmdline").read_bytes()  # a worker's is overwritten by its title
            works_in = (each / "cwd").readlink()
        except OSError:  # it has just ended
            continue
        if str(place).encode() in told or works_in.is_relative_to(place):
            yield int(each.name)
