"""Commands that record evidence or concern the whole run, and those that make no sense."""

import math

import pytest
from attrs import evolve as changed

from kasmina.domain import commands as c
from kasmina.domain import events as e
from kasmina.domain.errors import (
    EpochWentBackwards,
    InvalidCommand,
    RunIsClosed,
    StepWentBackwards,
    UnknownSlot,
    WrongStage,
)
from kasmina.domain.evidence import Metric, Software, Violation
from kasmina.domain.policies import G2Policy, GatePolicy
from kasmina.domain.stages import Health, Leak, Stage, Topology
from kasmina.testing import given
from tests.domain.scenario import (
    ACCURACY,
    ENTERED_AT,
    HOST,
    LOSS,
    POLICY,
    SEED,
    SLOT,
    advance,
    cull,
    entered,
    epoch,
    evidence,
    germinate,
    germinated,
    opened,
    ready,
    record_epoch,
    seed_after,
    slot_opened,
    step_of,
)

LEAK = Violation(leak=Leak.GRADIENT, count=4, subject="conv1.weight")
OTHER = "layer3"


def unhealthy(slot_id=SLOT, seed_id=SEED, *, at=2):
    return e.HealthChanged(
        epoch=at, step=step_of(at), slot_id=slot_id, seed_id=seed_id, health=Health.UNHEALTHY
    )


def open_run(step=0):
    return c.OpenRun(
        step=step,
        run_id="run-1",
        name="digits",
        objective=ACCURACY,
        policy=POLICY,
        host=HOST,
        random_seed=7,
        software=(Software(name="torch", version="2.6"),),
    )


def record_shadow(*, at, agreement=0.97, objective_with=57.0):
    return c.RecordShadow(
        step=step_of(at),
        slot_id=SLOT,
        agreement=agreement,
        values=640,
        objective_with=objective_with,
        objective_without=56.0,
    )


def record_counterfactual(*, at, alpha=1.0, objective_with=57.0, objective_without=56.0):
    return c.RecordCounterfactual(
        step=step_of(at),
        slot_id=SLOT,
        alpha=alpha,
        objective_with=objective_with,
        objective_without=objective_without,
    )


class TestOpening:
    def test_a_run_begins_with_everything_by_which_it_is_judged(self):
        software = (Software(name="torch", version="2.6"),)
        given().when(open_run()).then(changed(opened(), software=software))

    def test_a_run_is_opened_once(self):
        given(opened()).when(open_run()).raises(InvalidCommand, saying="is open already")

    def test_nothing_is_asked_of_a_run_that_is_not_open(self):
        for command in (advance(at=0), c.Rewind(step=0, epoch=0, to=1), c.CloseRun(step=0)):
            given().when(command).raises(
                InvalidCommand, saying=f"open the run before {type(command).__name__}"
            )

    def test_a_slot_is_opened_once(self):
        command = c.OpenSlot(step=0, slot_id=SLOT, topology=Topology.CNN, width=8)
        given(opened()).when(command).then(slot_opened())
        given(opened(), slot_opened()).when(command).raises(
            InvalidCommand, saying="slot 'layer2' is open already"
        )


class TestEpochs:
    def test_an_epoch_records_its_evidence(self):
        metrics = (Metric(name="train_loss", value=0.5),)
        command = record_epoch(2, 51.0, evidence(), metrics=metrics)
        done = given(*entered(Stage.TRAINING)).when(command)
        done.then(epoch(2, 51.0, evidence(), metrics=metrics))
        assert done.slot.epochs_in_stage == 1
        assert done.slot.seed.gradient_norm == 1.0

    @pytest.mark.parametrize("given_epoch", [0, 1])
    def test_an_epoch_does_not_go_backwards(self, given_epoch):
        command = changed(record_epoch(2, 51.0), epoch=given_epoch)
        error = (
            given(*entered(Stage.TRAINING))
            .when(command)
            .raises(EpochWentBackwards, saying="give 2")
        )
        assert (error.last, error.given) == (1, given_epoch)

    def test_a_step_does_not_go_backwards(self):
        error = (
            given(*entered(Stage.TRAINING))
            .when(changed(record_epoch(2, 51.0), step=9))
            .raises(StepWentBackwards, saying="resume from a checkpoint")
        )
        assert (error.last, error.given) == (10, 9)

    @pytest.mark.parametrize("stage", [Stage.DORMANT, Stage.TRAINING])
    def test_evidence_names_the_seed_that_is_there(self, stage):
        command = record_epoch(2, 51.0, evidence(seed_id="seed-9"))
        given(*entered(stage)).when(command).raises(
            InvalidCommand, saying="slot 'layer2' does not hold seed 'seed-9'"
        )

    def test_evidence_names_a_slot_that_is_there(self):
        command = record_epoch(2, 51.0, evidence(slot_id="layer22"))
        error = given(*entered(Stage.TRAINING)).when(command).raises(UnknownSlot)
        assert error.nearest == (SLOT,)

    def test_violations_are_recorded_with_the_epoch_they_were_seen_in(self):
        command = record_epoch(2, 51.0, evidence(), violations=((SLOT, LEAK), (SLOT, LEAK)))
        done = given(*entered(Stage.TRAINING)).when(command)
        done.then_only(e.EpochRecorded, e.IsolationViolated, e.IsolationViolated)
        assert (done.events[1].leak, done.events[1].subject) == (Leak.GRADIENT, "conv1.weight")
        assert done.slot.seed.violations == 8

    def test_an_empty_slot_cannot_violate_isolation(self):
        command = record_epoch(1, 51.0, violations=((SLOT, LEAK),))
        given(*entered(Stage.DORMANT)).when(command).raises(
            InvalidCommand, saying="holds no seed that could violate isolation"
        )


class TestHealth:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_an_objective_or_metric_that_is_not_finite_is_kept_and_makes_seeds_unhealthy(
        self, value
    ):
        past = given(*entered(Stage.TRAINING))
        objective = past.when(record_epoch(2, value, evidence()))
        objective.then(epoch(2, value, evidence()), unhealthy())
        metrics = (Metric(name="train_loss", value=value),)
        metric = past.when(record_epoch(2, 51.0, evidence(), metrics=metrics))
        metric.then(epoch(2, 51.0, evidence(), metrics=metrics), unhealthy())

    def test_the_run_s_figures_speak_for_seeds_without_evidence_of_their_own(self):
        past = (
            *entered(Stage.TRAINING),
            slot_opened(OTHER),
            *germinated(at=1, slot_id=OTHER, seed_id="seed-2"),
        )
        done = given(*past).when(record_epoch(2, math.nan, evidence()))
        done.then(epoch(2, math.nan, evidence()), unhealthy(), unhealthy(OTHER, "seed-2"))

    @pytest.mark.parametrize(
        "fields",
        [
            {"gradient_norm": math.nan},
            {"gradient_norm": math.inf},
            {"nonfinite_outputs": 1},
            {"nonfinite_gradients": 1},
        ],
    )
    def test_a_seed_answers_for_its_own_outputs_and_gradients(self, fields):
        past = (
            *entered(Stage.TRAINING),
            slot_opened(OTHER),
            *germinated(at=1, slot_id=OTHER, seed_id="seed-2"),
        )
        observed = (evidence(**fields), evidence(slot_id=OTHER, seed_id="seed-2"))
        done = given(*past).when(record_epoch(2, 51.0, *observed))
        done.then(epoch(2, 51.0, *observed), unhealthy())

    def test_what_was_not_measured_is_no_sign_of_illness(self):
        command = record_epoch(2, None, evidence(gradient_norm=None))
        given(*entered(Stage.TRAINING)).when(command).then_only(e.EpochRecorded)

    @pytest.mark.parametrize(("limit", "contained"), [(8, True), (7, False)])
    def test_leaks_are_counted_over_the_seed_s_whole_life(self, limit, contained):
        policy = GatePolicy(g2=G2Policy(max_isolation_violations=limit))
        past = entered(Stage.TRAINING, policy=policy)
        first = given(*past).when(record_epoch(2, 51.0, violations=((SLOT, LEAK),)))
        second = given(*first.past, *first.events).when(
            record_epoch(3, 51.0, violations=((SLOT, LEAK),))
        )
        assert (second.slot.seed.health is Health.HEALTHY) is contained

    def test_illness_is_recorded_once_per_stage(self):
        past = (*entered(Stage.TRAINING), epoch(2, math.nan), unhealthy())
        given(*past).when(record_epoch(3, math.nan, evidence())).then_only(e.EpochRecorded)

    @pytest.mark.parametrize("stage", [Stage.DORMANT, Stage.CULLED, Stage.EMBARGOED])
    def test_a_slot_without_an_attached_seed_has_no_health(self, stage):
        command = record_epoch(ENTERED_AT[stage] + 1, math.nan)
        given(*entered(stage)).when(command).then_only(e.EpochRecorded)

    def test_an_unhealthy_seed_does_not_become_permanent(self):
        past = (*ready(Stage.PROBATIONARY), unhealthy(at=9))
        refused = given(*past).when(advance(at=9)).then_only(e.GateEvaluated)
        assert [check.name for check in refused.outcome.failures] == ["healthy"]


CONTRASTED = [
    Stage.TRAINING,
    Stage.BLENDING,
    Stage.SHADOWING,
    Stage.PROBATIONARY,
    Stage.FOSSILIZED,
]


class TestComparisons:
    def test_a_shadow_evaluation_is_recorded_in_shadowing(self):
        done = given(*entered(Stage.SHADOWING)).when(record_shadow(at=7))
        done.then_only(e.ShadowEvaluated)
        seed = done.slot.seed
        assert (seed.shadow_evaluations, seed.agreement, seed.shadow_contribution) == (1, 0.97, 1.0)
        again = given(*done.past, *done.events).when(record_shadow(at=8, agreement=0.5))
        seed = again.slot.seed
        assert (seed.shadow_evaluations, seed.agreement, seed.shadow_contribution) == (2, 0.5, 1.0)

    @pytest.mark.parametrize("stage", [stage for stage in Stage if stage is not Stage.SHADOWING])
    def test_and_nowhere_else(self, stage):
        error = given(*entered(stage)).when(record_shadow(at=ENTERED_AT[stage])).raises(WrongStage)
        assert (error.stage, error.allowed) == (stage, (Stage.SHADOWING,))

    @pytest.mark.parametrize("stage", CONTRASTED)
    def test_a_counterfactual_is_measured_wherever_the_seed_computes(self, stage):
        past = given(*entered(stage))
        done = past.when(record_counterfactual(at=ENTERED_AT[stage]))
        done.then_only(e.CounterfactualMeasured)
        seed = done.slot.seed
        before = seed_after(*past.events)
        if stage is Stage.TRAINING:
            assert (seed.rehearsals, seed.contribution) == ({1.0: 1.0}, before.contribution)
        else:
            assert (seed.rehearsals, seed.contribution) == (before.rehearsals, 1.0)

    @pytest.mark.parametrize("stage", [stage for stage in Stage if stage not in CONTRASTED])
    def test_and_not_where_it_does_not(self, stage):
        past = given(*entered(stage))
        error = past.when(record_counterfactual(at=ENTERED_AT[stage])).raises(WrongStage)
        assert list(error.allowed) == CONTRASTED

    def test_a_contribution_is_signed_by_the_objective(self):
        done = given(*entered(Stage.PROBATIONARY, LOSS)).when(record_counterfactual(at=8))
        assert done.slot.seed.contribution == -1.0

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_figure_that_is_not_finite_is_kept_in_the_event(self, value):
        done = given(*entered(Stage.PROBATIONARY)).when(
            record_counterfactual(at=8, objective_with=value)
        )
        assert done.events[0].objective_with is value
        assert math.isnan(done.slot.seed.contribution)


class TestTheWholeRun:
    def test_a_policy_replaces_the_one_before(self):
        policy = GatePolicy(embargo_epochs=0)
        done = given(opened()).when(c.ChangePolicy(step=0, policy=policy))
        done.then(e.GatePolicyChanged(epoch=0, step=0, policy=policy))
        assert done.state.policy == policy

    def test_a_checkpoint_belongs_to_a_sequence_that_exists(self):
        past = given(*entered(Stage.DORMANT))
        done = past.when(c.SaveCheckpoint(step=0, path="a.pt", sequence=2))
        done.then(e.CheckpointSaved(epoch=0, step=0, path="a.pt", sequence=2))
        past.when(c.SaveCheckpoint(step=0, path="a.pt", sequence=3)).raises(
            InvalidCommand, saying="ends at 2"
        )

    @pytest.mark.parametrize(
        ("objectives", "last"), [((), None), ((50.0, None), 50.0), ((50.0, 51.0), 51.0)]
    )
    def test_closing_records_the_last_objective_that_was_measured(self, objectives, last):
        past = (opened(), *(epoch(n, value) for n, value in enumerate(objectives, 1)))
        done = given(*past).when(c.CloseRun(step=99))
        done.then(e.RunClosed(epoch=len(objectives), step=99, objective=last))
        assert done.state.closed

    def test_closing_a_run_that_diverged_says_so(self):
        done = given(opened(), epoch(1, 50.0), epoch(2, math.nan)).when(c.CloseRun(step=20))
        assert math.isnan(done.events[0].objective)

    @pytest.mark.parametrize(
        "command",
        [advance(at=1), cull(at=1), record_epoch(2, 1.0), c.CloseRun(step=10), germinate(at=1)],
        ids=lambda command: type(command).__name__,
    )
    def test_a_closed_run_takes_no_commands(self, command):
        past = (*entered(Stage.TRAINING), e.RunClosed(epoch=1, step=10))
        error = given(*past).when(command).raises(RunIsClosed, saying="open a new run, or resume")
        assert error.run_id == "run-1"


UNKNOWN = "layer22"


@pytest.mark.parametrize(
    "command",
    [
        germinate(at=1, slot_id=UNKNOWN),
        advance(at=1, slot_id=UNKNOWN),
        changed(cull(at=1), slot_id=UNKNOWN),
        changed(record_shadow(at=1), slot_id=UNKNOWN),
        changed(record_counterfactual(at=1), slot_id=UNKNOWN),
        c.OverrideAlpha(step=10, slot_id=UNKNOWN, alpha=0.5),
        c.PauseSeed(step=10, slot_id=UNKNOWN),
        c.ResumeSeed(step=10, slot_id=UNKNOWN),
        record_epoch(2, 1.0, violations=((UNKNOWN, LEAK),)),
    ],
    ids=lambda command: type(command).__name__,
)
def test_an_unknown_slot_is_answered_with_the_nearest_one(command):
    error = (
        given(*entered(Stage.TRAINING))
        .when(command)
        .raises(UnknownSlot, saying="there is no slot 'layer22'; did you mean 'layer2'?")
    )
    assert (error.name, error.known) == (UNKNOWN, (SLOT,))


@pytest.mark.parametrize(
    "build",
    [
        lambda: advance(at=-1),
        lambda: cull(at=0, ramp_steps=-1),
        lambda: record_epoch(-1, 0.0),
        lambda: record_shadow(at=-1),
        lambda: record_counterfactual(at=0, alpha=1.5),
        lambda: c.OpenSlot(step=0, slot_id=SLOT, topology=Topology.CNN, width=0),
        lambda: c.OverrideAlpha(step=0, slot_id=SLOT, alpha=math.nan),
        lambda: c.SaveCheckpoint(step=0, path=" ", sequence=0),
        lambda: changed(germinate(at=0), learning_rate=-1.0),
        lambda: changed(germinate(at=0), parameters=-1),
    ],
)
def test_an_impossible_command_is_not_built(build):
    with pytest.raises(ValueError, match="must"):
        build()
