"""What was released is readable for ever. No file under ``golden/`` is ever edited.

A new event type, or a new version of one, adds ``payloads/<type>.<version>.json`` and its event
here; a new revision of the schema adds ``databases/<revision>.db``, made from these events.
"""

import hashlib
import math
import shutil
from pathlib import Path

import pytest

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
from kasmina.domain.objective import Objective
from kasmina.domain.policies import G2Policy, GatePolicy, MetricCheck, Timeouts
from kasmina.domain.schedules import AlphaSchedule, BlendPlan, Curve
from kasmina.domain.stages import (
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
from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store

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
        incubator=Incubator.STRAIGHT_THROUGH,
        seed_input=SeedInput.DETACHED,
        blend=BlendPlan(epochs=2.5, curve=Curve.COSINE, temperature=3.0),
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

DATABASES = {"0001": "528c5c9b7de33084fdc51c05bdb177193d80d3f20bc2de881edfc59510da9b34"}
"""The revision of each golden database, and the digest at the end of its first run."""


def leaves(cls):
    """The classes at the end of the hierarchy, without those that tests make."""
    below = [sub for sub in cls.__subclasses__() if sub.__module__ == e.__name__]
    return {leaf for sub in below for leaf in leaves(sub)} if below else {cls}


def test_every_event_has_a_stored_name_and_a_golden_payload():
    named = {cls for cls, _ in codec.TYPES.values()}
    assert named == leaves(e.Event)
    assert EVENTS.keys() == codec.TYPES.keys()
    for name, (_, version) in codec.TYPES.items():
        for released in range(1, version + 1):
            assert (GOLDEN / "payloads" / f"{name}.{released}.json").is_file()


@pytest.mark.parametrize("path", sorted((GOLDEN / "payloads").iterdir()), ids=lambda p: p.stem)
def test_a_golden_payload_reads_as_its_event(path):
    name, version = path.stem.split(".")
    event = codec.decode(name, int(version), path.read_bytes())
    assert repr(event) == repr(EVENTS[name])


@pytest.mark.parametrize("name", codec.TYPES)
def test_an_event_is_written_as_its_newest_golden_payload(name):
    version = codec.TYPES[name][1]
    golden = (GOLDEN / "payloads" / f"{name}.{version}.json").read_bytes()
    encoded = codec.encode(EVENTS[name])
    assert (encoded.type.decode(), encoded.schema_version) == (name, version)
    assert encoded.payload == golden


def test_no_golden_file_was_edited():
    digest = hashlib.sha256()
    for path in sorted(GOLDEN.glob("*/*.1.json")):
        digest.update(path.name.encode() + b"\n" + path.read_bytes() + b"\n")
    assert digest.hexdigest() == "4f2e6506fccbc380740b01fd339c369c8ba00dcfd9727cb2cbcab704de4aa906"


def test_every_revision_has_a_golden_database():
    assert {path.stem for path in (GOLDEN / "databases").glob("*.db")} == set(DATABASES)
    assert schema.REVISION in DATABASES


@pytest.mark.parametrize(("revision", "digest"), DATABASES.items())
def test_a_golden_database_is_brought_up_to_date_and_reads_as_it_did(tmp_path, revision, digest):
    copy = tmp_path / "runs.db"
    shutil.copy(GOLDEN / "databases" / f"{revision}.db", copy)
    with open_store(f"sqlite:///{copy}") as store:
        events = [recorded.event for recorded in store.read(RUN)]
        forked = [recorded.event for recorded in store.read("digits-fork")]
        verification = store.verify(RUN)
    expected = list(EVENTS.values())
    expected.remove(EVENTS["RunForked"])
    assert (repr(events), forked) == (repr(expected), [EVENTS["RunForked"]])
    assert verification.sound
    assert verification.head.digest.hex() == digest


def test_the_present_golden_database_can_be_audited_without_being_touched(tmp_path):
    copy = tmp_path / "runs.db"
    shutil.copy(GOLDEN / "databases" / f"{schema.REVISION}.db", copy)
    before = copy.read_bytes()
    with open_store(f"sqlite:///{copy}", access=Access.READ) as store:
        assert store.verify(RUN).sound
    assert copy.read_bytes() == before
