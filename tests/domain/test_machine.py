"""The machine is the table of the lifecycle, and nothing but the table."""

import itertools

import pytest
from transitions import MachineError
from transitions.core import Event as Question

from kasmina.domain import machine
from kasmina.domain.evidence import GateOutcome
from kasmina.domain.evolve import replay
from kasmina.domain.machine import MACHINE, Warrant, edge, forward, legal_triggers, permits
from kasmina.domain.stages import Gate, Stage, Trigger
from tests.domain.scenario import entered, germinated, recycled

# Written out once more, from the contract and not from the code.
TABLE = {
    ("DORMANT", "germinate"): ("GERMINATED", "G0"),
    ("GERMINATED", "begin_training"): ("TRAINING", "G1"),
    ("TRAINING", "begin_blending"): ("BLENDING", "G2"),
    ("BLENDING", "begin_shadowing"): ("SHADOWING", "G3"),
    ("SHADOWING", "begin_probation"): ("PROBATIONARY", "G4"),
    ("PROBATIONARY", "fossilize"): ("FOSSILIZED", "G5"),
    ("GERMINATED", "cull"): ("CULLED", None),
    ("TRAINING", "cull"): ("CULLED", None),
    ("BLENDING", "cull"): ("CULLED", None),
    ("SHADOWING", "cull"): ("CULLED", None),
    ("PROBATIONARY", "cull"): ("CULLED", None),
    ("CULLED", "embargo"): ("EMBARGOED", None),
    ("EMBARGOED", "reset"): ("RESETTING", None),
    ("RESETTING", "recycle"): ("DORMANT", None),
}


def outcome(gate, *, passing):
    return GateOutcome(gate=gate, passed=passing, score=0.5, checks=())


WARRANTS = {
    "nothing": Warrant(),
    "a reason": Warrant(reason="too slow"),
    "a blank reason": Warrant(reason=" \t"),
    "an embargo that runs": Warrant(embargo_left=1),
    **{f"{gate.value} passed": Warrant(outcome=outcome(gate, passing=True)) for gate in Gate},
    **{f"{gate.value} refused": Warrant(outcome=outcome(gate, passing=False)) for gate in Gate},
}


def admitted(trigger, gate, warrant):
    """Which of the warrants above entitle to which edge, once more from the contract."""
    if gate is not None:
        return warrant == f"{gate} passed"
    if trigger == "cull":
        return warrant == "a reason"
    return trigger != "reset" or warrant != "an embargo that runs"


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("trigger", Trigger)
def test_legality_is_the_table_under_every_warrant(stage, trigger):
    key = (stage.value, trigger.value)
    assert (trigger in legal_triggers(stage)) is (key in TABLE)
    for name, warrant in WARRANTS.items():
        if key in TABLE:
            expected = admitted(trigger.value, TABLE[key][1], name)
            assert permits(stage, trigger, warrant) is expected, name
        else:
            with pytest.raises(MachineError):
                permits(stage, trigger, warrant)


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("trigger", Trigger)
def test_an_edge_names_its_target_and_gate(stage, trigger):
    key = (stage.value, trigger.value)
    if key not in TABLE:
        with pytest.raises(KeyError):
            edge(stage, trigger)
        return
    found = edge(stage, trigger)
    gate = None if found.gate is None else found.gate.value
    assert (found.source, found.trigger) == (stage, trigger)
    assert (found.target.value, gate) == TABLE[key]


def test_a_slot_advances_by_the_one_trigger_that_neither_fills_nor_culls():
    ways = {stage.value: forward(stage) for stage in Stage}
    assert {name: way.value for name, way in ways.items() if way is not None} == {
        source: trigger for source, trigger in TABLE if trigger not in {"germinate", "cull"}
    }
    assert ways["DORMANT"] is ways["FOSSILIZED"] is None


def test_the_machine_itself_moves_to_the_table_s_target():
    for (source, trigger), (target, gate) in TABLE.items():
        passing = None if gate is None else outcome(Gate(gate), passing=True)
        cursor = machine._Cursor(Stage(source))
        MACHINE.events[trigger].trigger(cursor, Warrant(outcome=passing, reason="too slow"))
        assert cursor.state is Stage(target)


class TestTheSharedMachine:
    def test_has_every_stage_and_no_other_state(self):
        assert {state.value for state in MACHINE.states.values()} == set(Stage)

    def test_has_the_table_s_edges_and_no_automatic_ones(self):
        transitions = [
            (transition.source, name)
            for name, event in MACHINE.events.items()
            for transition in itertools.chain.from_iterable(event.transitions.values())
        ]
        assert sorted(transitions) == sorted(TABLE)
        assert not MACHINE.auto_transitions
        assert not [name for name in MACHINE.events if name.startswith("to_")]

    def test_holds_no_models(self):
        for stage in Stage:
            legal_triggers(stage)
        permits(Stage.DORMANT, Trigger.GERMINATE, Warrant())
        assert MACHINE.models == []

    def test_calls_nobody_back(self):
        holders = [
            MACHINE,
            *MACHINE.states.values(),
            *(
                transition
                for event in MACHINE.events.values()
                for transition in itertools.chain.from_iterable(event.transitions.values())
            ),
        ]
        names = (
            *("before_state_change", "after_state_change", "prepare_event", "finalize_event"),
            *("on_exception", "on_final", "on_enter", "on_exit", "before", "after", "prepare"),
        )
        called = [getattr(holder, name, []) for holder in holders for name in names]
        assert [callbacks for callbacks in called if callbacks] == []

    def test_is_not_asked_during_replay(self, monkeypatch):
        pasts = [entered(stage) for stage in Stage]
        pasts.append((*recycled(), *germinated(at=9, seed_id="seed-2")))
        before = [replay(past) for past in pasts]

        def asked(*_):
            raise AssertionError("replay asked the machine")

        for name in ("permits", "legal_triggers", "edge", "forward"):
            monkeypatch.setattr(machine, name, asked)
        monkeypatch.setattr(Question, "trigger", asked)
        monkeypatch.setattr(type(MACHINE), "get_triggers", asked)
        assert [replay(past) for past in pasts] == before
