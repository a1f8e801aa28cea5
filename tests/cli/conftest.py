"""Prepared databases: one run with all that can happen to a seed, one that was only begun."""

import os
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from kasmina.adapters.cli import app
from kasmina.adapters.cli.output import plain
from kasmina.domain import commands as c
from kasmina.domain.evidence import (
    Comparison,
    HostDescription,
    Metric,
    Probe,
    SeedEvidence,
    Violation,
)
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.objective import Objective
from kasmina.domain.policies import G5Policy, GatePolicy, MetricCheck, Timeouts
from kasmina.domain.schedules import BlendPlan
from kasmina.domain.stages import Blend, Gate, Incubator, Leak, Topology
from kasmina.infra.event_store import open_store
from kasmina.service import Journal
from kasmina.testing import FixedClock, MemoryEventStore

STEPS = 23
POLICY = GatePolicy(
    g5=G5Policy(min_epochs=1),
    timeouts=Timeouts(training=4),
    embargo_epochs=2,
    extra_checks=(
        MetricCheck(gate=Gate.G5, metric="val_loss", comparison=Comparison.AT_MOST, required=0.75),
    ),
)
DIGITS, BLANK = "digits-k3v7qx2a", "blank-77aa22bb"
SECOND = timedelta(seconds=1)
LEAK = Violation(leak=Leak.GRADIENT, count=2, subject="body.conv.weight")


class Story:
    """A run that is written without training anything."""

    def __init__(self, store, run_id, name="digits", policy=POLICY):
        self.journal = Journal(store, run_id, writer=f"writer of {run_id}", state=None)
        self.epochs = 0
        self.handle(
            c.OpenRun,
            run_id=run_id,
            name=name,
            objective=Objective.maximize("val_accuracy", unit="percent"),
            policy=policy,
            host=HostDescription(kind="DigitsNet", parameters=9_482, digest="ab" * 32),
            random_seed=7,
        )

    @property
    def state(self):
        return self.journal.state

    def handle(self, command, **values):
        return self.journal.handle(command(step=self.epochs * STEPS, **values))

    def slots(self, *names):
        for name in names:
            self.handle(c.OpenSlot, slot_id=name, topology=Topology.CNN, width=16)

    def germinate(self, slot, seed, blueprint, parameters, *, incubator=None, **blend):
        shape = (2, 16, 8, 8)
        self.handle(
            c.Germinate,
            slot_id=slot,
            seed_id=seed,
            blueprint_id=blueprint,
            probe=Probe(
                input_shape=shape,
                output_shape=shape,
                input_dtype="float32",
                output_dtype="float32",
                trainable_parameters=parameters,
            ),
            parameters=parameters,
            init_seed=1,
            incubation=IncubationPlan(incubator=incubator or Incubator.PROXIMAL),
            blend=BlendPlan(epochs=2.0, **blend),
            learning_rate=1e-3,
        )
        self.advance(slot)

    def advance(self, *slots):
        for slot in slots:
            self.handle(c.Advance, slot_id=slot)

    def epoch(self, objective, *, gradient=0.25, violations=(), loss=0.5):
        self.epochs += 1
        seeds = [
            SeedEvidence(
                slot_id=slot.slot_id,
                seed_id=slot.seed.seed_id,
                alpha=slot.seed.alpha(self.epochs * STEPS),
                gradient_norm=gradient,
            )
            for slot in self.state.slots.values()
            if slot.stage.holds_seed
        ]
        self.handle(
            c.RecordEpoch,
            epoch=self.epochs,
            objective=objective,
            metrics=(Metric(name="val_loss", value=loss),),
            seeds=tuple(seeds),
            violations=violations,
        )

    def contrast(self, slot, with_seed, without):
        self.handle(
            c.RecordCounterfactual,
            slot_id=slot,
            alpha=1.0,
            objective_with=with_seed,
            objective_without=without,
        )

    def rewind(self, to):
        self.journal.rewind(to)
        self.epochs = self.state.epoch


def tell(store):
    """One seed fossilized, one culled by its gate, one rewind, and a slot that is used again."""
    story = Story(store, DIGITS)
    story.slots("stem", "body")
    story.epoch(81.0)
    story.germinate(
        "body",
        "s5gk2mzpa",
        "conv_light",
        2_352,
        incubator=Incubator.REHEARSAL,
        search=(0.5, 1.0),
    )
    story.germinate("stem", "sq4xw7cne", "norm", 32, incubator=Incubator.STRAIGHT_THROUGH)
    story.epoch(81.2, violations=(("stem", LEAK),))
    story.contrast("stem", 80.8, 81.2)
    story.advance("body", "stem")
    story.epoch(81.25)
    story.advance("body", "stem")
    story.epoch(float("nan"))
    story.advance("body", "stem")
    saved = story.state.sequence
    story.handle(c.SaveCheckpoint, path="checkpoints/digits-4.pt", sequence=saved)
    story.epoch(83.5)
    story.advance("body")
    story.rewind(saved + 1)
    story.epoch(82.6)
    story.contrast("body", 83.0, 82.6)
    story.advance("body", "stem", "stem")
    for objective in (84.0, 85.5, 86.25):
        story.epoch(objective)
        story.advance("body")
    story.advance("stem", "stem")
    shown = {"agreement": 0.9731, "values": 3_600}
    story.handle(
        c.RecordShadow, slot_id="body", objective_with=86.25, objective_without=84.9, **shown
    )
    story.advance("body")
    story.germinate("stem", "sr2bd6yhf", "attention", 148, blend=Blend.GATED, target=0.5)
    story.epoch(86.9)
    story.contrast("body", 86.9, 85.0)
    story.advance("body", "stem")
    story.handle(c.PauseSeed, slot_id="stem")
    story.handle(c.CloseRun)
    return story


def filled(store):
    """The store, with a finished run and one that holds nothing but its first event."""
    tell(store)
    Story(store, BLANK, name="blank", policy=GatePolicy())
    return store


@pytest.fixture
def digits():
    return DIGITS


@pytest.fixture
def blank():
    return BLANK


@pytest.fixture(scope="session")
def store():
    """The two runs in memory, to be read only."""
    return filled(MemoryEventStore(FixedClock(step=SECOND)))


@pytest.fixture
def url(tmp_path):
    """The two runs in a database."""
    url = f"sqlite:///{tmp_path / 'kasmina.db'}"
    with open_store(url, clock=FixedClock(step=SECOND)) as store:
        filled(store)
    return url


@pytest.fixture
def story():
    """The means to write another run."""
    return Story


@pytest.fixture
def call(url, capsys, monkeypatch):
    """Call a command in this process, as the program would."""
    monkeypatch.setenv("KASMINA_DATABASE", url)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments):
        code = app.run(list(arguments))
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return call


GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(params=[80, 120])
def golden(request):
    """Holds what is rendered to a file; KASMINA_GOLDEN=write writes the file."""

    def check(name, renderable):
        file = GOLDEN / f"{name}-{request.param}.txt"
        text = plain(renderable, width=request.param)
        assert max(len(line) for line in text.splitlines()) <= request.param
        if os.environ.get("KASMINA_GOLDEN") == "write":
            file.write_text(text, encoding="utf-8")
        assert text == file.read_text(encoding="utf-8")

    return check
