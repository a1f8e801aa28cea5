"""A host's training beside a seed, and the same training without: what both are tried with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from kasmina import IncubationPlan, Objective, Topology, graft, open_run
from kasmina.infra.engine import Durability
from tests.torch.optimizers import OPTIMIZERS

BORN, GONE, EPOCH, STEPS = 3, 9, 7, 14
OBJECTIVE = Objective.minimize("loss")
BOUND = 0.05  # of gradients: below what they are here, so that all are scaled
DECAY = 0.8


def build_host():
    """Dropout and BatchNorm: whatever a careless seed could disturb."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 4), nn.Dropout(0.2), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(4, 2)
    )


class Alone:
    """A host that knows nothing of seeds."""

    def __init__(self, build=OPTIMIZERS["AdamW"]):
        self.model = build_host()
        self.forward = self.model
        self.optimizer = build(self.model.parameters())
        self.data = torch.Generator().manual_seed(1)
        self.losses = []
        torch.manual_seed(2)
        self.random = torch.get_rng_state()

    def loss(self):
        x = torch.randn(6, 5, 3, generator=self.data)
        return self.forward(x).square().mean() * 8

    def step(self):
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.detach())

    def train(self, steps=STEPS):
        torch.set_rng_state(self.random)
        for _ in range(steps):
            self.advance()
        self.random = torch.get_rng_state()

    def advance(self):
        self.step()

    def own(self):
        return [p for name, p in self.model.named_parameters() if "kasmina" not in name]

    def seen(self):
        """Everything of the host that training decides, to the bit."""
        groups = [g for g in self.optimizer.param_groups if "kasmina_seed" not in g]
        buffers = [b for name, b in self.model.named_buffers() if "kasmina" not in name]
        return {
            "parameters": [p.detach() for p in self.own()],
            "gradients": [p.grad for p in self.own()],
            "buffers": buffers,
            "states": [dict(self.optimizer.state[p]) for p in self.own()],
            "options": [{k: v for k, v in g.items() if k != "params"} for g in groups],
            "losses": self.losses,
            "random": self.random,
        }


class Grown(Alone):
    """The same host in a run; a seed is germinated after BORN steps, and culled after GONE."""

    def __init__(self, build=OPTIMIZERS["AdamW"], *, gone=GONE, plan=None, database):
        super().__init__(build)
        self.slots = graft(self.model, {"0": Topology.TRANSFORMER})
        self.gone, self.plan, self.number = gone, plan or IncubationPlan(warmup_steps=2), 0
        self.run = open_run(
            f"sqlite:///{database}",
            name="grown",
            slots=self.slots,
            optimizer=self.optimizer,
            objective=OBJECTIVE,
            sample_every=2,
            durability=Durability.RELAXED,
        )

    def advance(self):
        if self.number == BORN:
            self.run.germinate("0", "mlp", incubation=self.plan)
            self.born = [p.detach().clone() for p in self.slots.seed_parameters()]
        if self.number == self.gone:
            self.run.cull("0", "enough")
        self.step()
        self.run.step()
        self.number += 1
        if self.number % EPOCH == 0:
            self.run.end_epoch(self.evaluate)

    def evaluate(self):
        self.model.eval()
        with torch.no_grad():
            loss = self.model(torch.ones(2, 5, 3)).square().mean().item()
        self.model.train()
        return {"loss": loss}

    @property
    def stage(self):
        return self.run.state.slot("0").stage


def alike(one, other):
    """Equal to the last bit, through dicts and lists."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def assert_same(alone, grown):
    ours, theirs = alone.seen(), grown.seen()
    assert [key for key in ours if not alike(ours[key], theirs[key])] == []


def accumulating(arm):
    arm.optimizer.zero_grad()
    for _ in range(3):
        loss = arm.loss() / 3
        loss.backward()
    arm.optimizer.step()
    arm.losses.append(loss.detach())


def zeroing(arm):
    loss = arm.loss()
    loss.backward()
    arm.optimizer.step()
    arm.optimizer.zero_grad(set_to_none=False)
    arm.losses.append(loss.detach())


def with_closure(arm):
    def closure():
        arm.optimizer.zero_grad()
        loss = arm.loss()
        loss.backward()
        return loss

    arm.losses.append(arm.optimizer.step(closure).detach())


def in_halves(arm):
    arm.optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = arm.loss()
    loss.backward()
    arm.optimizer.step()
    arm.losses.append(loss.detach())


def scaling(arm):
    arm.optimizer.zero_grad()
    loss = arm.loss()
    arm.scaler.scale(loss).backward()
    arm.scaler.unscale_(arm.optimizer)
    nn.utils.clip_grad_norm_(arm.model.parameters(), 0.1)
    arm.scaler.step(arm.optimizer)
    arm.scaler.update()
    arm.losses.append(loss.detach())


def clipping_values(arm):
    arm.optimizer.zero_grad()
    loss = arm.loss()
    loss.backward()
    nn.utils.clip_grad_value_(arm.model.parameters(), 0.05)
    arm.optimizer.step()
    arm.losses.append(loss.detach())


def plainly(arm):
    Alone.step(arm)


def unprepared(arm):
    pass


def prepare_scaler(arm):
    arm.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=5)


def checkpointed(*, use_reentrant):
    def prepare(arm):
        arm.forward = lambda x: checkpoint(
            arm.model, x.requires_grad_(), use_reentrant=use_reentrant
        )

    return prepare


def compiled(backend):
    def prepare(arm):
        arm.forward = torch.compile(arm.model, backend=backend)

    return prepare


def freeze_first(arm):
    arm.model[0].requires_grad_(requires_grad=False)


def freeze_last(arm):
    arm.model[4].requires_grad_(requires_grad=False)


WAYS = {
    "gradient accumulation": (accumulating, unprepared),
    "`zero_grad(set_to_none=False)`": (zeroing, unprepared),
    "`step(closure)`": (with_closure, unprepared),
    "autocast to bfloat16": (in_halves, unprepared),
    "`GradScaler`, with clipping": (scaling, prepare_scaler),
    "`clip_grad_value_`": (clipping_values, unprepared),
    "`torch.utils.checkpoint`, reentrant": (plainly, checkpointed(use_reentrant=True)),
    "`torch.utils.checkpoint`, not reentrant": (plainly, checkpointed(use_reentrant=False)),
    "`torch.compile`, backend `eager`": (plainly, compiled("eager")),
    "`torch.compile`, backend `aot_eager`": (plainly, compiled("aot_eager")),
    "the grafted layer frozen": (plainly, freeze_first),
    "a layer behind it frozen": (plainly, freeze_last),
}


def clip_whole(arm):
    return clip_grad_norm_(arm.model.parameters(), BOUND)


def by_largest(arm):
    return clip_grad_norm_(arm.model.parameters(), BOUND, norm_type=torch.inf)


def one_by_one(arm):
    return clip_grad_norm_(list(arm.model.parameters()), BOUND, foreach=False)


def what_is_optimized(arm):
    held = [p for group in arm.optimizer.param_groups for p in group["params"]]
    return nn.utils.clip_grad_norm_(held, BOUND)


def in_two_calls(arm):
    gradients = [p.grad for p in arm.model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    nn.utils.clip_grads_with_norm_(arm.model.parameters(), BOUND, norm)
    return norm


def by_tensor(arm):
    return torch.stack([clip_grad_norm_(p, BOUND) for p in arm.own()]).sum()


CLIPS = {
    "`clip_grad_norm_(model.parameters(), ...)`": clip_whole,
    "the same by the largest entry": by_largest,
    "the same without foreach": one_by_one,
    "the optimizer's parameters, as Lightning does": what_is_optimized,
    "`get_total_norm` and `clip_grads_with_norm_`": in_two_calls,
    "parameter by parameter": by_tensor,
}


def by_hand(average, current, _number):
    return average * DECAY + current * (1 - DECAY)


AVERAGES = {
    "`AveragedModel`": AveragedModel,
    "the same, exponential": lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(DECAY)),
    "the same, `use_buffers=True`": lambda m: AveragedModel(
        m, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True
    ),
    "the same, an `avg_fn` of one's own": lambda m: AveragedModel(m, avg_fn=by_hand),
    "the same, `use_buffers=True` and an `avg_fn`": lambda m: AveragedModel(
        m, avg_fn=by_hand, use_buffers=True
    ),
}


@contextmanager
def growing(database) -> Iterator[object]:
    """``make(build, ...)`` opens a run in ``database``; all are closed at the end."""
    made = []

    def make(build=OPTIMIZERS["AdamW"], kind=Grown, **options):
        made.append(kind(build, database=database, **options))
        return made[-1]

    yield make
    for each in made:
        if each.number > 0 and each.run.state.epoch == 0:
            each.run.end_epoch(each.evaluate)
        each.run.close()
