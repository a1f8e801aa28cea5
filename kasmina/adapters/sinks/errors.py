"""What can go wrong between the log and a receiver; the log itself is never touched by it."""

from kasmina.domain.errors import KasminaError


class SinkUnavailable(KasminaError):
    """A receiver that cannot be read or written now; following goes on where it stopped."""

    def __init__(self, target: str, problem: str, mend: str) -> None:
        self.target = target
        self.problem = problem
        self.mend = mend
        super().__init__(
            f"{target}: {problem}; the log and its writers are not affected, and the next attempt "
            f"goes on where this one stopped; {mend}"
        )


class SinkDiverged(KasminaError):
    """A receiver that shows an event which the log does not have at that place."""

    def __init__(self, run_id: str, *, sequence: int) -> None:
        self.run_id = run_id
        self.sequence = sequence
        super().__init__(
            f"run {run_id!r} was shown up to an event {sequence} that is not the one in this log: "
            f"the log was replaced, or an older backup of it restored; give the log that was shown "
            f"before, or an empty receiver"
        )
