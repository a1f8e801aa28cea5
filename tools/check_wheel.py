"""Build the sdist, the wheel from it, and try that wheel as a stranger would.

First the base install, which must replay and migrate without torch; then the demo on top.
Run by `make package` in the development environment; everything happens in a temporary folder.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import bootstrap
from wheel import build, environment, install, sh


def check(folder: Path) -> None:
    """Build and try the wheel, all inside the folder."""
    away = folder / "away"
    away.mkdir()
    built = build(folder)
    python = environment(folder / "env")
    kasmina = python.with_name("kasmina")
    database = f"sqlite:///{folder / 'new.db'}"

    install(python, built)
    sh(python, "-c", "import importlib.util as u; assert u.find_spec('torch') is None", cwd=away)
    sh(kasmina, "--help", cwd=away)
    sh(kasmina, "stages", cwd=away)
    sh(kasmina, "db", "upgrade", "--database", database, cwd=away)
    sh(kasmina, "db", "current", "--database", database, cwd=away)
    sh(kasmina, "runs", "--database", database, cwd=away)

    install(python, built, "demo")
    sh(kasmina, "demo", "--quick", "--database", f"sqlite:///{folder / 'demo.db'}", cwd=away)
    sh(kasmina, "runs", "--database", f"sqlite:///{folder / 'demo.db'}", cwd=away)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="kasmina-wheel-") as temporary:
        check(Path(temporary))
    bootstrap.say("the wheel stands alone: base install, migration and demo")
