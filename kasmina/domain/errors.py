"""What can go wrong: each error says what happened, what was expected, and how to mend it.

The figures behind the message are attributes. Everything derives from ``KasminaError``.
"""

from collections.abc import Iterable
from difflib import get_close_matches

from kasmina.domain.stages import Stage, Trigger


class KasminaError(Exception):
    """Any error that kasmina raises on purpose."""


class UnknownName(KasminaError):
    """A name that is not there, with the nearest ones that are."""

    kind = "name"

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(sorted(known))
        self.nearest = tuple(get_close_matches(name, self.known, n=3, cutoff=0.5))
        super().__init__(f"there is no {self.kind} {name!r}; {self._hint()}")

    def _hint(self) -> str:
        if self.nearest:
            return "did you mean " + " or ".join(repr(name) for name in self.nearest) + "?"
        if self.known:
            return "known: " + ", ".join(repr(name) for name in self.known[:12])
        return "there are none yet"


class UnknownSlot(UnknownName):
    """No slot of that name in the run."""

    kind = "slot"


class UnknownRun(UnknownName):
    """No run of that name or identifier in the store."""

    kind = "run"


class UnknownBlueprint(UnknownName):
    """No blueprint of that name for the slot's topology."""

    kind = "blueprint"


class UnknownModule(UnknownName):
    """No module at that path in the host."""

    kind = "module"


class IllegalTransition(KasminaError):
    """A trigger with no edge from the present stage: the caller's mistake, recorded nowhere."""

    def __init__(
        self, slot_id: str, stage: Stage, trigger: Trigger | None, legal: tuple[Trigger, ...]
    ) -> None:
        self.slot_id = slot_id
        self.stage = stage
        self.trigger = trigger
        self.legal = legal
        asked = "advance" if trigger is None else trigger.value
        options = ", ".join(t.value for t in legal) or "nothing, the stage is terminal"
        super().__init__(
            f"slot {slot_id!r} is {stage.value}: it cannot {asked}; legal from here: {options}"
        )


class SlotOccupied(IllegalTransition):
    """A germination in a slot that holds a seed or has not come to rest."""


class EmbargoActive(KasminaError):
    """A reset before the embargo has run out."""

    def __init__(self, slot_id: str, *, epochs: int, required: int) -> None:
        self.slot_id = slot_id
        self.epochs = epochs
        self.required = required
        super().__init__(
            f"slot {slot_id!r} has been EMBARGOED for {epochs} of {required} epochs; "
            f"record {required - epochs} more, or lower GatePolicy.embargo_epochs"
        )


class InvalidCommand(KasminaError):
    """A command whose values contradict the run's state."""


class EpochWentBackwards(InvalidCommand):
    """An epoch that is not after the last one recorded."""

    def __init__(self, *, last: int, given: int) -> None:
        self.last = last
        self.given = given
        super().__init__(
            f"epoch {given} was given after epoch {last} was recorded; epochs only grow: "
            f"give {last + 1} or leave it out (to go back, resume from a checkpoint)"
        )


class StepWentBackwards(InvalidCommand):
    """A step before the last one recorded."""

    def __init__(self, *, last: int, given: int) -> None:
        self.last = last
        self.given = given
        super().__init__(
            f"step {given} was given after step {last} was recorded; optimizer steps only grow "
            f"(to go back, resume from a checkpoint)"
        )


class SeedIsPaused(InvalidCommand):
    """A paused seed was asked to move."""

    def __init__(self, slot_id: str) -> None:
        self.slot_id = slot_id
        super().__init__(f"the seed in slot {slot_id!r} is paused; resume it first")


class CullPending(InvalidCommand):
    """A seed that is being ramped out was asked for something else."""

    def __init__(self, slot_id: str, *, step: int, end_step: int) -> None:
        self.slot_id = slot_id
        self.step = step
        self.end_step = end_step
        super().__init__(
            f"the seed in slot {slot_id!r} is being ramped out until step {end_step} (now {step}); "
            f"go on until then, or cull it at once"
        )


class WrongStage(InvalidCommand):
    """A record or a wish that makes sense in other stages only."""

    def __init__(self, slot_id: str, wish: str, *, stage: Stage, allowed: Iterable[Stage]) -> None:
        self.slot_id = slot_id
        self.stage = stage
        self.allowed = tuple(allowed)
        names = ", ".join(s.value for s in self.allowed)
        super().__init__(f"slot {slot_id!r} is {stage.value}: {wish} is for {names}")


class RunIsClosed(KasminaError):
    """A command for a run that was closed."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(
            f"run {run_id!r} is closed; open a new run, or resume this one from a checkpoint"
        )


class CorruptHistory(KasminaError):
    """Events that no sequence of decisions could have produced."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(f"{problem}; run `kasmina verify` on the database")


class NewerHistory(KasminaError):
    """A run that cannot be continued: a newer release has recorded what this one cannot read."""

    def __init__(self, run_id: str, *, unknown: int) -> None:
        self.run_id = run_id
        self.unknown = unknown
        super().__init__(
            f"run {run_id!r} holds {unknown} events of a newer kasmina, so its state is not known "
            f"for sure: it can be shown and verified, but going on with it takes that release"
        )


class StoreError(KasminaError):
    """The event store could not do what it was asked."""


class StoreUnavailable(StoreError):
    """The store cannot be read or written now; nothing was written."""

    def __init__(self, target: str, problem: str, mend: str) -> None:
        self.target = target
        self.problem = problem
        self.mend = mend
        super().__init__(f"{target}: {problem}; nothing was written; {mend}")


class ConcurrentAppend(StoreError):
    """Another writer appended to the run first."""

    def __init__(self, run_id: str, *, expected: int, found: int) -> None:
        self.run_id = run_id
        self.expected = expected
        self.found = found
        super().__init__(
            f"run {run_id!r} was expected to end at sequence {expected}, but ends at {found}: "
            f"another writer is at work on it; stop one of them, then open the run again with "
            f"resume={run_id!r}"
        )


class BrokenChain(StoreError):
    """A row to take in whose digest does not follow from what comes before it."""

    def __init__(self, run_id: str, sequence: int) -> None:
        self.run_id = run_id
        self.sequence = sequence
        super().__init__(
            f"event {sequence} of run {run_id!r} is not the one that was recorded: its digest does "
            f"not follow from its columns and the event before it; nothing was written; find out "
            f"with `kasmina verify` whether its source is whole"
        )


class SchemaMismatch(StoreError):
    """The database's schema is not the one this version of kasmina reads."""

    def __init__(self, target: str, *, found: str | None, expected: str, mend: str) -> None:
        self.target = target
        self.found = found
        self.expected = expected
        self.mend = mend
        have = found or "no kasmina schema"
        super().__init__(f"{target}: has {have}, expected schema {expected}; {mend}")


class UnreadableEvent(StoreError):
    """Stored bytes that do not decode to the event they claim to be."""

    def __init__(self, type_name: str, version: int, problem: str) -> None:
        self.type_name = type_name
        self.version = version
        self.problem = problem
        super().__init__(f"event {type_name} (version {version}) cannot be read: {problem}")


class UnfitSeed(KasminaError):
    """A new seed that would break its host; nothing was attached or recorded."""

    def __init__(self, blueprint: str, slot_id: str, defects: tuple[str, ...]) -> None:
        self.blueprint = blueprint
        self.slot_id = slot_id
        self.defects = defects
        super().__init__(
            f"blueprint {blueprint!r} does not fit slot {slot_id!r}: " + "; ".join(defects)
        )


class UngraftableModule(KasminaError):
    """A module that cannot be given a slot."""

    def __init__(self, path: str, problem: str, mend: str) -> None:
        self.path = path
        self.problem = problem
        self.mend = mend
        super().__init__(f"module {path!r} cannot be grafted: {problem}; {mend}")


class FeatureMismatch(KasminaError):
    """A seed's output that does not have its host's shape or dtype."""

    def __init__(self, slot_id: str, *, host: str, seed: str) -> None:
        self.slot_id = slot_id
        self.host = host
        self.seed = seed
        super().__init__(
            f"the seed in slot {slot_id!r} turned features {host} into {seed}; a seed must keep "
            f"shape and dtype: mend its blueprint, or graft with example_inputs so that it is "
            f"probed at its real shape"
        )


class HostMismatch(KasminaError):
    """A resume with a host that is not the one the run was opened with."""

    def __init__(self, run_id: str, *, recorded: str, given: str) -> None:
        self.run_id = run_id
        self.recorded = recorded
        self.given = given
        super().__init__(
            f"run {run_id!r} was opened with host {recorded}, but this one is {given}; "
            f"build the host as it was, and graft the same slots"
        )


class CheckpointError(KasminaError):
    """A checkpoint that cannot be used for this run."""

    def __init__(self, path: str, problem: str, mend: str) -> None:
        self.path = path
        self.problem = problem
        self.mend = mend
        super().__init__(f"checkpoint {path}: {problem}; {mend}")
