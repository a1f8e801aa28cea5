"""What a run says of itself: a line for a progress bar, and a table at its end."""

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasmina import Gate, Stage
from kasmina.domain import commands as c
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.policies import G2Policy, GatePolicy
from kasmina.domain.schedules import BlendPlan
from kasmina.domain.stages import Incubator
from kasmina.status import status_line
from kasmina.summary import summary
from tests.domain.lives import Life, lives
from tests.journeys.loop import PATIENT, Loop

UNGATED = GatePolicy(g2=G2Policy(min_epochs=0, min_improvement=-1.0))


def line(life: Life, *, later: int = 0) -> str:
    return status_line(life.state, life.step + later)


def blending(*, ramp: float) -> Life:
    return Life(UNGATED).germinate(blend=BlendPlan(epochs=ramp)).epoch()


# --- the line ---


def test_an_empty_host_says_that_nothing_grows() -> None:
    assert line(Life(GatePolicy(), "a", "b")) == "no seed in 2 slots"
    assert line(Life(GatePolicy(), "a")) == "no seed in 1 slot"


def test_a_seed_that_was_refused_is_told_of_with_the_checks_that_failed() -> None:
    life = Life(GatePolicy()).germinate().epoch(0.1)
    assert line(life) == "a TRAINING · G2 refused: improvement, epochs_in_stage"


def test_more_failing_checks_than_fit_are_counted() -> None:
    asleep = IncubationPlan(incubator=Incubator.STRAIGHT_THROUGH)
    life = Life(GatePolicy()).germinate(incubation=asleep).epoch(-1.0, leaks=20)
    assert line(life) == "a TRAINING · G2 refused: improvement, isolation_violations +1"


def test_alpha_is_that_of_the_step_that_was_asked_for() -> None:
    life = blending(ramp=2.0)
    assert line(life) == "a BLENDING α 0.00"
    assert line(life, later=10) == "a BLENDING α 0.50"
    assert line(life, later=20) == "a BLENDING α 1.00"


@pytest.mark.parametrize("later", [1, 19])
def test_an_alpha_under_way_is_neither_nothing_nor_all(later: int) -> None:
    assert line(blending(ramp=2.0), later=later).endswith(("α 0.01", "α 0.99"))


def test_a_paused_seed_and_one_that_is_ramped_out_say_so() -> None:
    life = blending(ramp=2.0)
    life.do(c.PauseSeed(step=life.step, slot_id="a"))
    assert line(life) == "a BLENDING α 0.00 · paused"
    life.do(c.ResumeSeed(step=life.step, slot_id="a"))
    life.do(c.Cull(step=life.step, slot_id="a", reason="enough", ramp_steps=5))
    assert line(life) == "a BLENDING α 0.00 · being ramped out"


def test_fossils_are_counted_and_many_slots_end_in_a_count() -> None:
    names = [f"layer{n}" for n in range(6)]
    life = Life(UNGATED, *names)
    for name in names[:5]:
        life.germinate(name)
    told = line(life)
    assert told == "layer0 TRAINING | layer1 TRAINING | layer2 TRAINING | 2 more"
    while life.stage("layer0") is not Stage.FOSSILIZED:
        life.epoch(rehearse=True)
    assert line(life) == "5 fossilized"


@given(lives(), st.integers(0, 40))
def test_whatever_has_happened_both_are_told_and_agree(life: Life, later: int) -> None:
    step = life.step + later
    text, whole = status_line(life.state, step), summary(life.state, step)
    assert "\n" not in text
    assert len(str(whole).splitlines()) >= 4 + len(life.state.slots)
    for slot in whole.slots:
        held = life.state.slots[slot.slot_id]
        assert (slot.stage, slot.seeds) == (held.stage, held.germinations)
        if slot.stage not in (Stage.DORMANT, Stage.FOSSILIZED):
            assert f"{slot.slot_id} {slot.stage.value}" in text
        if slot.alpha is not None:
            assert held.seed.alpha(step) == slot.alpha
        if f"{slot.slot_id} {slot.stage.value} · G" in text:
            assert not slot.outcome.passed
            assert slot.outcome.gate.value in text


# --- of a run ---


def test_a_run_shows_its_slots_and_how_to_audit_them(tmp_path: Path) -> None:
    loop = Loop.fresh()
    with loop.open(tmp_path / "runs.db", policy=PATIENT) as run:
        run.germinate("2", "conv_light")
        for _ in range(3):
            loop.epoch(run)
        assert run.status().startswith("2 TRAINING · G2 refused: improvement")
        whole = run.summary()
        dormant, training = whole.slots
    assert (whole.epochs, whole.steps) == (3, 12)
    assert (dormant.stage, dormant.alpha, dormant.outcome) == (Stage.DORMANT, None, None)
    assert (training.epochs, training.seeds) == (3, 1)
    assert training.contribution is not None
    assert training.outcome.gate is Gate.G2
    *_, zero, two, _, audit = str(whole).splitlines()
    assert zero.split() == ["0", "DORMANT", "3", "0", "–", "–", "–"]
    assert two.split()[:4] == ["2", "TRAINING", "3", "1"]
    assert "G2 refused: improvement" in two
    assert audit.endswith(f"kasmina audit {run.run_id}")


def test_alpha_moves_in_the_status_between_two_epochs(tmp_path: Path) -> None:
    loop = Loop.fresh()
    with loop.open(tmp_path / "runs.db") as run:
        run.germinate("2", "conv_light")
        loop.epoch(run)
        assert run.status() == "2 BLENDING α 0.00"
        seen = []
        loop.train(lambda: (run.step(), seen.append(run.status())))
        assert seen[0] < seen[-1]
        run.end_epoch(None)


def test_a_run_in_which_nothing_was_planted_says_so_and_warns_of_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop = Loop.fresh()
    with caplog.at_level(logging.INFO, "kasmina"), loop.open(tmp_path / "runs.db") as run:
        loop.epoch(run)
        assert "no seed was planted" in str(run.summary())
    assert [record.message for record in caplog.records] == [
        f"run {run.run_id} was closed, and no seed was ever planted in it"
    ]


def test_a_run_in_which_something_was_planted_says_nothing_at_its_close(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop = Loop.fresh()
    with caplog.at_level(logging.INFO, "kasmina"), loop.open(tmp_path / "runs.db") as run:
        run.germinate("2", "norm")
        loop.epoch(run)
    assert not caplog.records
    assert "no seed was planted" not in str(run.summary())
