"""Files that nobody exported: atheris grows them from whole ones.

    python -m tests.fuzz.fuzz_import FOLDER -runs=100000     # or any other option of libFuzzer

An input is a file, plain or gzipped. Rows that can be read are given digests that fit, as anybody
could compute them, and are imported into a real database. The corpus goes to FOLDER.
"""

import gzip
import io
import shutil
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["kasmina.infra", "kasmina.domain"]):
    from kasmina.domain.errors import KasminaError, StoreUnavailable
    from kasmina.infra.engine import Durability
    from kasmina.infra.event_store import open_store
    from kasmina.infra.exchange import jsonl
    from kasmina.infra.exchange.files import opened
    from kasmina.infra.exchange.importing import import_lines
    from kasmina.infra.integrity import Scrutiny, chain
    from kasmina.testing import FixedClock, epochs, run_opened
    from tests.fuzz.hostile import HOSTILE

WORDS = (*HOSTILE, b'"payload":', b'"sequence":', b'"digest":', b"\n", b"\r\n", b"\x1f\x8b\x08")


class Target:
    """A database that every input finds empty."""

    def __init__(self, folder):
        self.folder = folder
        self.empty = folder.with_suffix(".empty.db")
        self.path = folder.with_suffix(".db")
        self.input = folder.with_suffix(".input")
        with open_store(f"sqlite:///{self.empty}"):
            pass

    def take_in(self, data):
        """Import the input, and what it would be with digests that fit."""
        self.input.write_bytes(data)
        try:
            with opened(str(self.input)) as stream:
                rows = list(jsonl.rows(stream, "input", longest=10_000))
        except KasminaError:
            return
        lines = b"".join(jsonl.lines(rechained(rows)))
        shutil.copy(self.empty, self.path)
        with open_store(f"sqlite:///{self.path}", durability=Durability.RELAXED) as store:
            try:
                transfers = import_lines(store, io.BytesIO(lines), "input")
            except StoreUnavailable:
                raise
            except KasminaError:
                assert store.run_ids() == ()
                return
            assert sum(transfer.added for transfer in transfers) == len(rows)
            for run_id in store.run_ids():
                assert store.verify(run_id, scrutiny=Scrutiny.CHAIN).sound
                assert b"".join(jsonl.lines(store.rows(run_id)))
                assert list(store.read(run_id))


def rechained(rows):
    digests = {}
    for row in rows:
        run_id = row.columns.run_id
        before = digests[run_id] if run_id in digests else bytes(32)
        digests[run_id] = chain(before, row.columns)
        yield row._replace(digest=digests[run_id])


def begin(folder):
    """Whole files as inputs, and what is hostile as words to put into them."""
    folder.mkdir(parents=True, exist_ok=True)
    with open_store(f"sqlite:///{folder.with_suffix('.source.db')}", clock=FixedClock()) as source:
        for run_id in ("a", "b"):
            source.append(run_id, [run_opened(run_id), *epochs(2)], expected=0, batch="w")
        lines = [list(jsonl.lines(source.rows(run_id))) for run_id in ("a", "b")]
    (folder / "one").write_bytes(lines[0][0])
    (folder / "run").write_bytes(b"".join(lines[0]))
    (folder / "both").write_bytes(b"".join(lines[0] + lines[1]))
    (folder / "zipped").write_bytes(gzip.compress(b"".join(lines[0])))
    words = folder.with_suffix(".words")
    told = ("".join(f"\\x{byte:02x}" for byte in word) for word in WORDS if 0 < len(word) < 50)
    words.write_text("".join(f'"{word}"\n' for word in told), encoding="ascii")
    return [f"-dict={words}", f"-artifact_prefix={folder.parent}/", str(folder)]


if __name__ == "__main__":
    corpus = Path(sys.argv[1])
    options = begin(corpus)
    atheris.Setup([sys.argv[0], *options, *sys.argv[2:]], Target(corpus).take_in)
    atheris.Fuzz()
