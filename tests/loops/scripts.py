"""Running the examples as their readers do: each in a process of its own."""

import re
import subprocess
import sys
from pathlib import Path

import torch

from kasmina import open_store
from kasmina.domain import events as e
from kasmina.infra.engine import Access

EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE = 240  # seconds, of a machine that does other things too


def run(example: str, folder: Path, *options: str) -> str:
    """What the example prints."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / example, *options],
        cwd=folder,
        text=True,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def killed_at(example: str, folder: Path, line: str, *options: str) -> str:
    """What it prints until it has printed ``line``, at which it is killed."""
    command = [sys.executable, EXAMPLES / example, *options]
    printed = ""
    with subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE) as process:
        for each in process.stdout:
            printed += each
            if line in each:
                process.kill()
    assert line in printed
    return printed


def history(database: Path) -> list[object]:
    """The events of the database's one run, which is sound."""
    with open_store(f"sqlite:///{database}", access=Access.READ) as store:
        (run_id,) = store.run_ids()
        assert store.verify(run_id).problems == ()
        return [record.event for record in store.read(run_id)]


def germinated(database: Path) -> bool:
    return any(isinstance(event, e.SeedGerminated) for event in history(database))


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Those of a run's checkpoint by place; seeds have other names in two runs of one example.

    NumPy's random numbers, which the examples neither seed nor draw, are left out.
    """
    content = torch.load(checkpoint, weights_only=True)
    leaves, _ = torch.utils._pytree.tree_flatten_with_path(content)
    return {
        re.sub(r"\bs[0-9a-z]{8}\b", "seed", str(path)): leaf
        for path, leaf in leaves
        if isinstance(leaf, torch.Tensor) and "numpy" not in str(path)
    }
