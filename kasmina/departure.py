"""Runs that were left open when their process ends, and how to go on with them."""

import atexit
import os
import sys
import warnings

from kasmina.domain.state import RunState
from kasmina.silence import Silence, SilentRun

_NO_WAY_BACK = "it has no checkpoint to go on from: run.checkpoint(path) makes one"
_KEPT = 100  # of a process that leaves more runs behind, the latest


class Presence:
    """What would be said of an open run if its process ended now. The run itself is not held."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._process = os.getpid()
        self._left = f"run {run_id!r} was left open"
        self.way_back = _NO_WAY_BACK

    def note(self, state: RunState) -> None:
        """How far the log has come, and so the way back to there."""
        self._left = (
            f"run {state.run_id!r} was left open; its log ends at epoch {state.epoch:,}, step "
            f"{state.step:,}"
        )
        self.way_back = _NO_WAY_BACK
        if state.checkpoint is not None:
            self.way_back = (
                f"open_run(..., resume={state.run_id!r}) goes on from its last checkpoint, "
                f"{state.checkpoint.path}"
            )

    def arrive(self) -> None:
        """Remember the run until it leaves."""
        _OPEN[id(self)] = self
        if len(_OPEN) > _KEPT:
            del _OPEN[next(iter(_OPEN))]

    def leave(self) -> None:
        """The run was closed, or its loop has failed loudly."""
        _OPEN.pop(id(self), None)

    @property
    def ours(self) -> bool:
        """Whether this process has opened the run, and not one that it was forked from."""
        return self._process == os.getpid()

    def warning(self, others: int) -> SilentRun:
        """Of this run, and that there are so many ``others``."""
        more = f", and {others} others before it" if others else ""
        mend = f"close() a run, or use it as a context manager; {self.way_back}"
        return SilentRun(Silence.LEFT_OPEN, self._run_id, self._left + more, mend)


_OPEN: dict[int, Presence] = {}


@atexit.register
def tell_left_open() -> None:
    """Warn, once, of the runs that were opened and neither closed nor seen to fail."""
    left = [presence for presence in _OPEN.values() if presence.ours]
    _OPEN.clear()
    if left:
        warning = left[-1].warning(len(left) - 1)
        warnings.warn_explicit(warning, None, filename=sys.argv[0] or "<stdin>", lineno=0)
