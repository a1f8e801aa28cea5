"""``kasmina audit`` under other thresholds: as people and as programs read it."""

import json
import re
from pathlib import Path

import pytest
from attrs import evolve

from kasmina.adapters.cli.output import plain
from kasmina.adapters.cli.render.sweep import render_sweep
from kasmina.adapters.cli.render.whatif import course_text, render_tally, render_what_if
from kasmina.domain.policies import GatePolicy
from kasmina.domain.stages import Gate
from kasmina.domain.thresholds import Sweep, Threshold
from kasmina.domain.verdicts import Action, Certainty, Tally
from kasmina.domain.whatif import sweep, what_if
from kasmina.infra.event_store import open_store
from kasmina.service import fork


@pytest.fixture
def under(store, digits):
    def under(*texts):
        return what_if(list(store.read(digits)), [Threshold.parse(text) for text in texts])

    return under


def shown(result, width=80):
    return plain(render_what_if(result, result.verdicts, result.courses), width=width)


def told(result, seed_id):
    (course,) = [course for course in result.courses if course.seed_id == seed_id]
    text = course_text(course)
    return None if text is None else " ".join(plain(text, width=80).split())


def turned(result, certainty):
    """The course of the body's seed with its turn told with another certainty, and nothing else."""
    (course,) = [course for course in result.courses if course.seed_id == BODY]
    return evolve(course, verdicts=(evolve(course.divergence, certainty=certainty),))


BODY, STEM, LAST = "s5gk2mzpa", "sq4xw7cne", "sr2bd6yhf"


class TestRendering:
    def test_other_thresholds(self, golden, under):
        result = under("G2.min_improvement=2", "timeouts.training=none", "G5.val_loss=0.6")
        golden("what-if", render_what_if(result, result.verdicts, result.courses))

    def test_the_same_thresholds(self, golden, under):
        result = under("G2.min_improvement=0.5")
        golden("what-if-same", render_what_if(result, result.verdicts, result.courses))

    def test_a_decision_that_was_taken_back_says_so(self, under):
        result = under("timeouts.training=2")
        verdicts = [
            evolve(verdict, decision=evolve(verdict.decision, undone=True))
            for verdict in result.verdicts
        ]
        text = plain(render_what_if(result, verdicts, ()), width=80)
        assert "refused → culled: 2 epochs in TRAINING (undone)" in text

    def test_a_sweep(self, golden, store, digits):
        over = Sweep.parse("timeouts.training=1,2,3,4,5,none")
        result = sweep(list(store.read(digits)), over)
        golden("sweep", render_sweep(over, result.in_force, result.tallies, subject=digits))

    def test_a_sweep_that_changes_nothing(self, store, digits):
        over = Sweep.parse("G4.min_shadow_evaluations=0,1")
        result = sweep(list(store.read(digits)), over)
        text = plain(render_sweep(over, result.in_force, result.tallies, subject="a"), width=80)
        assert text == (
            "G4.min_shadow_evaluations of a, in force 1\n"
            "none of 20 decisions changes at any of 2 values\n"
        )

    def test_a_sweep_of_refusals_and_passes(self, store, digits):
        over = Sweep.parse("G2.min_improvement=0:4:2")
        result = sweep(list(store.read(digits)), over)
        text = plain(render_sweep(over, result.in_force, result.tallies, subject="a"), width=80)
        assert "in force 0.5" in text
        assert "◄" not in text
        assert "░" in text


class TestCourses:
    def test_a_seed_that_would_have_stayed(self, under):
        said = told(under("G2.min_improvement=9", "timeouts.training=9"), BODY)
        assert "Would have stayed in TRAINING at epoch 5 (#36)." in said
        assert "BLENDING (epoch 5), SHADOWING (epoch 8)" in said
        assert "would not have followed as recorded." in said
        assert "Whether a later epoch would have passed cannot be told: from #37 on" in said
        assert said.endswith("the log is of a seed that had left TRAINING.")

    def test_a_seed_that_would_have_passed_earlier(self, under):
        said = told(under("G2.min_improvement=0", "G2.min_epochs=2"), BODY)
        assert said.startswith("body s5gk2mzpa Would have been BLENDING from epoch 3 (#")
        assert "instead of 5 (#37)" in said
        assert said.endswith("the log is of a seed that was still in TRAINING.")

    def test_a_turn_without_a_rehearsal_says_so(self, under):
        course = turned(under("G2.min_improvement=0", "G2.min_epochs=2"), Certainty.OPEN)
        said = plain(course_text(course), width=200)
        assert "Might have been BLENDING from epoch 3" in said
        assert "It had not been rehearsed so early, and a rehearsal could have refused it." in said

    def test_a_seed_that_would_not_have_germinated(self, under):
        course = turned(under("G2.min_improvement=9"), Certainty.CERTAIN)
        outcome = evolve(course.verdicts[0].outcome, gate=Gate.G0)
        at = evolve(course.verdicts[0], outcome=outcome, action=Action.STAY)
        said = plain(course_text(evolve(course, seed_id=" ", verdicts=(at,))), width=200)
        assert "body (no seed)" in said
        assert "Would not have germinated at epoch 5 (#36)." in said

    def test_a_seed_that_would_have_been_culled_earlier(self, under):
        said = told(under("timeouts.training=2"), STEM)
        assert "Would have been culled by its time-out at epoch 3" in said
        assert said.endswith("after 2 epochs in TRAINING.")

    def test_a_seed_that_would_have_been_spared(self, under):
        said = told(under("timeouts.training=none"), STEM)
        assert "not culled by its time-out." in said
        assert said.endswith("the log is of a seed that was CULLED.")

    def test_a_seed_that_would_not_have_been_culled_for_it_passed(self, under):
        said = told(under("G2.min_improvement=-9", "G2.min_rehearsed_contribution=-9"), STEM)
        assert "have been BLENDING from" in said

    def test_a_slot_that_might_not_have_been_free(self, under):
        said = told(under("timeouts.training=none"), LAST)
        assert said.endswith("another seed might still have held the slot.")

    def test_figures_of_another_course(self, under):
        result = under("G2.min_improvement=9")
        assert "by figures of a host that another seed's course might have" in told(result, LAST)

    def test_a_life_that_is_the_recorded_one_needs_no_words(self, under):
        assert told(under("G2.min_improvement=0.5"), BODY) is None

    def test_a_turn_on_shifted_figures_says_so(self, under):
        course = turned(under("G2.min_improvement=9"), Certainty.SHIFTED)
        text = plain(course_text(course), width=200)
        assert "figures are of a host that another seed's course might have changed." in text


class TestTally:
    @pytest.mark.parametrize(
        ("tally", "said"),
        [
            (Tally(), "0 decisions: none changes"),
            (Tally(decisions=1), "1 decision: none changes"),
            (
                Tally(decisions=9, to_passing=2, to_refused=1, certain=1, shifted=1, moot=1),
                "9 decisions: 2 now pass, 1 now refused (1 certain, 1 shifted, 1 overtaken)",
            ),
            (
                Tally(decisions=9, timed_out=1, spared=2, open=3),
                "9 decisions: 1 now culled by time-out, 2 no longer culled (3 open)",
            ),
            (
                Tally(decisions=9, undone=4),
                "5 decisions: none changes; 4 more undone by a rewind",
            ),
        ],
    )
    def test_what_it_says(self, tally, said):
        assert render_tally(tally).plain == said

    def test_refusals_that_no_bound_turns_have_a_line_of_their_own(self):
        _, last = render_tally(Tally(decisions=2, unusable=1)).plain.splitlines()
        assert last.startswith("refused under any bound: 1, for a figure that was not measured")


class TestCommand:
    def test_what_people_see(self, call, digits):
        done = call("audit", "digits", "--what-if", "timeouts.training=2")
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith(f"{digits} under other thresholds\n  timeouts.training 2")
        assert "refused → culled: 2 epochs in TRAINING" in done.out

    def test_several_at_once(self, call):
        arguments = ("--what-if", "G2.min_improvement=9", "--what-if", "tolerance=0")
        out = call("audit", "digits", *arguments).out
        assert "G2.min_improvement 9 instead of 0.5\n  tolerance 0 instead of 0.5\n" in out

    def test_nothing_that_changes_is_fine_too(self, call):
        done = call("audit", "digits", "--what-if", "tolerance=0.5")
        assert done.code == 0
        assert "20 decisions: none changes" in done.out

    def test_every_decision_as_json(self, call, digits):
        done = call("audit", "digits", "--what-if", "G2.min_improvement=9", "--json")
        shown = json.loads(done.out)
        assert shown["run_id"] == digits
        assert shown["thresholds"] == [
            {"name": "G2.min_improvement", "value": 9.0, "in_force": [0.5]}
        ]
        assert len(shown["decisions"]) == shown["summary"]["decisions"] == 21
        (flip,) = [d for d in shown["decisions"] if d["change"] == "to_refused" and not d["undone"]]
        assert flip["recorded"] == {"passed": True, "action": "advance"}
        assert (flip["what_if"]["passed"], flip["what_if"]["leads_to"]) == (False, "CULLED")
        bounds = {c["name"]: c["required"] for c in flip["what_if"]["checks"]}
        assert bounds["improvement"] == 9.0
        (body,) = [c for c in shown["courses"] if c["seed_id"] == BODY]
        assert body["diverges_at"]["sequence"] == flip["sequence"]
        assert body["untold_from"] is None
        assert body["foregone"][0]["stage"] == "BLENDING"
        assert shown["summary"]["to_refused"] == 1

    def test_only_one_slot_gate_or_refusals(self, call):
        what_if = ("--what-if", "G2.min_improvement=9", "--json")

        def decisions(*arguments):
            return json.loads(call("audit", "digits", *what_if, *arguments).out)["decisions"]

        assert {d["slot_id"] for d in decisions("--slot", "stem")} == {"stem"}
        assert {d["gate"] for d in decisions("--gate", "G2")} == {"G2"}
        assert {d["what_if"]["passed"] for d in decisions("--refused")} == {False}
        assert any(d["recorded"]["passed"] for d in decisions("--refused"))

    def test_courses_are_narrowed_with_their_decisions(self, call):
        what_if = ("--what-if", "G2.min_improvement=9")
        assert "Would have been culled" in call("audit", "digits", *what_if, "--gate", "G2").out
        assert "Would have been culled" not in call("audit", "digits", *what_if, "--gate", "G5").out

    def test_a_sweep(self, call, digits):
        out = call("audit", "digits", "--sweep", "G2.min_improvement=0:9:3").out
        assert out.startswith(f"G2.min_improvement of {digits}, in force 0.5\n")
        shown = json.loads(
            call("audit", "digits", "--sweep", "G2.min_improvement=0:9:3", "--json").out
        )
        assert [point["value"] for point in shown["values"]] == [0.0, 3.0, 6.0, 9.0]
        assert shown["values"][-1]["to_refused"] == 1
        assert shown["in_force"] == [0.5]

    def test_a_sweep_of_one_slot(self, call):
        arguments = ("--sweep", "G2.min_improvement=9", "--slot", "stem", "--json")
        (point,) = json.loads(call("audit", "digits", *arguments).out)["values"]
        assert (point["to_refused"], 0 < point["decisions"] < 20) == (0, True)


class TestEveryRun:
    def test_what_people_see(self, call, digits, blank):
        done = call("audit", "--all", "--what-if", "G2.min_improvement=9")
        assert done.code == 0
        assert f"{blank}  0 decisions: none changes\n" in done.out
        assert f"{digits} under other thresholds\n" in done.out
        assert "\n2 runs, 20 decisions: 1 now refused" in done.out

    def test_as_json_only_what_changes(self, call, digits, blank):
        done = call("audit", "--all", "--what-if", "G2.min_improvement=9", "--json")
        shown = json.loads(done.out)
        assert [run["run_id"] for run in shown["runs"]] == [digits, blank]
        first, second = shown["runs"]
        assert "none" not in {decision["change"] for decision in first["decisions"]}
        assert all(course["diverges_at"] is not None for course in first["courses"])
        assert first["summary"]["decisions"] == shown["summary"]["decisions"] == 21
        assert (second["decisions"], shown["left_out"]) == ([], [])

    def test_runs_whose_gates_do_not_ask_are_left_out_and_named(self, call, blank):
        done = call("audit", "--all", "--what-if", "G5.val_loss=0.1")
        assert done.out.endswith(f"1 run left out, without G5.val_loss: {blank}\n")
        shown = json.loads(call("audit", "--all", "--what-if", "G5.val_loss=0.1", "--json").out)
        assert shown["left_out"] == [blank]

    def test_a_sweep_adds_runs_up(self, call, url, story, digits, blank):
        with open_store(url) as store:
            story(store, "other-11", name="other", policy=GatePolicy(tolerance=1.0))
        done = call("audit", "--all", "--sweep", "tolerance=0,1")
        assert done.out.startswith("tolerance of 3 runs, in force 0.5 and 1\n")
        shown = json.loads(call("audit", "--all", "--sweep", "tolerance=0,1", "--json").out)
        assert [run["run_id"] for run in shown["runs"]] == [digits, blank, "other-11"]
        assert shown["values"][0]["decisions"] == 21
        left_out = call("audit", "--all", "--sweep", "G5.val_loss=0,1").out
        assert left_out.endswith(f"2 runs left out, without G5.val_loss: {blank}, other-11\n")

    def test_a_database_without_runs(self, call, tmp_path):
        database = ("--database", f"sqlite:///{tmp_path / 'empty.db'}")
        call("db", "upgrade", *database)
        what_if = call("audit", "--all", "--what-if", "tolerance=1", *database)
        assert what_if.out == "0 runs, 0 decisions: none changes\n"
        assert "in force nowhere" in call("audit", "--all", "--sweep", "tolerance=1", *database).out

    def test_a_fork_is_judged_from_where_it_began(self, call, url, digits):
        with open_store(url) as store:
            fork(store, digits, at=32, run_id="fork-1", name="fork")
        done = call("audit", "fork-1", "--what-if", "tolerance=1")
        assert (done.code, done.err) == (0, "")
        assert "tolerance 1 instead of 0.5" in done.out


def test_the_example_in_the_documentation_runs(store, digits, capsys):
    page = (Path(__file__).parents[2] / "docs" / "what-if.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code, {"store": store, "run_id": digits})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("0.0 ")
    assert lines[-1] == "3.0 0 1"


class TestRequestsThatMakeNoSense:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ((), "give a RUN or --all"),
            (("--all",), "give --what-if or --sweep"),
            (("digits", "--all", "--what-if", "a=1"), "RUN and --all do not go together"),
            (
                ("digits", "--what-if", "tolerance=1", "--sweep", "tolerance=1"),
                "do not go together",
            ),
            (("--all", "--slot", "stem", "--what-if", "a=1"), "--all and --slot do not"),
            (("digits", "--refused", "--sweep", "tolerance=1"), "--sweep and --refused do not"),
            (("digits", "--what-if", "G2.min_improvment=1"), "did you mean 'G2.min_improvement'"),
            (("--all", "--what-if", "G2.min_improvment=1"), "did you mean 'G2.min_improvement'"),
            (("digits", "--what-if", "G2.min_epochs=1.5"), "must be a whole number"),
            (("blank", "--what-if", "G3.min_alpha=2"), "must lie in [0, 1]"),
            (("digits", "--what-if", "embargo_epochs=1"), "no gate asks for it"),
            (("digits", "--what-if", "tolerance"), "write NAME=VALUE"),
            (("digits", "--what-if", "tolerance=1", "--what-if", "tolerance=2"), "more than once"),
            (("digits", "--sweep", "tolerance=0:1"), "write START:STOP:STEP"),
            (("digits", "--slot", "stam", "--what-if", "tolerance=1"), "did you mean 'stem'?"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_each_is_one_line_and_exit_code_2(self, call, arguments, said):
        done = call("audit", *arguments)
        assert (done.code, done.out) == (2, "")
        assert said in done.err
        assert done.err.count("\n") == 1
