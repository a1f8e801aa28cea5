"""Malformed, huge and hostile payloads: nothing but clear errors, and what is read is meant."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasmina.domain import events as e
from kasmina.domain.errors import UnreadableEvent
from kasmina.infra import codec
from tests.fuzz.hostile import HOSTILE, NAMES, golden, survives

ROOT = Path(__file__).parents[2]
VALUE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.e+-]*|true|false|null')
"""A value or a name in JSON that is itself neither an object nor an array."""


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: repr(hostile[:30]))
def test_every_value_of_every_event_may_be_a_hostile_one(hostile):
    for name in NAMES:
        payload = golden(name)
        survives(name, hostile)
        for value in VALUE.finditer(payload):
            survives(name, payload[: value.start()] + hostile + payload[value.end() :])


@given(data=st.data(), name=st.sampled_from(NAMES))
def test_several_of_them_may_be(data, name):
    payload = golden(name)
    places = list(VALUE.finditer(payload))
    chosen = data.draw(st.sets(st.sampled_from(places), max_size=4))
    for place in sorted(chosen, key=lambda place: place.start(), reverse=True):
        hostile = data.draw(st.sampled_from([word for word in HOSTILE if len(word) < 500]))
        payload = payload[: place.start()] + hostile + payload[place.end() :]
    survives(name, payload)


@given(data=st.data(), name=st.sampled_from(NAMES))
def test_a_payload_may_be_cut_torn_or_changed_in_any_place(data, name):
    payload = bytearray(golden(name))
    start = data.draw(st.integers(0, len(payload)))
    stop = data.draw(st.integers(start, min(start + 8, len(payload))))
    payload[start:stop] = data.draw(st.binary(max_size=8))
    survives(name, bytes(payload))


documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["$float", "nan", 2**63, 10**400, {"$float": "inf"}, {"$float": 1}]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(data=st.data(), name=st.sampled_from(NAMES))
def test_a_field_may_hold_any_document(data, name):
    payload = json.loads(golden(name))
    fields = data.draw(st.sets(st.sampled_from([*payload, "another", "$float"]), min_size=1))
    for field in fields:
        payload[field] = data.draw(documents)
    survives(name, json.dumps(payload).encode(errors="surrogatepass"))


@given(data=st.data(), name=st.sampled_from(NAMES))
def test_of_fields_that_are_repeated_one_is_read_and_the_same_each_time(data, name):
    payload = golden(name)
    field = data.draw(st.sampled_from(list(json.loads(payload))))
    value = data.draw(st.sampled_from([word for word in HOSTILE if len(word) < 500]))
    survives(name, payload[:-1] + b',"%s":%s}' % (field.encode(), value))


@given(
    name=st.sampled_from([*NAMES, "SeedPromoted", "", "größe"]),
    version=st.integers(-(2**70), 2**70),
    payload=st.sampled_from([golden(name) for name in NAMES]) | st.binary(),
)
def test_any_name_and_any_version_is_read_kept_or_refused(name, version, payload):
    """An event of a newer release is kept as it is; it cannot be written by this one."""
    try:
        event = codec.decode(name, version, payload)
    except UnreadableEvent:
        return
    assert event.epoch >= 0
    if isinstance(event, e.UnknownEvent):
        assert (event.type, event.schema_version) == (name, version)
        assert event.payload.encode() == payload


@pytest.mark.parametrize(
    "runs", [50_000, pytest.param(2_000_000, marks=pytest.mark.slow)], ids=["some", "many"]
)
@pytest.mark.skipif(not importlib.util.find_spec("atheris"), reason="atheris is not installed")
def test_a_fuzzer_that_is_told_what_it_reached_finds_nothing(tmp_path, runs):
    program = [sys.executable, "-m", "tests.fuzz.fuzz_codec", str(tmp_path / "corpus")]
    options = [f"-runs={runs}", "-max_len=4096", "-timeout=20", "-max_total_time=20"]
    done = subprocess.run([*program, *options], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-4000:]
    assert b"DONE" in done.stderr
