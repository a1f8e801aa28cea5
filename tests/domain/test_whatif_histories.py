"""Over any history: what must hold of every verdict, whatever the thresholds."""

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from kasmina.domain import commands as c
from kasmina.domain import events as e
from kasmina.domain.decide import decide
from kasmina.domain.evidence import Violation
from kasmina.domain.evolve import evolve, replay
from kasmina.domain.policies import (
    GatePolicy,
)
from kasmina.domain.stages import Gate, Health, Stage
from kasmina.domain.thresholds import (
    Sweep,
    Threshold,
    thresholds_of,
    with_thresholds,
)
from kasmina.domain.verdicts import Action, Certainty, Change, Tally
from kasmina.domain.whatif import sweep, what_if
from tests.domain.lives import check, lives

NUMBERS = {
    "G2.min_improvement": st.sampled_from([-1e9, 0.0, 0.25, 1.0, 2.0, 1e9]),
    "G2.max_isolation_violations": st.sampled_from([0, 6, 12, 10**6]),
    "G2.min_epochs": st.integers(0, 6),
    "G2.min_rehearsed_contribution": st.sampled_from([-1e9, 0.0, 0.5, 1e9]),
    "G3.min_alpha": st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    "G3.min_epochs": st.integers(0, 6),
    "G4.min_shadow_evaluations": st.integers(0, 3),
    "G4.min_agreement": st.sampled_from([-1.0, 0.5, 0.9, 1.0]),
    "G5.min_improvement": st.sampled_from([-1e9, 0.0, 3.0, 1e9]),
    "G5.min_contribution": st.sampled_from([-1e9, 0.0, 0.5, 1e9]),
    "G5.min_epochs": st.integers(0, 6),
    "G5.min_stability": st.sampled_from([0.0, 0.5, 1.0]),
    "tolerance": st.sampled_from([0.0, 0.25, 1.0, 1e9]),
    "timeouts.germinated": st.sampled_from([1, 2, None]),
    "timeouts.training": st.sampled_from([1, 3, None]),
    "timeouts.blending": st.sampled_from([1, 3, None]),
    "timeouts.shadowing": st.sampled_from([1, 3, None]),
    "timeouts.probationary": st.sampled_from([1, 3, None]),
}
any_thresholds = st.lists(st.sampled_from(sorted(NUMBERS)), min_size=1, max_size=4, unique=True)
one = st.sampled_from(sorted(NUMBERS))


def drawn(data, names):
    return [Threshold(name=name, value=data.draw(NUMBERS[name], label=name)) for name in names]


class TestOverAnyHistory:
    def test_numbers_are_tried_for_every_threshold(self):
        assert set(NUMBERS) == set(thresholds_of(GatePolicy()))

    @given(life=lives(), data=st.data())
    def test_the_verdict_is_what_would_have_been_decided(self, life, data):
        """The oracle: the decision itself, taken again on a replay by the other policy."""
        names = [n for n in data.draw(any_thresholds) if n != "G2.max_isolation_violations"]
        thresholds = drawn(data, names)
        for verdict in what_if(life.history, thresholds).verdicts:
            decision = verdict.decision
            if decision.outcome.gate is Gate.G0:
                continue
            before = replay(life.events[: decision.sequence - 1])
            policy = with_thresholds(before.policy, thresholds)
            decided = decide(
                before, c.Advance(step=decision.step, slot_id=decision.slot_id), policy
            )
            assert repr(verdict.outcome) == repr(decided[0].outcome)
            assert verdict.action is followed(decided)

    @given(life=lives())
    def test_an_override_that_equals_the_recorded_policy_flips_nothing(self, life):
        every = {**thresholds_of(GatePolicy()), **thresholds_of(life.events[0].policy)}
        asked = [Threshold(name=name, value=value) for name, value in every.items()]
        in_force = what_if(life.history, asked).in_force
        same = [
            Threshold(name=name, value=values[0])
            for name, values in in_force.items()
            if len(values) == 1
        ]
        assert same
        for verdict in what_if(life.history, same).verdicts:
            assert verdict.outcome is verdict.decision.outcome
            assert (verdict.change, verdict.certainty) == (Change.NONE, Certainty.CERTAIN)

    @given(life=lives())
    def test_with_all_thresholds_impossible_nothing_passes(self, life):
        impossible = [
            Threshold(name=name, value=value)
            for name, value in {
                "G2.min_rehearsed_contribution": 1e300,
                "G2.min_epochs": 10**9,
                "G3.min_epochs": 10**9,
                "G4.min_shadow_evaluations": 10**9,
                "G5.min_improvement": 1e300,
            }.items()
        ]
        guarded = {Gate.G2, Gate.G3, Gate.G4, Gate.G5}
        for verdict in what_if(life.history, impossible).verdicts:
            assert not (verdict.outcome.passed and verdict.outcome.gate in guarded)

    @given(life=lives(), name=one, data=st.data())
    def test_a_stricter_threshold_never_turns_a_refusal_into_a_pass(self, life, name, data):
        first, second = drawn(data, [name, name])
        lenient, strict = sorted((first, second), key=strictness)
        before = what_if(life.history, [lenient]).verdicts
        after = what_if(life.history, [strict]).verdicts
        for loose, tight in zip(before, after, strict=True):
            assert loose.outcome.passed or not tight.outcome.passed
            if name.startswith("timeouts"):
                assert loose.action is not Action.CULL or tight.action is Action.CULL

    @given(life=lives(), name=one, data=st.data())
    def test_a_sweep_is_what_if_repeated(self, life, name, data):
        values = tuple(threshold.value for threshold in drawn(data, [name] * 3))
        over = Sweep(name=name, values=values)
        swept = sweep(life.history, over)
        each = [what_if(life.history, [threshold]) for threshold in over.thresholds]
        assert swept.tallies == tuple(Tally.of(result.verdicts) for result in each)
        assert {result.in_force[name] for result in each} == {swept.in_force}

    @given(life=lives(), data=st.data())
    def test_only_the_first_change_of_a_life_is_one_that_can_be_told(self, life, data):
        result = what_if(life.history, drawn(data, data.draw(any_thresholds)))
        told = [v for v in result.verdicts if not v.decision.undone]
        assert sum(v.diverges for v in told) == sum(
            course.divergence is not None for course in result.courses
        )
        tally = Tally.of(result.verdicts)
        assert tally.changes == tally.certain + tally.shifted + tally.open + tally.moot
        first = next((n for n, v in enumerate(told) if v.diverges), len(told))
        assert {v.certainty for v in told[:first]} <= {Certainty.CERTAIN}
        for course in result.courses:
            assert sum(verdict.diverges for verdict in course.verdicts) <= 1

    @given(life=lives(), limit=st.sampled_from([0, 5, 6, 12, 10**6]))
    def test_health_within_another_limit_is_as_it_would_have_been_recorded(self, life, limit):
        """The oracle: every epoch recorded again by the other policy, and nothing else changed."""
        name = "G2.max_isolation_violations"
        threshold = Threshold(name=name, value=limit)
        retold = recorded_again(life, threshold)
        for verdict in what_if(life.history, [threshold]).verdicts:
            if verdict.outcome.gate is Gate.G5:
                healthy = retold[verdict.decision.sequence]
                assert check(verdict, "healthy").measured == float(healthy)


def recorded_again(life, threshold):
    """Whether each judged seed would have been healthy, by sequence."""
    state, states, healthy = None, {}, {}
    for n, event in enumerate(life.events, 1):
        if isinstance(event, e.RunRewound):
            state = states[event.to]
        if not isinstance(event, e.HealthChanged):
            ill = illnesses(state, event, life.events[n:], threshold)
            state = evolve(state, event)
            for fact in ill:
                state = evolve(state, fact)
        if isinstance(event, e.GateEvaluated) and event.outcome.gate is not Gate.G0:
            healthy[n] = state.slots[event.slot_id].seed.health is Health.HEALTHY
        states[n] = state
    return healthy


def illnesses(state, event, after, threshold):
    if not isinstance(event, e.EpochRecorded):
        return ()
    leaks = itertools.takewhile(lambda leak: isinstance(leak, e.IsolationViolated), after)
    command = c.RecordEpoch(
        step=event.step,
        epoch=event.epoch,
        objective=event.objective,
        metrics=event.metrics,
        seeds=event.seeds,
        violations=tuple(
            (x.slot_id, Violation(leak=x.leak, count=x.count, subject=x.subject)) for x in leaks
        ),
    )
    decided = decide(state, command, with_thresholds(state.policy, [threshold]))
    return [fact for fact in decided if isinstance(fact, e.HealthChanged)]


def followed(decided):
    if isinstance(decided[-1], e.StageChanged) and decided[-1].target is not Stage.CULLED:
        return Action.ADVANCE
    if isinstance(decided[-1], e.BlendScheduled):
        return Action.ADVANCE
    return Action.STAY if len(decided) == 1 else Action.CULL


def strictness(threshold):
    """Larger is stricter."""
    if threshold.name.startswith("timeouts"):
        return -math.inf if threshold.value is None else -threshold.value
    rising = threshold.name not in {"tolerance", "G2.max_isolation_violations"}
    return threshold.value if rising else -threshold.value
