"""Names and texts as MLflow takes them."""

import hashlib
import posixpath
import re

LONGEST_KEY = 250
LONGEST_TEXT = 5000

_REFUSED = re.compile(r"[^\w\-. /]")
_AS_FOLDER = re.compile(r"[./]")
_DIGITS = 32


def key(name: str) -> str:
    """``name`` as a key: what MLflow refuses as hexadecimal code points, ``[`` as ``:5b:``.

    Different names stay different keys: one that would be another as a path has its dots and
    slashes coded too, one that is too long ends in a digest of itself.
    """
    plain = _REFUSED.sub(_code, name)
    if plain.startswith(("/", "..")) or plain == "." or posixpath.normpath(plain) != plain:
        plain = _AS_FOLDER.sub(_code, plain)
    if len(plain) <= LONGEST_KEY:
        return plain
    digest = hashlib.sha256(name.encode()).hexdigest()[:_DIGITS]
    return f"{plain[: LONGEST_KEY - _DIGITS - 1]}:{digest}"


def shortened(text: str) -> str:
    """``text``, and where it is too long its beginning."""
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 3]}..."


def _code(character: re.Match[str]) -> str:
    return f":{ord(character[0]):x}:"
