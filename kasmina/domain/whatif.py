"""A run's recorded decisions under other thresholds: what flips, and how far the log can tell.

One fold of the history serves any number of scenarios.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import attrs
from attrs import frozen

from kasmina.domain import events as e
from kasmina.domain.evolve import evolve
from kasmina.domain.policies import GatePolicy
from kasmina.domain.ports import Recorded
from kasmina.domain.projections import Decision, gate_ledger, timeline
from kasmina.domain.rejudging import Asked, HealthWatch, may_rehearse, what_followed
from kasmina.domain.state import RunState
from kasmina.domain.thresholds import (
    Sweep,
    Threshold,
    in_force,
    thresholds_of,
    with_thresholds,
)
from kasmina.domain.verdicts import Arrival, Certainty, Course, Tally, Verdict, entries


@frozen(kw_only=True)
class WhatIf:
    """A run under other ``thresholds``. ``in_force`` has the recorded values of each, by name."""

    run_id: str
    thresholds: tuple[Threshold, ...]
    in_force: dict[str, tuple[float | None, ...]]
    verdicts: tuple[Verdict, ...]
    courses: tuple[Course, ...]


@frozen(kw_only=True)
class SweptRun:
    """The tally of a run under each value of one threshold. ``in_force`` has the recorded ones."""

    run_id: str
    sweep: Sweep
    in_force: tuple[float | None, ...]
    tallies: tuple[Tally, ...]


def what_if(
    history: Sequence[Recorded],
    thresholds: Sequence[Threshold],
    *,
    origin: RunState | None = None,
) -> WhatIf:
    """A run's whole ``history`` under other ``thresholds``.

    They replace those of whichever policy was in force at each decision. ``origin`` is the
    parent's state for a run that begins with ``RunForked``. Raises ``UnknownThreshold`` for one
    that no policy of the run has, ``InvalidThreshold`` for one that no policy can have, and
    ``CorruptHistory``.
    """
    policies = _policies(history, origin)
    recorded = in_force(policies, thresholds)
    others = _others(policies, [thresholds])
    verdicts = tuple(verdict for (verdict,) in _review(history, others, origin))
    return WhatIf(
        run_id=history[0].run_id,
        thresholds=tuple(thresholds),
        in_force=recorded,
        verdicts=verdicts,
        courses=_courses(history, verdicts),
    )


def sweep(
    history: Sequence[Recorded],
    over: Sweep,
    *,
    origin: RunState | None = None,
    among: Callable[[Verdict], bool] = lambda _: True,
) -> SweptRun:
    """``what_if`` for each value of a threshold, in one fold, counted ``among`` some verdicts."""
    policies = _policies(history, origin)
    recorded = in_force(policies, over.thresholds[:1])
    others = _others(policies, [[threshold] for threshold in over.thresholds])
    counts: list[Counter[str]] = [Counter() for _ in over.values]
    for row in _review(history, others, origin):
        for count, verdict in zip(counts, row, strict=True):
            if among(verdict):
                count.update(entries(verdict))
    return SweptRun(
        run_id=history[0].run_id,
        sweep=over,
        in_force=recorded[over.name],
        tallies=tuple(Tally(**count) for count in counts),
    )


def _policies(history: Sequence[Recorded], origin: RunState | None) -> list[GatePolicy]:
    taken_over = [] if origin is None else [origin.policy]
    return taken_over + [
        record.event.policy
        for record in history
        if isinstance(record.event, e.RunOpened | e.GatePolicyChanged)
    ]


def _others(
    policies: Iterable[GatePolicy], scenarios: Sequence[Sequence[Threshold]]
) -> dict[GatePolicy, tuple[GatePolicy, ...]]:
    """What takes the place of each policy in each scenario.

    A user's check is replaced in those policies that have it.
    """
    return {
        policy: tuple(
            with_thresholds(policy, [t for t in scenario if t.name in thresholds_of(policy)])
            for scenario in scenarios
        )
        for policy in policies
    }


def _courses(history: Sequence[Recorded], verdicts: Iterable[Verdict]) -> tuple[Course, ...]:
    judged: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        if not verdict.decision.undone:
            seed = verdict.decision.slot_id, verdict.decision.seed_id
            judged.setdefault(seed, []).append(verdict)
    arrivals: dict[tuple[str, str], list[Arrival]] = {seed: [] for seed in judged}
    for moment in timeline(history):
        event = moment.event
        if isinstance(event, e.StageChanged) and not moment.undone:
            arrival = Arrival(sequence=moment.sequence, epoch=event.epoch, stage=event.target)
            arrivals.setdefault((event.slot_id, event.seed_id), []).append(arrival)
    return tuple(
        Course(
            slot_id=slot_id,
            seed_id=seed_id,
            arrivals=tuple(arrivals[slot_id, seed_id]),
            verdicts=tuple(judged.get((slot_id, seed_id), ())),
        )
        for slot_id, seed_id in arrivals
    )


# --- one fold, beside which every scenario is judged ---------------------------------------


@frozen
class _Wake:
    """What the divergences of one scenario have overtaken so far.

    ``seeds`` left their recorded lives, ``slots`` might still hold such a seed, and ``shifted``
    says that evidence was recorded since. A seed that no host saw in either life shifts it too:
    what would have germinated in its stead, and when, is not known.
    """

    seeds: frozenset[tuple[str, str]] = frozenset()
    slots: frozenset[str] = frozenset()
    shifted: bool = False

    def certainty(self, decision: Decision) -> Certainty:
        if decision.slot_id in self.slots or (decision.slot_id, decision.seed_id) in self.seeds:
            return Certainty.MOOT
        return Certainty.SHIFTED if self.shifted else Certainty.CERTAIN

    def judged(self, verdict: Verdict) -> "_Wake":
        if not verdict.diverges:
            return self
        slot_id, seed_id = verdict.decision.slot_id, verdict.decision.seed_id
        held = frozenset() if verdict.leaves_empty else {slot_id}
        return attrs.evolve(self, seeds=self.seeds | {(slot_id, seed_id)}, slots=self.slots | held)

    def measured(self) -> "_Wake":
        return attrs.evolve(self, shifted=True) if self.seeds and not self.shifted else self


_EVIDENCE = (e.EpochRecorded, e.ShadowEvaluated, e.CounterfactualMeasured)


@frozen
class _Point:
    """Where the fold stands: the state, and what each scenario has overtaken."""

    state: RunState | None
    watch: HealthWatch
    wakes: tuple[_Wake, ...]


def _review(
    history: Sequence[Recorded],
    others: Mapping[GatePolicy, tuple[GatePolicy, ...]],
    origin: RunState | None,
) -> Iterator[tuple[Verdict, ...]]:
    """For each recorded decision, in order, its verdict in each scenario."""
    ledger = gate_ledger(history)
    rehearsing = may_rehearse(ledger)
    decisions = iter(ledger)
    watch = HealthWatch() if origin is None else HealthWatch.of(origin)
    scenarios = len(next(iter(others.values())))
    point = _Point(origin, watch, (_Wake(),) * scenarios)
    targets = {record.event.to for record in history if isinstance(record.event, e.RunRewound)}
    kept: dict[int, _Point] = {}
    for index, record in enumerate(history):
        event = record.event
        if isinstance(event, e.RunRewound):
            point = kept[event.to]
        state = evolve(point.state, event)
        watch, wakes = point.watch.after(event, state), point.wakes
        if isinstance(event, _EVIDENCE):
            wakes = tuple(wake.measured() for wake in wakes)
        if isinstance(event, e.GateEvaluated):
            decision = next(decisions)
            followed = what_followed(decision, history[index + 1 : index + 2])
            asked = Asked(decision, state, watch, followed, rehearsing)
            row = tuple(
                asked.verdict(other, wake.certainty(decision))
                for other, wake in zip(others[state.policy], wakes, strict=True)
            )
            yield row
            wakes = tuple(wake.judged(verdict) for wake, verdict in zip(wakes, row, strict=True))
        point = _Point(state, watch, wakes)
        if record.sequence in targets:
            kept[record.sequence] = point
