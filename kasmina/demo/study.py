"""Host alone against host with seeds: the same steps, data order and first weights.

Every arm is a run on record, the host alone too, so that figures can be read from the log and an
interrupted study can go on where it was.
"""

from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path

import torch
from attrs import field, frozen
from torch import Tensor
from torch.nn import functional as F

from kasmina.adapters.torch.graft import graft_host
from kasmina.adapters.torch.hosts import ConvHost
from kasmina.bootstrap import open_run
from kasmina.demo.digits import Digits
from kasmina.domain.errors import CorruptHistory, KasminaError
from kasmina.domain.events import RunOpened, SeedCulled, SeedFossilized
from kasmina.domain.evolve import replay
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.objective import Objective
from kasmina.domain.policies import GatePolicy, Timeouts
from kasmina.domain.ports import EventStore, Recorded
from kasmina.domain.projections import timeline
from kasmina.domain.stages import Incubator, Stage
from kasmina.history import load
from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store
from kasmina.infra.log import LogFormat
from kasmina.run import EpochReport, Run

CHANNELS = (4, 8)
LEARNING_RATE = 3e-3
FIRST_GERMINATION = 5
"""Epochs that the host trains alone first."""

OBJECTIVE = Objective.maximize("val_accuracy", unit="percent")
# The host's own accuracy moves by about a point from one epoch to the next.
POLICY = GatePolicy(tolerance=1.0, timeouts=Timeouts(training=6), embargo_epochs=3)


class OtherStudy(KasminaError):
    """A database whose last study is not the one to go on with."""

    def __init__(self, study: "Study") -> None:
        self.study = study
        super().__init__(
            f"{study.url} holds no study with random seeds {list(study.random_seeds)} and "
            f"{study.epochs} epochs to go on with; give the options that it was begun with"
        )


class Arm(Enum):
    """What is compared."""

    ALONE = "alone"
    GROWN = "grown"


@frozen(kw_only=True)
class Planting:
    """A seed to try in a slot. Without a ``learning_rate`` it has the default of its incubator."""

    blueprint: str
    incubator: Incubator
    learning_rate: float | None = None


PLANTINGS: Mapping[str, tuple[Planting, ...]] = {
    # Straight through, at the host's own learning rate, this one outgrows the features while it
    # incubates: G2 rehearses it, sees the objective fall, and refuses until its time is up.
    "stage0": (
        Planting(
            blueprint="conv_heavy",
            incubator=Incubator.STRAIGHT_THROUGH,
            learning_rate=LEARNING_RATE,
        ),
        Planting(blueprint="depthwise", incubator=Incubator.PROXIMAL),
    ),
    "stage1": (Planting(blueprint="conv_inline", incubator=Incubator.REHEARSAL),),
}
"""By slot, in order: the next is planted whenever the slot is free."""


@frozen(kw_only=True)
class Study:
    """One invocation of the demonstration. Checkpoints lie in ``folder``."""

    url: str
    folder: Path
    random_seeds: tuple[int, ...]
    epochs: int
    log: LogFormat | None = None

    @property
    def arms(self) -> tuple[tuple[Arm, int], ...]:
        """Every run of the study, in order."""
        return tuple((arm, seed) for seed in self.random_seeds for arm in Arm)


@frozen(kw_only=True)
class Progress:
    """One epoch of one arm."""

    name: str
    report: EpochReport = field(repr=False)


def name_of(arm: Arm, random_seed: int) -> str:
    """The name under which an arm's run is recorded."""
    return f"digits-{arm.value}-{random_seed}"


def train(
    study: Study, digits: Digits, arm: Arm, seed: int, resume: str | None
) -> Iterator[Progress]:
    """Train one arm to its last epoch, yielding after each."""
    torch.manual_seed(seed)
    host = ConvHost(channels=CHANNELS)
    slots = graft_host(host)
    optimizer = torch.optim.AdamW(host.parameters(), lr=LEARNING_RATE)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(host(images), labels)

    with open_run(
        study.url,
        name=name_of(arm, seed),
        slots=slots,
        optimizer=optimizer,
        objective=OBJECTIVE,
        policy=POLICY,
        random_seed=seed,
        resume=resume,
        log=study.log,
    ) as run:
        while run.state.epoch < study.epochs:
            if arm is Arm.GROWN and run.state.epoch >= FIRST_GERMINATION:
                _plant(run)
            for batch in digits.batches():
                optimizer.zero_grad()
                torch.autograd.backward(loss(batch.images, batch.labels))
                run.rehearse(loss, batch.images, batch.labels)
                optimizer.step()
                run.step()
            report = run.end_epoch(lambda: digits.evaluate(host))
            run.checkpoint(study.folder / f"{run.run_id}.pt")
            yield Progress(name=run.state.name, report=report)


def _plant(run: Run) -> None:
    for slot_id, plantings in PLANTINGS.items():
        slot = run.state.slot(slot_id)
        if slot.stage is Stage.DORMANT and slot.germinations < len(plantings):
            planting = plantings[slot.germinations]
            run.germinate(
                slot_id,
                planting.blueprint,
                learning_rate=planting.learning_rate,
                incubation=IncubationPlan(incubator=planting.incubator),
            )


def run_study(study: Study) -> Iterator[Progress]:
    """Run every arm from its beginning, on one thread: more are slower on tensors this small."""
    torch.set_num_threads(1)
    digits = Digits.load()
    for arm, seed in study.arms:
        yield from train(study, digits, arm, seed, resume=None)


def resume_study(study: Study) -> Iterator[Progress]:
    """Go on with the last study in the database: finished arms are left as they are."""
    torch.set_num_threads(1)
    digits = Digits.load()
    with open_store(study.url, access=Access.READ) as store:
        begun = last_study(store, study)
        states = [load(store, run_id) for run_id in begun.values()]
    known = [state for state in states if state is not None]
    done = {state.name for state in known if state.closed}
    fitting = [
        state.epoch == study.epochs if state.closed else state.epoch <= study.epochs
        for state in known
    ]
    if not (known and all(fitting)):
        raise OtherStudy(study)
    for arm, seed in study.arms:
        name = name_of(arm, seed)
        if name not in done:
            yield from train(study, digits, arm, seed, resume=begun.get(name))


def last_study(store: EventStore, study: Study) -> dict[str, str]:
    """The run identifiers of the last study begun in ``store``, by name."""
    first = name_of(*study.arms[0])
    begun: dict[str, str] = {}
    for record in store.runs():
        opened = record.event
        if isinstance(opened, RunOpened):
            if opened.name == first:
                begun = {first: record.run_id}
            elif begun:
                begun[opened.name] = record.run_id
    return begun


@frozen(kw_only=True)
class Result:
    """What an arm came to, read from its log. Accuracies are in percent, of unseen images."""

    arm: Arm
    name: str
    run_id: str
    steps: int
    parameters: int
    accuracy: float
    fossilized: int
    culled: int


def results(study: Study) -> list[Result]:
    """The figures of the last study in the database, arm by arm."""
    with open_store(study.url, access=Access.READ) as store:
        begun = last_study(store, study)
        return [
            _result(arm, list(store.read(begun[name_of(arm, seed)])))
            for arm, seed in study.arms
            if name_of(arm, seed) in begun
        ]


def _result(arm: Arm, history: list[Recorded]) -> Result:
    state = replay([record.event for record in history])
    if state is None:
        raise CorruptHistory("the run has no events")
    seeds = [slot.seed for slot in state.slots.values() if slot.stage.holds_seed and slot.seed]
    happened = [moment.event for moment in timeline(history) if not moment.undone]
    return Result(
        arm=arm,
        name=state.name,
        run_id=state.run_id,
        steps=state.step,
        parameters=state.host.parameters + sum(each.parameters for each in seeds),
        accuracy=state.metrics["test_accuracy"],
        fossilized=sum(isinstance(event, SeedFossilized) for event in happened),
        culled=sum(isinstance(event, SeedCulled) for event in happened),
    )
