"""One follower at a time for receivers that are files."""

import fcntl
from pathlib import Path

from kasmina.adapters.sinks.errors import SinkUnavailable


class Exclusive:
    """A lock on ``path``, a file that is left behind, held until it is closed.

    Raises ``SinkUnavailable`` where another process, or another sink of this one, holds it.
    """

    def __init__(self, path: Path, *, target: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
        except OSError as error:
            raise unwritable(target, error) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            problem = "another follower is writing to it"
            raise SinkUnavailable(target, problem, "wait for it to end, or stop it") from error

    def close(self) -> None:
        """Let go of the lock."""
        self._file.close()


def unwritable(target: str, error: OSError) -> SinkUnavailable:
    """What the operating system refused."""
    problem = f"it cannot be read or written ({error})"
    return SinkUnavailable(target, problem, "check the path, its permissions and the free space")
