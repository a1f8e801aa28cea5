"""What ``kasmina seal --json`` and ``kasmina verify --seal FILE --json`` print of seals."""

from pathlib import Path

from kasmina.adapters.cli.documents import Document, values
from kasmina.infra.sealing import SealFile


def seal_document(file: SealFile, *, path: Path) -> Document:
    """``kasmina seal --output FILE``: what was written, and where."""
    return {
        "file": str(path),
        "sealed_at": values(file.sealed_at),
        "fingerprint": file.fingerprint,
        "runs": [
            {"run_id": seal.run_id, "length": seal.length, "digest": seal.digest.hex()}
            for seal in file.seals
        ],
    }


def key_document(private: Path, public: Path, *, fingerprint: str) -> Document:
    """``kasmina seal --new-key KEY``: the two files, and how to tell the key apart."""
    return {"private_key": str(private), "public_key": str(public), "fingerprint": fingerprint}


def credentials_document(file: SealFile, *, trusted: bool) -> Document:
    """``kasmina verify --seal FILE``: who vouches for what the runs were held to."""
    return {
        "sealed_at": values(file.sealed_at),
        "runs": len(file.seals),
        "fingerprint": file.fingerprint,
        "trusted": trusted,
    }
