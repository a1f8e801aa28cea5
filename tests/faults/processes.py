"""Processes of a test's own: each plays a role from ``roles.py``, and is ended with the test."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 100.0
"""Seconds after which a process is ended that a test still waits for; machines are shared."""


class Process:
    """A process that waits, ready, until it is told to go, and says what it found in JSON lines."""

    def __init__(self, role, *arguments):
        self._errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 - closed by end
        self._popen = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.faults.roles", role, *map(str, arguments)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._watchdog = threading.Timer(PATIENCE, self._popen.kill)
        self._watchdog.start()

    def go(self):
        """Let it begin, or go on, once it has said that it waits."""
        assert self.says() == "ready"
        self._popen.stdin.write("go\n")
        self._popen.stdin.flush()

    def says(self):
        """The next thing it says; an error where it ends without."""
        line = self._popen.stdout.readline()
        assert line, self._complaint()
        return json.loads(line)

    def says_at_last(self):
        """All that it still says until it ends, which it must do without an error."""
        said = [json.loads(line) for line in self._popen.stdout]
        assert (self._popen.wait(), self._complaint()) == (0, "")
        return said

    def is_suspended(self):
        """Wait until it has suspended itself."""
        deadline = time.monotonic() + PATIENCE
        while self._status() != "T":
            assert self.runs(), self._complaint()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return True

    def resume(self):
        self._popen.send_signal(signal.SIGCONT)

    def runs(self):
        return self._popen.poll() is None

    def kill(self):
        """End it between two instructions; what it had said by then."""
        self._popen.kill()
        return [json.loads(line) for line in self._popen.stdout]

    def dies(self):
        """Wait until it has killed itself."""
        assert (self._popen.wait(), self._complaint()) == (-signal.SIGKILL, "")

    def end(self):
        """Leave nothing of it."""
        self._watchdog.cancel()
        self._popen.kill()
        with self._popen, self._errors:
            pass

    def _status(self):
        listed = Path(f"/proc/{self._popen.pid}/stat").read_text(encoding="ascii")
        return listed.rpartition(")")[2].split()[0]

    def _complaint(self):
        self._errors.seek(0)
        return self._errors.read()


def together(processes):
    """Let all of them begin at once, and return the last thing that each says."""
    for process in processes:
        process.go()
    return [process.says_at_last()[-1] for process in processes]


def suspend_self():
    os.kill(os.getpid(), signal.SIGSTOP)


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)
