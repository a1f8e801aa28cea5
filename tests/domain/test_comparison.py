"""What differs between two states is named, all of it and nothing else; where histories part."""

import math
from copy import deepcopy

import attrs
import pytest
from attrs import evolve as changed
from hypothesis import given as each
from hypothesis import strategies as st

from kasmina.domain import events as e
from kasmina.domain.comparison import (
    ABSENT,
    Parting,
    Stretch,
    differences,
    parting,
    same_tensors,
)
from kasmina.domain.evidence import Check, Comparison, GateOutcome, HostDescription
from kasmina.domain.policies import GatePolicy, MetricCheck
from kasmina.domain.stages import Gate, Stage, Topology
from kasmina.domain.state import SlotState
from tests.domain.scenario import (
    ACCURACY,
    HOST,
    LOSS,
    SEED,
    SLOT,
    entered,
    epoch,
    opened,
    passed,
    ready,
    slot_opened,
    state_after,
)

figures = st.sampled_from([None, math.nan, 0.5, 1.0])
checks = st.builds(
    Check.of,
    st.sampled_from(["alpha", "agreement", "improvement"]),
    figures,
    st.just(Comparison.AT_LEAST),
    st.just(0.75),
)
outcomes = st.builds(
    GateOutcome.of,
    st.just(Gate.G2),
    st.lists(checks, max_size=3).map(tuple),
    st.sampled_from([0.25, 1.0]),
)
seeds = st.builds(
    changed,
    st.just(state_after(*ready(Stage.TRAINING)).slot(SLOT).seed),
    seed_id=st.sampled_from(["s1", "s2"]),
    agreement=figures,
    rehearsals=st.dictionaries(st.sampled_from([0.25, 1.0]), st.sampled_from([0.5, math.nan])),
)
slots = st.builds(
    SlotState,
    slot_id=st.just("body"),
    topology=st.just(Topology.CNN),
    width=st.sampled_from([8, 16]),
    stage=st.sampled_from([Stage.DORMANT, Stage.TRAINING]),
    seed=st.none() | seeds,
    objectives=st.lists(figures, max_size=2).map(tuple),
    outcomes=st.dictionaries(st.sampled_from([Gate.G1, Gate.G2]), outcomes),
)
extra_checks = st.lists(
    st.builds(
        MetricCheck,
        gate=st.just(Gate.G5),
        metric=st.sampled_from(["speed", "loss"]),
        comparison=st.just(Comparison.BELOW),
        required=st.just(1.0),
    ),
    max_size=2,
)
states = st.builds(
    changed,
    st.just(state_after(opened())),
    latest=figures,
    objective=st.sampled_from([ACCURACY, LOSS]),
    host=st.sampled_from([HOST, HostDescription(kind="Other", parameters=1, digest="00")]),
    policy=extra_checks.map(lambda found: GatePolicy(extra_checks=tuple(found))),
    slots=st.dictionaries(st.sampled_from(["a", "b"]), slots),
    checkpoint=st.none() | st.just(e.CheckpointSaved(epoch=1, step=1, path="p", sequence=1)),
)


def plain(value):
    """A value without NaN, which is not equal to itself."""
    kind = type(value)
    if attrs.has(kind):
        return kind.__name__, [plain(getattr(value, each.name)) for each in attrs.fields(kind)]
    if isinstance(value, dict):
        return sorted((str(key), plain(item)) for key, item in value.items())
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return repr(value)


def swapped(difference):
    return attrs.evolve(difference, before=difference.after, after=difference.before)


def found(before, after):
    return {each.path: (each.before, each.after) for each in differences(before, after)}


# --- states --------------------------------------------------------------------------------


@each(states)
def test_a_state_does_not_differ_from_itself_nor_from_its_copy(state):
    assert differences(state, state) == ()
    assert differences(state, deepcopy(state)) == ()


@each(states, states)
def test_two_states_differ_where_and_only_where_a_difference_is_found(one, other):
    assert (differences(one, other) == ()) == (plain(one) == plain(other))
    for difference in differences(one, other):
        assert plain(difference.before) != plain(difference.after)


@each(states, states)
def test_seen_from_the_other_side_before_and_after_change_places(one, other):
    forth = sorted(map(swapped, differences(one, other)), key=lambda each: each.path)
    back = sorted(differences(other, one), key=lambda each: each.path)
    assert list(map(plain, forth)) == list(map(plain, back))


@each(states, states)
def test_no_difference_is_told_twice(one, other):
    paths = [each.path for each in differences(one, other)]
    for path in paths:
        assert [each[: len(path)] for each in paths].count(path) == 1


@each(st.sampled_from(list(Stage)), st.data())
def test_a_change_of_one_field_is_one_difference(stage, data):
    state = state_after(*entered(stage))
    field = data.draw(st.sampled_from(["latest", "step", "closed", "name"]))
    after = changed(state, **{field: "other"})
    assert found(state, after) == {(field,): (getattr(state, field), "other")}


def test_a_value_is_found_by_the_names_of_fields_slots_gates_and_checks():
    past = ready(Stage.TRAINING)
    check = Check.of("alpha", 0.25, Comparison.AT_LEAST, 0.5)
    refused = e.GateEvaluated(
        epoch=4,
        step=40,
        slot_id=SLOT,
        seed_id=SEED,
        outcome=GateOutcome.of(Gate.G2, (check,), 0.5),
    )
    better = attrs.evolve(
        refused, outcome=GateOutcome.of(Gate.G2, (attrs.evolve(check, measured=0.3),), 0.5)
    )
    path = ("slots", SLOT, "outcomes", "G2", "checks", "alpha", "measured")
    before, after = state_after(*past, refused), state_after(*past, better)
    assert found(before, after) == {path: (0.25, 0.3)}


def test_what_is_on_one_side_only_is_absent_on_the_other_whole():
    before, after = state_after(opened()), state_after(opened(), slot_opened())
    assert found(before, after) == {
        ("sequence",): (1, 2),
        ("slots", SLOT): (ABSENT, after.slot(SLOT)),
    }


def test_a_seed_where_there_was_none_is_one_difference():
    before, after = state_after(*entered(Stage.DORMANT)), state_after(*entered(Stage.GERMINATED))
    seed = after.slot(SLOT).seed
    assert found(before, after)["slots", SLOT, "seed"] == (None, seed)


def test_checks_in_another_order_differ_by_their_places():
    one, other = (Check.of(name, 1.0, Comparison.ABOVE, 0.0) for name in ("a", "b"))
    before, after = (
        state_after(*ready(Stage.TRAINING), attrs.evolve(PASSED, outcome=outcome))
        for outcome in (
            GateOutcome.of(Gate.G2, (one, other), 1.0),
            GateOutcome.of(Gate.G2, (other, one), 1.0),
        )
    )
    place = ("slots", SLOT, "outcomes", "G2", "checks")
    assert found(before, after) == {
        (*place, "1", "name"): ("a", "b"),
        (*place, "2", "name"): ("b", "a"),
    }


PASSED = passed(Gate.G2, at=4)


# --- tensors -------------------------------------------------------------------------------


def test_a_checkpoint_another_policy_and_the_end_of_a_run_leave_the_tensors_as_they_are():
    past = ready(Stage.BLENDING)
    now = past[-1]
    beside = (
        e.CheckpointSaved(epoch=now.epoch, step=now.step, path="p", sequence=len(past)),
        e.GatePolicyChanged(epoch=now.epoch, step=now.step, policy=GatePolicy(tolerance=9.0)),
        e.RunClosed(epoch=now.epoch, step=now.step),
    )
    assert same_tensors(state_after(*past), state_after(*past, *beside))


@pytest.mark.parametrize(
    "event",
    [
        e.RunClosed(epoch=7, step=71),  # a step was taken
        e.SeedPaused(epoch=7, step=70, slot_id=SLOT, seed_id=SEED),
        epoch(8, 60.0),
    ],
    ids=lambda event: type(event).__name__,
)
def test_training_and_decisions_about_seeds_do_not(event):
    past = ready(Stage.BLENDING)
    assert not same_tensors(state_after(*past), state_after(*past, event))


# --- histories -----------------------------------------------------------------------------


def whole(run_id, until):
    return Stretch(run_id=run_id, after=0, until=until)


def test_of_two_points_in_a_run_the_later_has_what_happened_since_the_earlier():
    since = Stretch(run_id="a", after=5, until=9)
    forth = Parting(run_id="a", sequence=5, before=(), after=(since,))
    assert parting([whole("a", 5)], [whole("a", 9)]) == forth
    assert parting([whole("a", 9)], [whole("a", 5)]) == attrs.evolve(
        forth, before=(since,), after=()
    )


def test_a_fork_and_its_parent_part_where_it_was_forked():
    parent, child = [whole("a", 9)], [whole("a", 5), whole("b", 3)]
    assert parting(parent, child) == Parting(
        run_id="a",
        sequence=5,
        before=(Stretch(run_id="a", after=5, until=9),),
        after=(whole("b", 3),),
    )


def test_a_fork_shares_with_an_earlier_point_of_its_parent_only_what_came_before_that():
    parted = parting([whole("a", 2)], [whole("a", 5), whole("b", 3)])
    assert (parted.sequence, parted.before) == (2, ())
    assert parted.after == (Stretch(run_id="a", after=2, until=5), whole("b", 3))


def test_two_forks_part_where_the_first_of_them_was_forked():
    parted = parting([whole("a", 5), whole("b", 3)], [whole("a", 7), whole("c", 2), whole("d", 4)])
    assert (parted.run_id, parted.sequence, parted.before) == ("a", 5, (whole("b", 3),))
    assert parted.after == (Stretch(run_id="a", after=5, until=7), whole("c", 2), whole("d", 4))


def test_two_forks_of_a_fork_part_in_that_fork():
    parted = parting([whole("a", 5), whole("b", 3), whole("c", 1)], [whole("a", 5), whole("b", 2)])
    assert (parted.run_id, parted.sequence) == ("b", 2)
    assert parted.before == (Stretch(run_id="b", after=2, until=3), whole("c", 1))
    assert parted.after == ()


def test_runs_of_nothing_in_common_never_part():
    assert parting([whole("a", 5)], [whole("b", 5)]) is None
