"""Spans as OpenTelemetry's exporters take them."""

import hashlib
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

from kasmina.adapters.sinks.spans import Key, Kind, Span
from kasmina.adapters.sinks.telling import Words
from kasmina.domain import events as e
from kasmina.domain.ports import Recorded
from kasmina.domain.stages import Health

Attributes = dict[str, AttributeValue]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SCOPE = InstrumentationScope("kasmina", version("kasmina"))


def service() -> Resource:
    """Who the spans are from: ``kasmina``, unless ``OTEL_SERVICE_NAME`` says otherwise."""
    return Resource({SERVICE_NAME: "kasmina"}).merge(OTELResourceDetector().detect())


def exported(span: Span, *, words: Words, resource: Resource) -> ReadableSpan:
    """The span, which has ended, with its events.

    Built directly rather than by a tracer: spans of the past are given here, with identifiers of
    their own, and no sampler, limit or switch in the environment may silently leave one out.
    """
    healthy = span.health is Health.HEALTHY
    return ReadableSpan(
        name=_name(span),
        context=context(span.key),
        parent=None if span.parent is None else context(span.parent),
        resource=resource,
        attributes=_attributes(span),
        events=[_event(record, words) for record in span.records],
        links=[] if span.link is None else [Link(context(span.link))],
        status=Status(StatusCode.UNSET) if healthy else Status(StatusCode.ERROR, "unhealthy"),
        start_time=_nanoseconds(span.began.recorded_at),
        end_time=None if span.ended is None else _nanoseconds(span.ended),
        instrumentation_scope=_SCOPE,
    )


def context(key: Key) -> SpanContext:
    """The identifiers: of the trace a digest of the run's, of the span one of the whole key."""
    whole = "\0".join((key.kind.value, key.run_id, key.slot_id, str(key.sequence)))
    return SpanContext(
        trace_id=_digest(f"trace\0{key.run_id}", 16),
        span_id=_digest(whole, 8),
        is_remote=False,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )


def _digest(text: str, size: int) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:size]) or 1  # 0 is not valid


def _nanoseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND * 1000


def _name(span: Span) -> str:
    """What kind of thing it is: few different names, as the convention asks."""
    if span.stage is not None:
        return span.stage.value
    return span.key.kind.value if span.seed is None else f"seed {span.seed.blueprint_id}"


def _attributes(span: Span) -> Attributes:
    first = span.began.event
    found: Attributes = {"kasmina.run.id": span.key.run_id, "kasmina.sequence": span.key.sequence}
    if isinstance(first, e.RunOpened | e.RunForked):
        found["kasmina.run.name"] = first.name
    if span.key.kind is not Kind.RUN:
        found["kasmina.slot.id"] = span.key.slot_id
    if span.seed is not None:
        found["kasmina.seed.id"] = span.seed.seed_id
        found["kasmina.seed.blueprint"] = span.seed.blueprint_id
        found["kasmina.seed.parameters"] = span.seed.parameters
    if span.stage is not None:
        found["kasmina.stage"] = span.stage.value
    if span.ending is not None:
        found["kasmina.ending"] = span.ending.value
    return found


def _event(record: Recorded, words: Words) -> Event:
    event = record.event
    found: Attributes = {
        "kasmina.sequence": record.sequence,
        "kasmina.epoch": event.epoch,
        "kasmina.step": event.step,
        "kasmina.message": words(event),
    }
    if isinstance(event, e.GateEvaluated):
        found["kasmina.gate"] = event.outcome.gate.value
        found["kasmina.gate.passed"] = event.outcome.passed
        found["kasmina.gate.score"] = event.outcome.score
        found["kasmina.gate.failures"] = [check.name for check in event.outcome.failures]
    return Event(type(event).__name__, found, _nanoseconds(record.recorded_at))
