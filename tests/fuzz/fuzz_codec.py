"""Bytes that nobody meant, as payloads: atheris grows them from the golden ones.

    python -m tests.fuzz.fuzz_codec FOLDER -runs=100000     # or any other option of libFuzzer

An input is the number of an event type in one byte, and a payload. The corpus goes to FOLDER.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["kasmina.infra", "kasmina.domain"]):
    from tests.fuzz.hostile import HOSTILE, NAMES, golden, survives


def begin(folder):
    """Every golden payload as an input, and what is hostile as words to put into it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(bytes([number]) + golden(name))
    words = folder.with_suffix(".words")
    lines = ("".join(f"\\x{byte:02x}" for byte in word) for word in HOSTILE if 0 < len(word) < 50)
    words.write_text("".join(f'"{line}"\n' for line in lines), encoding="ascii")
    return [f"-dict={words}", f"-artifact_prefix={folder.parent}/", str(folder)]


def try_one_input(data):
    if data:
        survives(NAMES[data[0] % len(NAMES)], data[1:])


if __name__ == "__main__":
    atheris.Setup([sys.argv[0], *begin(Path(sys.argv[1])), *sys.argv[2:]], try_one_input)
    atheris.Fuzz()
