"""The set-up script: cheap when nothing changed, whole again after a kill."""

import importlib.util
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


class Killed(BaseException):
    """Stands for a kill: no handler of the script may see it."""


@pytest.fixture
def bootstrap(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("bootstrap", TOOLS / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    venv = tmp_path / ".venv"
    monkeypatch.setattr(module, "VENV", venv)
    monkeypatch.setattr(module, "PYTHON", venv / "bin" / "python")
    monkeypatch.setattr(module, "STAMP", venv / "stamp.json")
    module.installed = []
    monkeypatch.setattr(module, "install", lambda python, what: module.installed.append(what))
    return module


def test_a_second_run_installs_nothing(bootstrap):
    assert [bootstrap.main(["dev"]), bootstrap.main(["dev"])] == [0, 0]
    assert len(bootstrap.installed) == 1


def test_a_development_environment_serves_the_demo_but_not_the_reverse(bootstrap):
    for profile in ("demo", "dev", "demo"):
        bootstrap.main([profile])
    assert [what[1].rpartition("[")[2] for what in bootstrap.installed] == ["demo]", "demo,dev]"]


def test_an_interrupted_environment_is_replaced(bootstrap, monkeypatch):
    def die(python, what):
        (bootstrap.VENV / "half-written").touch()
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(bootstrap, "install", die)
        with pytest.raises(Killed):
            bootstrap.main(["demo"])
    assert bootstrap.main(["demo"]) == 0
    assert not (bootstrap.VENV / "half-written").exists()
    assert len(bootstrap.installed) == 1


def test_an_environment_of_somebody_elses_is_kept(bootstrap):
    bootstrap.VENV.mkdir()
    (bootstrap.VENV / "theirs").touch()
    assert bootstrap.main(["demo"]) == 0
    assert (bootstrap.VENV / "theirs").exists()


def test_another_python_gets_another_environment(bootstrap, monkeypatch):
    bootstrap.main(["demo"])
    (bootstrap.VENV / "old").touch()
    monkeypatch.setattr(bootstrap, "VERSION", "3.99")
    assert bootstrap.main(["demo"]) == 0
    assert not (bootstrap.VENV / "old").exists()


def test_an_old_python_is_told_what_is_needed(bootstrap, monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert bootstrap.main(["demo"]) == 2
    assert "3.11 or newer" in capsys.readouterr().out


def test_pips_settings_reach_uv_and_the_users_own_win(bootstrap, monkeypatch, tmp_path):
    listing = tmp_path / "pip"
    listing.write_text(
        "print('''global.find-links='/a /b'\nglobal.timeout='60'\n:env:.timeout='90'\n"
        "global.extra-index-url='\\\\nfile:///one\\\\nfile:///two'\nglobal.cert='/c.pem' ''')"
    )
    monkeypatch.setenv("SSL_CERT_FILE", "/mine.pem")
    environment = bootstrap.uv_environment([sys.executable, str(listing)])
    assert environment["UV_FIND_LINKS"] == "/a,/b"
    assert environment["UV_INDEX"] == "file:///one file:///two"
    assert environment["UV_HTTP_TIMEOUT"] == "90"
    assert environment["SSL_CERT_FILE"] == "/mine.pem"
