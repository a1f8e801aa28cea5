"""Seals as files: one line of canonical JSON, signed with Ed25519 where a key is given.

Fields are sorted, text is ASCII with escapes, there is no white space but the newline at the end,
and the signature is over the same line with ``null`` in its place. So a seal can be checked without
this code, and no byte of a signed one can change unnoticed. ``kasmina.infra.keys`` signs.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated

import msgspec
from attrs import evolve, field, frozen

from kasmina.domain.errors import KasminaError
from kasmina.infra.integrity import Seal

FORMAT, VERSION = "kasmina-seal", 1
LARGEST = 64 * 1024 * 1024
"""Bytes of a seal file: some four hundred thousand runs."""


class SealError(KasminaError):
    """A seal that says nothing about any run."""


class AlteredSeal(SealError):
    """Not the bytes that were written as a seal."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(
            f"the seal is not as it was written: {problem}; get an untouched copy of it"
        )


class NewerSeal(SealError):
    """A seal in a version that this release cannot read."""

    def __init__(self, version: int) -> None:
        self.version = version
        super().__init__(
            f"the seal has version {version}, this release of kasmina reads {VERSION}; "
            f"verify with a newer one"
        )


class UnsignedSeal(SealError):
    """A seal without the signature that was asked for."""

    def __init__(self) -> None:
        super().__init__(
            "the seal is not signed, so that no public key can vouch for it; leave the key out to "
            "hold the runs to it all the same"
        )


class WrongKey(SealError):
    """A signature by another key than the one that is trusted."""

    def __init__(self, *, found: str, trusted: str) -> None:
        self.found = found
        self.trusted = trusted
        super().__init__(
            f"the seal was signed by the key {found}, not by the trusted one, {trusted}; give the "
            f"public key of who made it, or do not trust it"
        )


@frozen(kw_only=True)
class SealFile:
    """What runs were at ``sealed_at`` (UTC). ``public_key``, of 32 bytes, is the signer's."""

    sealed_at: datetime
    seals: tuple[Seal, ...] = field()
    public_key: bytes | None = None
    signature: bytes | None = None

    @seals.validator
    def _each_run_once(self, _: object, seals: tuple[Seal, ...]) -> None:
        ids = [seal.run_id for seal in seals]
        if not ids or ids != sorted(set(ids)):
            raise ValueError("runs must be there, sorted by their ids, and each but once")

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint of the key that signed it."""
        return None if self.public_key is None else fingerprint(self.public_key)


def sealed(seals: Sequence[Seal], *, at: datetime) -> SealFile:
    """The seals of one moment in a file, not signed yet."""
    ordered = tuple(sorted(seals, key=lambda seal: seal.run_id))
    return SealFile(sealed_at=at, seals=ordered)


def fingerprint(public_key: bytes) -> str:
    """SHA-256 of a key's 32 bytes, in hexadecimal."""
    return sha256(public_key).hexdigest()


def dump(file: SealFile) -> bytes:
    """The bytes of the file."""
    plain = msgspec.to_builtins(_wired(file))
    return f"{json.dumps(plain, sort_keys=True, separators=(',', ':'))}\n".encode("ascii")


def parse(data: bytes) -> SealFile:
    """The file whose bytes these are. Raises ``AlteredSeal`` and ``NewerSeal``.

    The signature, where there is one, is yet to be checked: ``keys.authenticate``.
    """
    if len(data) > LARGEST:
        raise AlteredSeal(f"it has more than the {LARGEST} bytes that a seal can have")
    try:
        head = _HEAD.decode(data)
        if head.format != FORMAT:
            raise AlteredSeal(f"its format is {head.format!r}, not {FORMAT!r}")
        if head.version > VERSION:
            raise NewerSeal(head.version)
        file = _plain(_WIRE.decode(data))
        same = dump(file) == data
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise AlteredSeal(str(error)) from error
    if not same:
        raise AlteredSeal("it is not in the form in which seals are written")
    if (file.public_key is None) is not (file.signature is None):
        raise AlteredSeal("it has half a signature")
    return file


def signed_part(file: SealFile) -> bytes:
    """What a signature is over."""
    return dump(evolve(file, signature=None))


class _Head(msgspec.Struct):
    format: str
    version: Annotated[int, msgspec.Meta(ge=1)]


class _Run(msgspec.Struct):
    run_id: Annotated[str, msgspec.Meta(min_length=1)]
    length: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    digest: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class _Wire(msgspec.Struct):
    format: str
    version: int
    sealed_at: str
    runs: list[_Run]
    public_key: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")] | None
    signature: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{128}$")] | None


_HEAD = msgspec.json.Decoder(_Head)
_WIRE = msgspec.json.Decoder(_Wire)


def _wired(file: SealFile) -> _Wire:
    moment = file.sealed_at.astimezone(UTC).replace(tzinfo=None)
    return _Wire(
        format=FORMAT,
        version=VERSION,
        sealed_at=f"{moment.isoformat(timespec='microseconds')}Z",
        runs=[
            _Run(run_id=seal.run_id, length=seal.length, digest=seal.digest.hex())
            for seal in file.seals
        ],
        public_key=None if file.public_key is None else file.public_key.hex(),
        signature=None if file.signature is None else file.signature.hex(),
    )


def _plain(wire: _Wire) -> SealFile:
    return SealFile(
        sealed_at=datetime.fromisoformat(wire.sealed_at),
        seals=tuple(
            Seal(run_id=run.run_id, length=run.length, digest=bytes.fromhex(run.digest))
            for run in wire.runs
        ),
        public_key=None if wire.public_key is None else bytes.fromhex(wire.public_key),
        signature=None if wire.signature is None else bytes.fromhex(wire.signature),
    )
