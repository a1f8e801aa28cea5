"""The arms: ways to grow the same host at the same moment, each trained and measured alike."""
# ruff: noqa: INP001 - beside a script, which imports it

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from attrs import define, evolve, field, frozen
from incubators_tasks import Task, cross_entropy
from torch import Tensor, nn

from kasmina import (
    BlendPlan,
    G2Policy,
    G4Policy,
    G5Policy,
    GatePolicy,
    IncubationPlan,
    Incubator,
    Objective,
    Run,
    Stage,
    graft,
    open_run,
)
from kasmina.adapters.torch.blueprints import blueprints
from kasmina.adapters.torch.blueprints.parts import ZeroConv2d, ZeroLinear

INCUBATION = 10
"""Epochs from germination to exposure."""

AFTER = 30
"""Epochs from exposure to the end, all of which count for the shock."""

LOOKS = 10
"""Steps between looks at the held-out accuracy in the first ``CLOSE`` epochs after exposure."""

CLOSE = 4
LEVEL = 3
"""Epochs over which a level of accuracy is taken: before the exposure, and at the end."""

# Every seed passes every gate, G2 after INCUBATION epochs: all arms graft at the same moment.
_ANY = 1e30
OPEN_GATES = GatePolicy(
    g2=G2Policy(
        min_improvement=-_ANY,
        max_isolation_violations=10**9,
        min_epochs=INCUBATION,
        min_rehearsed_contribution=-_ANY,
    ),
    g4=G4Policy(min_agreement=-_ANY),
    g5=G5Policy(min_improvement=-_ANY, min_contribution=-_ANY, min_stability=0.0),
    tolerance=_ANY,
)

# None passes G2, which rehearses each after every epoch.
CLOSED_GATES = GatePolicy(g2=G2Policy(min_improvement=_ANY, min_epochs=1))


class Way(Enum):
    """How the host is grown."""

    ALONE = "host alone"
    SCRATCH = "grown size from scratch"
    NAIVE = "naive insertion"
    ZERO = "zero-initialised insertion"
    GRAFT = "kasmina"


class Kind(Enum):
    """What is inserted."""

    RESIDUAL = "residual"
    INLINE = "in-line"


@frozen(kw_only=True)
class Arm:
    """One way to grow. ``rate`` is relative to the host's, ``ramp`` in epochs."""

    way: Way
    kind: Kind | None = None
    plan: IncubationPlan | None = None
    ramp: float = 3.0
    search: tuple[float, ...] = ()
    rate: float = 1.0

    def __str__(self) -> str:
        if self.plan is None:
            return self.way.value
        told = {
            Incubator.STRAIGHT_THROUGH: "STRAIGHT_THROUGH",
            Incubator.PROXIMAL: f"PROXIMAL {self.plan.penalty:g}",
            Incubator.REHEARSAL: f"REHEARSAL {self.plan.share:g}",
            Incubator.NONE: "NONE",
        }[self.plan.incubator]
        searched = ", line search" if self.search else ""
        return f"{told}{searched}, {'ramp' if self.ramp else 'at once'}"


@frozen(kw_only=True)
class Figures:
    """What came of one arm with one random seed.

    ``accuracy`` is the held-out accuracy at the end in percent, ``shock`` by how many points it
    fell at worst since the exposure. At the end of incubation, in norms of the host's features,
    the seed's output has ``size`` and is ``away`` from them, and ``gain`` is the gates' loss
    without the seed minus with it at alpha 1; ``target`` is the alpha to which it then went.
    ``step_ms`` is CPU time of a training step while it incubated.
    """

    accuracy: float
    shock: float
    size: float | None = None
    away: float | None = None
    gain: float | None = None
    target: float | None = None
    step_ms: float


@define
class Training:
    """A host in training; under a run, where kasmina grows it."""

    task: Task
    seed: int
    model: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    run: Run | None = None
    cpu: float = 0.0
    levels: list[float] = field(factory=list)
    """Held-out accuracy at the end of each epoch."""

    @classmethod
    def begun(cls, task: Task, seed: int, arm: Arm | None = None) -> "Training":
        """From the first epoch, with weights that ``seed`` decides; grown at once for an arm."""
        torch.manual_seed(seed)
        model = task.build()
        if arm is not None:
            insert(model, task, block(task, arm))
        optimizer = torch.optim.AdamW(model.parameters(), lr=task.rate, fused=True)
        return cls(task=task, seed=seed, model=model, optimizer=optimizer)

    def parted(self) -> "Training":
        """A copy that goes its own way."""
        model = copy.deepcopy(self.model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.task.rate, fused=True)
        optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        return evolve(self, model=model, optimizer=optimizer, levels=list(self.levels))

    def train(self, epochs: int) -> None:
        """Go on for whole epochs."""
        for _ in range(epochs):
            self.steps()
            self.close_epoch()

    def steps(self, look: Callable[[], None] | None = None) -> None:
        """An epoch's steps, with a look after every ``LOOKS`` of them."""
        for n, (inputs, classes) in enumerate(self.task.batches(self.seed, self.epoch), start=1):
            start = time.process_time()
            self.optimizer.zero_grad()
            self.loss(inputs, classes).backward()
            if self.run is not None:
                self.run.rehearse(self.loss, inputs, classes)
            self.optimizer.step()
            if self.run is not None:
                self.run.step()
            self.cpu += time.process_time() - start
            if look is not None and n % LOOKS == 0:
                look()

    def close_epoch(self) -> None:
        """Measure, and let the gates decide."""
        self.epoch += 1
        self.levels.append(self.accuracy())
        if self.run is not None:
            self.run.end_epoch(lambda: {"loss": self.task.gate_loss(self.model)})

    def loss(self, inputs: Tensor, classes: Tensor) -> Tensor:
        """Of the model as it is."""
        return cross_entropy(self.model(inputs), classes)

    def accuracy(self) -> float:
        """Held out."""
        return self.task.accuracy(self.model)

    def level(self) -> float:
        """The mean of the last epochs."""
        return statistics.fmean(self.levels[-LEVEL:])

    def exposed(self) -> float:
        """Train to the end with the seed exposed; returns the shock."""
        before = self.level()
        seen = [self.accuracy()]
        for _ in range(CLOSE):
            self.steps(lambda: seen.append(self.accuracy()))
            self.close_epoch()
        self.train(AFTER - CLOSE)
        return before - min(*seen, *self.levels[-AFTER:])


def block(task: Task, arm: Arm) -> nn.Module:
    """What is inserted by hand: the blueprint, or without its zeros for ``NAIVE``."""
    name = task.residual if arm.kind is Kind.RESIDUAL else task.inline
    made = blueprints.build(task.topology, name, task.width)
    if arm.way is Way.ZERO:
        return made
    for part in made.modules():
        if isinstance(part, ZeroConv2d):
            nn.Conv2d.reset_parameters(part)
        elif isinstance(part, ZeroLinear):
            nn.Linear.reset_parameters(part)
    if arm.kind is Kind.INLINE:
        return nn.Sequential(*made.children(), nn.ReLU())
    return made


def insert(model: nn.Module, task: Task, added: nn.Module) -> None:
    """Put ``added`` behind the task's module."""
    model.set_submodule(task.path, nn.Sequential(model.get_submodule(task.path), added))


def trained(arm: Arm, before: Training, folder: Path) -> Figures:
    """Figures of ``arm``, which parts from the others where ``before`` stands."""
    task, seed = before.task, before.seed
    training = Training.begun(task, seed, arm) if arm.way is Way.SCRATCH else before.parted()
    training.train(task.before - training.epoch)
    if arm.plan is None:
        step = _alone(training)
        if arm.way in {Way.NAIVE, Way.ZERO}:
            _insert_now(training, arm)
        shock = training.exposed()
        return Figures(accuracy=training.level(), shock=shock, step_ms=step)
    with _opened(training, folder, OPEN_GATES) as run:
        found = _incubated(training, run, arm, arm.plan)
        shock = training.exposed()
    return Figures(accuracy=training.level(), shock=shock, **found)


def followed(
    arm: Arm, before: Training, folder: Path, marks: Sequence[int]
) -> Iterator[dict[str, float]]:
    """A seed that is never exposed, looked at after ``marks`` epochs of incubation."""
    training = before.parted()
    with _opened(training, folder, CLOSED_GATES) as run:
        _germinate(run, training.task, arm)
        for epochs in marks:
            training.train(epochs - (training.epoch - before.epoch))
            size, away = _size(training, run)
            yield {"epochs": epochs, "size": size, "away": away, "gain": _gain(run, training.task)}


def _gain(run: Run, task: Task) -> float:
    seed = run.state.slot(task.path).seed
    if seed is None:
        raise RuntimeError("the slot is empty")
    return seed.rehearsals[1.0]


def _alone(training: Training) -> float:
    """As long as the others incubate; returns the time of a step."""
    training.cpu = 0.0
    training.train(INCUBATION)
    return 1e3 * training.cpu / (INCUBATION * training.task.steps)


def _insert_now(training: Training, arm: Arm) -> None:
    torch.manual_seed(training.seed)
    added = block(training.task, arm)
    insert(training.model, training.task, added)
    rate = arm.rate * training.task.rate
    training.optimizer.add_param_group({"params": list(added.parameters()), "lr": rate})


@contextmanager
def _opened(training: Training, folder: Path, policy: GatePolicy) -> Iterator[Run]:
    task = training.task
    slots = graft(training.model, {task.path: task.topology}, example_inputs=(task.gates[0][:2],))
    with TemporaryDirectory(dir=folder) as place:
        training.run = open_run(
            f"sqlite:///{place}/events.db",
            name=task.name,
            slots=slots,
            optimizer=training.optimizer,
            objective=Objective.minimize("loss", unit="nats"),
            policy=policy,
            random_seed=training.seed,
        )
        with training.run as run:
            yield run


def _germinate(run: Run, task: Task, arm: Arm) -> None:
    run.germinate(
        task.path,
        task.residual if arm.kind is Kind.RESIDUAL else task.inline,
        learning_rate=arm.rate * task.rate,
        incubation=arm.plan,
        blend=BlendPlan(epochs=arm.ramp, search=arm.search),
    )


def _incubated(training: Training, run: Run, arm: Arm, plan: IncubationPlan) -> dict[str, float]:
    """From germination to exposure; returns the figures that can be had then.

    A seed that learns nothing until the ramp is germinated an epoch before it.
    """
    task, learning = training.task, INCUBATION
    if plan.incubator is Incubator.NONE:
        training.train(INCUBATION - 1)
        learning = 1
    _germinate(run, task, arm)
    training.cpu = 0.0
    training.train(learning - 1)
    training.steps()
    size, away = _size(training, run)
    training.close_epoch()
    slot = run.state.slot(task.path)
    if slot.seed is None or slot.stage is not Stage.BLENDING:
        raise RuntimeError(f"a seed that was to be exposed now is {slot.stage.name}")
    return {
        "size": size,
        "away": away,
        "gain": _gain(run, task),
        "target": slot.seed.schedule.end,
        "step_ms": 1e3 * training.cpu / (learning * task.steps),
    }


def _size(training: Training, run: Run) -> tuple[float, float]:
    """How large the seed's output is and how far away, by the host's features; the gates' set."""
    found: list[Tensor] = []
    target = training.model.get_submodule(training.task.path)
    handle = target.register_forward_hook(lambda _module, _inputs, output: found.append(output))
    training.model.eval()
    with torch.no_grad():
        training.model(training.task.gates[0])
        handle.remove()
        seed = run.slots[training.task.path].seed
        if seed is None:
            raise RuntimeError("the slot is empty")
        (host,), made = found, seed(found[0])
        size, away = (made.norm() / host.norm()).item(), ((made - host).norm() / host.norm()).item()
    training.model.train()
    return size, away
