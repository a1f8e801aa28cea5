"""A recorded decision asked again by another policy.

The figures that the checks measured are the evidence and stay as they were recorded, ``None`` and
non-finite ones included: they fail under any bound. What another policy moves is learnt from the
rules themselves: the gate is asked twice on the state of that moment, by the policy in force and
by the other one, and wherever the two differ the recorded check follows. So a bound, the stability
within another tolerance and the health within another limit of violations are all accounted for,
while a check that no rule of today knows keeps its recorded bound.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import attrs
from attrs import field, frozen

from kasmina.domain import events as e
from kasmina.domain.errors import CorruptHistory
from kasmina.domain.evidence import Check, GateOutcome
from kasmina.domain.gates import evaluate, evaluate_g0
from kasmina.domain.policies import GatePolicy
from kasmina.domain.ports import Recorded
from kasmina.domain.projections import Decision
from kasmina.domain.stages import CullCause, Gate, Health
from kasmina.domain.state import RunState, SlotState
from kasmina.domain.verdicts import Action, Certainty, Verdict


@frozen
class HealthWatch:
    """What health depends on, by slots in their present stage.

    ``seen`` were looked at, and in ``spoilt`` something was not finite.
    """

    seen: frozenset[str] = frozenset()
    spoilt: frozenset[str] = frozenset()

    @classmethod
    def of(cls, origin: RunState) -> "HealthWatch":
        """As the parent of a fork left it; why a seed was unhealthy by then is not told apart."""
        ill = [
            slot.slot_id
            for slot in origin.slots.values()
            if slot.seed is not None and slot.seed.health is Health.UNHEALTHY
        ]
        lived = [slot.slot_id for slot in origin.slots.values() if slot.epochs_in_stage]
        return cls(seen=frozenset(lived), spoilt=frozenset(ill))

    def after(self, event: e.Event, state: RunState) -> "HealthWatch":
        """The watch after ``event``, which led to ``state``."""
        if isinstance(event, e.StageChanged):
            return HealthWatch(
                seen=self.seen - {event.slot_id}, spoilt=self.spoilt - {event.slot_id}
            )
        if not isinstance(event, e.EpochRecorded):
            return self
        seeded = {slot.slot_id for slot in state.slots.values() if slot.stage.holds_seed}
        figures = [metric.value for metric in event.metrics]
        if event.objective is not None:
            figures.append(event.objective)
        sound = all(map(math.isfinite, figures))
        broken = {
            seed.slot_id
            for seed in event.seeds
            if seed.nonfinite_outputs
            or seed.nonfinite_gradients
            or not math.isfinite(seed.gradient_norm or 0.0)
        }
        spoilt = broken & seeded if sound else seeded
        return HealthWatch(seen=self.seen | seeded, spoilt=self.spoilt | spoilt)

    def health(self, slot_id: str, *, violations: int, limit: int) -> Health:
        """The health of the slot's seed if it may leak ``limit`` times."""
        leaky = slot_id in self.seen and violations > limit
        return Health.UNHEALTHY if leaky or slot_id in self.spoilt else Health.HEALTHY


# A check by its name and, as a metric may be asked for twice, by how often it came before.
_Name: TypeAlias = tuple[str, int]


@frozen
class Asked:
    """A gate at the moment when it was asked.

    ``rehearsing`` is whether the run may have rehearsed the seed, had the policy called for it.
    ``ruled`` is what today's rules say by the policy that was in force, ``names`` its checks'.
    """

    decision: Decision
    state: RunState
    watch: HealthWatch
    recorded: Action
    rehearsing: bool
    ruled: GateOutcome = field(init=False)
    names: tuple[_Name, ...] = field(init=False)

    @ruled.default
    def _by_policy_in_force(self) -> GateOutcome:
        return self._rule(self.state.policy)

    @names.default
    def _of_checks_ruled(self) -> tuple[_Name, ...]:
        return _names(self.ruled.checks)

    @property
    def _slot(self) -> SlotState:
        return self.state.slots[self.decision.slot_id]

    def verdict(self, policy: GatePolicy, certainty: Certainty) -> Verdict:
        """What ``policy`` would have decided. Raises ``CorruptHistory`` where no seed was asked."""
        outcome = self.decision.outcome
        if policy != self.state.policy:
            outcome = self._moved(outcome, self._rule(policy))
        return Verdict(
            decision=self.decision,
            stage=self._slot.stage,
            epochs_in_stage=self._slot.epochs_in_stage,
            outcome=outcome,
            recorded=self.recorded,
            action=self._action(policy, outcome),
            certainty=Certainty.OPEN if self._unrehearsed(outcome, certainty) else certainty,
        )

    def _unrehearsed(self, outcome: GateOutcome, certainty: Certainty) -> bool:
        flips = outcome.passed and not self.decision.outcome.passed
        asked = flips and outcome.gate is Gate.G2 and certainty is not Certainty.MOOT
        return asked and self.rehearsing and not _asks(outcome, _REHEARSED)

    def _moved(self, recorded: GateOutcome, other: GateOutcome) -> GateOutcome:
        """The recorded outcome, with whatever another policy's differs in from the ruled one."""
        pairs = zip(self.names, self.ruled.checks, other.checks, strict=True)
        moved = {name: (was, would) for name, was, would in pairs if was != would}
        if not moved:
            return recorded
        checks = tuple(
            _check(check, *moved[name]) if name in moved else check
            for name, check in zip(_names(recorded.checks), recorded.checks, strict=True)
        )
        if checks == recorded.checks:
            return recorded
        score = recorded.score if self.ruled.score == other.score else other.score
        return GateOutcome.of(recorded.gate, checks, score)

    def _action(self, policy: GatePolicy, outcome: GateOutcome) -> Action:
        limit = policy.timeouts.of(self._slot.stage)
        if outcome.passed:
            return Action.ADVANCE
        as_it_was = limit == self.state.policy.timeouts.of(self._slot.stage)
        if as_it_was and self.recorded is not Action.ADVANCE:
            return self.recorded
        overdue = limit is not None and self._slot.epochs_in_stage >= limit
        return Action.CULL if overdue else Action.STAY

    def _rule(self, policy: GatePolicy) -> GateOutcome:
        """What today's rules say by ``policy``."""
        gate, seed_id = self.decision.outcome.gate, self.decision.seed_id
        if gate is Gate.G0:  # no policy decides by the blueprint, which the decision does not name
            return evaluate_g0(seed_id, seed_id, self.state, policy)
        slot, seed = self._slot, self._slot.seed
        if seed is None:
            raise CorruptHistory(
                f"{gate.value} judges a seed in slot {slot.slot_id!r}, which holds none"
            )
        limit = policy.g2.max_isolation_violations
        if limit != self.state.policy.g2.max_isolation_violations:
            health = self.watch.health(slot.slot_id, violations=seed.violations, limit=limit)
            slot = attrs.evolve(slot, seed=attrs.evolve(seed, health=health))
        return evaluate(gate, self.state, slot, policy, self.decision.step)


_REHEARSED, _EPOCHS = "rehearsed_contribution", "epochs_in_stage"


def may_rehearse(ledger: Iterable[Decision]) -> bool:
    """Whether a run rehearses its seeds once G2 could pass, as far as its decisions show.

    Only one that once had the epochs, and no rehearsal, shows that it does not.
    """
    return not any(
        decision.outcome.gate is Gate.G2
        and any(check.name == _EPOCHS and check.passed for check in decision.outcome.checks)
        and not _asks(decision.outcome, _REHEARSED)
        for decision in ledger
    )


def _asks(outcome: GateOutcome, name: str) -> bool:
    return any(check.name == name for check in outcome.checks)


def what_followed(decision: Decision, following: Sequence[Recorded]) -> Action:
    """What the log has follow from ``decision``; ``following`` is the record after it, if any."""
    if decision.outcome.passed:
        return Action.ADVANCE
    timed_out = any(
        isinstance(record.event, e.SeedCulled | e.CullScheduled)
        and record.event.cause is CullCause.TIMED_OUT
        and record.event.slot_id == decision.slot_id
        for record in following
    )
    return Action.CULL if timed_out else Action.STAY


def _names(checks: Iterable[Check]) -> tuple[_Name, ...]:
    times: Counter[str] = Counter()
    named = []
    for check in checks:
        named.append((check.name, times[check.name]))
        times[check.name] += 1
    return tuple(named)


def _check(recorded: Check, was: Check, would: Check) -> Check:
    measured, required = recorded.measured, recorded.required
    # As text, because a NaN is not equal to itself.
    if repr(was.measured) != repr(would.measured):
        measured = would.measured
    if repr(was.required) != repr(would.required):
        required = would.required
    if (measured, required) == (recorded.measured, recorded.required):
        return recorded
    return Check.of(recorded.name, measured, recorded.comparison, required)
