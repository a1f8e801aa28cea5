"""The wheel as a stranger gets it: built from the sdist, installed where nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import bootstrap

# An environment that is used once and thrown away is not worth compiling.
os.environ.setdefault("UV_COMPILE_BYTECODE", "0")


def clean_environment() -> dict[str, str]:
    """The caller's variables without Python's own: the wheel has to stand alone."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def sh(*command: str | Path, cwd: Path) -> str:
    """Run a command away from the checkout, show it, and return what it printed."""
    bootstrap.say(" ".join(str(word) for word in command))
    done = subprocess.run(
        command, cwd=cwd, env=clean_environment(), check=False, text=True, stdout=subprocess.PIPE
    )
    print(done.stdout, end="", flush=True)
    done.check_returncode()
    return done.stdout


def build(folder: Path) -> Path:
    """The wheel, in the new folder ``dist``."""
    dist = folder / "dist"
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", dist]
    sh(*command, bootstrap.ROOT, cwd=folder)
    (wheel,) = dist.glob("*.whl")
    return wheel


def environment(home: Path) -> Path:
    """A new environment with nothing in it; the path of its Python."""
    venv.create(home, symlinks=True, with_pip=False)
    return home / "bin" / "python"


def install(python: Path, wheel: Path, extras: str = "") -> None:
    """Install the wheel with these extras, named as in ``demo,lightning``."""
    wanted = f"kasmina[{extras}]" if extras else "kasmina"
    bootstrap.install(python, [f"{wanted} @ {wheel.as_uri()}"])
