"""Build the sdist, the wheel from it, and try that wheel as a stranger would.

First the base install, which must replay and migrate without torch; then the demo on top.
Run by `make package` in the development environment; everything happens in a temporary folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import bootstrap


def sh(*command: str | Path, cwd: Path) -> str:
    """Run a command away from the checkout, show it, and return what it printed."""
    bootstrap.say(" ".join(str(word) for word in command))
    # Nothing of the caller's may leak in: the wheel has to stand alone.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=env, check=False, text=True, stdout=subprocess.PIPE)
    print(done.stdout, end="", flush=True)
    done.check_returncode()
    return done.stdout


def check(folder: Path) -> None:
    """Build and try the wheel, all inside the folder."""
    away = folder / "away"
    away.mkdir()
    dist = folder / "dist"
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", dist]
    sh(*build, bootstrap.ROOT, cwd=away)
    (wheel,) = dist.glob("*.whl")

    home = folder / "env"
    venv.create(home, symlinks=True, with_pip=False)
    python, kasmina = home / "bin" / "python", home / "bin" / "kasmina"
    database = f"sqlite:///{folder / 'new.db'}"

    bootstrap.install(python, [str(wheel)])
    sh(python, "-c", "import importlib.util as u; assert u.find_spec('torch') is None", cwd=away)
    sh(kasmina, "--help", cwd=away)
    sh(kasmina, "stages", cwd=away)
    sh(kasmina, "db", "upgrade", "--database", database, cwd=away)
    sh(kasmina, "db", "current", "--database", database, cwd=away)
    sh(kasmina, "runs", "--database", database, cwd=away)

    bootstrap.install(python, [f"kasmina[demo] @ {wheel.as_uri()}"])
    sh(kasmina, "demo", "--quick", "--database", f"sqlite:///{folder / 'demo.db'}", cwd=away)
    sh(kasmina, "runs", "--database", f"sqlite:///{folder / 'demo.db'}", cwd=away)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="kasmina-wheel-") as temporary:
        check(Path(temporary))
    bootstrap.say("the wheel stands alone: base install, migration and demo")
