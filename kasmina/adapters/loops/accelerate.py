"""kasmina in a loop of Hugging Face Accelerate: its steps and saved states look after the run."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch.optim import Optimizer
from typing_extensions import Unpack

from kasmina.adapters.loops.opening import CHECKPOINT, RunOptions, UnfitLoop, opened
from kasmina.adapters.torch.graft import Slots
from kasmina.adapters.torch.optimizer import unwrapped
from kasmina.domain.errors import KasminaError
from kasmina.run import Run

_COPIES = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)

_PROBLEMS = {
    DistributedType.FSDP: "leaves each process a part of the model, in parameters that prepare() "
    "makes anew: those of the slots would be none of them",
    DistributedType.DEEPSPEED: "fixes its parameters when it is made, and averages and steps them "
    "in an engine of its own: a seed that is born later would not learn",
    DistributedType.MEGATRON_LM: "builds the model itself, in parts: the grafted one would not be "
    "trained",
    DistributedType.XLA: "runs its processes without torch.distributed, by which ranks agree",
}
_MEND = "use DistributedDataParallel (MULTI_GPU or MULTI_CPU), or one process"


class StateOfAnotherMoment(KasminaError):
    """``load_state`` while a run is open, whose seeds need not be those of that state."""

    def __init__(self, run_id: str, folder: str) -> None:
        self.run_id = run_id
        self.folder = folder
        super().__init__(
            f"accelerator.load_state({folder!r}) was called while run {run_id!r} is open; which "
            f"seeds belong to that state is in the run's log, so it is loaded where the run is "
            f"opened: growing(..., resume={folder!r})"
        )


@contextmanager
def growing(
    accelerator: Accelerator,
    url: str,
    *,
    slots: Slots,
    optimizer: Optimizer,
    resume: str | PathLike[str] | None = None,
    **options: Unpack[RunOptions],
) -> Iterator[Run]:
    """A run in a loop of ``accelerator``, to be closed with the block; an error leaves it open.

    Graft first, then ``accelerator.prepare(...)``, then this, with the prepared ``optimizer``.
    Meanwhile every step that the optimizer really takes is counted, so that ``run.step()`` must
    not be called: one that only accumulates, or that a scaler skips, is none.
    ``accelerator.save_state`` saves the run too. ``resume`` is a folder that it wrote: the run
    goes on from there, and ``accelerator.load_state`` is called for it. The other options are
    those of ``open_run``. With ``DistributedDataParallel`` all processes are one run, and each
    of them does all of this.

    Raises ``UnfitLoop``, and as ``open_run``.
    """
    require_copies(accelerator)
    folder = None if resume is None else Path(resume)
    with ExitStack() as block:
        bare = _prepared(optimizer)
        run = opened(url, slots=slots, optimizer=bare, folder=folder, **options).run
        block.enter_context(run)
        if folder is not None:
            accelerator.load_state(str(folder))
        block.enter_context(counted_steps(bare, run.step))
        block.enter_context(_saved_states(accelerator, run))
        yield run


def require_copies(accelerator: Accelerator) -> None:
    """Raise ``UnfitLoop`` unless each process holds the whole model, as with DDP."""
    kind, config = accelerator.distributed_type, accelerator.parallelism_config
    if kind not in _COPIES:
        problem = _PROBLEMS.get(kind, "is a way of many processes in which no run was ever tried")
        raise UnfitLoop("the accelerator", f"trains as {kind.value}, which {problem}", _MEND)
    if config is not None and config.total_size > config.dp_replicate_size:
        raise UnfitLoop(
            "the accelerator",
            f"is given a ParallelismConfig that splits the model or its sequences over "
            f"{config.total_size // config.dp_replicate_size} processes, where each of them would "
            f"have to see all of a slot",
            _MEND,
        )
    if accelerator.num_processes > 1 and accelerator.project_configuration.save_on_each_node:
        raise UnfitLoop(
            "the accelerator",
            "saves states on each node (save_on_each_node), but of a run's file there is one, "
            "which rank 0 writes and every rank reads",
            "set save_on_each_node=False, and save to storage that all nodes share",
        )


@contextmanager
def counted_steps(optimizer: Optimizer, step: Callable[[], None]) -> Iterator[None]:
    """Call ``step`` after each step that ``optimizer`` takes."""

    def took(_optimizer: Optimizer, _args: object, _kwargs: object) -> None:
        step()

    handle = optimizer.register_step_post_hook(took)
    try:
        yield
    finally:
        handle.remove()


def _prepared(optimizer: Optimizer) -> Optimizer:
    if not isinstance(optimizer, AcceleratedOptimizer):
        raise UnfitLoop(
            f"the optimizer ({type(optimizer).__name__})",
            "was not prepared, so it would step also where gradients are accumulated",
            "graft(), then accelerator.prepare(model, optimizer, ...), then give what that "
            "returned",
        )
    return unwrapped(optimizer)


@contextmanager
def _saved_states(accelerator: Accelerator, run: Run) -> Iterator[None]:
    """Let states be saved with the run, and none be loaded over it."""

    def save(_models: object, _weights: object, folder: str) -> None:
        run.checkpoint(Path(folder) / CHECKPOINT)

    def refuse(_models: object, folder: str) -> None:
        raise StateOfAnotherMoment(run.run_id, folder)

    hooks = (
        accelerator.register_save_state_pre_hook(save),
        accelerator.register_load_state_pre_hook(refuse),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
