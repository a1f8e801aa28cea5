"""Make `.venv` ready for the demo or for development; a second run costs nearly nothing.

    python3 tools/bootstrap.py demo     # what `kasmina demo` needs
    python3 tools/bootstrap.py dev      # that, and everything the tests and checks need

Standard library only, because it runs before anything is installed. uv does the work when it
can be had (several times faster than pip); pip does it otherwise.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".kasmina-bootstrap.json"
CONSTRAINTS = ROOT / "constraints.txt"

# A newer patch release of the same Python serves as well; another minor version does not.
VERSION = "{}.{}".format(*sys.version_info)

# Each name maps to the extras it installs; a `dev` environment also serves `demo`.
PROFILES = {"demo": ("demo",), "dev": ("demo", "dev")}

# uv does not read pip's settings, so what this machine's pip was told is passed on.
PIP_TO_UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
}


def say(text: str) -> None:
    """Print a line of progress, at once."""
    print(f"bootstrap: {text}", flush=True)


def wanted_digest(extras: tuple[str, ...]) -> str:
    """Digest of all that decides what gets installed; editing a lint rule does not."""
    import tomllib  # new in 3.11: only once the version has been checked

    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    deciding = [
        pyproject["project"],
        pyproject["build-system"],
        pyproject["tool"]["hatch"],
        CONSTRAINTS.read_text(encoding="utf-8"),
        extras,
        VERSION,
        str(ROOT),  # an editable install points here; a moved checkout needs a new one
    ]
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def read_stamp() -> dict[str, str] | None:
    """What the last run left, or None where there is no environment of ours."""
    try:
        stamp: dict[str, str] = json.loads(STAMP.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return stamp


def write_stamp(stamp: dict[str, str]) -> None:
    """Replace the stamp atomically: a kill leaves the old one or the new one."""
    half = STAMP.with_suffix(".tmp")
    half.write_text(json.dumps(stamp), encoding="utf-8")
    half.replace(STAMP)


def ready(profile: str, stamp: dict[str, str] | None) -> bool:
    """Whether a finished environment with at least these extras is already there."""
    if not stamp or not PYTHON.exists():
        return False
    larger = (name for name, extras in PROFILES.items() if set(extras) >= set(PROFILES[profile]))
    return any(stamp.get("ready") == wanted_digest(PROFILES[name]) for name in larger)


def make_venv(stamp: dict[str, str] | None) -> None:
    """Create `.venv` without pip; start afresh after a kill or under another Python."""
    import venv

    # Half-written packages look installed to every installer, so an interrupted environment
    # is not repaired but replaced. One that carries no stamp is somebody's own: kept.
    if stamp is not None:
        usable = PYTHON.exists() and stamp.get("ready") and stamp.get("python") == VERSION
        if not usable:
            say(f"replacing {VENV.name}: it was left unfinished, or made by another Python")
            shutil.rmtree(VENV)
    VENV.mkdir(exist_ok=True)
    write_stamp({"python": VERSION})
    if not PYTHON.exists():
        venv.EnvBuilder(symlinks=True, with_pip=False).create(VENV)


def pip_settings(pip: list[str]) -> dict[str, str]:
    """pip's effective settings for `install`, by option name."""
    listed = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False)
    found: dict[str, dict[str, str]] = {}
    for line in listed.stdout.splitlines():
        name, _, literal = line.partition("=")
        section, _, option = name.rpartition(".")
        found.setdefault(section, {})[option] = str(ast.literal_eval(literal))
    merged: dict[str, str] = {}
    for section in ("global", "install", ":env:"):  # pip's own order: the last one wins
        merged.update(found.get(section, {}))
    return merged


def uv_environment(pip: list[str]) -> dict[str, str]:
    """The environment for uv; variables that the user has set for uv win."""
    passed = {"UV_COMPILE_BYTECODE": "1", "UV_INDEX_STRATEGY": "unsafe-best-match"}
    for option, value in pip_settings(pip).items():
        if option in PIP_TO_UV:
            words = value.split()
            passed[PIP_TO_UV[option]] = ("," if option == "find-links" else " ").join(words)
    return {**passed, **os.environ}


def works(*command: str) -> bool:
    """Whether the command runs and ends well; its output is dropped."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def find_uv(pip: list[str]) -> str | None:
    """uv from the path, or freshly installed beside the environment's own packages."""
    own = VENV / "uv" / "bin" / "uv"
    for candidate in filter(None, (shutil.which(own), shutil.which("uv"))):
        if works(candidate, "--version"):  # a version manager's shim may refuse to run
            return candidate
    # --target works with any pip, and on systems whose own environment is managed externally.
    command = [*pip, "install", "-qq", "--target", str(VENV / "uv"), "uv"]
    subprocess.run(command, env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"}, check=False)
    return shutil.which(own)


def find_pip(python: Path) -> list[str]:
    """The pip that builds: this Python's, its base's, or the copy bundled with it."""
    for outer in (sys.executable, os.path.realpath(sys.executable)):
        if works(outer, "-m", "pip", "--version"):
            return [outer, "-m", "pip"]
    subprocess.run([str(python), "-m", "ensurepip"], check=True)
    return [str(python), "-m", "pip"]


def install(python: Path, what: list[str]) -> None:
    """Install into the environment of `python` under the constraints, with uv or else with pip."""
    what = [*what, "--constraint", str(CONSTRAINTS)]
    pip = find_pip(python)
    uv = find_uv(pip)
    if uv:
        command = [uv, "pip", "install", "--quiet", "--python", str(python), *what]
        if subprocess.run(command, env=uv_environment(pip), check=False).returncode == 0:
            return
    say("uv did not do it; trying pip, which is slower")
    subprocess.run([*pip, "--python", str(python), "install", *what], check=True)


def main(arguments: list[str]) -> int:
    """Make the environment that the one argument names; the return value is the exit status."""
    if sys.version_info < (3, 11):  # noqa: UP036 - started by whatever `python3` is
        say(f"kasmina needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}.")
        say("Name a newer one: make PYTHON=python3.12 ..., or python3.12 tools/bootstrap.py ...")
        return 2
    if len(arguments) != 1 or arguments[0] not in PROFILES:
        say(f"usage: python3 tools/bootstrap.py {'|'.join(PROFILES)}")
        return 2
    profile = arguments[0]
    stamp = read_stamp()
    if ready(profile, stamp):
        return 0
    extras = PROFILES[profile]
    say(f"installing kasmina[{','.join(extras)}] into {VENV.name}; about a minute the first time")
    try:
        make_venv(stamp)
        install(PYTHON, ["--editable", f"{ROOT}[{','.join(extras)}]"])
    except ImportError as missing:
        say(f"this Python cannot make environments ({missing}).")
        say("Install its venv module, on Debian and Ubuntu: apt-get install python3-venv")
        return 1
    except subprocess.CalledProcessError as failed:
        say(f"{failed.cmd[0]} ended with status {failed.returncode}; its message is above.")
        say("Nothing was marked as done: run the same command again once it is mended.")
        return 1
    write_stamp({"python": VERSION, "ready": wanted_digest(extras)})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
