"""What a stored payload must never be, and what must hold for it all the same."""

from contextlib import suppress
from pathlib import Path

from kasmina.domain.errors import UnreadableEvent
from kasmina.infra import codec

NAMES = sorted(codec.TYPES)
LARGEST = 2**63 - 1
"""An epoch has a column as well, and this is all that a column holds."""

PAYLOADS = Path(__file__).parents[1] / "infra" / "golden" / "payloads"

HOSTILE = (
    b"NaN",
    b"-Infinity",
    b"1e400",
    b"-1e-400",
    b"1.0",
    b"-0.0",
    b"0x10",
    b"00",
    b"9223372036854775807",
    b"9223372036854775808",
    b"18446744073709551616",
    b"-9223372036854775809",
    b"1" * 400,
    b"9" * 5000,
    b"1" * 20_000,
    b"true",
    b"null",
    b'""',
    b'" "',
    b'"1"',
    b'"nan"',
    b'"\xff"',
    b'"\xc0\x80"',
    b'"\xed\xa0\x80"',
    b'"\\ud800"',
    b'"\\u0000"',
    b'"\\u0024float"',
    b'"$float"',
    b'{"$float":"nan"}',
    b'{"$float":"-inf"}',
    b'{"$float":"NaN"}',
    b'{"$float":"1"}',
    b'{"$float":1}',
    b'{"$float":null}',
    b'{"$float":[]}',
    b'{"$float":{"$float":"nan"}}',
    b'{"$float":"inf","$float":"nan"}',
    b'{"$float":"nan","epoch":1}',
    b'{"\\u0024float":"nan"}',
    b'{"epoch":1,"epoch":{"$float":"nan"}}',
    b"{}",
    b"[]",
    b"[[]]",
    b'[{"$float":"nan"}]',
    b"[" * 100_000,
    b"[" * 2000 + b"]" * 2000,
    b'{"a":' * 100_000,
    b'{"$float":' * 2000 + b'"nan"' + b"}" * 2000,
    b"[" * 500 + b'{"$float":"nan"}' + b"]" * 500,
    b"\xef\xbb\xbf{}",
    b"\x00",
    b"",
)
"""Values, whole or broken, to be put in the place of any other."""


def golden(name):
    """The payload of an event's present version, as it was released."""
    return (PAYLOADS / f"{name}.{codec.TYPES[name][1]}.json").read_bytes()


def survives(name, payload):
    """What is read is written as something that reads the same; all else is a clear error."""
    version = codec.TYPES[name][1]
    event = _read(codec.decode, name, version, payload)
    assert repr(_read(codec.read, name.encode(), version, payload)) == repr(event)
    if event is None:
        return
    if event.epoch > LARGEST:
        with suppress(codec.UnwritableEvent):
            codec.encode(event)
            raise AssertionError(f"epoch {event.epoch} was written")
        return
    encoded = codec.encode(event)
    assert (encoded.type.decode(), encoded.schema_version) == (name, version)
    again = codec.decode(name, version, encoded.payload)
    assert repr(again) == repr(event)
    assert codec.encode(again) == encoded


def _read(act, *stored):
    try:
        return act(*stored)
    except UnreadableEvent:
        return None
