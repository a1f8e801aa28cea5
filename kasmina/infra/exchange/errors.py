"""What can go wrong between a database and a file."""

from os import PathLike

from kasmina.domain.errors import StoreError
from kasmina.infra.integrity import Row


class UnwritableFile(StoreError):
    """A file that could not be written; what was there before is as it was."""

    def __init__(self, path: str | PathLike[str], problem: str, mend: str) -> None:
        self.path = str(path)
        self.problem = problem
        self.mend = mend
        super().__init__(f"{self.path} was not written: {problem}; {mend}")


class UnexportableEvent(StoreError):
    """A stored event that a file of this kind cannot hold as it is."""

    def __init__(self, row: Row, problem: str) -> None:
        self.run_id = row.columns.run_id.decode(errors="replace")
        self.sequence = row.columns.sequence
        self.problem = problem
        super().__init__(
            f"event {self.sequence} of run {self.run_id!r} cannot be exported: {problem}; "
            f"`kasmina verify` shows what is wrong with the run, `kasmina db backup` copies it "
            f"all the same"
        )


class UnreadableLine(StoreError):
    """A line that is no exported event; nothing was imported."""

    def __init__(self, source: str, line: int, problem: str) -> None:
        self.source = source
        self.line = line
        self.problem = problem
        super().__init__(
            f"{source}, line {line}: {problem}; nothing was imported; export the run again, and "
            f"pass the file on unchanged"
        )


class OtherHistory(StoreError):
    """A run that the database holds already, with other events."""

    def __init__(self, run_id: str, sequence: int) -> None:
        self.run_id = run_id
        self.sequence = sequence
        super().__init__(
            f"run {run_id!r} has another history here: its event {sequence} is not the one that "
            f"the database holds; nothing of it was added; `kasmina verify` on both sides, or a "
            f"seal, tells which of them is the original"
        )


class MissingEvents(StoreError):
    """A run that goes on, in what is offered, elsewhere than where it ends in the database."""

    def __init__(self, run_id: str, *, expected: int, found: int) -> None:
        self.run_id = run_id
        self.expected = expected
        self.found = found
        super().__init__(
            f"run {run_id!r} goes on with event {found}, where its event {expected} was expected; "
            f"nothing of it was added; take in the events between them first, in their order"
        )
