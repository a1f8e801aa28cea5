"""Warnings of a run that does nothing, or trains something else than its loop means to.

Each begins with the name of its ``Silence``, so that one of them can be silenced by a filter such
as ``ignore:rate-zero:kasmina.silence.SilentRun``.
"""

import sys
import warnings
from enum import Enum
from types import FrameType

_PASSED_OVER = ("kasmina", "torch")  # optimizer hooks are called from within torch


class Silence(Enum):
    """What would go unnoticed. The value is the name by which a warning's text begins."""

    LEFT_OPEN = "left-open"
    NEVER_MEASURED = "never-measured"
    NO_EPOCH = "no-epoch"
    NO_GRADIENT = "no-gradient"
    NO_RAMP = "no-ramp"
    ALPHA_LOST = "alpha-lost"
    OPTIMIZER_IDLE = "optimizer-idle"
    RATE_ZERO = "rate-zero"
    SEED_FROZEN = "seed-frozen"
    SLOT_NOT_RUN = "slot-not-run"
    STEPS_UNCOUNTED = "steps-uncounted"


class SilentRun(UserWarning):
    """A run that silently does nothing, or trains the wrong thing.

    ``subject`` is the identifier of what it is about: a run, or a slot.
    """

    def __init__(self, silence: Silence, subject: str, finding: str, mend: str) -> None:
        self.silence = silence
        self.subject = subject
        self.finding = finding
        self.mend = mend
        super().__init__(f"{silence.value}: {finding}; {mend}")


def tell(warning: SilentRun) -> None:
    """Warn, as of the line of the user's code that led here."""
    frame, level = sys._getframe(1), 2  # noqa: SLF001  # as `warnings` itself finds its caller
    while frame.f_back is not None and _package(frame) in _PASSED_OVER:
        frame, level = frame.f_back, level + 1
    warnings.warn(warning, stacklevel=level)


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
