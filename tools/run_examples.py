"""Run every example as its reader would, made tiny: on the wheel, away from the checkout.

Each set of extras has a new environment with nothing else, so that what an example needs beyond
the extras named here fails. Run by `make examples` in the development environment; everything
happens in a temporary folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bootstrap
from attrs import field, frozen
from wheel import build, clean_environment, environment, install

FOLDER = bootstrap.ROOT / "examples"
PATIENCE = 300.0  # seconds for one example; all of them together take about one minute


@frozen(kw_only=True)
class Example:
    """What an example asks for, and how it is started on something tiny."""

    extras: str
    arguments: str = ""
    launcher: str = ""
    variables: dict[str, str] = field(factory=dict)

    def command(self, python: Path, script: Path) -> list[str]:
        """The command line in an environment's Python."""
        return [str(python), *self.launcher.split(), str(script), *self.arguments.split()]


EXAMPLES = {
    "accelerate_digits.py": Example(extras="accelerate,demo", arguments="--epochs 4"),
    "blueprint.py": Example(extras="torch"),
    "ddp_digits.py": Example(
        extras="demo",
        launcher="-m torch.distributed.run --standalone --nproc-per-node 2",
        arguments="digits --epochs 4",
        variables={"OMP_NUM_THREADS": "1"},  # else torchrun says that it is set so
    ),
    "gpt2_text.py": Example(extras="transformers", arguments="--steps 40"),
    "lightning_digits.py": Example(extras="demo,lightning", arguments="--fast"),
    "plain_loop.py": Example(extras="demo", arguments="--epochs 4"),
    "ray_digits.py": Example(extras="demo,ray", arguments="--epochs 4 --trials 1"),
}


def outcome(example: Example, python: Path, script: Path) -> tuple[int | None, str]:
    """The exit status, ``None`` where it went on for too long, and all that was printed."""
    log = script.with_suffix(".log")
    with log.open("wb") as output:
        started = subprocess.Popen(
            example.command(python, script),
            cwd=script.parent,
            env={**clean_environment(), **example.variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = started.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)  # with the workers of a launcher
            started.wait()
            status = None
    return status, log.read_text(encoding="utf-8", errors="replace")


def run(name: str, python: Path, folder: Path) -> bool:
    """Run one example in a folder of its own, and say how it went; whether it ended well."""
    folder.mkdir()
    script = Path(shutil.copy(FOLDER / name, folder))
    example, begun = EXAMPLES[name], time.monotonic()
    status, printed = outcome(example, python, script)
    took = f"{time.monotonic() - begun:.0f} s"
    if status == 0:
        bootstrap.say(f"{name} {example.arguments}: {took}")
        return True
    ended = f"not ended after {took}" if status is None else f"status {status} after {took}"
    bootstrap.say(f"{name} {example.arguments}, with kasmina[{example.extras}]: {ended}")
    print(printed, flush=True)
    return False


def main() -> int:
    """Run them all, and name those that failed."""
    failed = []
    with tempfile.TemporaryDirectory(prefix="kasmina-examples-") as temporary:
        folder = Path(temporary)
        wheel = build(folder)
        for extras in sorted({example.extras for example in EXAMPLES.values()}):
            python = environment(folder / extras)
            install(python, wheel, extras)
            names = [name for name, example in EXAMPLES.items() if example.extras == extras]
            failed += [name for name in names if not run(name, python, folder / Path(name).stem)]
            shutil.rmtree(python.parents[1])
    if failed:
        bootstrap.say(f"failed, each with its output above: {', '.join(failed)}")
        return 1
    bootstrap.say(f"all {len(EXAMPLES)} examples ran, each on the extras that it names")
    return 0


if __name__ == "__main__":
    sys.exit(main())
