"""What people read, to the letter. KASMINA_GOLDEN=write writes the files anew; read the diff."""

import pytest
from attrs import evolve

from kasmina.adapters.cli.output import plain
from kasmina.adapters.cli.render.blueprints import render_blueprints
from kasmina.adapters.cli.render.figures import number, share, signed
from kasmina.adapters.cli.render.ledger import render_ledger
from kasmina.adapters.cli.render.policies import policy_text
from kasmina.adapters.cli.render.runs import render_runs
from kasmina.adapters.cli.render.sentences import sentence
from kasmina.adapters.cli.render.stages import mermaid, render_stages
from kasmina.adapters.cli.render.state import render_state
from kasmina.adapters.cli.render.timeline import render_record, render_timeline
from kasmina.adapters.cli.render.verification import render_verifications
from kasmina.domain import events as e
from kasmina.domain.blueprints import BlueprintKind, BlueprintSpec
from kasmina.domain.evidence import Check, Comparison, GateOutcome, Probe
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.machine import EDGES
from kasmina.domain.policies import GatePolicy
from kasmina.domain.ports import Head
from kasmina.domain.projections import gate_ledger, timeline
from kasmina.domain.schedules import AlphaSchedule, BlendPlan, held
from kasmina.domain.stages import (
    Blend,
    CullCause,
    Gate,
    Health,
    Incubator,
    Leak,
    SeedInput,
    Topology,
)
from kasmina.history import load
from kasmina.infra.codec import TYPES
from kasmina.infra.integrity import Flaw, Problem, Verification


def test_runs(golden, store, digits, blank):
    golden("runs", render_runs([load(store, digits), load(store, blank)], "sqlite:///kasmina.db"))


def test_no_runs():
    assert (
        plain(render_runs([], "sqlite:///k.db"), width=80) == "sqlite:///k.db holds no runs yet\n"
    )


def test_a_state(golden, store, digits):
    golden("state", render_state(load(store, digits), head=store.head(digits).sequence))


def test_a_state_in_the_past(golden, store, digits):
    state = load(store, digits, until=26)
    golden("state-past", render_state(state, head=store.head(digits).sequence))


def test_a_state_without_slots(golden, store, blank):
    golden("state-blank", render_state(load(store, blank), head=1))


def test_a_timeline_with_undone_lines(golden, store, digits):
    golden("timeline", render_timeline(timeline(list(store.read(digits)))))


def test_a_ledger(golden, store, digits):
    golden("ledger", render_ledger(gate_ledger(list(store.read(digits)))))


def test_an_empty_ledger():
    assert plain(render_ledger([]), width=80) == "0 decisions: 0 passed, 0 refused\n"


def test_a_decision_without_a_seed_and_without_figures(store, digits):
    decision = gate_ledger(list(store.read(digits)))[0]
    checks = (
        Check.of("improvement", None, Comparison.AT_LEAST, 0.5),
        Check.of("a metric of the user's with a name beyond all measure", 1.0, Comparison.BELOW, 2),
    )
    outcome = GateOutcome.of(Gate.G2, checks, 0.0)
    text = plain(render_ledger([evolve(decision, seed_id="", outcome=outcome)]), width=80)
    assert "body (no seed)" in text
    assert "✗  improvement" in text
    assert "unmeasured  >= 0.5" in text
    assert max(map(len, text.splitlines())) <= 80


def test_verifications(golden):
    head = Head(sequence=41, digest=bytes(range(32)))
    problems = [Problem(sequence=7, flaw=Flaw.ALTERED)]
    problems += [Problem(sequence=n, flaw=Flaw.UNREADABLE, detail="not JSON") for n in range(8, 20)]
    golden(
        "verifications",
        render_verifications(
            [
                Verification(run_id="whole", events=41, head=head, problems=()),
                Verification(run_id="broken", events=41, head=head, problems=tuple(problems)),
            ]
        ),
    )


def test_nothing_to_verify():
    assert plain(render_verifications([]), width=80) == "there are no runs to verify\n"


def test_stages(golden):
    golden("stages", render_stages(EDGES))


def test_the_picture_shows_every_edge_of_the_machine():
    picture, diagram = render_stages(EDGES).plain, mermaid(EDGES)
    for edge in EDGES:
        assert {edge.source.value, edge.target.value, edge.trigger.value} <= set(picture.split())
        assert f"{edge.source.value} --> {edge.target.value}: {edge.trigger.value}" in diagram


def test_the_diagram_names_gates_and_both_ends():
    lines = mermaid(EDGES).splitlines()
    assert lines[:2] == ["stateDiagram-v2", "    [*] --> DORMANT"]
    assert "    TRAINING --> BLENDING: begin_blending [G2]" in lines
    assert lines[-1] == "    FOSSILIZED --> [*]"


def test_blueprints(golden):
    light = BlueprintSpec(
        name="conv_light",
        topology=Topology.CNN,
        kind=BlueprintKind.RESIDUAL,
        summary="one normalised and rectified convolution, and a good many words about it",
        formula=lambda width: 9 * width * width,
    )
    golden("blueprints", render_blueprints([light], width=1024))


def test_every_event_has_words_of_its_own():
    assert [name for name, (cls, _) in TYPES.items() if sentence.dispatch(cls) is WORDLESS] == []


def test_an_event_of_a_later_release_is_called_by_its_name():
    class SomethingNew(e.Event):
        pass

    assert sentence(SomethingNew(epoch=0, step=0)) == "SomethingNew"


WORDLESS = sentence.dispatch(object)
SEED = {"epoch": 3, "step": 30, "slot_id": "body", "seed_id": "s1"}


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            e.RunForked(
                epoch=3,
                step=30,
                run_id="b",
                name="fork",
                parent_run_id="a",
                parent_sequence=12,
                parent_digest="00",
            ),
            "run fork forked from a at #12",
        ),
        (e.RunRewound(epoch=3, step=30, to=12, head=12), "resumed at #12, nothing undone"),
        (e.RunRewound(epoch=3, step=30, to=12, head=13), "rewound to #12; #13 undone"),
        (e.RunRewound(epoch=3, step=30, to=12, head=20), "rewound to #12; #13 to #20 undone"),
        (
            e.GatePolicyChanged(epoch=3, step=30, policy=GatePolicy(embargo_epochs=9)),
            "gate policy changed: embargo_epochs 9",
        ),
        (e.AlphaOverridden(**SEED, alpha=0.5), "alpha held at 0.5"),
        (e.BlendScheduled(**SEED, schedule=held(0.25, step=30)), "alpha 0.25 from step 30"),
        (
            e.CullScheduled(
                **SEED,
                reason="too dear",
                schedule=AlphaSchedule(start_step=30, steps=8, start=1, end=0),
            ),
            "cull scheduled (requested): too dear; alpha 1 to 0, sigmoid over steps 30 to 38",
        ),
        (
            e.CullScheduled(
                **SEED,
                reason="too slow",
                schedule=AlphaSchedule(start_step=30, steps=8, start=0.5, end=0),
                cause=CullCause.TIMED_OUT,
            ),
            "cull scheduled (timed out): too slow; alpha 0.5 to 0, sigmoid over steps 30 to 38",
        ),
        (
            e.IsolationViolated(**SEED, leak=Leak.HOOK, count=1, subject="body.conv"),
            "isolation violated: hook × 1 (body.conv)",
        ),
        (
            e.SeedCulled(**SEED, reason="too dear", cause=CullCause.REQUESTED),
            "seed s1 culled (requested): too dear",
        ),
        (
            e.SeedFossilized(**SEED, improvement=None, contribution=-0.25),
            "seed s1 fossilized: improvement –, contribution -0.25",
        ),
        (e.HealthChanged(**SEED, health=Health.UNHEALTHY), "seed is unhealthy"),
        (e.SeedResumed(**SEED), "seed s1 resumed"),
        (e.EpochRecorded(epoch=3, step=30, objective=None), "epoch recorded, objective –"),
        (
            e.CheckpointSaved(epoch=3, step=30, path="a.pt", sequence=9),
            "checkpoint of #9 saved at a.pt",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, e.Event) else "",
)
def test_sentences(event, expected):
    assert sentence(event) == expected


@pytest.mark.parametrize(
    ("incubator", "blend", "expected"),
    [
        (Incubator.STRAIGHT_THROUGH, BlendPlan(), "straight through, lerp to 1"),
        (
            Incubator.NONE,
            BlendPlan(blend=Blend.MULTIPLY, target=0.25),
            "none, multiply to 0.25",
        ),
        (
            Incubator.REHEARSAL,
            BlendPlan(blend=Blend.GATED, search=(0.25, 0.5, 1.0)),
            "rehearsal, gated to the best of 0.25, 0.5, 1",
        ),
    ],
)
def test_a_germination_says_how_the_seed_is_to_learn_and_to_be_mixed_in(incubator, blend, expected):
    event = e.SeedGerminated(
        **SEED,
        blueprint_id="norm",
        incubation=IncubationPlan(incubator=incubator),
        seed_input=SeedInput.OPEN,
        blend=blend,
        probe=Probe(),
        parameters=32,
        init_seed=1,
        learning_rate=None,
        weight_decay=None,
    )
    assert sentence(event) == f"seed s1 from norm, 32 parameters; incubator {expected}"


def test_a_search_is_shown_until_it_has_found_its_target(store, digits):
    def plan(until):
        text = plain(render_state(load(store, digits, until=until), head=68), width=120)
        (line,) = [line for line in text.splitlines() if line.startswith("s5gk2mzpa")]
        return line.split(maxsplit=2)[2].split("  ")

    assert plan(34) == ["lerp to the best of 0.5, 1", "–"]
    assert plan(35) == ["lerp to the best of 0.5, 1", "+0.4 at alpha 1"]
    assert plan(38) == ["lerp to 1", "+0.4 at alpha 1"]


def test_a_refusal_says_what_it_was_for(store, digits):
    refusal = next(r for r in store.read(digits) if r.sequence == 18)
    assert plain(render_record(refusal), width=120).split(maxsplit=4)[-1] == (
        "G2 refused: improvement 0.2, required >= 0.5; epochs_in_stage 1, required >= 3\n"
    )


def test_the_notes_of_a_seed_in_trouble(store, digits):
    state = load(store, digits, until=29)
    text = plain(render_state(state, head=68), width=120)
    assert "unhealthy; 2 isolation violations" in text


def test_the_notes_of_a_seed_on_its_way_out(store, digits):
    state = load(store, digits, until=46)
    body = state.slots["body"]
    seed = evolve(body.seed, cull_reason="too dear", cull_cause=CullCause.TIMED_OUT, paused_at=7)
    state = evolve(state, slots={**state.slots, "body": evolve(body, seed=seed)})
    text = plain(render_state(state, head=68), width=120)
    assert "paused at step 7; cull scheduled (timed out): too dear" in text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (0.0, "0"),
        (-0.29, "-0.29"),
        (93.41234, "93.41"),
        (99999.9999, "100,000"),
        (12345.678, "12,346"),
        (2_352.0, "2,352"),
        (0.00012345, "0.000123"),
        (1e16, "1e+16"),
        (0.05, "0.05"),
    ],
)
def test_numbers(value, expected):
    assert number(value) == expected


def test_a_margin_always_shows_its_sign():
    assert [signed(v) for v in (0.5, -0.5, 0.0, None)] == ["+0.5", "-0.5", "+0", "–"]


def test_only_a_full_score_reads_as_one():
    assert [share(v) for v in (0.0, 0.29, 0.9999, 1.0)] == ["0.00", "0.29", "0.99", "1.00"]


def test_a_policy_is_told_by_what_differs():
    assert policy_text(GatePolicy()) == "the default thresholds"


def test_text_from_a_log_cannot_steer_the_terminal(store, digits):
    state = evolve(load(store, digits), name="\x1b]0;owned\x07[red]x[/red] :bomb:")
    text = plain(render_state(state, head=68), width=80)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]x[/red] :bomb:" in text
