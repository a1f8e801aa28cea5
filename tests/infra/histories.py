"""A long run by decisions alone, with events of every type, and a run that was forked from it."""

from kasmina.domain import commands as c
from kasmina.domain.evidence import Metric, Violation
from kasmina.domain.ports import EMPTY_HEAD
from kasmina.domain.schedules import AlphaSchedule, BlendPlan
from kasmina.domain.stages import Leak, Stage, Topology
from kasmina.infra import codec
from kasmina.infra.integrity import link
from kasmina.service import Journal, fork
from kasmina.testing import FixedClock, MemoryEventStore
from tests.domain.scenario import ACCURACY, HOST, PROBE, evidence
from tests.domain.strategies import GENTLE, LENIENT

LONG, FORKED = "long-k3v7qx2a", "fork-77aa22bb"
STEPS = 10


class Shelf(MemoryEventStore):
    """A store in memory that shows what it stores, or something else of ``altered`` runs."""

    def __init__(self, altered=None):
        super().__init__(FixedClock())
        self._altered = altered or {}

    def rows(self, run_id):
        return self._altered[run_id] if run_id in self._altered else super().rows(run_id)

    def pages(self, run_id):
        yield [(row.position, *row.columns[1:], row.digest) for row in self.rows(run_id)]


def linked(run_id, events):
    """The rows of a run that was written by somebody who computes every digest anew."""
    encoded = [codec.encode(event) for event in events]
    rows = link(run_id, encoded, after=EMPTY_HEAD, at=0, batch=None)
    return [row._replace(position=position) for position, row in enumerate(rows, 1)]


class Story:
    """A run that is written without training anything."""

    def __init__(self, journal, seeds=0):
        self.journal = journal
        self.seeds = seeds

    @property
    def state(self):
        return self.journal.state

    def handle(self, command, *, steps=0, **values):
        return self.journal.handle(command(step=self.state.step + steps, **values))

    def open(self, *slots):
        for slot in slots:
            self.handle(c.OpenSlot, slot_id=slot, topology=Topology.CNN, width=8)

    def germinate(self, *slots):
        for slot in slots:
            self.seeds += 1
            self.handle(
                c.Germinate,
                slot_id=slot,
                seed_id=f"s{self.seeds}",
                blueprint_id="conv_light",
                probe=PROBE,
                parameters=100,
                init_seed=1,
                blend=BlendPlan(epochs=1.0),
            )

    def epoch(self, *, gain=1.0, violations=()):
        attached = [slot for slot in self.state.slots.values() if slot.stage.holds_seed]
        self.handle(
            c.RecordEpoch,
            steps=STEPS,
            epoch=self.state.epoch + 1,
            objective=(self.state.measured or 50.0) + gain,
            metrics=(Metric(name="speed", value=1.0),),
            seeds=tuple(
                evidence(slot_id=slot.slot_id, seed_id=slot.seed.seed_id) for slot in attached
            ),
            violations=violations,
        )

    def advance(self, *slots):
        for slot in slots:
            self.handle(c.Advance, slot_id=slot)

    def compare(self, slot):
        figures = {"objective_with": 60.0, "objective_without": 59.0}
        if self.state.slot(slot).stage is Stage.SHADOWING:
            self.handle(c.RecordShadow, slot_id=slot, agreement=0.95, values=64, **figures)
        self.handle(c.RecordCounterfactual, slot_id=slot, alpha=1.0, **figures)


def begun(store, run_id):
    """A run with nothing in it."""
    journal = Journal(store, run_id, writer=f"writer of {run_id}", state=None)
    opening = c.OpenRun(
        step=0,
        run_id=run_id,
        name="long",
        objective=ACCURACY,
        policy=LENIENT,
        host=HOST,
        random_seed=7,
    )
    journal.handle(opening)
    return Story(journal)


def grow(story, slot):
    """One seed from germination to the last gate, with a pause on its way."""
    story.germinate(slot)
    story.epoch()
    story.advance(slot)
    story.handle(c.PauseSeed, slot_id=slot)
    story.epoch()
    story.handle(c.ResumeSeed, slot_id=slot)
    story.advance(slot)
    ramp = AlphaSchedule(start_step=story.state.step, steps=5)
    story.handle(c.ScheduleAlpha, slot_id=slot, schedule=ramp)
    story.handle(c.OverrideAlpha, slot_id=slot, alpha=0.5)
    for _ in range(3):
        story.epoch()
        story.compare(slot)
        story.advance(slot)
    while story.state.slot(slot).stage is not Stage.FOSSILIZED:
        story.epoch()
        story.compare(slot)
        story.advance(slot)


def leak(story, slot):
    """One seed that leaks, is refused, and is culled at once."""
    story.germinate(slot)
    story.advance(slot)
    seen = Violation(leak=Leak.GRADIENT, count=99, subject="conv.weight")
    story.epoch(violations=((slot, seen),))
    story.advance(slot)
    story.handle(c.Cull, slot_id=slot, reason="it leaks")
    clean(story, slot)


def ramp_out(story, slot):
    """One seed that is culled while its host sees it."""
    story.germinate(slot)
    story.advance(slot)
    story.epoch()
    story.advance(slot)
    story.handle(c.Cull, slot_id=slot, reason="größer als erlaubt", ramp_steps=5)
    story.epoch()
    story.advance(slot)
    clean(story, slot)


def clean(story, slot):
    story.advance(slot)
    story.epoch()
    story.advance(slot, slot)


def tell(store):
    """The two runs: the long one ends closed, the fork goes on from its middle."""
    story = begun(store, LONG)
    story.open("a", "b", "c", "d")
    for slot in ("a", "b"):
        grow(story, slot)
        leak(story, "d")
        ramp_out(story, "d")
    story.epoch()
    saved = story.state.sequence
    story.handle(c.SaveCheckpoint, path="checkpoints/1.pt", sequence=saved)
    story.epoch(gain=-1.0)
    story.handle(c.ChangePolicy, policy=GENTLE)
    story.journal.rewind(saved + 1)
    grow(story, "c")
    ramp_out(story, "d")
    story.handle(c.CloseRun)
    fork(store, LONG, at=saved + 1, run_id=FORKED, name="fork")
    grow(Story(Journal.open(store, FORKED, writer="branch"), seeds=90), "c")
