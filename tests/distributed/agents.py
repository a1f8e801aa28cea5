"""Starting torchrun's agents, one for each host that is played, and ending them."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0


def torchrun(*arguments: object, restarts: int = 0) -> str:
    """What two workers of one host printed; fails if they did not end well."""
    (said,) = ended(
        [agent("--standalone", "--nproc-per-node=2", f"--max-restarts={restarts}", *arguments)]
    )
    return said


def agent(*arguments: object) -> subprocess.Popen[str]:
    """One host's agent, to be handed to ``ended``."""
    return subprocess.Popen(
        [
            sys.executable,
            *("-m", "torch.distributed.run", "--monitor-interval=0.2"),
            *map(str, arguments),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "PYTHONFAULTHANDLER": "1",
            # Else torch 2.13 lets restarted gloo ranks meet at the addresses of the dead ones.
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(agents: Sequence[subprocess.Popen[str]]) -> list[str]:
    """What each agent and its workers printed; fails if one did not end well."""
    try:
        said = [each.communicate(timeout=PATIENCE)[0] for each in agents]
    finally:
        for each in agents:
            if each.poll() is None:
                each.terminate()  # not kill: it ends its workers first
                each.communicate(timeout=PATIENCE)
    assert not any(each.returncode for each in agents), "\n".join(said)
    return said
