"""What a recorded decision would have been under other thresholds, and what a seed's life then.

A log tells one life of each seed. From the first decision after which the seed would have gone
another way, what was recorded of it is of a life that did not happen.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from enum import Enum

import attrs
from attrs import frozen

from kasmina.domain.evidence import Check, GateOutcome
from kasmina.domain.machine import EDGES
from kasmina.domain.projections import Decision
from kasmina.domain.stages import Gate, Stage

_AHEAD = {edge.gate: edge.target for edge in EDGES if edge.gate is not None}


class Action(Enum):
    """What follows from a decision: the stage's end, its going on, or a cull by its time-out."""

    ADVANCE = "advance"
    STAY = "stay"
    CULL = "cull"


class Change(Enum):
    """How a decision differs from the recorded one.

    ``TIMED_OUT`` and ``SPARED`` are refusals as before, of which the first now ends in a cull by
    a time-out and the second no longer does.
    """

    NONE = "none"
    TO_PASSING = "to_passing"
    TO_REFUSED = "to_refused"
    TIMED_OUT = "timed_out"
    SPARED = "spared"


class Certainty(Enum):
    """How far the log's evidence carries a verdict.

    ``CERTAIN``: nothing had gone another way before. ``SHIFTED``: another seed had, so that the
    figures are those of a host which might have been another one. ``OPEN``: G2 would pass, but
    only because the seed had not been rehearsed yet, which the policy in force did not call for
    before. ``MOOT``: this seed had gone another way, or another one would still have held its
    slot; the decision would not have been asked as it was.
    """

    CERTAIN = "certain"
    SHIFTED = "shifted"
    OPEN = "open"
    MOOT = "moot"


@frozen(kw_only=True)
class Verdict:
    """A recorded decision beside what the other thresholds make of it.

    ``outcome`` is the other thresholds', ``recorded`` what followed in the log and ``action`` what
    would have. ``stage`` and ``epochs_in_stage`` are the slot's when the gate was asked.
    """

    decision: Decision
    stage: Stage
    epochs_in_stage: int
    outcome: GateOutcome
    recorded: Action
    action: Action
    certainty: Certainty

    @property
    def change(self) -> Change:
        """How this differs from the record."""
        if self.action is self.recorded:
            return Change.NONE
        if self.outcome.passed:
            return Change.TO_PASSING
        if self.decision.outcome.passed:
            return Change.TO_REFUSED
        return Change.TIMED_OUT if self.action is Action.CULL else Change.SPARED

    @property
    def diverges(self) -> bool:
        """Whether the seed's life leaves the recorded one here."""
        return self.change is not Change.NONE and self.certainty is not Certainty.MOOT

    @property
    def leads_to(self) -> Stage:
        """The stage in which the seed would have been after the decision."""
        if self.action is Action.ADVANCE:
            return _AHEAD[self.outcome.gate]
        return Stage.CULLED if self.action is Action.CULL else self.stage

    @property
    def leaves_empty(self) -> bool:
        """Whether the slot would have been free no later than in the record."""
        unborn = self.action is Action.STAY and self.outcome.gate is Gate.G0
        return unborn or self.action is Action.CULL


@frozen(kw_only=True)
class Arrival:
    """A stage that a seed came to, by the event of this sequence."""

    sequence: int
    epoch: int
    stage: Stage


@frozen(kw_only=True)
class Course:
    """One seed's recorded life and the verdicts on it, without what a rewind took back."""

    slot_id: str
    seed_id: str
    arrivals: tuple[Arrival, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def divergence(self) -> Verdict | None:
        """The decision at which the seed would have gone another way."""
        return next((verdict for verdict in self.verdicts if verdict.diverges), None)

    @property
    def foregone(self) -> tuple[Arrival, ...]:
        """The recorded stages after the divergence: they would not have followed as they did."""
        at = self.divergence
        return tuple(
            a for a in self.arrivals if at is not None and a.sequence > at.decision.sequence
        )

    @property
    def instead_of(self) -> Arrival | None:
        """Where the log has the seed come, later, to the stage that it would have come to."""
        at = self.divergence
        if at is None or at.action is Action.STAY:
            return None
        return next((a for a in self.foregone if a.stage is at.leads_to), None)

    @property
    def untold_from(self) -> int | None:
        """The first sequence from which the log cannot tell what would have become of the seed.

        ``None`` where it can tell to the end: the recorded life, a cull, a seed made permanent, or
        none at all.
        """
        at = self.divergence
        if at is None:
            return self._first(Certainty.MOOT)
        ended = at.leaves_empty or at.leads_to is Stage.FOSSILIZED
        return None if ended else at.decision.sequence + 1

    @property
    def shifted_from(self) -> int | None:
        """The first decision on this seed that rests on the figures of another course."""
        return self._first(Certainty.SHIFTED)

    def _first(self, certainty: Certainty) -> int | None:
        found = (v.decision.sequence for v in self.verdicts if v.certainty is certainty)
        return next(found, None)


@frozen(kw_only=True)
class Tally:
    """How many decisions change, each held against the other thresholds by itself.

    Decisions that a rewind took back are counted in ``undone`` alone. Each change is ``certain``,
    ``shifted``, ``open`` or ``moot``; all but the last are seeds whose lives leave the record.
    ``unusable`` are refusals, changed or not, that no bound would turn: a figure was not measured,
    or was not finite.
    """

    decisions: int = 0
    undone: int = 0
    to_passing: int = 0
    to_refused: int = 0
    timed_out: int = 0
    spared: int = 0
    certain: int = 0
    shifted: int = 0
    open: int = 0
    moot: int = 0
    unusable: int = 0

    @classmethod
    def of(cls, verdicts: Iterable[Verdict]) -> "Tally":
        """The count of ``verdicts``."""
        counts: Counter[str] = Counter()
        for verdict in verdicts:
            counts.update(entries(verdict))
        return cls(**counts)

    def plus(self, other: "Tally") -> "Tally":
        """Both together, as of two runs."""
        counts = Counter(attrs.asdict(self))
        counts.update(attrs.asdict(other))
        return Tally(**counts)

    @property
    def changes(self) -> int:
        """How many decisions differ from the recorded ones."""
        return self.to_passing + self.to_refused + self.timed_out + self.spared


def entries(verdict: Verdict) -> Iterator[str]:
    """The counts of a tally to which a verdict adds one."""
    yield "decisions"
    if verdict.decision.undone:
        yield "undone"
        return
    if verdict.change is not Change.NONE:
        yield verdict.change.value
        yield verdict.certainty.value
    if any(not _usable(check) for check in verdict.outcome.failures):
        yield "unusable"


def _usable(check: Check) -> bool:
    return check.measured is not None and math.isfinite(check.measured)
