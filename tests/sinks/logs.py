"""Logs to follow: runs in which everything happens that a receiver could show."""

import random

from attrs import evolve as changed

from kasmina.adapters.cli.render.sentences import sentence
from kasmina.domain import events as e
from kasmina.domain.evidence import Check, Comparison, GateOutcome, Metric, Software
from kasmina.domain.stages import Gate, Health, Leak, Stage
from tests.domain.scenario import (
    SEED,
    SLOT,
    blend_scheduled,
    contrasted,
    entered,
    epoch,
    evidence,
    passed,
    paused,
    ready,
    recycled,
    step_of,
)

WORDS = sentence


def place(at, slot_id=SLOT):
    return {"epoch": at, "step": step_of(at), "slot_id": slot_id, "seed_id": SEED}


def refused(*, at):
    checks = (
        Check.of("improvement", 0.25, Comparison.AT_LEAST, 0.5),
        Check.of("gradient", float("nan"), Comparison.FINITE, None),
        Check.of("unmeasured", None, Comparison.AT_LEAST, 1.0),
    )
    outcome = GateOutcome.of(Gate.G2, checks, 0.05)
    return e.GateEvaluated(**place(at), outcome=outcome)


def rewound(to, head, *, at):
    return e.RunRewound(epoch=at, step=step_of(at), to=to, head=head)


def closed(*, at):
    return e.RunClosed(epoch=at, step=step_of(at), objective=60.0)


def grown():
    first, *rest = entered(Stage.FOSSILIZED)
    first = changed(first, software=(Software(name="torch", version="2.13"),))
    return (first, *rest, closed(at=12))


def troubled():
    """A seed that is refused, ill, leaky and paused, and whose blend is taken back and repeated."""
    training = entered(Stage.TRAINING)
    ill = (
        epoch(2, float("nan"), evidence(), metrics=(Metric(name="loss", value=float("inf")),)),
        e.IsolationViolated(**place(2), leak=Leak.GRADIENT, count=2, subject="body.weight"),
        e.HealthChanged(**place(2), health=Health.UNHEALTHY),
        refused(at=2),
        contrasted(at=2, objective_with=50.0, objective_without=51.0, alpha=0.5),
        paused(at=2),
        e.SeedResumed(**place(3)),
        e.CheckpointSaved(epoch=3, step=step_of(3), path="a.pt", sequence=3),
    )
    before = (*training, *ill)
    blended = (
        passed(Gate.G2, at=4),
        entered(Stage.BLENDING)[-2],
        blend_scheduled(at=4),
        epoch(5, 54.0, evidence(alpha=0.2)),
        e.AlphaOverridden(**place(5), alpha=0.75),
        epoch(6, 55.0, evidence(alpha=0.75)),
    )
    head = len(before) + len(blended)
    again = (
        rewound(len(before), head, at=3),
        *blended,
        closed(at=6),
        rewound(head, head + len(blended) + 2, at=6),
        epoch(7, 56.0, evidence(alpha=0.75)),
    )
    return (*before, *blended, *again)


def many_epochs(count):
    history = ready(Stage.TRAINING)
    last = max(event.epoch for event in history)
    return (*history, *(epoch(last + n, 50.0 + n / 7, evidence()) for n in range(1, count)))


def write(store, runs, *, seed=0):
    """Append the runs, by turns in batches of any size."""
    chance = random.Random(seed)
    written = dict.fromkeys(runs, 0)
    while left := [run_id for run_id, events in runs.items() if written[run_id] < len(events)]:
        run_id = chance.choice(left)
        done = written[run_id]
        batch = runs[run_id][done : done + chance.randint(1, 12)]
        batch = [
            changed(event, run_id=run_id) if isinstance(event, e.RunOpened) else event
            for event in batch
        ]
        store.append(run_id, batch, expected=done)
        written[run_id] += len(batch)


STORIES = {
    "grown-1": grown(),
    "troubled/läufe": troubled(),
    ".culled": recycled(),
}


def write_fork(store, parent="troubled/läufe"):
    """A run that goes on while its parent's seed is in TRAINING, and culls it."""
    at = 8
    (record,) = store.read(parent, after=at - 1, until=at)
    fork = e.RunForked(
        epoch=1,
        step=step_of(1),
        run_id="fork",
        name="digits again",
        parent_run_id=parent,
        parent_sequence=at,
        parent_digest=record.digest.hex(),
    )
    store.append("fork", [fork, epoch(2, 51.0, evidence()), refused(at=2)], expected=0)


def told(store):
    """The store, with every story told in it."""
    write(store, STORIES)
    write_fork(store)
    return store


def many(copies=6, epochs=400):
    """A few thousand events of many runs."""
    return {
        f"{name}-{n}": events
        for n in range(copies)
        for name, events in {**STORIES, "long": many_epochs(epochs)}.items()
    }
