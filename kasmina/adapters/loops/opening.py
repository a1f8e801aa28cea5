"""Opening a run for a training loop of somebody else's, whose checkpoints are folders."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Required, TypedDict

from torch.optim import Optimizer
from typing_extensions import Unpack

from kasmina.adapters.torch.blueprints import BlueprintRegistry
from kasmina.adapters.torch.checkpoint import Stateful, read_checkpoint
from kasmina.adapters.torch.distributed.ranks import RankPlan
from kasmina.adapters.torch.graft import Slots
from kasmina.adapters.torch.measurement import Prediction
from kasmina.bootstrap import open_run
from kasmina.domain.errors import KasminaError
from kasmina.domain.objective import Objective
from kasmina.domain.policies import GatePolicy
from kasmina.domain.ports import Identifiers
from kasmina.infra.engine import Durability
from kasmina.infra.log import LogFormat
from kasmina.run import Run

CHECKPOINT = "kasmina.pt"
"""The run's own file in a framework's checkpoint folder."""

Plan = Callable[[Run], object]
"""Asked when a run begins and after each of its epochs: may germinate, cull, pause."""


class RunOptions(TypedDict, total=False):
    """What ``open_run`` takes besides the things that the loop itself knows."""

    name: Required[str]
    objective: Required[Objective]
    policy: GatePolicy | None
    random_seed: int
    extra: Mapping[str, Stateful] | None
    prediction: Prediction | None
    sample_every: int
    registry: BlueprintRegistry
    identifiers: Identifiers | None
    durability: Durability
    log: LogFormat | None
    ranks: RankPlan


class UnfitLoop(KasminaError):
    """A training loop in which a run would silently do nothing, or the wrong thing."""

    def __init__(self, loop: str, problem: str, mend: str) -> None:
        self.loop = loop
        self.problem = problem
        self.mend = mend
        super().__init__(f"{loop} {problem}; {mend}")


class Opened(NamedTuple):
    """A run, and how many optimizer steps it has counted so far."""

    run: Run
    step: int


def opened(
    url: str,
    *,
    slots: Slots,
    optimizer: Optimizer,
    folder: Path | None,
    **options: Unpack[RunOptions],
) -> Opened:
    """A new run, or with ``folder`` the one that saved its checkpoint there, as it was then.

    Raises as ``open_run`` does; ``CheckpointError`` for a folder without a run's checkpoint.
    """
    if folder is None:
        return Opened(open_run(url, slots=slots, optimizer=optimizer, **options), 0)
    path = folder / CHECKPOINT
    saved = read_checkpoint(path)
    run = open_run(
        url, slots=slots, optimizer=optimizer, resume=saved.run_id, checkpoint=path, **options
    )
    return Opened(run, saved.step)


@contextmanager
def replaced(owner: object, method: str, replacement: Callable[..., object]) -> Iterator[None]:
    """Let ``owner``, this one object, have another method for a while."""
    own = vars(owner)
    before = {method: own[method]} if method in own else {}
    setattr(owner, method, replacement)
    try:
        yield
    finally:
        delattr(owner, method)
        own.update(before)
