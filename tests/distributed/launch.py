"""Starting a few ranks of one training, and ending them: by gloo, on this machine, in time."""

import contextlib
import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from attrs import frozen

PATIENCE = 150.0

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["torch._dynamo", "torch.distributed.fsdp", "kasmina.infra.migrate", "tests.distributed.loop"]
)

Scenario = Callable[..., Any]


@frozen
class Ended:
    """What became of a rank: what its scenario returned, or the error that ended it."""

    value: Any = None
    error: str = ""
    message: str = ""


def launch(scenario: Scenario, folder: Path, *arguments: Any, size: int = 2) -> list[Ended | None]:
    """Run ``scenario(rank, folder, *arguments)`` on each rank; ``None`` for one that died."""
    meeting = folder / f"meeting-{len(list(folder.glob('meeting-*')))}"
    answers = [meeting.with_suffix(f".{rank}") for rank in range(size)]
    processes = [
        _CONTEXT.Process(
            target=_run,
            args=(scenario, rank, size, (folder, *arguments), meeting, answers[rank]),
            daemon=True,
        )
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(PATIENCE)
            assert process.exitcode is not None, f"a rank did not end within {PATIENCE} s"
    finally:
        for process in processes:
            if process.exitcode is None:
                process.kill()
                process.join(PATIENCE)
    return [torch.load(each, weights_only=False) if each.exists() else None for each in answers]


def values(ended: list[Ended | None]) -> list[Any]:
    """What all scenarios returned; fails if one did not."""
    for rank, each in enumerate(ended):
        assert each is not None, f"rank {rank} died"
        assert not each.error, f"rank {rank}: {each.error}: {each.message}"
    return [each.value for each in ended if each is not None]


def _run(  # noqa: PLR0917  # a process takes them so
    scenario: Scenario,
    rank: int,
    size: int,
    arguments: tuple[Any, ...],
    meeting: Path,
    answer: Path,
) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    try:
        ended = Ended(scenario(rank, *arguments))
    except BaseException as error:  # noqa: BLE001  # the test judges it
        ended = Ended(error=type(error).__name__, message=f"{error}\n{traceback.format_exc()}")
    partial = answer.with_suffix(answer.suffix + ".partial")
    torch.save(ended, partial)
    partial.rename(answer)
    with contextlib.suppress(RuntimeError):  # another rank may have gone
        dist.destroy_process_group()
