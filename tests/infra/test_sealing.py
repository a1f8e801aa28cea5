"""A seal is worth what its bytes are worth: none of them can change unnoticed."""

import json
import stat
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import pytest
from attrs import evolve as changed
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from kasmina.infra import sealing
from kasmina.infra.exchange.errors import UnwritableFile
from kasmina.infra.integrity import Seal
from kasmina.infra.keys import UnusableKey, authenticate, make_keys, public_path, signed
from kasmina.infra.sealing import (
    AlteredSeal,
    NewerSeal,
    SealFile,
    UnsignedSeal,
    WrongKey,
    dump,
    fingerprint,
    parse,
    sealed,
    signed_part,
)
from kasmina.infra.writing import write_new
from kasmina.testing import caught

AT = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
SEALS = (
    Seal(run_id="a", length=41, digest=bytes(range(32))),
    Seal(run_id="läuf \x9b/1", length=2**63 - 1, digest=bytes(32)),
)
PLAIN = sealed(SEALS, at=AT)

seals = st.builds(
    Seal,
    run_id=st.text(st.characters(codec="utf-8"), min_size=1),
    length=st.integers(1, 2**63 - 1),
    digest=st.binary(min_size=32, max_size=32),
)
files = st.builds(
    sealed,
    st.lists(seals, min_size=1, max_size=4, unique_by=lambda seal: seal.run_id),
    at=st.datetimes(timezones=st.just(UTC)),
)


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "key.pem"
    make_keys(path)
    return path


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "other.pem"
    make_keys(path)
    return path


class TestTheFile:
    def test_is_one_line_that_anybody_can_make_and_read(self):
        line = dump(PLAIN).decode("ascii")
        assert line.startswith('{"format":"kasmina-seal","public_key":null,"runs":[{"digest":"0001')
        assert json.loads(line) == {
            "format": "kasmina-seal",
            "version": 1,
            "sealed_at": "2026-01-02T03:04:05.000678Z",
            "runs": [
                {"run_id": "a", "length": 41, "digest": bytes(range(32)).hex()},
                {"run_id": "läuf \x9b/1", "length": 2**63 - 1, "digest": "00" * 32},
            ],
            "public_key": None,
            "signature": None,
        }
        again = json.dumps(json.loads(line), sort_keys=True, separators=(",", ":"))
        assert line == f"{again}\n"

    def test_says_the_same_in_whatever_order_and_zone_it_was_made(self):
        east = AT.astimezone(timezone(timedelta(hours=5, minutes=30)))
        assert dump(sealed(SEALS[::-1], at=east)) == dump(PLAIN)

    @given(file=files)
    def test_reads_as_it_was_written(self, file):
        assert parse(dump(file)) == file

    def test_holds_each_run_once(self):
        for wrong in ((), (SEALS[0], SEALS[0]), SEALS[::-1]):
            with pytest.raises(ValueError, match="each but once"):
                SealFile(sealed_at=AT, seals=wrong)


class TestHostileFiles:
    @given(data=st.binary(max_size=300))
    def test_bytes_by_chance_are_no_seal(self, data):
        assert caught(AlteredSeal, parse, data)

    @given(data=st.data())
    def test_a_changed_document_is_refused_or_says_something_else(self, data):
        document = json.loads(dump(PLAIN))
        values = st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=10), inner, max_size=3)
            ),
            max_leaves=8,
        )
        where = data.draw(st.sampled_from([document, *document["runs"]]))
        name = data.draw(st.sampled_from(list(where)) | st.text(max_size=8))
        where[name] = data.draw(values)
        wrong = json.dumps(document, sort_keys=True, separators=(",", ":")) + "\n"
        with suppress(AlteredSeal, NewerSeal):
            assert dump(parse(wrong.encode())) == wrong.encode()

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (b'"a"', b'"b"'),
            (b"41", b"42"),
            (b"\n", b""),
            (b"\n", b"\n\n"),
            (b":1}", b": 1}"),
            (b'"public_key":null', b'"public_key":null,"public_key":null'),
            (b'"version":1', b'"version":1,"weight":2'),
            (b'"version":1', b'"version":0'),
            (b'"version":1', b'"version":1.0'),
            (b'"version":1', b'"version":true'),
            (b"kasmina-seal", b"kasmina-zeal"),
            (b"0001", b"0A01"),
            (b"0001", b"001"),
            (b"05.000678Z", b"05.000678"),
            (b"05.000678Z", b"65.000678Z"),
            (b"2026-01-02T03:04:05.000678Z", b"0001-01-01T00:00:00+23:59"),
            (b"41", b"0"),
            (b"41", b"NaN"),
            (b"41", b"9" * 30),
            (b'"runs":[', b'"runs":[' + b"[" * 100_000),
            (b'"public_key":null', b'"public_key":"' + b"ab" * 32 + b'"'),
            (b'"signature":null', b'"signature":"' + b"ab" * 64 + b'"'),
            (b"u00e4", b"ud800"),
        ],
        ids=str,
    )
    def test_only_what_was_written_is_read(self, old, new):
        data = dump(PLAIN)
        assert old in data
        if (old, new) in {(b'"a"', b'"b"'), (b"41", b"42")}:  # unsigned, nothing vouches for it
            assert parse(data.replace(old, new, 1)) != PLAIN
        else:
            assert caught(AlteredSeal, parse, data.replace(old, new, 1)).problem

    def test_a_newer_version_is_named(self):
        error = caught(NewerSeal, parse, dump(PLAIN).replace(b'"version":1', b'"version":2'))
        assert error.version == 2

    def test_a_file_beyond_all_measure_is_not_decoded(self, monkeypatch):
        monkeypatch.setattr(sealing, "LARGEST", 100)
        assert "more than the 100 bytes" in caught(AlteredSeal, parse, dump(PLAIN)).problem


class TestSignatures:
    def test_a_signed_file_is_authentic_for_the_public_half_of_its_key(self, key):
        file = signed(PLAIN, key)
        authenticate(file, public_path(key))
        authenticate(file, None)
        assert (file.seals, file.sealed_at) == (PLAIN.seals, PLAIN.sealed_at)
        assert file.fingerprint == fingerprint(file.public_key)
        assert parse(dump(file)) == file

    def test_a_file_that_was_not_signed_has_no_fingerprint_and_no_key_vouches_for_it(self, key):
        authenticate(PLAIN, None)
        assert PLAIN.fingerprint is None
        caught(UnsignedSeal, authenticate, PLAIN, public_path(key))

    def test_anybody_can_check_a_signature_without_this_code(self, key):
        document = json.loads(dump(signed(PLAIN, key)))
        signature = bytes.fromhex(document["signature"])
        line = json.dumps(document | {"signature": None}, sort_keys=True, separators=(",", ":"))
        public = serialization.load_pem_public_key(public_path(key).read_bytes())
        public.verify(signature, f"{line}\n".encode())

    @given(data=st.data())
    def test_no_bit_of_a_signed_file_changes_unnoticed(self, key, data):
        line = dump(signed(PLAIN, key))
        bit = data.draw(st.integers(0, 8 * len(line) - 1))
        altered = bytearray(line)
        altered[bit // 8] ^= 1 << bit % 8

        def check():
            authenticate(parse(bytes(altered)), None)

        assert caught(sealing.SealError, check)

    def test_a_seal_by_another_key_names_both_keys(self, key, other):
        file = signed(PLAIN, other)
        error = caught(WrongKey, authenticate, file, public_path(key))
        assert error.found == file.fingerprint
        assert error.trusted == signed(PLAIN, key).fingerprint

    def test_a_key_that_was_exchanged_for_another_is_no_signature(self, key, other):
        mine, theirs = signed(PLAIN, key), signed(PLAIN, other)
        forged = changed(mine, public_key=theirs.public_key)
        caught(AlteredSeal, authenticate, forged, None)
        assert signed_part(mine) != signed_part(theirs)


class TestKeys:
    def test_the_private_half_is_its_owners_alone(self, key):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert public_path(key).name == "key.pub.pem"
        assert b"PRIVATE" in key.read_bytes()
        assert b"PRIVATE" not in public_path(key).read_bytes()

    def test_a_key_is_never_overwritten(self, tmp_path):
        path = tmp_path / "key.pem"
        path.write_text("mine")
        assert caught(UnwritableFile, make_keys, path).path == str(path)
        assert path.read_text() == "mine"
        assert [file.name for file in tmp_path.iterdir()] == ["key.pem"]

    def test_half_a_pair_is_not_made(self, tmp_path):
        path = tmp_path / "key.pem"
        public_path(path).write_text("theirs")
        caught(UnwritableFile, make_keys, path)
        assert [file.name for file in tmp_path.iterdir()] == ["key.pub.pem"]
        assert public_path(path).read_text() == "theirs"

    def test_what_holds_no_key_is_named(self, key, tmp_path):
        nonsense, curve = tmp_path / "nonsense.pem", tmp_path / "curve.pem"
        nonsense.write_bytes(b"-----BEGIN PRIVATE KEY-----\n\xff")
        elliptic = ec.generate_private_key(ec.SECP256R1())
        formats = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        pem = serialization.Encoding.PEM
        curve.write_bytes(elliptic.private_bytes(pem, *formats))
        subject = serialization.PublicFormat.SubjectPublicKeyInfo
        public_path(curve).write_bytes(elliptic.public_key().public_bytes(pem, subject))
        file = signed(PLAIN, key)
        for path, problem in (
            (nonsense, "no private key"),
            (public_path(key), "no private key"),
            (curve, "not for Ed25519"),
            (tmp_path / "nowhere", "No such file"),
        ):
            error = caught(UnusableKey, signed, PLAIN, path)
            assert (error.path, problem in error.problem) == (path, True)
        for path, problem in (
            (nonsense, "no public key"),
            (key, "no public key"),
            (public_path(curve), "not for Ed25519"),
            (tmp_path / "nowhere", "No such file"),
        ):
            error = caught(UnusableKey, authenticate, file, path)
            assert (error.path, problem in error.problem) == (path, True)

    def test_a_key_behind_a_passphrase_is_not_asked_for_it(self, tmp_path):
        path = tmp_path / "key.pem"
        private = ed25519.Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
        path.write_bytes(private)
        assert "passphrase" in caught(UnusableKey, signed, PLAIN, path).problem


class TestWriting:
    def test_a_file_appears_whole_or_not_at_all(self, tmp_path):
        path = tmp_path / "a.seal"
        write_new(path, b"first")
        assert path.read_bytes() == b"first"
        assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600
        error = caught(UnwritableFile, write_new, path, b"second")
        assert "already" in error.problem
        assert path.read_bytes() == b"first"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_folder_that_is_not_there_is_said(self, tmp_path):
        error = caught(UnwritableFile, write_new, tmp_path / "no" / "a.seal", b"")
        assert "No such file" in error.problem
