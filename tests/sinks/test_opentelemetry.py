"""Runs as traces: what an exporter gets, once per success, and what it can recognise."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from kasmina.adapters.sinks import opentelemetry as module
from kasmina.adapters.sinks.errors import SinkUnavailable
from kasmina.adapters.sinks.exported import context
from kasmina.adapters.sinks.follower import Follower
from kasmina.adapters.sinks.opentelemetry import OpenTelemetrySink
from kasmina.adapters.sinks.spans import Key, Kind
from kasmina.domain import events as e
from kasmina.domain.stages import Stage, Trigger
from kasmina.testing import MemoryEventStore
from tests.domain.scenario import entered, epoch, evidence, moved
from tests.sinks.logs import WORDS, closed, rewound, told


def catch_up(store, exporter, state, **options):
    with OpenTelemetrySink(store, exporter, state=state, words=WORDS) as sink:
        return Follower(store, sink, **options).catch_up()


class Receiver(InMemorySpanExporter):
    """Keeps what it got also after it was shut down: the receiver lives longer than a follower."""

    def shutdown(self):
        pass


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state.json"


@pytest.fixture
def traced(store, state):
    receiver = Receiver()
    catch_up(store, receiver, state)
    return receiver.get_finished_spans()


def of_run(spans, run_id):
    return [span for span in spans if span.attributes["kasmina.run.id"] == run_id]


def summary(spans):
    return [(span.name, span.attributes["kasmina.ending"]) for span in spans]


def by_id(spans):
    return {(span.context.trace_id, span.context.span_id): span.to_json() for span in spans}


def test_a_run_is_a_trace_of_its_seeds_lives_and_their_stages(traced):
    spans = of_run(traced, "grown-1")
    assert summary(spans) == [
        ("GERMINATED", "moved_on"),
        ("TRAINING", "moved_on"),
        ("BLENDING", "moved_on"),
        ("SHADOWING", "moved_on"),
        ("PROBATIONARY", "moved_on"),
        ("seed conv_light", "fossilized"),
        ("run", "run_closed"),
    ]
    *stages, seed, run = spans
    assert run.parent is None
    assert seed.parent == run.context
    assert all(stage.parent == seed.context for stage in stages)
    assert {span.context.trace_id for span in spans} == {run.context.trace_id}


def test_spans_have_the_times_of_the_log_to_the_microsecond(store, traced):
    *_, run = of_run(traced, "grown-1")
    first, *_, last = store.read("grown-1")
    for moment, record in ((run.start_time, first), (run.end_time, last)):
        seconds, rest = divmod(moment, 1_000_000_000)
        assert seconds == int(record.recorded_at.timestamp())
        assert rest == record.recorded_at.microsecond * 1000


def test_a_gates_decision_is_an_event_in_the_stage_that_it_judged(traced):
    training = next(s for s in of_run(traced, "troubled/läufe") if s.name == "TRAINING")
    refusal, passage = [
        event.attributes for event in training.events if "kasmina.gate" in event.attributes
    ]
    assert (refusal["kasmina.gate"], refusal["kasmina.gate.passed"]) == ("G2", False)
    assert refusal["kasmina.gate.failures"] == ["improvement", "gradient", "unmeasured"]
    assert refusal["kasmina.gate.score"] == 0.05
    assert "G2 refused: improvement 0.25" in refusal["kasmina.message"]
    assert passage["kasmina.gate.passed"]


def test_what_belongs_to_no_living_seed_is_in_the_span_of_the_run(traced):
    *_, run = of_run(traced, "grown-1")
    assert [event.name for event in run.events] == ["GateEvaluated", "RunClosed"]  # G0


def test_a_stage_in_which_the_seed_fell_ill_is_an_error_and_the_next_is_not(traced):
    codes = {
        (span.name, span.status.status_code)
        for span in of_run(traced, "troubled/läufe")
        if span.name in {"TRAINING", "BLENDING"}
    }
    assert codes == {("TRAINING", StatusCode.ERROR), ("BLENDING", StatusCode.UNSET)}


def test_a_rewind_ends_what_it_takes_back_and_links_what_goes_on(traced):
    spans = of_run(traced, "troubled/läufe")
    assert summary(spans) == [
        ("GERMINATED", "moved_on"),
        ("TRAINING", "moved_on"),
        ("BLENDING", "rewound"),
        ("seed conv_light", "rewound"),
        ("TRAINING", "moved_on"),
        ("BLENDING", "run_closed"),
        ("seed conv_light", "run_closed"),
        ("run", "run_closed"),
    ]
    again = spans[4]
    (link,) = again.links
    assert link.context == spans[1].context
    assert again.start_time == spans[2].end_time


def test_a_run_that_goes_on_after_it_was_closed_does_so_in_a_second_span(store, traced, state):
    receiver = Receiver()
    head = store.head("troubled/läufe").sequence
    store.append("troubled/läufe", [closed(at=8)], expected=head)
    catch_up(store, receiver, state)
    *_, seed, run = receiver.get_finished_spans()
    first = of_run(traced, "troubled/läufe")[-1]
    assert run.context != first.context
    assert run.context.trace_id == first.context.trace_id
    assert [link.context for link in run.links] == [first.context]
    assert seed.parent == run.context


def test_a_fork_takes_up_its_parents_seeds_in_a_trace_of_its_own(store, state):
    receiver = Receiver()
    catch_up(store, Receiver(), state)
    head = store.head("fork").sequence
    cull = moved(Trigger.CULL, Stage.TRAINING, Stage.CULLED, at=2)
    store.append("fork", [cull, closed(at=2)], expected=head)
    catch_up(store, receiver, state)
    spans = receiver.get_finished_spans()
    assert summary(spans) == [
        ("TRAINING", "moved_on"),
        ("seed conv_light", "culled"),
        ("run", "run_closed"),
    ]
    parent = context(Key(kind=Kind.RUN, run_id="troubled/läufe", sequence=1))
    assert [link.context for link in spans[-1].links] == [parent]
    assert spans[-1].context.trace_id != parent.trace_id
    assert spans[0].links[0].context.trace_id == parent.trace_id
    assert "GateEvaluated" in [event.name for event in spans[0].events]


def test_a_fork_of_a_fork_is_traced_too(store, state):
    (record,) = store.read("fork", after=2, until=3)
    again = e.RunForked(
        epoch=2,
        step=20,
        run_id="again",
        name="again",
        parent_run_id="fork",
        parent_sequence=3,
        parent_digest=record.digest.hex(),
    )
    store.append("again", [again, closed(at=2)], expected=0)
    receiver = Receiver()
    catch_up(store, receiver, state)
    spans = of_run(receiver.get_finished_spans(), "again")
    assert [span.name for span in spans] == ["TRAINING", "seed conv_light", "run"]


def test_a_rewind_to_the_end_of_a_closed_run_takes_up_the_lives_that_were_open(state):
    store, receiver = MemoryEventStore(), Receiver()
    past = (*entered(Stage.TRAINING), closed(at=1))
    head = len(past)
    more = (rewound(head, head, at=1), epoch(2, 51.0, evidence()), closed(at=2))
    store.append("digits-1", [*past, *more], expected=0)
    catch_up(store, receiver, state)
    assert [span.name for span in receiver.get_finished_spans()] == [
        "GERMINATED",
        "TRAINING",
        "seed conv_light",
        "run",
        "TRAINING",
        "seed conv_light",
        "run",
    ]


def test_every_span_has_identifiers_of_its_own(traced):
    assert len(by_id(traced)) == len(traced)


@settings(max_examples=40)
@given(pages=st.lists(st.integers(1, 25), min_size=1, max_size=12))
def test_any_split_into_sessions_exports_the_same(tmp_path_factory, pages):
    state, store = tmp_path_factory.mktemp("state") / "state.json", told(MemoryEventStore())
    whole, split = Receiver(), Receiver()
    catch_up(store, whole, state.with_name("whole.json"))
    for page in pages:
        with OpenTelemetrySink(store, split, state=state, words=WORDS) as sink:
            next(Follower(store, sink, page=page).pages(), None)
    catch_up(store, split, state)
    expected, found = whole.get_finished_spans(), split.get_finished_spans()
    assert [span.to_json() for span in found] == [span.to_json() for span in expected]


def test_what_is_exported_again_after_a_crash_is_recognisable(store, state, monkeypatch):
    """The process ends between the exporter's success and the file that records it."""
    whole, receiver = Receiver(), Receiver()
    catch_up(store, whole, state.with_name("whole.json"))

    class Ended(BaseException):
        pass

    def die(*_arguments):
        raise Ended

    for done in range(3):
        if done:
            with OpenTelemetrySink(store, receiver, state=state, words=WORDS) as sink:
                next(Follower(store, sink, page=12).pages())
        monkeypatch.setattr(module, "write_marks", die)
        with pytest.raises(Ended):
            catch_up(store, receiver, state, page=30)
        monkeypatch.undo()
    catch_up(store, receiver, state)
    twice = receiver.get_finished_spans()
    assert len(twice) > len(whole.get_finished_spans())
    assert by_id(twice) == by_id(whole.get_finished_spans())


class Refusing(SpanExporter):
    def __init__(self, outcomes):
        self.outcomes = outcomes
        self.taken = []

    def export(self, spans):
        outcome = self.outcomes.pop(0) if self.outcomes else SpanExportResult.SUCCESS
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is SpanExportResult.SUCCESS:
            self.taken += spans
        return outcome

    def shutdown(self):
        pass


def test_a_refusing_receiver_keeps_its_place_and_goes_on_when_it_is_back(store, state):
    whole = Receiver()
    catch_up(store, whole, state.with_name("whole.json"))
    exporter = Refusing([SpanExportResult.FAILURE, ConnectionError("nobody listens")])
    with OpenTelemetrySink(store, exporter, state=state, words=WORDS) as sink:
        follower = Follower(store, sink, page=40)
        with pytest.raises(SinkUnavailable, match="did not take"):
            follower.catch_up()
        with pytest.raises(SinkUnavailable, match="nobody listens"):
            follower.catch_up()
        follower.catch_up()
    assert [span.to_json() for span in exporter.taken] == [
        span.to_json() for span in whole.get_finished_spans()
    ]


def test_what_was_not_flushed_was_not_taken(store, state, monkeypatch):
    monkeypatch.setattr(Receiver, "force_flush", lambda self: False)
    with pytest.raises(SinkUnavailable):
        catch_up(store, Receiver(), state)
    assert not state.exists()


def test_the_service_is_kasmina_unless_the_environment_names_it(store, state, monkeypatch):
    def service():
        receiver = Receiver()
        catch_up(store, receiver, state)
        state.unlink()
        return receiver.get_finished_spans()[0].resource.attributes["service.name"]

    assert service() == "kasmina"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "trainer")
    assert service() == "trainer"


@pytest.mark.parametrize("text", ["{", '{"a": 1}', '[{"run_id": "a"}]', "[1]"])
def test_a_file_that_holds_something_else_is_refused_and_kept(store, state, text):
    state.write_text(text)
    with pytest.raises(SinkUnavailable, match="does not hold what was shown"):
        catch_up(store, Receiver(), state)
    assert state.read_text() == text


def test_a_file_that_cannot_be_read_or_written_is_unavailable(store, state, tmp_path):
    state.mkdir()
    with pytest.raises(SinkUnavailable, match="cannot be read or written"):
        catch_up(store, Receiver(), state)
    state.rmdir()
    (tmp_path / "state.json.new").mkdir()
    with pytest.raises(SinkUnavailable, match="cannot be read or written"):
        catch_up(store, Receiver(), state)


def test_one_follower_at_a_time_uses_a_file(store, state):
    with (
        OpenTelemetrySink(store, Receiver(), state=state, words=WORDS),
        pytest.raises(SinkUnavailable, match="another follower is writing"),
    ):
        OpenTelemetrySink(store, Receiver(), state=state, words=WORDS)


def test_the_file_holds_a_mark_for_each_run(store, state, traced):
    marks = {mark["run_id"]: mark for mark in json.loads(state.read_text())}
    for first in store.runs():
        head = store.head(first.run_id)
        assert marks[first.run_id]["sequence"] == head.sequence
        assert marks[first.run_id]["digest"] == head.digest.hex()
