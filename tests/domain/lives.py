"""Runs that are decided command by command, and runs from which hypothesis draws."""

import itertools
import math
from datetime import UTC, datetime

from attrs import evolve as changed
from hypothesis import strategies as st

from kasmina.domain import commands as c
from kasmina.domain.decide import decide
from kasmina.domain.evidence import Comparison, Metric, Violation
from kasmina.domain.evolve import evolve, replay
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.policies import (
    G2Policy,
    G3Policy,
    G5Policy,
    GatePolicy,
    MetricCheck,
    Timeouts,
)
from kasmina.domain.ports import Recorded
from kasmina.domain.progress import advanceable
from kasmina.domain.schedules import BlendPlan
from kasmina.domain.stages import Gate, Incubator, Leak, Stage, Topology
from tests.domain.scenario import ACCURACY, HOST, LOSS, PROBE, evidence
from tests.domain.strategies import policies

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
QUICK = GatePolicy(
    g2=G2Policy(min_epochs=1),
    g3=G3Policy(min_epochs=1, min_alpha=0.5),
    g5=G5Policy(min_epochs=1),
    embargo_epochs=1,
    cull_ramp_epochs=0.0,
)


def recorded(events):
    return [
        Recorded(position=n, run_id="run-1", sequence=n, recorded_at=NOON, event=event, digest=b"")
        for n, event in enumerate(events, 1)
    ]


class Life:
    """A run that is decided command by command, ten steps an epoch."""

    def __init__(self, policy=QUICK, *slots, objective=ACCURACY, origin=None, events=()):
        self.events, self.state, self.origin = list(events), origin, origin
        for event in events:
            self.state = evolve(self.state, event)
        self.objective = 50.0
        self.seeds = itertools.count(1)
        if origin is None:
            self.do(
                c.OpenRun(
                    step=0,
                    run_id="run-1",
                    name="life",
                    objective=objective,
                    policy=policy,
                    host=HOST,
                    random_seed=0,
                )
            )
            for slot_id in slots or ("a",):
                self.do(c.OpenSlot(step=0, slot_id=slot_id, topology=Topology.CNN, width=8))
            self.epoch(0.0)

    def do(self, command):
        policy = command.policy if self.state is None else self.state.policy
        for event in decide(self.state, command, policy):
            self.events.append(event)
            self.state = evolve(self.state, event)
        return self

    @property
    def history(self):
        return recorded(self.events)

    @property
    def step(self):
        return self.state.step

    def stage(self, slot_id="a"):
        return self.state.slots[slot_id].stage

    def germinate(self, slot_id="a", *, train=True, **plan):
        plan.setdefault("blend", BlendPlan(epochs=0.0))
        self.do(
            c.Germinate(
                step=self.step,
                slot_id=slot_id,
                seed_id=f"{slot_id}{next(self.seeds)}",
                blueprint_id="norm",
                probe=PROBE,
                parameters=10,
                init_seed=0,
                **plan,
            )
        )
        return self.advance(slot_id) if train else self

    def epoch(self, gain=1.0, *, leaks=0, speed=1.0, agreement=0.95, gives=1.0, rehearse=False):
        """Record an epoch, measure what the stages ask for, and ask every gate."""
        better = gain if self.state.objective is ACCURACY else -gain
        self.objective += better
        seeded = [slot for slot in self.state.slots.values() if slot.stage.holds_seed]
        self.do(
            c.RecordEpoch(
                step=self.step + 10,
                epoch=self.state.epoch + 1,
                objective=self.objective,
                metrics=(Metric(name="speed", value=speed),),
                seeds=tuple(evidence(slot_id=s.slot_id, seed_id=s.seed.seed_id) for s in seeded),
                violations=tuple(
                    (s.slot_id, Violation(leak=Leak.GRADIENT, count=leaks, subject="conv"))
                    for s in seeded
                    if leaks
                ),
            )
        )
        for slot in seeded:
            self.measure(slot, agreement=agreement, gives=gives, rehearse=rehearse)
        return self.advance(*self.state.slots)

    def measure(self, slot, *, agreement, gives, rehearse):
        pair = {
            "objective_with": self.objective,
            "objective_without": self.objective - gives
            if self.state.objective is ACCURACY
            else self.objective + gives,
        }
        where = {"step": self.step, "slot_id": slot.slot_id}
        if slot.stage is Stage.SHADOWING:
            self.do(c.RecordShadow(**where, agreement=agreement, values=8, **pair))
        if slot.stage is Stage.PROBATIONARY or (rehearse and slot.stage is Stage.TRAINING):
            self.do(c.RecordCounterfactual(**where, alpha=1.0, **pair))

    def advance(self, *slot_ids):
        for slot_id in slot_ids:
            if advanceable(self.state.slots[slot_id], self.state.policy, self.step):
                self.do(c.Advance(step=self.step, slot_id=slot_id))
        return self

    def epochs(self, *gains, **shown):
        for gain in gains:
            self.epoch(gain, **shown)
        return self

    def cull(self, slot_id="a"):
        return self.do(c.Cull(step=self.step, slot_id=slot_id, reason="enough"))

    def rewind(self, to):
        there = replay(self.events[:to], self.origin)
        for event in decide(
            self.state, c.Rewind(step=there.step, epoch=there.epoch, to=to), self.state.policy
        ):
            self.events.append(event)
            self.state = evolve(there, event)
        return self


def only(things):
    (thing,) = things
    return thing


def check(verdict, name):
    return only([found for found in verdict.outcome.checks if found.name == name])


ASKING = changed(
    QUICK,
    extra_checks=(
        MetricCheck(gate=Gate.G0, metric="speed", comparison=Comparison.AT_LEAST, required=0.0),
        MetricCheck(gate=Gate.G5, metric="speed", comparison=Comparison.AT_MOST, required=2.0),
    ),
    timeouts=Timeouts(training=3, blending=3, probationary=4),
)


@st.composite
def lives(draw):
    """Runs that train two slots, with whatever else may happen between epochs."""
    rules = policies | st.sampled_from([QUICK, QUICK, ASKING])
    life = Life(draw(rules), "a", "b", objective=draw(st.sampled_from([ACCURACY, LOSS])))
    marks = [len(life.events)]
    for _ in range(draw(st.integers(1, 14))):
        for slot_id, slot in life.state.slots.items():
            if slot.stage is Stage.DORMANT and draw(st.booleans()):
                incubator = draw(st.sampled_from([*Incubator]))
                ramp = BlendPlan(
                    epochs=draw(st.sampled_from([0.0, 2.0])), target=draw(st.sampled_from([0.5, 1]))
                )
                plan = IncubationPlan(incubator=incubator)
                life.germinate(slot_id, train=draw(st.booleans()), incubation=plan, blend=ramp)
        life.epoch(
            draw(st.sampled_from([1.0, 1.0, 1.0, 0.25, 0.0, -1.0])),
            leaks=draw(st.sampled_from([0, 0, 0, 6])),
            speed=draw(st.sampled_from([1.0, 1.0, 3.0, math.nan])),
            agreement=draw(st.sampled_from([0.95, 0.95, 0.5, None])),
            gives=draw(st.sampled_from([1.0, 1.0, 0.0, -1.0])),
            rehearse=draw(st.booleans()),
        )
        disturb(draw, life, marks)
        marks.append(len(life.events))
    return life


def disturb(draw, life, marks):
    match draw(st.sampled_from([None, None, None, None, "cull", "pause", "policy", "rewind"])):
        case "cull":
            for slot_id, slot in life.state.slots.items():
                if slot.stage.holds_seed and slot.stage is not Stage.FOSSILIZED:
                    life.cull(slot_id)
        case "pause":
            slot = life.state.slots["b"]
            if slot.stage.holds_seed and slot.stage is not Stage.FOSSILIZED:
                paused = slot.seed.paused_at is not None
                if slot.seed.cull_reason is None:
                    command = c.ResumeSeed if paused else c.PauseSeed
                    life.do(command(step=life.step, slot_id="b"))
        case "policy":
            life.do(c.ChangePolicy(step=life.step, policy=draw(policies)))
        case "rewind":
            life.rewind(draw(st.sampled_from(marks)))
            life.objective = life.state.measured or 50.0
