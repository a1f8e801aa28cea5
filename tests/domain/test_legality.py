"""Whatever decisions lead to is legal, in any order; whatever they cannot lead to is not."""

import itertools

import pytest
from attrs import evolve as changed
from hypothesis import given, settings
from hypothesis import strategies as st

from kasmina.domain import events as e
from kasmina.domain.evidence import Check, Comparison, GateOutcome
from kasmina.domain.evolve import evolve, replay
from kasmina.domain.legality import Finding, Inspector, Offence
from kasmina.domain.machine import EDGES
from kasmina.domain.schedules import AlphaSchedule
from kasmina.domain.stages import Gate, Health, Stage, Trigger
from tests.domain.scenario import (
    ENTERED_AT,
    POLICY,
    READY_AT,
    RUN,
    SEED,
    SLOT,
    entered,
    epoch,
    germinated,
    moved,
    opened,
    passed,
    ready,
    recycled,
    seed_culled,
    slot_opened,
    step_of,
)
from tests.domain.test_stateful import Runs


class Legal(Runs):
    """The same random commands as there; here an inspector reads what they lead to."""

    def append(self, event):
        if not self.events:
            self.inspector = Inspector(RUN, lambda _, to: replay(self.events[:to]))
        origin = replay(self.events[: event.to]) if isinstance(event, e.RunRewound) else self.state
        self.events = (*self.events, event)
        self.state = evolve(origin, event)
        assert self.inspector.judge(len(self.events), event) is None

    def check_refusal(self, before, decided):
        assert self.inspector.conclude() is None


Legal.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
test_whatever_decisions_lead_to_is_legal = Legal.TestCase


def first_finding(*events):
    """The first thing wrong with a run, and the sequence where it shows."""
    inspector = Inspector(RUN, lambda _, to: replay(events[:to]))
    for sequence, event in enumerate(events, 1):
        finding = inspector.judge(sequence, event)
        if finding is not None:
            return sequence, finding
    finding = inspector.conclude()
    return None if finding is None else (len(events) + 1, finding)


def illegal(*events):
    """Why the last of ``events`` cannot follow from the others, which are legal."""
    sequence, finding = first_finding(*events)
    assert (sequence, finding.offence) == (len(events), Offence.ILLEGAL)
    return finding.detail


def unjustified(outcome):
    past = (opened(), slot_opened())
    event = e.GateEvaluated(epoch=0, step=0, slot_id=SLOT, seed_id=SEED, outcome=outcome)
    sequence, finding = first_finding(*past, event)
    assert (sequence, finding.offence) == (3, Offence.UNJUSTIFIED)
    return finding.detail


def refused(gate, *, at):
    event = passed(gate, at=at)
    check = Check.of("improvement", None, Comparison.AT_LEAST, 0.5)
    return changed(event, outcome=GateOutcome.of(gate, (check,), 0.0))


def later(event):
    """The same an epoch later."""
    return changed(event, epoch=event.epoch + 1, step=event.step + 10)


def fossilized(*, at):
    place = {"epoch": at, "step": step_of(at), "slot_id": SLOT, "seed_id": SEED}
    return e.SeedFossilized(**place, improvement=None, contribution=None)


def unknown(*, at=0):
    return e.UnknownEvent(epoch=at, step=0, type="SeedPromoted", schema_version=1, payload="{}")


SEEDED = {"epoch": 0, "step": 0, "slot_id": SLOT, "seed_id": SEED}
GATED = [stage for stage in Stage if any(edge.source is stage and edge.gate for edge in EDGES)]


class TestPasts:
    @pytest.mark.parametrize("stage", Stage)
    def test_the_shortest_way_to_every_stage_is_legal(self, stage):
        assert first_finding(*entered(stage)) is None

    @pytest.mark.parametrize("stage", [stage for stage in Stage if stage in READY_AT])
    def test_and_so_is_whatever_is_measured_on_it(self, stage):
        assert first_finding(*ready(stage)) is None

    def test_a_slot_may_be_used_again(self):
        again = germinated(at=9, seed_id="seed-2")
        assert first_finding(*recycled(), *again) is None


class TestVerdicts:
    """A tamperer who computes every digest anew still has to forge figures that agree."""

    def test_an_outcome_flipped_while_its_check_still_fails_is_unjustified(self):
        failed = Check.of("improvement", 0.25, Comparison.AT_LEAST, 0.5)
        outcome = GateOutcome(gate=Gate.G0, passed=True, score=1.0, checks=(failed,))
        assert unjustified(outcome) == "G0"

    def test_a_check_flipped_while_its_figure_still_fails_is_unjustified(self):
        flipped = Check(
            name="improvement",
            measured=0.25,
            comparison=Comparison.AT_LEAST,
            required=0.5,
            passed=True,
        )
        assert unjustified(GateOutcome.of(Gate.G0, (flipped,), 1.0)) == "improvement"

    def test_a_refusal_whose_checks_all_pass_is_unjustified(self):
        fine = Check.of("improvement", 0.75, Comparison.AT_LEAST, 0.5)
        outcome = GateOutcome(gate=Gate.G0, passed=False, score=0.0, checks=(fine,))
        assert unjustified(outcome) == "G0"

    def test_a_figure_held_against_nothing_is_unjustified(self):
        bare = Check(
            name="agreement",
            measured=1.0,
            comparison=Comparison.AT_LEAST,
            required=None,
            passed=False,
        )
        assert unjustified(GateOutcome.of(Gate.G0, (bare,), 0.0)) == "agreement"

    @given(
        measured=st.none() | st.floats(),
        comparison=st.sampled_from(Comparison),
        required=st.floats(),
        gate=st.sampled_from([Gate.G0]),
    )
    def test_every_outcome_that_was_worked_out_is_justified(
        self, measured, comparison, required, gate
    ):
        outcome = GateOutcome.of(gate, (Check.of("x", measured, comparison, required),), 0.5)
        event = e.GateEvaluated(**SEEDED, outcome=outcome)
        assert first_finding(opened(), slot_opened(), event) is None


class TestTransitions:
    @pytest.mark.parametrize("stage", [stage for stage in GATED if stage is not Stage.DORMANT])
    def test_a_stage_is_not_left_without_its_gate(self, stage):
        past, at = ready(stage), READY_AT[stage]
        (way,) = [edge for edge in EDGES if edge.source is stage and edge.gate is not None]
        step = moved(way.trigger, stage, way.target, at=at)
        if stage is Stage.PROBATIONARY:
            step = fossilized(at=at)
        missing = f"{way.gate.value} did not pass right before it"
        assert illegal(*past, step) == missing
        assert illegal(*past, refused(way.gate, at=at), step) == missing
        assert illegal(*past, passed(way.gate, at=at), later(step)) == missing
        assert illegal(*past, passed(way.gate, at=at), epoch(at + 1, None), later(step)) == missing

    def test_a_seed_does_not_germinate_without_its_gate(self):
        past, (_, made, _) = (opened(), slot_opened()), germinated(at=0)
        missing = "G0 did not pass right before it"
        assert illegal(*past, made) == missing
        assert illegal(*past, refused(Gate.G0, at=0), made) == missing

    @pytest.mark.parametrize("stage", Stage)
    def test_only_the_machines_edges_are_taken(self, stage):
        past, at = entered(stage), ENTERED_AT[stage]
        edges = {(edge.source, edge.trigger, edge.target) for edge in EDGES}
        for trigger, target in itertools.product(Trigger, Stage):
            if (stage, trigger, target) not in edges:
                said = f"{trigger.value} does not lead from {stage.value} to {target.value}"
                assert illegal(*past, moved(trigger, stage, target, at=at)) == said

    def test_a_slot_leaves_the_stage_that_it_is_in(self):
        reset = moved(Trigger.EMBARGO, Stage.CULLED, Stage.EMBARGOED, at=1)
        assert "leaves CULLED, but was GERMINATED" in illegal(*entered(Stage.GERMINATED), reset)

    def test_a_cull_is_announced_with_a_reason(self):
        past = entered(Stage.TRAINING)
        move = moved(Trigger.CULL, Stage.TRAINING, Stage.CULLED, at=1)
        assert illegal(*past, move) == "SeedCulled does not come before it"
        blank = changed(seed_culled(at=1), reason=" ")
        assert illegal(*past, blank) == "it gives no reason"
        ramp = AlphaSchedule(start_step=10, steps=5, end=0.0)
        scheduled = e.CullScheduled(
            epoch=1, step=10, slot_id=SLOT, seed_id=SEED, reason="", schedule=ramp
        )
        assert illegal(*past, scheduled) == "it gives no reason"

    def test_what_is_announced_follows_at_once_and_at_the_same_place(self):
        past = (*entered(Stage.TRAINING), seed_culled(at=1))
        move = moved(Trigger.CULL, Stage.TRAINING, Stage.CULLED, at=1)
        assert first_finding(*past, move) is None
        assert illegal(*past, epoch(2, None)) == "cull is due"
        assert illegal(*past, later(move)) == "cull is due"
        assert illegal(*past, moved(Trigger.EMBARGO, Stage.CULLED, Stage.EMBARGOED, at=1))
        assert illegal(*past, e.RunRewound(epoch=1, step=10, to=2, head=len(past))) == "cull is due"

    def test_a_run_does_not_end_within_a_decision(self):
        culled = (*entered(Stage.TRAINING), seed_culled(at=1))
        recycling = recycled()[:-1]
        for past, due in ((culled, "cull is due"), (recycling, "SlotRecycled is due")):
            sequence, finding = first_finding(*past)
            assert sequence == len(past) + 1
            assert finding == Finding(offence=Offence.UNFINISHED, detail=due)

    def test_a_slot_is_clean_when_it_was_recycled_and_not_before(self):
        cleaned = recycled()[-1]
        assert illegal(*entered(Stage.RESETTING), cleaned) == "its slot was not recycled"
        assert illegal(*recycled()[:-1], changed(cleaned, seed_id="other"))

    def test_a_reset_waits_for_the_end_of_the_embargo(self):
        move = moved(
            Trigger.RESET, Stage.EMBARGOED, Stage.RESETTING, at=ENTERED_AT[Stage.EMBARGOED]
        )
        said = f"the embargo had {POLICY.embargo_epochs} more epochs to last"
        assert illegal(*entered(Stage.EMBARGOED), move) == said


class TestTheOrderOfEvents:
    def test_a_run_begins_once(self):
        said = "a run is opened or forked by its first event, and by no other"
        assert illegal(slot_opened()) == said
        assert illegal(opened(), opened()) == said

    def test_epochs_and_steps_only_grow(self):
        past = (opened(), slot_opened(), epoch(3, None))
        assert illegal(*past, epoch(3, None)) == "epoch 3, step 30 after epoch 3, step 30"
        assert illegal(*past, changed(epoch(4, None), step=29))
        assert illegal(*past, changed(passed(Gate.G0, at=3), epoch=2))

    def test_after_a_rewind_they_go_on_from_where_it_led(self):
        past = (opened(), slot_opened(), epoch(1, None), epoch(2, None), epoch(3, None))
        back = e.RunRewound(epoch=1, step=10, to=3, head=5)
        assert first_finding(*past, back, epoch(2, None)) is None
        assert illegal(*past, back, epoch(1, None)) == "epoch 1, step 10 after epoch 1, step 10"

    @pytest.mark.parametrize(("to", "head"), [(0, 3), (4, 3), (2, 2), (2, 4), (4, 4)])
    def test_a_rewind_leads_back_from_the_head(self, to, head):
        back = e.RunRewound(epoch=0, step=0, to=to, head=head)
        said = illegal(opened(), slot_opened(), epoch(1, None), back)
        assert said == f"it leads from {head} to {to}"

    def test_a_closed_run_can_only_be_rewound(self):
        past = (opened(), slot_opened(), epoch(1, None), e.RunClosed(epoch=1, step=10))
        assert illegal(*past, epoch(2, None)) == "the run was closed"
        back = e.RunRewound(epoch=1, step=10, to=3, head=4)
        assert first_finding(*past, back, epoch(2, None)) is None

    def test_a_checkpoint_is_of_what_has_happened(self):
        saved = e.CheckpointSaved(epoch=0, step=0, path="a.pt", sequence=3)
        assert illegal(opened(), slot_opened(), saved) == "it saves event 3, which is yet to come"
        assert first_finding(opened(), slot_opened(), changed(saved, sequence=2)) is None

    def test_what_cannot_be_folded_is_illegal(self):
        assert "never opened" in illegal(opened(), changed(passed(Gate.G0, at=0)))
        exposed = entered(Stage.BLENDING)
        alpha = e.AlphaOverridden(epoch=4, step=40, slot_id=SLOT, seed_id=SEED, alpha=7.0)
        assert "7.0" in illegal(*exposed, alpha)


class TestSeeds:
    @pytest.mark.parametrize("stage", [Stage.TRAINING, Stage.FOSSILIZED, Stage.CULLED])
    @pytest.mark.parametrize("gate", Gate)
    def test_a_gate_is_asked_in_its_own_stage(self, stage, gate):
        past, at = entered(stage), ENTERED_AT[stage]
        asked = first_finding(*past, passed(gate, at=at))
        if (stage, gate) == (Stage.TRAINING, Gate.G2):
            assert asked is None
        else:
            assert asked[1].detail == f"{gate.value} is not asked in {stage.value}"

    def test_a_gate_judges_the_seed_in_the_slot(self):
        asked = passed(Gate.G2, at=1, seed_id="other")
        assert illegal(*entered(Stage.TRAINING), asked) == "its slot does not hold seed 'other'"

    @pytest.mark.parametrize(
        ("event", "stage"),
        [
            (e.AlphaOverridden(**SEEDED, alpha=0.5), Stage.TRAINING),
            (e.SeedPaused(**SEEDED), Stage.FOSSILIZED),
            (e.HealthChanged(**SEEDED, health=Health.UNHEALTHY), Stage.CULLED),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_what_happens_to_a_seed_happens_in_a_stage_that_has_it(self, event, stage):
        at = ENTERED_AT[stage]
        here = changed(event, epoch=at, step=step_of(at))
        assert illegal(*entered(stage), here) == f"its slot was {stage.value}"

    def test_a_pause_ends_what_was_not_ended_and_halts_the_seed(self):
        past = entered(Stage.GERMINATED)
        place = {"epoch": 1, "step": 10, "slot_id": SLOT, "seed_id": SEED}
        paused, resumed = e.SeedPaused(**place), e.SeedResumed(**place)
        assert first_finding(*past, paused, resumed) is None
        assert illegal(*past, resumed) == "the seed was not paused"
        assert illegal(*past, paused, paused) == "the seed was paused"
        assert illegal(*past, paused, passed(Gate.G1, at=1)) == "the seed was paused"

    def test_a_seed_that_is_ramped_out_asks_no_gate(self):
        past, at = entered(Stage.BLENDING), ENTERED_AT[Stage.BLENDING]
        ramp = AlphaSchedule(start_step=40, steps=5, end=0.0)
        going = e.CullScheduled(
            epoch=at, step=40, slot_id=SLOT, seed_id=SEED, reason="slow", schedule=ramp
        )
        assert illegal(*past, going, passed(Gate.G3, at=at)) == "the seed was being ramped out"


def judged(events, recall):
    inspector = Inspector("fork", recall)
    for sequence, event in enumerate(events, 1):
        assert inspector.judge(sequence, event) is None
    return inspector


class TestWhatIsNotKnown:
    PARENT = entered(Stage.TRAINING)
    FORK = e.RunForked(
        epoch=1,
        step=10,
        run_id="fork",
        name="fork",
        parent_run_id=RUN,
        parent_sequence=len(PARENT),
        parent_digest="",
    )
    # The move would be illegal in any stage but TRAINING.
    AFTER = (
        passed(Gate.G2, at=1),
        moved(Trigger.BEGIN_BLENDING, Stage.TRAINING, Stage.BLENDING, at=1),
    )

    def test_a_fork_goes_on_from_its_parents_state(self):
        recall = lambda run_id, to: replay(self.PARENT[:to]) if run_id == RUN else None  # noqa: E731
        assert judged((self.FORK, *self.AFTER), recall).unjudged == 0

    def test_a_fork_whose_parent_is_elsewhere_is_judged_by_its_neighbours_alone(self):
        events = (self.FORK, *self.AFTER)
        inspector = judged(events, lambda *_: None)
        assert inspector.unjudged == 3
        assert inspector.judge(4, self.AFTER[1]).detail == "G2 did not pass right before it"

    def test_an_event_of_a_newer_release_is_legal_anywhere_and_ends_what_is_known(self):
        seen = (*self.PARENT, unknown(), *self.AFTER, epoch(2, None))
        assert judged(seen, lambda *_: None).unjudged == 4
        between = (self.AFTER[0], unknown(), self.AFTER[1])
        assert judged((*self.PARENT, *between), lambda *_: None).unjudged == 2

    def test_what_could_not_be_read_may_be_what_is_missed(self):
        at, place = 11, {"epoch": 11, "step": 110}
        kept = moved(Trigger.FOSSILIZE, Stage.PROBATIONARY, Stage.FOSSILIZED, at=at)
        past = (*ready(Stage.PROBATIONARY), changed(unknown(), **place))
        for after in (
            (fossilized(at=at), kept),
            (kept,),
            (recycled(at=at)[-1],),
            (epoch(12, None),),
        ):
            assert first_finding(*past, *after) is None
        going = (*self.PARENT, seed_culled(at=1), unknown(at=1))
        assert first_finding(*going) is None
        assert first_finding(*going, epoch(2, None)) is None
        again = (*past, fossilized(at=at), kept, kept)
        assert illegal(*again) == "SeedFossilized does not come before it"

    def test_a_rewind_to_before_it_makes_the_state_known_again(self):
        past = (*self.PARENT, unknown())
        for to, unjudged in ((len(self.PARENT), 1), (len(past), 3)):
            back = e.RunRewound(epoch=1, step=10, to=to, head=len(past))
            events = (*past, back, epoch(2, None))
            assert judged(events, lambda _, to: replay(past[:to])).unjudged == unjudged
