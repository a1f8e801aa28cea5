"""Ed25519 keys in PEM files, and the signatures of seals. Needs the package ``cryptography``."""

from pathlib import Path

from attrs import evolve
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from kasmina.infra.sealing import (
    AlteredSeal,
    SealError,
    SealFile,
    UnsignedSeal,
    WrongKey,
    fingerprint,
    signed_part,
)
from kasmina.infra.writing import SECRET, write_new


class UnusableKey(SealError):
    """A file that does not hold the key that it should."""

    def __init__(self, path: Path, problem: str, mend: str) -> None:
        self.path = path
        self.problem = problem
        self.mend = mend
        super().__init__(f"{path}: {problem}; {mend}")


def public_path(path: Path) -> Path:
    """Where the public half of the key at ``path`` is kept: ``key.pem``, ``key.pub.pem``."""
    return path.with_suffix(".pub.pem")


def make_keys(path: Path) -> bytes:
    """A new key in two new files, of which the private one is its owner's alone to read.

    Returns the public key's 32 bytes. Raises ``UnwritableFile``.
    """
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    write_new(path, private, mode=SECRET)
    try:
        write_new(public_path(path), public)
    except BaseException:
        path.unlink()
        raise
    return key.public_key().public_bytes_raw()


def signed(file: SealFile, path: Path) -> SealFile:
    """The file, signed with the private key at ``path``. Raises ``UnusableKey``."""
    key = _private(path)
    mine = evolve(file, public_key=key.public_key().public_bytes_raw())
    return evolve(mine, signature=key.sign(signed_part(mine)))


def authenticate(file: SealFile, trusted: Path | None) -> None:
    """Check the signature, and that it was made by the ``trusted`` public key where one is given.

    Raises ``AlteredSeal``, ``WrongKey``, ``UnsignedSeal`` and ``UnusableKey``.
    """
    wanted = None if trusted is None else _public(trusted)
    if file.public_key is None or file.signature is None:
        if wanted is None:
            return
        raise UnsignedSeal
    try:
        key = Ed25519PublicKey.from_public_bytes(file.public_key)
        key.verify(file.signature, signed_part(file))
    except (InvalidSignature, ValueError) as error:
        raise AlteredSeal("its signature is not that of what it says") from error
    if wanted is not None and wanted != file.public_key:
        raise WrongKey(found=fingerprint(file.public_key), trusted=fingerprint(wanted))


def _private(path: Path) -> Ed25519PrivateKey:
    mend = "give the file that `kasmina seal --new-key` made"
    try:
        key = serialization.load_pem_private_key(_read(path, mend), password=None)
    except TypeError as error:
        problem = "the key is protected by a passphrase"
        raise UnusableKey(
            path, problem, "give one that is not, kept where only you can read"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UnusableKey(path, "there is no private key in it", mend) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UnusableKey(path, "its key is not for Ed25519", mend)
    return key


def _public(path: Path) -> bytes:
    mend = "give the `.pub.pem` file of who made the seal"
    try:
        key = serialization.load_pem_public_key(_read(path, mend))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UnusableKey(path, "there is no public key in it", mend) from error
    if not isinstance(key, Ed25519PublicKey):
        raise UnusableKey(path, "its key is not for Ed25519", mend)
    return key.public_bytes_raw()


def _read(path: Path, mend: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnusableKey(path, error.strerror or str(error), mend) from error
