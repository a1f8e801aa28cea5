"""Marks in a file of their own, for receivers that cannot keep them."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from attrs import asdict

from kasmina.adapters.sinks.errors import SinkUnavailable
from kasmina.adapters.sinks.exclusive import unwritable
from kasmina.adapters.sinks.marks import Mark


def read_marks(path: Path) -> dict[str, Mark]:
    """The marks in the file, by run; none where there is no file. Raises ``SinkUnavailable``."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise unwritable(str(path), error) from error
    try:
        marks = [Mark(**fields) for fields in json.loads(text)]
    except (TypeError, ValueError) as error:
        problem = "it does not hold what was shown so far"
        mend = "give the file that an earlier follower wrote, or a new one to begin again"
        raise SinkUnavailable(str(path), problem, mend) from error
    return {mark.run_id: mark for mark in marks}


def write_marks(path: Path, marks: Mapping[str, Mark]) -> None:
    """Replace the file: whatever happens, it holds the old marks or the new ones.

    Raises ``SinkUnavailable``.
    """
    beside = path.with_name(f"{path.name}.new")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(_text(marks.values()))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise unwritable(str(path), error) from error


def _text(marks: Iterable[Mark]) -> str:
    return json.dumps([asdict(mark) for mark in marks], indent=1)
