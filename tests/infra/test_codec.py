"""Every event survives storage exactly, and nothing that would not is stored."""

import math
import types
import typing
from contextlib import suppress

import attrs
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasmina.domain import events as e
from kasmina.domain import validators
from kasmina.domain.errors import UnreadableEvent
from kasmina.domain.evidence import Check, Comparison, GateOutcome, Metric
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.schedules import BlendPlan
from kasmina.domain.stages import Blend, CullCause, Gate, Incubator, Leak, Topology
from kasmina.infra import codec
from kasmina.infra.upcasters import unchanged, upcast
from kasmina.testing import caught, run_opened
from tests.infra.released import EVENTS

FLOATS = st.floats(allow_nan=True, allow_infinity=True)
TEXT = st.one_of(st.text(), st.sampled_from(['{"$float":"nan"}', "$float", "null", '"', "\x00"]))
LARGEST = 2**63 - 1


def values(cls):
    """Any valid value of an attrs class, from its annotations and its validators."""
    hints = typing.get_type_hints(cls)
    return st.builds(
        cls, **{f.name: of_type(hints[f.name], limits(f.validator)) for f in attrs.fields(cls)}
    )


OPTIONAL = type(attrs.validators.optional(validators.positive))
DEEP = type(attrs.validators.deep_iterable(validators.positive))


def limits(validator):
    if isinstance(validator, DEEP):
        return validator.member_validator
    return validator.validator if isinstance(validator, OPTIONAL) else validator


def of_type(hint, limit=None):
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return st.lists(of_type(arguments[0], limit), max_size=4).map(tuple)
    if typing.get_origin(hint) is types.UnionType:
        return st.one_of(*(of_type(argument, limit) for argument in arguments))
    if hint is type(None):
        return st.none()
    if hint is bool:
        return st.booleans()
    if hint is int:
        low = {validators.not_negative: 0, validators.positive: 1}.get(limit, -(2**70))
        return st.integers(min_value=low, max_value=LARGEST)
    if hint is float:
        return FLOATS if limit is None else st.floats(min_value=0.0009765625, max_value=1)
    if hint is str:
        return TEXT.filter(str.strip) if limit is validators.not_blank else TEXT
    return values(hint) if attrs.has(hint) else st.sampled_from(hint)


@pytest.mark.parametrize("cls", [cls for cls, _ in codec.TYPES.values()], ids=codec.TYPES)
@settings(max_examples=40)
@given(data=st.data())
def test_every_event_survives_storage_exactly(cls, data):
    event = data.draw(values(cls))
    encoded = codec.encode(event)
    read = codec.decode(encoded.type.decode(), encoded.schema_version, encoded.payload)
    assert repr(read) == repr(event)
    assert codec.encode(read) == encoded
    # Canonical: what any other JSON library makes of it with sorted keys, and no NaN outside JSON.
    plain = msgspec.json.decode(encoded.payload)
    assert msgspec.json.encode(plain, order="sorted") == encoded.payload


@pytest.mark.parametrize("member", [*Incubator, *Blend, *Leak, *CullCause], ids=str)
def test_every_way_to_incubate_blend_leak_and_cull_survives_storage(member):
    match member:
        case Incubator():
            event = attrs.evolve(
                EVENTS["SeedGerminated"], incubation=IncubationPlan(incubator=member)
            )
        case Blend():
            event = attrs.evolve(EVENTS["SeedGerminated"], blend=BlendPlan(blend=member))
        case Leak():
            event = attrs.evolve(EVENTS["IsolationViolated"], leak=member)
        case CullCause():
            event = attrs.evolve(EVENTS["CullScheduled"], cause=member)
    encoded = codec.encode(event)
    assert f'"{member.value}"'.encode() in encoded.payload
    assert codec.decode(encoded.type.decode(), encoded.schema_version, encoded.payload) == event


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ((b'"target":0.75', b'"target":0'), "target must lie in (0, 1], got 0.0"),
        ((b"[0.25,0.5]", b"[0.25,1.5]"), "search must lie in (0, 1], got 1.5"),
        ((b'"share":0.125', b'"share":0'), "share must lie in (0, 1], got 0.0"),
        ((b'"penalty":2.5', b'"penalty":-1'), "penalty must be finite and above 0"),
        ((b'"rehearsal"', b'"telepathy"'), "Invalid enum value 'telepathy'"),
    ],
)
def test_a_stored_plan_that_cannot_be_meant_is_not_read(change, problem):
    stored = codec.encode(EVENTS["SeedGerminated"])
    forged = stored.payload.replace(*change)
    assert forged != stored.payload
    error = caught(UnreadableEvent, codec.decode, "SeedGerminated", 1, forged)
    assert problem in error.problem


def test_an_event_says_its_place():
    seed = e.SeedPaused(epoch=3, step=30, slot_id="größe", seed_id="s1")
    slot = e.SlotOpened(epoch=3, step=30, slot_id="a", topology=Topology.CNN, width=4)
    assert codec.encode(seed)[:5] == ("größe".encode(), b"s1", b"SeedPaused", 1, 3)
    assert codec.encode(slot)[:2] == (b"a", None)
    assert codec.encode(run_opened())[:2] == (None, None)


def test_non_finite_figures_are_marked_and_unmeasured_ones_are_null():
    checks = tuple(
        Check.of("norm", value, Comparison.FINITE, None)
        for value in (math.nan, math.inf, -math.inf, None)
    )
    outcome = GateOutcome(gate=Gate.G2, passed=False, score=0.0, checks=checks)
    event = e.GateEvaluated(epoch=1, step=1, slot_id="a", seed_id="s", outcome=outcome)
    payload = codec.encode(event).payload
    for figure in (b'{"$float":"nan"}', b'{"$float":"inf"}', b'{"$float":"-inf"}', b"null"):
        assert b'"measured":' + figure in payload


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"objective": "0.5"}, "Expected `float | null`, got `str`"),
        ({"objective": True}, "got `bool`"),
        ({"objective": object()}, "unsupported"),
        ({"metrics": (Metric(name="loss\ud800", value=1.0),)}, "surrogates not allowed"),
        ({"metrics": ({"name": "loss"},)}, "missing required field"),
        ({"epoch": 1.5}, "Expected `int`, got `float`"),
        ({"epoch": 2**63}, "does not fit in 64 bits"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(change, problem):
    event = e.EpochRecorded(**({"epoch": 1, "step": 1, "objective": 0.5} | change))
    error = caught(codec.UnwritableEvent, codec.encode, event)
    assert error.event is event
    assert problem in error.problem


def test_an_event_without_a_stored_name_is_not_written():
    class Private(e.Event):
        pass

    error = caught(codec.UnwritableEvent, codec.encode, Private(epoch=0, step=0))
    assert "no stored name" in str(error)


def test_a_seed_that_is_not_text_is_not_written():
    event = e.SeedPaused(epoch=1, step=1, slot_id="a", seed_id=5)
    assert "Expected `str`" in caught(codec.UnwritableEvent, codec.encode, event).problem


PAUSED = b'{"epoch":1,"seed_id":"s1","slot_id":"a","step":1}'


@pytest.mark.parametrize(("name", "version"), [("SeedPromoted", 1), ("SeedPaused", 2)])
def test_an_event_of_a_newer_release_is_kept_as_it_was_stored(name, version):
    event = codec.decode(name, version, PAUSED)
    assert event == e.UnknownEvent(
        epoch=1,
        step=1,
        type=name,
        schema_version=version,
        payload=PAUSED.decode(),
        slot_id="a",
        seed_id="s1",
    )
    assert codec.places(event) == (b"a", b"s1")
    assert "no stored name" in caught(codec.UnwritableEvent, codec.encode, event).problem


def test_an_event_of_a_newer_release_may_be_about_the_whole_run():
    event = codec.decode("RunPraised", 7, b'{"epoch":1,"step":2,"words":["well",{"done":null}]}')
    assert codec.places(event) == (None, None)


@pytest.mark.parametrize(
    ("name", "version", "payload", "problem"),
    [
        ("SeedPaused", 1, b"", "truncated"),
        ("SeedPaused", 1, PAUSED[:-1], "truncated"),
        ("SeedPaused", 1, b"[]", "Expected `object`"),
        ("SeedPaused", 1, PAUSED.replace(b'"s1"', b"1"), "Expected `str`, got `int`"),
        ("SeedPaused", 1, PAUSED.replace(b'"s1"', b'"\xff"'), "utf"),
        ("SeedPaused", 1, PAUSED.replace(b'"a"', b'" "'), "must not be blank"),
        ("SeedPaused", 1, PAUSED.replace(b'"step":1', b'"step":-1'), "at least 0"),
        ("SeedPaused", 1, b'{"epoch":1}', "missing required field"),
        ("RunClosed", 1, b'{"epoch":{"$float":' + b"[" * 100_000, "recursion"),
        ("SeedPaused", 0, PAUSED, "begin at 1"),
        ("SeedPromoted", 1, b"[]", "Expected `object`"),
        ("SeedPromoted", 1, b'{"epoch":-1,"step":0}', ">= 0"),
        ("SeedPromoted", 1, b'{"epoch":1,"step":0,"name":"\xff"}', "utf"),
        ("RunClosed", 1, b'{"epoch":1,"objective":{"$float":"big"},"step":1}', "big"),
        ("RunClosed", 1, b'{"epoch":1,"objective":{"$float":[]},"step":1}', "unhashable"),
        ("RunClosed", 1, b'{"epoch":1,"objective":1e400,"step":1}', "out of range"),
        ("RunClosed", 1, b'{"epoch":1,"objective":NaN,"step":1}', "malformed"),
    ],
)
def test_bytes_that_are_no_event_are_a_clear_error(name, version, payload, problem):
    error = caught(UnreadableEvent, codec.decode, name, version, payload)
    assert (error.type_name, error.version) == (name, version)
    assert problem in error.problem


@given(name=st.sampled_from(sorted(codec.TYPES)), payload=st.binary() | st.text().map(str.encode))
def test_hostile_bytes_never_escape_as_another_error(name, payload):
    with suppress(UnreadableEvent):
        codec.decode(name, 1, payload)


class TestUpcasting:
    """An imaginary future: SeedCulled is at version 3, and its causes were renamed on the way."""

    @pytest.fixture
    def future(self, monkeypatch):
        def renamed(payload):
            return payload | {"cause": payload["cause"].lower()}

        def excused(payload):
            return {"reason": "unsaid"} | payload

        upcasters = {("SeedCulled", 1): excused, ("SeedCulled", 2): renamed}
        monkeypatch.setitem(codec.TYPES, "SeedCulled", (e.SeedCulled, 3))
        monkeypatch.setattr(codec, "UPCASTERS", upcasters)

    def test_an_old_payload_is_read_with_todays_meaning(self, future):
        old = b'{"cause":"TIMED_OUT","epoch":1,"seed_id":"s","slot_id":"a","step":1}'
        event = codec.decode("SeedCulled", 1, old)
        assert (event.reason, event.cause) == ("unsaid", CullCause.TIMED_OUT)

    def test_each_version_takes_only_the_steps_it_needs(self, future):
        old = b'{"cause":"REQUESTED","epoch":1,"reason":"x","seed_id":"s","slot_id":"a","step":1}'
        assert codec.decode("SeedCulled", 2, old).cause is CullCause.REQUESTED
        assert codec.decode("SeedCulled", 3, old.lower()).cause is CullCause.REQUESTED

    def test_an_upcaster_that_meets_what_it_did_not_expect_is_a_clear_error(self, future):
        error = caught(UnreadableEvent, codec.decode, "SeedCulled", 2, b'{"epoch":1}')
        assert "cause" in error.problem
        caught(UnreadableEvent, codec.decode, "SeedCulled", 2, b"[]")

    def test_a_missing_step_is_named(self):
        error = caught(UnreadableEvent, upcast, "SeedCulled", 1, {}, to=2, upcasters={})
        assert "nothing upgrades version 1 to 2" in error.problem

    def test_floats_are_floats_before_the_first_step(self, monkeypatch):
        seen = []
        monkeypatch.setitem(codec.TYPES, "RunClosed", (e.RunClosed, 2))
        monkeypatch.setattr(codec, "UPCASTERS", {("RunClosed", 1): lambda p: seen.append(p) or p})
        codec.decode("RunClosed", 1, b'{"epoch":1,"objective":{"$float":"-inf"},"step":1}')
        assert seen == [{"epoch": 1, "objective": -math.inf, "step": 1}]

    def test_a_version_that_reads_as_the_next_is_handed_on(self):
        payload = {"epoch": 1}
        assert unchanged(payload) is payload
