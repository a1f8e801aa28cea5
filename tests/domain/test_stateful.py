"""Random commands, sensible and senseless, never bring a run to a state that must not be.

After every event the live state is held against a replay of the whole log.
"""

import itertools
import math

from attrs import evolve as changed
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kasmina.domain import commands as c
from kasmina.domain import events as e
from kasmina.domain.decide import decide
from kasmina.domain.errors import KasminaError
from kasmina.domain.evidence import Metric, Violation
from kasmina.domain.evolve import evolve, replay
from kasmina.domain.machine import CULLABLE, EDGES
from kasmina.domain.observation import observe
from kasmina.domain.progress import advanceable
from kasmina.domain.projections import Behaviour, slot_view
from kasmina.domain.schedules import AlphaSchedule
from kasmina.domain.stages import Blend, Incubator, Leak, Stage, Topology
from kasmina.domain.state import OBJECTIVES_KEPT
from tests.domain.scenario import ACCURACY, HOST, LOSS, PROBE, evidence
from tests.domain.strategies import CANDIDATES, blends, curves, incubations, policies

MOVES = {(edge.source, edge.trigger, edge.target) for edge in EDGES}

LONGEST = 100

slot_ids = st.sampled_from(["a", "a", "b", "nowhere"])
figures = st.sampled_from([None, math.nan, math.inf, -math.inf, 0.0, 49.0, 50.0, 51.0, 60.0])
strides = st.sampled_from([0, 1, 5, 5, 10])
alphas = st.floats(0.0, 1.0)


class Runs(RuleBasedStateMachine):
    """One run with two slots, driven by anyone."""

    @initialize(objective=st.sampled_from([ACCURACY, LOSS]), policy=policies)
    def open(self, objective, policy):
        self.events = ()
        self.state = None
        self.boundaries = []
        self.seeds = itertools.count(1)
        self.do(
            c.OpenRun(
                step=0,
                run_id="run-1",
                name="random",
                objective=objective,
                policy=policy,
                host=HOST,
                random_seed=0,
            )
        )
        for slot_id in ("a", "b"):
            self.do(c.OpenSlot(step=0, slot_id=slot_id, topology=Topology.CNN, width=8))

    def do(self, command):
        """Decide, append, fold; or learn that nothing happened."""
        before = repr(self.state)
        policy = command.policy if self.state is None else self.state.policy
        try:
            decided = decide(self.state, command, policy)
        except KasminaError:
            assert repr(self.state) == before
            return
        assert decided
        previous = self.state
        for event in decided:
            self.append(event)
        self.boundaries.append(len(self.events))
        self.check_refusal(previous, decided)

    def append(self, event):
        if isinstance(event, e.StageChanged):
            assert (event.source, event.trigger, event.target) in MOVES
        back = isinstance(event, e.RunRewound)
        origin = replay(self.events[: event.to]) if back else self.state
        self.events = (*self.events, event)
        self.state = evolve(origin, event)
        # As text, because a NaN is not equal to itself.
        assert repr(replay(self.events)) == repr(self.state)

    def check_refusal(self, before, decided):
        match decided:
            case (e.GateEvaluated(outcome=outcome, slot_id=slot_id),):
                assert not outcome.passed
                slot = self.state.slot(slot_id)
                as_before = changed(slot, outcomes=before.slot(slot_id).outcomes)
                undone = changed(
                    self.state,
                    sequence=before.sequence,
                    step=before.step,
                    slots={**self.state.slots, slot_id: as_before},
                )
                assert repr(undone) == repr(before)

    def later(self, stride):
        return self.state.step + stride

    # --- a training loop that behaves ------------------------------------------------------

    # Long logs teach nothing new, and each event is checked against a replay of all before it.
    @precondition(lambda self: len(self.events) < LONGEST)
    @rule(
        epochs=st.integers(1, 6),
        gain=st.sampled_from([1.0, 1.0, 0.0, -1.0]),
        agreement=st.sampled_from([0.95, 0.95, 0.5]),
        incubation=incubations,
        blend=blends,
    )
    def train(self, *, epochs, gain, agreement, incubation, blend):
        """Fill every empty slot, then live through some epochs as a run's ``end_epoch`` would."""
        for slot in tuple(self.state.slots.values()):
            if slot.stage is Stage.DORMANT:
                self.germinate(slot.slot_id, incubation, blend)
        for _ in range(epochs):
            self.live(gain, agreement)

    def live(self, gain, agreement):
        step, better = self.later(10), 1.0 if self.state.objective is ACCURACY else -1.0
        objective = (self.state.measured or 50.0) + better * gain
        attached = [slot for slot in self.state.slots.values() if slot.stage.holds_seed]
        self.do(
            c.RecordEpoch(
                step=step,
                epoch=self.state.epoch + 1,
                objective=objective,
                metrics=(Metric(name="speed", value=1.0),),
                seeds=tuple(
                    evidence(slot_id=slot.slot_id, seed_id=slot.seed.seed_id) for slot in attached
                ),
            )
        )
        for slot in attached:
            for n, alpha in enumerate(slot.seed.candidates):  # each better than the one before
                ours = objective + better * n
                self.compare(slot.slot_id, agreement, ours, objective - better * gain, alpha)
        for slot in tuple(self.state.slots.values()):
            if advanceable(slot, self.state.policy, step):
                self.do(c.Advance(step=step, slot_id=slot.slot_id))

    def germinate(self, slot_id, incubation, blend):
        self.do(
            c.Germinate(
                step=self.state.step,
                slot_id=slot_id,
                seed_id=f"seed-{next(self.seeds)}",
                blueprint_id="conv_light",
                probe=PROBE,
                parameters=100,
                init_seed=1,
                incubation=incubation,
                blend=blend,
            )
        )

    # --- anyone else -----------------------------------------------------------------------

    @rule(slot_id=slot_ids, incubation=incubations, blend=blends)
    def germinate_anywhere(self, slot_id, incubation, blend):
        self.germinate(slot_id, incubation, blend)

    @rule(slot_id=slot_ids, stride=strides)
    def advance(self, slot_id, stride):
        self.do(c.Advance(step=self.later(stride), slot_id=slot_id))

    @rule(
        slot_id=slot_ids,
        reason=st.sampled_from(["too slow", "too slow", " "]),
        ramp=st.sampled_from([0, 0, 3, 20]),
        curve=curves,
    )
    def cull(self, slot_id, reason, ramp, curve):
        step = self.state.step
        self.do(c.Cull(step=step, slot_id=slot_id, reason=reason, ramp_steps=ramp, curve=curve))

    @rule(
        ahead=st.sampled_from([-1, 0, 1, 1, 3]),
        stride=st.sampled_from([-3, 0, 10, 10]),
        objective=figures,
        metric=st.sampled_from([0.0, math.nan]),
        count=st.sampled_from([0, 1, 11]),
        slot_id=slot_ids,
        gradient=figures,
        with_evidence=st.booleans(),
    )
    def record_epoch(
        self, *, ahead, stride, objective, metric, count, slot_id, gradient, with_evidence
    ):
        found = self.state.slots.get(slot_id)
        seed_id = found.seed.seed_id if found is not None and found.seed is not None else "nobody"
        observed = evidence(slot_id=slot_id, seed_id=seed_id, gradient_norm=gradient)
        leak = Violation(leak=Leak.GRADIENT, count=count, subject="conv")
        self.do(
            c.RecordEpoch(
                step=max(self.state.step + stride, 0),
                epoch=max(self.state.epoch + ahead, 0),
                objective=objective,
                metrics=(Metric(name="speed", value=metric),),
                seeds=(observed,) if with_evidence else (),
                violations=((slot_id, leak),) if count and with_evidence else (),
            )
        )

    @rule(
        slot_id=slot_ids,
        agreement=st.sampled_from([None, math.nan, -0.5, 0.95]),
        ours=figures,
        theirs=figures,
        alpha=alphas | st.sampled_from(CANDIDATES),
    )
    def compare_anywhere(self, slot_id, agreement, ours, theirs, alpha):
        self.compare(slot_id, agreement, ours, theirs, alpha)

    def compare(self, slot_id, agreement, ours, theirs, alpha):
        step = self.state.step
        self.do(
            c.RecordShadow(
                step=step,
                slot_id=slot_id,
                agreement=agreement,
                values=64,
                objective_with=ours,
                objective_without=theirs,
            )
        )
        self.do(
            c.RecordCounterfactual(
                step=step,
                slot_id=slot_id,
                alpha=alpha,
                objective_with=ours,
                objective_without=theirs,
            )
        )

    @rule(
        slot_id=slot_ids,
        curve=curves,
        delay=st.integers(0, 20),
        steps=st.integers(0, 40),
        start=alphas,
        end=alphas,
    )
    def schedule(self, *, slot_id, curve, delay, steps, start, end):
        ramp = AlphaSchedule(
            curve=curve, start_step=self.state.step + delay, steps=steps, start=start, end=end
        )
        self.do(c.ScheduleAlpha(step=self.state.step, slot_id=slot_id, schedule=ramp))

    @rule(slot_id=slot_ids, alpha=alphas, stride=strides)
    def override(self, slot_id, alpha, stride):
        self.do(c.OverrideAlpha(step=self.later(stride), slot_id=slot_id, alpha=alpha))

    @rule(slot_id=slot_ids, stride=strides, command=st.sampled_from([c.PauseSeed, c.ResumeSeed]))
    def pause_or_resume(self, slot_id, stride, command):
        self.do(command(step=self.later(stride), slot_id=slot_id))

    @rule(policy=policies)
    def change_policy(self, policy):
        self.do(c.ChangePolicy(step=self.state.step, policy=policy))

    @rule(ahead=st.integers(-5, 1))
    def save_checkpoint(self, ahead):
        sequence = max(self.state.sequence + ahead, 0)
        self.do(c.SaveCheckpoint(step=self.state.step, path="a.pt", sequence=sequence))

    @rule(back=st.integers(0, 12))
    def rewind(self, back):
        """To the end of an earlier command: within one, a run has no state to go on from."""
        to = self.boundaries[max(len(self.boundaries) - 1 - back, 0)]
        then = replay(self.events[:to])
        self.do(c.Rewind(step=then.step, epoch=then.epoch, to=to))
        now = changed(self.state, sequence=then.sequence, rewinds=then.rewinds)
        assert repr(now) == repr(then)

    @precondition(lambda self: len(self.events) > LONGEST // 2)
    @rule()
    def close(self):
        self.do(c.CloseRun(step=self.state.step))

    @rule(stride=strides)
    def open_again(self, stride):
        self.do(c.OpenSlot(step=self.later(stride), slot_id="a", topology=Topology.CNN, width=8))

    # --- what must always hold -------------------------------------------------------------

    @invariant()
    def the_log_and_the_state_agree_on_where_they_are(self):
        if self.events:
            assert self.state.sequence == len(self.events)

    @invariant()
    def every_slot_is_what_its_stage_says(self):
        for slot in self.slots():
            assert (slot.seed is None) is (slot.stage is Stage.DORMANT)
            assert len(slot.objectives) == min(slot.epochs_in_stage, OBJECTIVES_KEPT)
            assert all(0.0 <= outcome.score <= 1.0 for outcome in slot.outcomes.values())
            if slot.seed is None:
                continue
            resting = slot.seed.paused_at is None and slot.seed.cull_reason is None
            assert resting or slot.stage in CULLABLE
            assert slot.seed.paused_at is None or slot.seed.cull_reason is None
            assert slot.seed.cull_reason is None or slot.stage.exposed

    @invariant()
    def alpha_is_what_the_stage_says(self):
        for slot in self.slots():
            if slot.seed is None:
                continue
            for step in (0, self.state.step, self.state.step + 7, 10**9):
                alpha = slot.seed.alpha(step)
                assert 0.0 <= alpha <= 1.0
                assert slot_view(self.state, slot.slot_id).alpha(step) in {alpha, 0.0}
                if not slot.stage.exposed:
                    assert alpha == 0.0
                elif slot.stage is not Stage.BLENDING and slot.seed.cull_reason is None:
                    assert alpha == slot.seed.target

    @invariant()
    def the_target_comes_from_the_plan_or_a_recorded_ramp(self):
        for slot in self.slots():
            if slot.seed is None:
                continue
            assert 0.0 < slot.seed.target <= 1.0
            if not slot.stage.exposed and slot.stage.holds_seed:
                assert slot.seed.target == slot.seed.blend.target
            best = slot.seed.best_rehearsal
            if best is not None:
                assert best[0] in slot.seed.candidates
                assert repr(slot.seed.rehearsals[best[0]]) == repr(best[1])

    @invariant()
    def a_slot_acts_as_its_plan_says(self):
        for slot in self.slots():
            view = slot_view(self.state, slot.slot_id)
            if not view.stage.holds_seed:
                assert (view.behaviour, view.learning) == (Behaviour.IDENTITY, False)
                continue
            taught = view.incubation.incubator is not Incubator.NONE
            active = view.stage.exposed or (view.stage is Stage.TRAINING and taught)
            assert view.learning is (active and view.paused_at is None)
            if view.behaviour is Behaviour.SEED:
                assert view.stage is Stage.FOSSILIZED
                assert (view.blend, view.alpha(self.state.step)) == (Blend.LERP, 1.0)
            if view.behaviour is Behaviour.INCUBATE:
                assert view.stage is Stage.TRAINING
            if view.stage.exposed:
                assert view.behaviour in {Behaviour.BLEND, Behaviour.SEED}

    @invariant()
    def every_slot_can_be_observed(self):
        for slot in self.slots():
            assert all(math.isfinite(x) for x in observe(self.state, slot.slot_id).vector())

    @invariant()
    def no_slot_is_ever_stuck(self):
        """Unless the seed is permanent, a cull leads any slot back to where it began."""
        for slot in self.slots():
            if self.state.closed or slot.stage is Stage.FOSSILIZED:
                continue
            state = self.state
            for command in self.way_home(slot):
                for event in decide(state, command, state.policy):
                    state = evolve(state, event)
            assert state.slot(slot.slot_id).stage is Stage.DORMANT

    def way_home(self, slot):
        step, slot_id = self.state.step, slot.slot_id
        advance = c.Advance(step=step, slot_id=slot_id)
        epochs = [
            c.RecordEpoch(step=step, epoch=self.state.epoch + n, objective=None)
            for n in range(1, self.state.policy.embargo_epochs + 1)
        ]
        home = [advance, *epochs, advance, advance]
        match slot.stage:
            case Stage.DORMANT:
                return []
            case Stage.RESETTING:
                return [advance]
            case Stage.EMBARGOED:
                return home[1:]
            case Stage.CULLED:
                return home
            case _:
                return [c.Cull(step=step, slot_id=slot_id, reason="the way home"), *home]

    @invariant()
    def advanceable_agrees_with_decide(self):
        for slot in self.slots():
            if self.state.closed:
                continue
            command = c.Advance(step=self.state.step, slot_id=slot.slot_id)
            try:
                decide(self.state, command, self.state.policy)
            except KasminaError:
                sensible = False
            else:
                sensible = True
            assert advanceable(slot, self.state.policy, self.state.step) is sensible

    def slots(self):
        return () if self.state is None else tuple(self.state.slots.values())


Runs.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
test_random_commands_never_reach_an_illegal_state = Runs.TestCase
