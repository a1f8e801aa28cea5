"""One event of every type, and how the files under ``golden/`` are made of them.

    python -m tests.infra.released     # writes what is missing under golden/, and nothing else

No file there is ever edited once it was released: a new version of a type, or a new revision of
the schema, has a file of its own. What is not released yet may be deleted and written again; the
digests to hold it to are printed.
"""

import hashlib
import math
from pathlib import Path

from kasmina.domain import events as e
from kasmina.domain.evidence import (
    Check,
    Comparison,
    GateOutcome,
    HostDescription,
    Metric,
    Probe,
    SeedEvidence,
    Software,
)
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.objective import Objective
from kasmina.domain.policies import G2Policy, GatePolicy, MetricCheck, Timeouts
from kasmina.domain.schedules import AlphaSchedule, BlendPlan, Curve
from kasmina.domain.stages import (
    Blend,
    CullCause,
    Gate,
    Health,
    Incubator,
    Leak,
    SeedInput,
    Stage,
    Topology,
    Trigger,
)
from kasmina.infra import codec, schema
from kasmina.infra.event_store import open_store
from kasmina.testing import FixedClock

GOLDEN = Path(__file__).parent / "golden"

RUN = "digits-k3v7qx2a"
EVENTS = {
    "RunOpened": e.RunOpened(
        epoch=0,
        step=0,
        run_id=RUN,
        name="digits",
        objective=Objective.maximize("val_accuracy", unit="percent"),
        policy=GatePolicy(
            timeouts=Timeouts(training=20),
            extra_checks=(
                MetricCheck(gate=Gate.G2, metric="loss", comparison=Comparison.BELOW, required=2.5),
            ),
        ),
        host=HostDescription(kind="demo.Net", parameters=858, digest="ab" * 32),
        random_seed=7,
        software=(Software(name="kasmina", version="0.1.0"),),
    ),
    "RunForked": e.RunForked(
        epoch=3,
        step=30,
        run_id="digits-fork",
        name="digits",
        parent_run_id=RUN,
        parent_sequence=12,
        parent_digest="cd" * 32,
    ),
    "RunRewound": e.RunRewound(epoch=3, step=30, to=12, head=17),
    "RunClosed": e.RunClosed(epoch=9, step=90, objective=96.25),
    "GatePolicyChanged": e.GatePolicyChanged(
        epoch=4, step=40, policy=GatePolicy(g2=G2Policy(min_improvement=1.5), tolerance=0.25)
    ),
    "CheckpointSaved": e.CheckpointSaved(epoch=4, step=40, path="checkpoints/4.pt", sequence=21),
    "EpochRecorded": e.EpochRecorded(
        epoch=5,
        step=50,
        objective=91.5,
        metrics=(Metric(name="loss", value=0.5), Metric(name="grad", value=math.inf)),
        seeds=(
            SeedEvidence(
                slot_id="layer2",
                seed_id="s1",
                alpha=0.25,
                gradient_norm=math.nan,
                nonfinite_outputs=1,
                nonfinite_gradients=2,
            ),
        ),
    ),
    "SlotOpened": e.SlotOpened(epoch=0, step=0, slot_id="layer2", topology=Topology.CNN, width=16),
    "SeedGerminated": e.SeedGerminated(
        epoch=1,
        step=10,
        slot_id="layer2",
        seed_id="s1",
        blueprint_id="conv_light",
        incubation=IncubationPlan(
            incubator=Incubator.REHEARSAL, penalty=2.5, share=0.125, warmup_steps=20
        ),
        seed_input=SeedInput.DETACHED,
        blend=BlendPlan(
            blend=Blend.GATED,
            target=0.75,
            search=(0.25, 0.5),
            epochs=2.5,
            curve=Curve.COSINE,
            temperature=3.0,
        ),
        probe=Probe(
            input_shape=(2, 16, 8, 8),
            output_shape=(2, 16, 8, 8),
            input_dtype="float32",
            output_dtype="float32",
            trainable_parameters=2336,
        ),
        parameters=2336,
        init_seed=11,
        learning_rate=0.001,
        weight_decay=None,
    ),
    "GateEvaluated": e.GateEvaluated(
        epoch=5,
        step=50,
        slot_id="layer2",
        seed_id="s1",
        outcome=GateOutcome.of(
            Gate.G2,
            (
                Check.of("improvement", 1.25, Comparison.AT_LEAST, 0.5),
                Check.of("rehearsal", None, Comparison.AT_LEAST, -0.5),
                Check.of("gradient_norm", math.nan, Comparison.FINITE, None),
            ),
            0.25,
        ),
    ),
    "StageChanged": e.StageChanged(
        epoch=5,
        step=50,
        slot_id="layer2",
        seed_id="s1",
        trigger=Trigger.BEGIN_BLENDING,
        source=Stage.TRAINING,
        target=Stage.BLENDING,
    ),
    "BlendScheduled": e.BlendScheduled(
        epoch=5,
        step=50,
        slot_id="layer2",
        seed_id="s1",
        schedule=AlphaSchedule(curve=Curve.SIGMOID, start_step=50, steps=30, temperature=2.5),
    ),
    "AlphaOverridden": e.AlphaOverridden(
        epoch=6, step=60, slot_id="layer2", seed_id="s1", alpha=0.5
    ),
    "ShadowEvaluated": e.ShadowEvaluated(
        epoch=7,
        step=70,
        slot_id="layer2",
        seed_id="s1",
        agreement=0.9375,
        values=3600,
        objective_with=93.0,
        objective_without=-math.inf,
    ),
    "CounterfactualMeasured": e.CounterfactualMeasured(
        epoch=7,
        step=70,
        slot_id="layer2",
        seed_id="s1",
        alpha=1.0,
        objective_with=93.0,
        objective_without=None,
    ),
    "IsolationViolated": e.IsolationViolated(
        epoch=2,
        step=20,
        slot_id="layer2",
        seed_id="s1",
        leak=Leak.SHARED_PARAMETER,
        count=3,
        subject="layer2.weight",
    ),
    "HealthChanged": e.HealthChanged(
        epoch=6, step=60, slot_id="layer2", seed_id="s1", health=Health.UNHEALTHY
    ),
    "CullScheduled": e.CullScheduled(
        epoch=7,
        step=70,
        slot_id="layer2",
        seed_id="s1",
        reason="größer als erlaubt",
        schedule=AlphaSchedule(curve=Curve.LINEAR, start_step=70, steps=10, start=1.0, end=0.0),
        cause=CullCause.TIMED_OUT,
    ),
    "SeedCulled": e.SeedCulled(
        epoch=8,
        step=80,
        slot_id="layer2",
        seed_id="s1",
        reason='said "no"\n',
        cause=CullCause.TIMED_OUT,
    ),
    "SeedFossilized": e.SeedFossilized(
        epoch=8, step=80, slot_id="layer2", seed_id="s1", improvement=1.75, contribution=None
    ),
    "SlotRecycled": e.SlotRecycled(epoch=9, step=90, slot_id="layer2", seed_id="s1"),
    "SeedPaused": e.SeedPaused(epoch=3, step=30, slot_id="layer2", seed_id="s1"),
    "SeedResumed": e.SeedResumed(epoch=4, step=40, slot_id="layer2", seed_id="s1"),
}


def payload_file(name, version):
    return GOLDEN / "payloads" / f"{name}.{version}.json"


def database_file(revision):
    return GOLDEN / "databases" / f"{revision}.db"


def digest_of_first_versions():
    """One digest over every payload of version 1."""
    digest = hashlib.sha256()
    for path in sorted(GOLDEN.glob("*/*.1.json")):
        digest.update(path.name.encode() + b"\n" + path.read_bytes() + b"\n")
    return digest.hexdigest()


def write_database(path):
    """Two runs that hold the events, and the digest at the end of the first."""
    first = [event for name, event in EVENTS.items() if name != "RunForked"]
    with open_store(f"sqlite:///{path}", clock=FixedClock()) as store:
        store.append(RUN, first, expected=0)
        store.append("digits-fork", [EVENTS["RunForked"]], expected=0)
        return store.head(RUN).digest.hex()


def write_missing():
    for name, (_, version) in codec.TYPES.items():
        if not payload_file(name, version).exists():
            payload_file(name, version).write_bytes(codec.encode(EVENTS[name]).payload)
    database = database_file(schema.REVISION)
    if not database.exists():
        print(f"database {schema.REVISION}: {write_database(database)}")  # noqa: T201 - a script
    print(f"payloads of version 1: {digest_of_first_versions()}")  # noqa: T201 - a script


if __name__ == "__main__":
    write_missing()
