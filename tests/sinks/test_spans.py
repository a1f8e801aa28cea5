"""The fold of a run into spans, where events come as no trainer would record them."""

import pytest
from attrs import evolve as changed

from kasmina.adapters.sinks.exported import context
from kasmina.adapters.sinks.spans import Kind, Spans
from kasmina.domain import events as e
from kasmina.domain.errors import CorruptHistory
from kasmina.domain.stages import Health, Stage
from kasmina.testing import MemoryEventStore, epochs
from tests.domain.scenario import entered, seed_germinated
from tests.sinks.logs import closed, place, refused


def spans_of(*events):
    store = MemoryEventStore()
    spans = Spans("a")
    return [span for record in store.append("a", events, expected=0) for span in spans.see(record)]


def test_a_run_must_begin_with_its_opening():
    with pytest.raises(CorruptHistory, match="'a' does not begin with its opening"):
        spans_of(*epochs(1), closed(at=1))


def test_an_event_before_the_first_stage_belongs_to_the_seed():
    opened, slot = entered(Stage.DORMANT)
    seed, run = spans_of(opened, slot, seed_germinated(at=1), refused(at=1), closed(at=1))
    assert [type(record.event) for record in seed.records] == [e.GateEvaluated]
    assert seed.key.kind is Kind.SEED
    assert [type(record.event) for record in run.records] == [e.RunClosed]


def test_an_illness_after_the_end_of_the_seeds_life_is_told_of_the_run():
    ill = e.HealthChanged(**place(11), health=Health.UNHEALTHY)
    *_, seed, run = spans_of(*entered(Stage.FOSSILIZED), ill, closed(at=12))
    assert seed.health is run.health is Health.HEALTHY
    assert e.HealthChanged in {type(record.event) for record in run.records}


def test_a_seed_that_is_ill_when_it_ends_is_unhealthy_in_every_open_span():
    ill = e.HealthChanged(**place(1), health=Health.UNHEALTHY)
    *_, stage, seed, run = spans_of(*entered(Stage.TRAINING), ill, closed(at=1))
    assert (stage.health, seed.health) == (Health.UNHEALTHY, Health.UNHEALTHY)
    assert run.health is Health.HEALTHY


def test_a_seed_that_is_ill_before_its_first_stage_is_so_too():
    opened, slot = entered(Stage.DORMANT)
    ill = e.HealthChanged(**place(1), health=Health.UNHEALTHY)
    seed, _run = spans_of(opened, slot, seed_germinated(at=1), ill, closed(at=1))
    assert seed.health is Health.UNHEALTHY


def test_keys_tell_slots_apart_that_are_taken_up_by_one_event():
    opened, slot = entered(Stage.DORMANT)
    second = changed(slot, slot_id="other")
    lives = (seed_germinated(at=1), seed_germinated(at=1, slot_id="other", seed_id="seed-2"))
    back = e.RunRewound(epoch=1, step=10, to=5, head=5)
    found = spans_of(opened, slot, second, *lives, back, closed(at=1))
    assert len({context(span.key).span_id for span in found}) == len(found) == 5
