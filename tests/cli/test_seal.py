"""Sealing runs, and holding them to their seals: every way in which that can fail has a name."""

import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from kasmina.adapters.cli.output import plain
from kasmina.adapters.cli.render.verification import render_verifications
from kasmina.domain import commands as c
from kasmina.domain import events as e
from kasmina.domain.ports import Head
from kasmina.infra.event_store import open_store
from kasmina.infra.integrity import Verification
from kasmina.infra.sealing import parse
from kasmina.testing import run_opened


@pytest.fixture
def seal(call, tmp_path):
    """Seal into a file, and give its path as text."""

    def seal(*arguments, name="runs.seal"):
        path = tmp_path / name
        done = call("seal", *arguments, "--output", str(path))
        assert (done.code, done.err) == (0, "")
        return str(path)

    return seal


@pytest.fixture
def key(call, tmp_path):
    """A new key: the paths of its two halves."""
    path = tmp_path / "key.pem"
    assert call("seal", "--new-key", str(path)).code == 0
    return str(path), str(tmp_path / "key.pub.pem")


def tamper(url, *statements):
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        for trigger in ("update", "delete"):
            connection.execute(f"DROP TRIGGER IF EXISTS events_refuse_{trigger}")
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def flaws(done):
    return [
        (problem["sequence"], problem["flaw"])
        for run in json.loads(done.out)["runs"]
        for problem in run["problems"]
    ]


class TestSealing:
    def test_prints_the_seal_where_no_file_is_named(self, call, digits):
        done = call("seal", "digits")
        file = parse(done.out.encode())
        assert (done.code, done.err) == (0, "")
        assert [(seal.run_id, seal.length) for seal in file.seals] == [(digits, 68)]

    def test_seals_every_run_in_one_file(self, seal, digits, blank):
        file = parse(Path(seal("--all")).read_bytes())
        assert [seal.run_id for seal in file.seals] == [blank, digits]

    def test_says_what_was_sealed_and_where(self, call, tmp_path, monkeypatch, digits):
        monkeypatch.chdir(tmp_path)
        done = call("seal", "digits", "--output", "digits.seal")
        assert done.out.startswith(f"{digits}  sealed at event #68, digest ")
        assert "digits.seal: not signed; keep it where" in " ".join(done.out.split())

    def test_says_so_to_programs(self, call, tmp_path, digits, key):
        path = str(tmp_path / "a.seal")
        done = call("seal", "digits", "--key", key[0], "--output", path, "--json")
        shown = json.loads(done.out)
        assert (shown["file"], [run["run_id"] for run in shown["runs"]]) == (path, [digits])
        assert parse(Path(path).read_bytes()).fingerprint == shown["fingerprint"]

    def test_an_earlier_seal_is_evidence_and_stays(self, call, seal):
        path = seal("digits")
        done = call("seal", "digits", "--output", path)
        assert done.code == 3
        assert "there is such a file already" in done.err

    def test_a_run_that_is_not_sound_is_not_sealed(self, call, url, tmp_path):
        tamper(url, "UPDATE events SET recorded_at = 0 WHERE sequence = 18")
        path = tmp_path / "a.seal"
        done = call("seal", "--all", "--output", str(path))
        assert (done.code, done.out) == (1, "")
        assert "run 'digits-k3v7qx2a' is not sound, nothing was sealed: sequence 18" in done.err
        assert not path.exists()

    def test_an_empty_database_has_nothing_to_seal(self, call, tmp_path):
        url = f"sqlite:///{tmp_path / 'empty.db'}"
        call("db", "upgrade", "--database", url)
        done = call("seal", "--all", "--database", url)
        assert (done.code, done.err) == (1, "error: there are no runs to seal\n")


class TestKeys:
    def test_a_new_key_is_two_files_and_a_fingerprint(self, call, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        lines = call("seal", "--new-key", "key.pem").out.splitlines()
        assert lines[0] == "key.pem: the private key, to sign with; keep it to yourself"
        assert lines[1] == "key.pub.pem: the public key, to hand out"
        assert len(lines[2].removeprefix("fingerprint ")) == 64

    def test_and_to_programs(self, call, tmp_path):
        path = tmp_path / "key.pem"
        shown = json.loads(call("seal", "--new-key", str(path), "--json").out)
        assert shown["private_key"] == str(path)
        assert shown["public_key"] == str(tmp_path / "key.pub.pem")
        assert len(shown["fingerprint"]) == 64

    def test_is_never_overwritten(self, call, key):
        done = call("seal", "--new-key", key[0])
        assert (done.code, done.out) == (3, "")
        assert "there is such a file already" in done.err


class TestHoldingToASeal:
    def test_what_only_went_on_is_still_what_was_sealed(self, call, url, seal, story):
        with open_store(url) as store:
            growing = story(store, "growing-1")
            path = seal("growing-1")
            growing.slots("a")
            growing.handle(c.CloseRun)
        done = call("verify", "--seal", path)
        assert done.code == 0
        assert "✓ growing-1  intact, 3 events" in done.out
        assert "held to the seal of 20" in done.out

    def test_who_vouches_for_it_is_said(self, call, seal, key):
        said = {}
        for name, sealing, verifying in (
            ("plain", (), ()),
            ("signed", ("--key", key[0]), ()),
            ("trusted", ("--key", key[0]), ("--public-key", key[1])),
        ):
            path = seal("digits", *sealing, name=name)
            done = call("verify", "--seal", path, *verifying)
            said[name] = " ".join(done.out.split())
            shown = json.loads(call("verify", "--seal", path, *verifying, "--json").out)["seal"]
            assert (done.code, shown["trusted"]) == (0, name == "trusted")
            assert (shown["fingerprint"] is None) is (name == "plain")
        assert "not signed: it is worth as much as the place where it was kept" in said["plain"]
        assert "which was not checked: --public-key names one to trust" in said["signed"]
        assert "which is the trusted one" in said["trusted"]

    def test_a_cut_tail(self, call, url, seal):
        path = seal("--all")
        tamper(url, "DELETE FROM events WHERE sequence > 66")
        done = call("verify", "--seal", path, "--json")
        assert (done.code, flaws(done)) == (1, [(67, "cut")])

    def test_a_rewritten_history(self, call, url, seal, story, tmp_path):
        with open_store(url) as store:
            story(store, "growing-1", name="as it was")
        path = seal("growing-1")
        other = f"sqlite:///{tmp_path / 'other.db'}"
        with open_store(other) as store:
            story(store, "growing-1", name="as it suits")
        assert call("verify", "--all", "--database", other).code == 0
        done = call("verify", "--seal", path, "--database", other, "--json")
        assert (done.code, flaws(done)) == (1, [(1, "unsealed")])

    @pytest.mark.parametrize("arguments", [(), ("--all",), ("digits-k3v7qx2a",)], ids=str)
    def test_a_run_that_is_gone(self, call, url, seal, digits, arguments):
        path = seal("digits")
        tamper(url, f"DELETE FROM events WHERE run_id = '{digits}'")
        done = call("verify", *arguments, "--seal", path, "--json")
        assert (done.code, flaws(done)) == (1, [(1, "absent")])

    def test_all_are_verified_and_the_sealed_ones_held_to_it(self, call, seal, digits, blank):
        done = call("verify", "--all", "--seal", seal("digits"), "--json")
        assert [run["run_id"] for run in json.loads(done.out)["runs"]] == [blank, digits]

    def test_a_foreign_run(self, call, seal, blank):
        done = call("verify", "blank", "--seal", seal("digits"))
        assert (done.code, done.out) == (2, "")
        assert f"does not seal run {blank!r}" in done.err

    def test_an_altered_seal(self, call, seal, key, tmp_path):
        path = seal("digits", "--key", key[0])
        altered = Path(path).read_bytes().replace(b'"length":68', b'"length":67')
        (tmp_path / "altered").write_bytes(altered)
        done = call("verify", "--seal", str(tmp_path / "altered"))
        assert (done.code, done.out) == (2, "")
        assert "its signature is not that of what it says" in done.err

    def test_a_wrong_key(self, call, seal, key, tmp_path):
        call("seal", "--new-key", str(tmp_path / "other.pem"))
        path = seal("digits", "--key", key[0])
        done = call("verify", "--seal", path, "--public-key", str(tmp_path / "other.pub.pem"))
        assert (done.code, done.out) == (2, "")
        assert "not by the trusted one" in done.err

    def test_a_signature_that_was_taken_off(self, call, seal, key):
        done = call("verify", "--seal", seal("digits"), "--public-key", key[1])
        assert done.code == 2
        assert "the seal is not signed" in done.err


class Without:
    """An importer that knows of a package that it is not installed."""

    def __init__(self, package):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


class TestHistories:
    def test_a_history_that_cannot_have_been_is_shown_though_its_chain_is_whole(self, call, url):
        closed = e.RunClosed(epoch=0, step=0)
        with open_store(url) as store:
            store.append("odd-1", [run_opened("odd-1"), closed, closed], expected=0)
        done = call("verify", "odd-1")
        assert done.code == 1
        said = " ".join(done.out.split())
        assert "✗ odd-1 broken at event #3, 3 events" in said
        assert "it cannot have happened after what came before it (the run was closed)" in said
        assert call("seal", "odd-1").code == 1

    def test_what_could_not_be_judged_is_counted(self):
        head = Head(sequence=9, digest=bytes(32))
        found = Verification(run_id="newer", events=9, head=head, problems=(), unjudged=4)
        lines = plain(render_verifications([found]), width=200).splitlines()
        assert lines[0].startswith("✓ newer  intact, 9 events")
        assert lines[1].startswith("  4 events not held against the run's state")


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("seal",), "give a RUN or --all or --new-key KEY.pem"),
            (("seal", "digits", "--all"), "RUN and --all do not go together"),
            (("seal", "--all", "--new-key", "k.pem"), "--new-key and --all do not go together"),
            (("seal", "digits", "--key", "k.pem"), "give the file that `kasmina seal --new-key`"),
            (("seal", "nobody"), "there is no run 'nobody'"),
            (("verify", "--public-key", __file__, "--all"), "give --seal FILE with --public-key"),
            (("verify", "--seal", "nowhere.seal"), "nowhere.seal"),
            (("verify", "--seal", __file__), "the seal is not as it was written"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_a_request_that_makes_no_sense(self, call, arguments, said, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        done = call(*arguments)
        assert (done.code, done.out) == (2, "")
        assert said in done.err
        assert done.err.count("\n") == 1
        assert list(tmp_path.glob("*.pem")) == []

    def test_signing_without_its_package_names_the_extra(self, call, seal, key, monkeypatch):
        path = seal("digits", "--key", key[0])
        for module in [name for name in sys.modules if name.split(".")[0] == "cryptography"]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.delitem(sys.modules, "kasmina.infra.keys")
        monkeypatch.setattr(sys, "meta_path", [Without("cryptography"), *sys.meta_path])
        for arguments in (
            ("seal", "digits", "--key", key[0]),
            ("seal", "--new-key", "other.pem"),
            ("verify", "--seal", path),
        ):
            done = call(*arguments)
            assert (done.code, done.out) == (2, "")
            assert "needs the package 'cryptography'; pip install 'kasmina[seal]'" in done.err
        plain = call("seal", "digits")
        assert plain.code == 0
