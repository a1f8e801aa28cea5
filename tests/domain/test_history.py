"""Folding: what each event changes, what a rewind leaves out, and what no history can hold."""

import math

import pytest
from attrs import evolve as changed
from hypothesis import given as each
from hypothesis import settings
from hypothesis import strategies as st

from kasmina.domain import commands as c
from kasmina.domain import events as e
from kasmina.domain.decide import decide
from kasmina.domain.errors import CorruptHistory, InvalidCommand
from kasmina.domain.evidence import Metric
from kasmina.domain.evolve import evolve, replay, surviving
from kasmina.domain.policies import GatePolicy
from kasmina.domain.stages import Gate, Health, Leak, Stage, Trigger
from kasmina.domain.state import OBJECTIVES_KEPT
from kasmina.testing import given
from tests.domain.scenario import (
    RUN,
    SEED,
    SLOT,
    advance,
    contrasted,
    entered,
    epoch,
    evidence,
    germinated,
    moved,
    opened,
    passed,
    paused,
    ready,
    seed_after,
    seed_culled,
    seed_germinated,
    slot_after,
    slot_opened,
    state_after,
)


def rewound(to, *, head):
    return e.RunRewound(epoch=0, step=0, to=to, head=head)


def without_count(state):
    return changed(state, sequence=0, rewinds=0)


# --- rewinds -------------------------------------------------------------------------------


@st.composite
def nested_rewinds(draw):
    """A run of epochs and rewinds, in which any rewind may go back to any earlier sequence."""
    events = [opened()]
    for number in range(1, draw(st.integers(0, 40)) + 1):
        if draw(st.integers(0, 3)) == 0:
            events.append(rewound(draw(st.integers(1, len(events))), head=len(events)))
        else:
            events.append(epoch(number, float(number)))
    return events


def by_remembering_every_state(events):
    """The states of a run after each of its events, by the plainest way there is."""
    states = [None]
    for event in events:
        back = states[event.to] if isinstance(event, e.RunRewound) else states[-1]
        states.append(evolve(back, event))
    return states


def by_brute_force(rewinds, head):
    """The surviving sequences: a stack of kept sequences, cut back to what it was at ``to``."""
    kept = {0: []}
    for sequence in range(1, head + 1):
        before = kept[rewinds[sequence] if sequence in rewinds else sequence - 1]
        kept[sequence] = [*before, sequence]
    return kept[head]


@each(nested_rewinds())
def test_a_replay_leaves_out_what_a_rewind_took_back(events):
    states = by_remembering_every_state(events)
    for length in range(len(events) + 1):
        assert replay(events[:length]) == states[length]


@each(nested_rewinds())
def test_after_a_rewind_the_state_is_what_it_was(events):
    states = by_remembering_every_state(events)
    for sequence, event in enumerate(events, 1):
        if isinstance(event, e.RunRewound):
            assert without_count(states[sequence]) == without_count(states[event.to])
            assert states[sequence].rewinds == states[event.to].rewinds + 1
            assert states[sequence].sequence == sequence


@each(nested_rewinds())
def test_what_survives_is_what_a_stack_would_keep(events):
    rewinds = {
        sequence: event.to
        for sequence, event in enumerate(events, 1)
        if isinstance(event, e.RunRewound)
    }
    stretches = surviving(rewinds.items(), head=len(events))
    kept = [sequence for after, until in stretches for sequence in range(after + 1, until + 1)]
    assert kept == by_brute_force(rewinds, len(events))


def test_a_rewind_can_return_to_what_an_earlier_one_took_back():
    past = (opened(), epoch(1, 1.0), epoch(2, 2.0), rewound(2, head=3), rewound(3, head=4))
    assert state_after(*past).latest == 2.0
    assert state_after(*past).sequence == 5


class TestRewindByCommand:
    def rewind(self, to):
        return c.Rewind(step=10, epoch=1, to=to)

    def test_it_records_what_it_leaves_out(self):
        past = given(*entered(Stage.BLENDING))
        head = len(past.events)
        past.when(self.rewind(3)).then(e.RunRewound(epoch=1, step=10, to=3, head=head))

    def test_it_brings_back_slots_as_they_were(self):
        past = ready(Stage.PROBATIONARY)
        for to in range(2, len(past) + 1):
            done = given(*past).when(c.Rewind(step=0, epoch=0, to=to))
            assert without_count(done.state) == without_count(state_after(*past[:to]))

    def test_it_cannot_go_forward(self):
        past = given(*entered(Stage.DORMANT))
        past.when(self.rewind(3)).raises(InvalidCommand, saying="ends at sequence 2")

    def test_it_needs_a_point_at_which_the_run_was_open(self):
        with pytest.raises(ValueError, match="to must be finite and above 0"):
            self.rewind(0)

    def test_it_may_go_back_before_the_end_of_a_closed_run(self):
        past = (*entered(Stage.TRAINING), e.RunClosed(epoch=1, step=10))
        done = given(*past).when(self.rewind(len(past) - 1))
        assert not done.state.closed
        assert done.slot.stage is Stage.TRAINING


class TestForks:
    FORK = e.RunForked(
        epoch=4,
        step=40,
        run_id="run-2",
        name="digits again",
        parent_run_id=RUN,
        parent_sequence=9,
        parent_digest="cd" * 32,
    )

    def test_a_fork_goes_on_from_its_parent_s_state_under_its_own_name(self):
        saved = e.CheckpointSaved(epoch=4, step=40, path="run-1.pt", sequence=9)
        closed = e.RunClosed(epoch=4, step=40)
        parent = state_after(*ready(Stage.TRAINING), saved, closed)
        child = replay((self.FORK,), origin=parent)
        assert (child.run_id, child.name, child.sequence) == ("run-2", "digits again", 1)
        assert not child.closed
        assert child.checkpoint is None
        assert child.slots == parent.slots
        assert child.measured == parent.measured

    def test_a_fork_can_be_rewound_to_its_beginning(self):
        parent = state_after(*ready(Stage.TRAINING))
        events = (self.FORK, epoch(5, 1.0), rewound(1, head=2))
        child = replay(events, origin=parent)
        assert child.slots == parent.slots
        assert child.sequence == 3

    def test_a_fork_without_its_parent_is_no_history(self):
        with pytest.raises(CorruptHistory, match="the first event is RunForked"):
            replay((self.FORK,))


# --- what each event changes ---------------------------------------------------------------


def test_no_events_are_no_state():
    assert replay(()) is None


def test_every_event_takes_the_run_to_its_epoch_and_step():
    state = state_after(*entered(Stage.TRAINING), epoch(2, None))
    assert (state.epoch, state.step, state.sequence) == (2, 20, 9)
    assert state.steps_per_epoch == 10.0


def test_before_the_first_epoch_an_epoch_has_no_known_length():
    assert state_after(opened()).steps_per_epoch == 0.0


@pytest.mark.parametrize("objective", [None, math.nan, math.inf])
def test_an_epoch_keeps_what_was_recorded_apart_from_what_was_measured(objective):
    past = (opened(), slot_opened(), epoch(1, 50.0), epoch(2, objective))
    state = state_after(*past)
    assert state.latest is objective
    assert state.measured == 50.0
    assert state.slot(SLOT).objectives == (50.0, objective)


def test_metrics_are_those_of_the_last_epoch():
    first = epoch(1, 1.0, metrics=(Metric(name="a", value=1.0), Metric(name="b", value=math.inf)))
    assert state_after(opened(), first).metrics == {"a": 1.0, "b": math.inf}
    assert state_after(opened(), first, epoch(2, 1.0)).metrics == {}


def test_history_in_memory_is_bounded():
    past = (*entered(Stage.TRAINING), *(epoch(n, float(n)) for n in range(2, 400)))
    slot = slot_after(*past)
    assert len(slot.objectives) == OBJECTIVES_KEPT
    assert slot.objectives[-1] == 399.0
    assert slot.epochs_in_stage == 398


def test_a_change_of_stage_starts_its_clock_its_health_and_its_baseline_anew():
    sick = e.HealthChanged(epoch=4, step=40, slot_id=SLOT, seed_id=SEED, health=Health.UNHEALTHY)
    past = (*ready(Stage.TRAINING), sick)
    assert seed_after(*past).health is Health.UNHEALTHY
    move = moved(Trigger.BEGIN_BLENDING, Stage.TRAINING, Stage.BLENDING, at=4)
    slot = slot_after(*past, move)
    assert slot.seed.health is Health.HEALTHY
    assert (slot.epochs_in_stage, slot.objectives, slot.stage_baseline) == (0, (), 53.0)
    assert slot.seed.baseline == 50.0


def test_violations_add_up_over_stages():
    def leak(count):
        return e.IsolationViolated(
            epoch=4,
            step=40,
            slot_id=SLOT,
            seed_id=SEED,
            leak=Leak.IN_PLACE_WRITE,
            count=count,
            subject="relu1",
        )

    past = (*entered(Stage.BLENDING), leak(2), leak(3))
    assert seed_after(*past).violations == 5


def test_the_policy_and_the_checkpoint_are_the_last_ones():
    policy = GatePolicy(tolerance=0.1)
    saved = e.CheckpointSaved(epoch=0, step=0, path="a.pt", sequence=1)
    changed_policy = e.GatePolicyChanged(epoch=0, step=0, policy=policy)
    state = state_after(opened(), saved, changed_policy)
    assert state.policy == policy
    assert state.checkpoint == saved


def test_a_germination_forgets_the_outcomes_of_the_slot_s_last_seed():
    past = (*entered(Stage.RESETTING), moved(Trigger.RECYCLE, Stage.RESETTING, Stage.DORMANT, at=9))
    assert set(slot_after(*past).outcomes) == {Gate.G0, Gate.G1}
    assert set(slot_after(*past, passed(Gate.G0, at=9)).outcomes) == {Gate.G0}


def test_slots_do_not_touch_each_other():
    past = (
        *entered(Stage.TRAINING),
        slot_opened("layer3"),
        *germinated(at=1, slot_id="layer3", seed_id="seed-2"),
    )
    alone = slot_after(*entered(Stage.TRAINING))
    assert state_after(*past).slots[SLOT] == alone
    cull_there = (seed_culled(at=1), moved(Trigger.CULL, Stage.GERMINATED, Stage.CULLED, at=1))
    cull_other = tuple(changed(event, slot_id="layer3", seed_id="seed-2") for event in cull_there)
    assert state_after(*past, *cull_other).slots[SLOT] == alone
    assert state_after(*past, *cull_other).slots["layer3"].stage is Stage.CULLED


# --- what no history can hold --------------------------------------------------------------


class Unheard(e.Event):
    """An event of a later version."""


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        (opened(), "run 'run-1' is opened a second time"),
        (slot_opened(), "slot 'layer2' is opened a second time"),
        (seed_germinated(at=1, slot_id="layer9"), "names slot 'layer9', never opened"),
        (passed(Gate.G1, at=1, slot_id="layer9"), "GateEvaluated names slot 'layer9'"),
        (epoch(2, 1.0, evidence(slot_id="layer9")), "EpochRecorded names slot 'layer9'"),
        (epoch(2, 1.0, evidence(seed_id="seed-9")), "which is not in slot 'layer2'"),
        (
            moved(Trigger.CULL, Stage.BLENDING, Stage.CULLED, at=1),
            "slot 'layer2' leaves BLENDING, but was TRAINING",
        ),
        (
            moved(Trigger.CULL, Stage.TRAINING, Stage.CULLED, at=1, seed_id="seed-9"),
            "StageChanged names seed 'seed-9'",
        ),
        (changed(paused(at=1), seed_id="seed-9"), "SeedPaused names seed 'seed-9'"),
        (e.SlotRecycled(epoch=1, step=10, slot_id=SLOT, seed_id="seed-9"), "names seed 'seed-9'"),
        (Unheard(epoch=1, step=10), "Unheard is not an event of this version"),
    ],
)
def test_an_event_that_cannot_follow_says_why(event, problem):
    state = state_after(*entered(Stage.TRAINING))
    with pytest.raises(CorruptHistory, match=problem) as caught:
        evolve(state, event)
    assert "kasmina verify" in str(caught.value)


@pytest.mark.parametrize("event", [epoch(1, 1.0), rewound(1, head=1), slot_opened()])
def test_nothing_comes_before_the_run_is_opened(event):
    with pytest.raises(CorruptHistory, match=f"the first event is {type(event).__name__}"):
        evolve(None, event)


def test_a_rewind_that_does_not_lead_back_is_corrupt():
    with pytest.raises(CorruptHistory, match="event 3 rewinds the run to event 3"):
        surviving([(3, 3)], head=4)


def test_a_contribution_measured_on_the_ramp_does_not_count_on_probation():
    past = ready(Stage.SHADOWING)
    at = past[-1].epoch
    ramped = (*past, contrasted(at=at, objective_with=60.0, objective_without=50.0))
    assert seed_after(*ramped).contribution is not None
    state = state_after(*ramped)
    decided = decide(state, advance(at=at), state.policy)
    after = state_after(*ramped, *decided)
    assert after.slot(SLOT).stage is Stage.PROBATIONARY
    assert after.slot(SLOT).seed.contribution is None


def test_the_fold_takes_what_today_s_rules_would_not_decide():
    """The past is readable for ever: its events are applied, not judged."""
    odd = (
        *entered(Stage.GERMINATED),
        # An edge that today's machine does not have, without any gate.
        moved(Trigger.FOSSILIZE, Stage.GERMINATED, Stage.FOSSILIZED, at=1),
        e.SeedResumed(epoch=1, step=10, slot_id=SLOT, seed_id=SEED),
    )
    assert slot_after(*odd).stage is Stage.FOSSILIZED
    assert given(*odd).when(advance(at=1)).error is not None


@settings(max_examples=30)
@each(st.sampled_from(Stage))
def test_folding_is_evolving_one_by_one(stage):
    state = None
    for event in ready(stage):
        state = evolve(state, event)
    assert state == replay(ready(stage))
