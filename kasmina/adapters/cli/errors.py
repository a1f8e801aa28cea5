"""What can be wrong with a request, and what a program is told by the exit code."""

from collections.abc import Sequence
from enum import IntEnum

from kasmina.adapters.sinks.errors import SinkUnavailable
from kasmina.domain.errors import CorruptHistory, KasminaError, StoreError


class Exit(IntEnum):
    """The exit codes, which are a promise to scripts."""

    FINE = 0
    NO = 1
    USAGE = 2
    STORE = 3
    INTERRUPTED = 130
    READER_LEFT = 141


_LISTED = 12


class AmbiguousRun(KasminaError):
    """A name that several runs answer to."""

    def __init__(self, asked: str, candidates: Sequence[str]) -> None:
        self.asked = asked
        self.candidates = tuple(candidates)
        listed = ", ".join(self.candidates[:_LISTED])
        more = ", ..." if len(self.candidates) > _LISTED else ""
        super().__init__(
            f"{asked!r} could be any of {len(self.candidates)} runs; name one: {listed}{more}"
        )


class ContradictoryOptions(KasminaError):
    """Options of which at most one makes sense."""

    def __init__(self, options: Sequence[str]) -> None:
        self.options = tuple(options)
        super().__init__(f"{' and '.join(options)} do not go together; give one of them")


class NothingNamed(KasminaError):
    """A command that was not told what to look at."""

    def __init__(self, choices: Sequence[str]) -> None:
        self.choices = tuple(choices)
        super().__init__(f"give {' or '.join(choices)}")


class MissingExtra(KasminaError):
    """A command whose packages are not installed."""

    def __init__(self, command: str, package: str, *, extra: str) -> None:
        self.command = command
        self.package = package
        self.extra = extra
        super().__init__(f"{command} needs the package {package!r}; pip install 'kasmina[{extra}]'")


def exit_code(error: KasminaError) -> Exit:
    """The exit code that tells what kind of error it was."""
    outside = isinstance(error, StoreError | CorruptHistory | SinkUnavailable)
    return Exit.STORE if outside else Exit.USAGE
