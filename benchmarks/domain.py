"""What folding an event costs, against asking the machine, in one run, interleaved.

    python benchmarks/domain.py            # prints the table
    python benchmarks/domain.py --events 100000

The machine is asked once per decision and never during replay; the last line says what replay would
cost if it were. Each round measures every line once, so that a busy moment hits all of them;
a figure is the median over the rounds, a ratio the median of the rounds' own ratios.
"""
# ruff: noqa: INP001, T201 - a script: its output is the terminal

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from kasmina.domain import events as e
from kasmina.domain.evidence import GateOutcome, HostDescription, Metric, Probe, SeedEvidence
from kasmina.domain.evolve import evolve, replay
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.machine import Warrant, legal_triggers, permits
from kasmina.domain.objective import Objective
from kasmina.domain.policies import GatePolicy
from kasmina.domain.schedules import AlphaSchedule, BlendPlan
from kasmina.domain.stages import Gate, Incubator, SeedInput, Stage, Topology, Trigger
from kasmina.domain.state import RunState

ROUNDS = 7
REPEATS = 2000
EPOCH, STEP, SLOT, SEED = 1, 10, "layer2", "seed-1"
PASSED = GateOutcome(gate=Gate.G2, passed=True, score=1.0, checks=())
REFUSED = GateOutcome(gate=Gate.G2, passed=False, score=0.0, checks=())


class Line(NamedTuple):
    """One thing measured: its name, and how to do it ``REPEATS`` times."""

    name: str
    work: Callable[[], object]


def _moved(trigger: Trigger, source: Stage, target: Stage) -> e.StageChanged:
    return e.StageChanged(
        epoch=EPOCH,
        step=STEP,
        slot_id=SLOT,
        seed_id=SEED,
        trigger=trigger,
        source=source,
        target=target,
    )


def _beginning() -> list[e.Event]:
    """A run with two slots, one of whose seeds is in TRAINING."""
    return [
        e.RunOpened(
            epoch=0,
            step=0,
            run_id="run-1",
            name="benchmark",
            objective=Objective.maximize("val_accuracy", unit="percent"),
            policy=GatePolicy(),
            host=HostDescription(kind="Host", parameters=1000, digest=""),
            random_seed=0,
        ),
        e.SlotOpened(epoch=0, step=0, slot_id=SLOT, topology=Topology.CNN, width=8),
        e.SlotOpened(epoch=0, step=0, slot_id="layer3", topology=Topology.CNN, width=8),
        e.SeedGerminated(
            epoch=EPOCH,
            step=STEP,
            slot_id=SLOT,
            seed_id=SEED,
            blueprint_id="conv_light",
            incubation=IncubationPlan(incubator=Incubator.STRAIGHT_THROUGH),
            seed_input=SeedInput.OPEN,
            blend=BlendPlan(),
            probe=Probe(),
            parameters=100,
            init_seed=0,
            learning_rate=None,
            weight_decay=None,
        ),
        _moved(Trigger.GERMINATE, Stage.DORMANT, Stage.GERMINATED),
        _moved(Trigger.BEGIN_TRAINING, Stage.GERMINATED, Stage.TRAINING),
    ]


def _epoch(number: int) -> e.EpochRecorded:
    return e.EpochRecorded(
        epoch=number,
        step=number * 10,
        objective=50.0,
        metrics=(Metric(name="train_loss", value=1.0), Metric(name="val_loss", value=1.0)),
        seeds=(SeedEvidence(slot_id=SLOT, seed_id=SEED, alpha=0.0, gradient_norm=1.0),),
    )


def _refused(number: int) -> e.GateEvaluated:
    return e.GateEvaluated(
        epoch=number, step=number * 10, slot_id=SLOT, seed_id=SEED, outcome=REFUSED
    )


def history(length: int) -> list[e.Event]:
    """A run of ``length`` events: mostly epochs, each with a gate that refuses."""
    events = _beginning()
    number = EPOCH
    while len(events) < length:
        number += 1
        events += [_epoch(number), _refused(number)]
    return events[:length]


def lines(state: RunState) -> list[Line]:
    """What is measured, each about one event or one question."""
    blend = e.BlendScheduled(
        epoch=EPOCH,
        step=STEP,
        slot_id=SLOT,
        seed_id=SEED,
        schedule=AlphaSchedule(start_step=10, steps=30),
    )
    folded = {
        "EpochRecorded": _epoch(2),
        "GateEvaluated": _refused(2),
        "StageChanged": _moved(Trigger.BEGIN_BLENDING, Stage.TRAINING, Stage.BLENDING),
        "BlendScheduled": blend,
    }
    asked = {"admitted": Warrant(outcome=PASSED), "refused": Warrant(outcome=REFUSED)}
    ask = partial(permits, Stage.TRAINING, Trigger.BEGIN_BLENDING)
    return [
        *(Line(f"evolve {name}", partial(evolve, state, event)) for name, event in folded.items()),
        *(Line(f"machine, {name}", partial(ask, warrant)) for name, warrant in asked.items()),
        Line("machine, legal triggers", partial(legal_triggers, Stage.TRAINING)),
    ]


def microseconds(work: Callable[[], object]) -> float:
    """What one call costs, over ``REPEATS`` of them."""
    begun = time.perf_counter()
    for _ in range(REPEATS):
        work()
    return (time.perf_counter() - begun) / REPEATS * 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=10_000, help="length of the replayed run")
    length: int = parser.parse_args().events
    events = history(length)
    state = replay(_beginning())
    if state is None:
        raise SystemExit("an empty run has nothing to measure")
    measured = lines(state)
    rounds: list[list[float]] = []
    replays: list[float] = []
    for _ in range(ROUNDS):
        rounds.append([microseconds(line.work) for line in measured])
        begun = time.perf_counter()
        replay(events)
        replays.append(time.perf_counter() - begun)
    asked = next(n for n, line in enumerate(measured) if line.name == "machine, admitted")
    print(f"{'':28}{'µs':>8}{'this : machine':>18}")
    for n, line in enumerate(measured):
        cost = statistics.median(row[n] for row in rounds)
        ratio = statistics.median(row[n] / row[asked] for row in rounds)
        print(f"{line.name:28}{cost:8.1f}{ratio:17.1f}x")
    total = statistics.median(replays)
    each = total / length * 1e6
    with_machine = total + length * statistics.median(row[asked] for row in rounds) / 1e6
    print(f"\nreplay of {length:,} events: {total * 1e3:.0f} ms, {each:.1f} µs an event")
    print(f"had the machine been asked for each: {with_machine * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
