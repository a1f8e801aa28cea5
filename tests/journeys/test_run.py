"""A run in a loop: what it records, what it changes, and what it leaves alone."""

import math
from pathlib import Path

import pytest
import torch

from kasmina import Gate, GatePolicy, Stage, graft, open_run, open_store
from kasmina.adapters.torch.graft import SlotsInUse
from kasmina.adapters.torch.optimizer import seed_order
from kasmina.domain import events as e
from kasmina.domain.errors import (
    ConcurrentAppend,
    EpochWentBackwards,
    IllegalTransition,
    InvalidCommand,
    RunIsClosed,
    SlotOccupied,
    StoreUnavailable,
    UngraftableModule,
    UnknownBlueprint,
    UnknownSlot,
)
from kasmina.domain.evidence import Comparison
from kasmina.domain.evolve import replay
from kasmina.domain.policies import MetricCheck
from kasmina.history import load
from kasmina.infra.engine import Access
from kasmina.infra.event_store import SqlEventStore
from tests.journeys.loop import ACCURACY, PATIENT, STRICT, Loop, build_host


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


def history(database: Path, run_id: str) -> list[e.Event]:
    with open_store(f"sqlite:///{database}", access=Access.READ) as store:
        return [record.event for record in store.read(run_id)]


def stages(run: object) -> dict[str, Stage]:
    return {slot_id: slot.stage for slot_id, slot in run.state.slots.items()}


def test_a_seed_that_passes_every_gate_is_fossilized_and_stays(database: Path) -> None:
    loop = Loop.fresh()
    with loop.open(database) as run:
        passed = run.germinate("2", "conv_light")
        assert [(d.outcome.gate.value, d.outcome.passed) for d in passed] == [
            ("G0", True),
            ("G1", True),
        ]
        seen = []
        while run.state.slot("2").stage is not Stage.FOSSILIZED:
            report = loop.epoch(run)
            seen += [(c.source, c.target) for c in report.changes]
            assert run.state.epoch < 12
        assert seen == [
            (Stage.TRAINING, Stage.BLENDING),
            (Stage.BLENDING, Stage.SHADOWING),
            (Stage.SHADOWING, Stage.PROBATIONARY),
            (Stage.PROBATIONARY, Stage.FOSSILIZED),
        ]
        assert loop.slots["2"].seed is not None
        assert seed_order(loop.optimizer.param_groups) == (run.state.slot("2").seed.seed_id,)
    happened = history(database, run.run_id)
    assert any(isinstance(event, e.ShadowEvaluated) for event in happened)
    assert any(isinstance(event, e.CounterfactualMeasured) for event in happened)
    assert isinstance(happened[-1], e.RunClosed)


def test_the_log_replays_to_the_live_state_after_every_commit(database: Path) -> None:
    loop = Loop.fresh()
    with loop.open(database) as run:
        for wish in (
            lambda: run.germinate("0", "depthwise"),
            lambda: loop.epoch(run),
            lambda: run.pause("0"),
            lambda: loop.epoch(run),
            lambda: run.resume_seed("0"),
            lambda: run.germinate("2", "attention"),
            lambda: loop.epoch(run),
            lambda: loop.epoch(run),
            lambda: run.override_alpha("0", 0.4),
            lambda: run.cull("2", "it was asked for", ramp_steps=3),
            lambda: loop.epoch(run),
            lambda: loop.epoch(run),
        ):
            wish()
            assert replay(history(database, run.run_id)) == run.state
            with open_store(f"sqlite:///{database}", access=Access.READ) as store:
                assert load(store, run.run_id) == run.state


def test_a_culled_seed_leaves_slot_and_optimizer_as_they_were(database: Path) -> None:
    loop = Loop.fresh()
    keys = set(loop.host.state_dict())
    with loop.open(database, policy=STRICT) as run:
        run.germinate("2", "conv_heavy")
        loop.epoch(run)
        assert len(loop.optimizer.param_groups) == 2
        report = loop.epoch(run)
        assert [c.target for c in report.changes] == [Stage.CULLED, Stage.EMBARGOED]
        assert set(loop.host.state_dict()) == keys
        assert len(loop.optimizer.param_groups) == 1
        held = {p for group in loop.optimizer.param_groups for p in group["params"]}
        assert set(loop.optimizer.state) <= held
        culled = [x for x in history(database, run.run_id) if isinstance(x, e.SeedCulled)]
        assert culled[0].cause.value == "timed_out"
        assert "G2" in culled[0].reason
        with pytest.raises(SlotOccupied):
            run.germinate("2", "norm")
        report = loop.epoch(run)
        assert [c.target for c in report.changes] == [Stage.RESETTING, Stage.DORMANT]
        run.germinate("2", "norm")
        assert run.state.slot("2").stage is Stage.TRAINING


def test_a_host_with_an_incubating_seed_is_the_host_without_it_bit_for_bit(
    database: Path,
) -> None:
    alone, grown = Loop.fresh(), Loop.fresh()
    with (
        alone.open(database, policy=PATIENT) as bare,
        grown.open(database, policy=PATIENT) as run,
    ):
        torch.manual_seed(5)
        for _ in range(50):
            alone.epoch(bare)
        drawn = torch.get_rng_state()
        torch.manual_seed(5)
        run.germinate("2", "conv_light")
        run.germinate("0", "attention")
        for _ in range(50):
            grown.epoch(run)
        assert run.state.step == 200
        assert set(stages(run).values()) == {Stage.TRAINING}
        assert run.state.slot("2").seed.best_rehearsal is not None
        assert alone.losses == grown.losses
        assert torch.equal(drawn, torch.get_rng_state())
        theirs = grown.host.state_dict()
        for name, tensor in alone.host.state_dict().items():
            assert torch.equal(tensor, theirs[name]), name
        for before, after in zip(
            alone.slots.host_parameters(), grown.slots.host_parameters(), strict=True
        ):
            for key, value in alone.optimizer.state[before].items():
                assert torch.equal(value, grown.optimizer.state[after][key]), key


def test_alpha_follows_the_recorded_ramp_step_by_step(database: Path) -> None:
    loop = Loop.fresh()
    with loop.open(database) as run:
        run.germinate("2", "norm")
        loop.epoch(run)
        assert stages(run)["2"] is Stage.BLENDING
        schedule = run.state.slot("2").seed.schedule
        assert schedule.steps == 12
        seen = []

        def step() -> None:
            run.step()
            seen.append(loop.slots["2"].alpha.item())

        loop.train(step)
        expected = [torch.tensor(schedule.alpha(run.state.step + n)).item() for n in (1, 2, 3, 4)]
        assert seen == expected


def test_an_epoch_without_steps_is_refused_and_says_why(database: Path) -> None:
    loop = Loop.fresh()
    with loop.open(database) as run:
        loop.train()
        with pytest.raises(InvalidCommand, match=r"call run\.step\(\) after every"):
            run.end_epoch(loop.evaluate)


def test_bad_input_names_what_there_is_and_records_nothing(database: Path) -> None:
    loop = Loop.fresh()
    with loop.open(database) as run:
        before = run.state
        with pytest.raises(UnknownSlot, match="'2'"):
            run.germinate("layer2", "norm")
        with pytest.raises(UnknownBlueprint, match="conv_light"):
            run.germinate("2", "conv_ligth")
        with pytest.raises(IllegalTransition, match="legal from here: germinate"):
            run.cull("2", "there is none")
        run.step()
        run.end_epoch(loop.evaluate, epoch=4)
        after = run.state
        run.step()
        with pytest.raises(EpochWentBackwards, match="give 5"):
            run.end_epoch(loop.evaluate, epoch=4)
        assert before.sequence == 3
        assert run.state == after


def test_an_objective_that_is_not_finite_is_recorded_and_unhealthy(database: Path) -> None:
    loop = Loop.fresh()
    with loop.open(database) as run:
        run.germinate("2", "norm")
        loop.train(run.step)
        evaluate = loop.evaluate
        report = run.end_epoch(
            lambda: {**evaluate(), "val_accuracy": math.nan, "val_loss": math.inf}
        )
        assert math.isnan(report.objective)
        assert run.state.slot("2").seed.health.value == "unhealthy"
        assert not report.decisions[-1].outcome.passed
        (recorded,) = [x for x in history(database, run.run_id) if isinstance(x, e.EpochRecorded)]
        assert math.isnan(recorded.objective)
        assert math.isinf(recorded.metrics[1].value)


def test_a_failed_append_leaves_run_slots_and_optimizer_as_they_were(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop.fresh()
    with loop.open(database) as run:
        run.germinate("2", "norm")
        loop.train(run.step)
        before, acts = run.state, dict(loop.slots["2"].__dict__)
        groups = len(loop.optimizer.param_groups)

        def refuse(*_: object, **__: object) -> None:
            raise StoreUnavailable("the disk", "it is full", "make room")

        with monkeypatch.context() as patched:
            patched.setattr(SqlEventStore, "append_all", refuse)
            with pytest.raises(StoreUnavailable):
                run.end_epoch(loop.evaluate)
            with pytest.raises(StoreUnavailable):
                run.germinate("0", "norm")
            with pytest.raises(StoreUnavailable):
                run.cull("2", "anyway")
        assert run.state == before
        assert loop.slots["0"].seed is None
        assert loop.slots["2"].view == acts["view"]
        assert len(loop.optimizer.param_groups) == groups
        report = run.end_epoch(loop.evaluate)
        assert report.decisions[-1].outcome.passed, "the evidence of the epoch was not lost"


def test_a_second_writer_is_told_and_the_first_goes_on(database: Path) -> None:
    first, second = Loop.fresh(), Loop.fresh()
    run = first.open(database)
    intruder = second.open(database, resume=run.run_id)
    run.germinate("2", "norm")
    with pytest.raises(ConcurrentAppend) as caught:
        intruder.germinate("0", "norm")
    assert (caught.value.expected, caught.value.found) == (3, run.state.sequence)
    assert second.slots["0"].seed is None
    first.epoch(run)


def test_an_error_inside_the_block_leaves_the_run_open(database: Path) -> None:
    loop = Loop.fresh()
    with pytest.raises(ZeroDivisionError), loop.open(database) as run:
        raise ZeroDivisionError
    assert not any(isinstance(x, e.RunClosed) for x in history(database, run.run_id))


def test_a_refusal_by_the_first_gate_is_recorded_and_nothing_is_attached(database: Path) -> None:
    unmet = MetricCheck(
        gate=Gate.G0, metric="val_accuracy", comparison=Comparison.AT_LEAST, required=50.0
    )
    loop = Loop.fresh()
    with loop.open(database, policy=GatePolicy(extra_checks=(unmet,))) as run:
        (decision,) = run.germinate("2", "norm")
        assert not decision.outcome.passed
        assert stages(run)["2"] is Stage.DORMANT
        assert loop.slots["2"].seed is None
        assert history(database, run.run_id)[-1] == decision


@pytest.mark.parametrize("second_run", ["new", "resumed"])
def test_slots_that_hold_another_run_s_seeds_are_refused_and_left_alone(
    database: Path, second_run: str
) -> None:
    loop = Loop.fresh()
    run = loop.open(database)
    run.germinate("2", "norm")
    before = run.state
    options = {"resume": run.run_id} if second_run == "resumed" else {}
    with pytest.raises(SlotsInUse, match=r"belong to a run that is open; close\(\) that run"):
        loop.open(database, **options)
    assert len(loop.optimizer.param_groups) == 2
    with open_store(f"sqlite:///{database}", access=Access.READ) as store:
        assert [first.run_id for first in store.runs()] == [run.run_id]
    loop.epoch(run)
    assert run.state.sequence > before.sequence


def test_empty_slots_belong_to_one_run_too_until_it_is_closed(database: Path) -> None:
    loop = Loop.fresh()
    with loop.open(database) as run:
        with pytest.raises(SlotsInUse):
            loop.open(database)
        run.germinate("2", "norm")
        loop.epoch(run)
        run.cull("2", "it was only tried")
    with loop.open(database) as another:
        another.germinate("2", "norm")
    with pytest.raises(InvalidCommand, match=r"slots \['2'\] hold seeds of an earlier run"):
        loop.open(database)
    loop.slots["2"].detach()
    with pytest.raises(InvalidCommand, match="the optimizer holds seeds of an earlier run"):
        loop.open(database)


def test_a_closed_run_saves_no_checkpoint(database: Path, tmp_path: Path) -> None:
    with Loop.fresh().open(database) as run:
        pass
    with pytest.raises(RunIsClosed):
        run.checkpoint(tmp_path / "run.pt")
    assert not (tmp_path / "run.pt").exists()


@pytest.mark.parametrize("wrong", ["optimizer", "sample_every"])
def test_a_run_that_cannot_be_opened_is_not_in_the_log(database: Path, wrong: str) -> None:
    loop = Loop.fresh()
    stranger = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    settings = {
        "slots": loop.slots,
        "optimizer": stranger if wrong == "optimizer" else loop.optimizer,
        "sample_every": 0 if wrong == "sample_every" else 50,
    }
    with pytest.raises((InvalidCommand, ValueError), match=r"none of the host's|at least 1"):
        open_run(f"sqlite:///{database}", name="x", objective=ACCURACY, **settings)
    assert not database.exists()


def test_text_is_not_taken_for_what_it_names(database: Path) -> None:
    loop = Loop.fresh()
    with loop.open(database) as run:
        before = run.state
        with pytest.raises(
            TypeError, match=r"must be of type SeedInput \(OPEN, DETACHED\), got 'open'"
        ):
            run.germinate("2", "norm", seed_input="open")
        assert run.state == before
    with pytest.raises(TypeError, match="g2 must be of type G2Policy"):
        GatePolicy(g2={"min_epochs": 1})
    with pytest.raises(UngraftableModule, match=r"'cnn' is no topology; give Topology.CNN or"):
        graft(build_host(), {"0": "cnn"})


def test_a_writer_that_was_overtaken_does_not_replace_the_checkpoint(
    database: Path, tmp_path: Path
) -> None:
    first, second = Loop.fresh(), Loop.fresh()
    run = first.open(database)
    first.epoch(run)
    run.checkpoint(tmp_path / "run.pt")
    other = second.open(database, resume=run.run_id)
    second.epoch(other)
    other.checkpoint(tmp_path / "run.pt")
    good = (tmp_path / "run.pt").read_bytes()
    with pytest.raises(ConcurrentAppend):
        run.checkpoint(tmp_path / "run.pt")
    assert (tmp_path / "run.pt").read_bytes() == good


def test_a_host_that_was_trained_before_brings_its_own_count_of_epochs(database: Path) -> None:
    loop = Loop.fresh()
    with loop.open(database) as run:
        run.germinate("2", "norm")
        loop.train(run.step)
        run.end_epoch(loop.evaluate, epoch=101)
        assert stages(run)["2"] is Stage.BLENDING
        assert run.state.slot("2").seed.schedule.steps == 12
