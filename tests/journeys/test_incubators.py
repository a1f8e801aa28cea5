"""Every incubator and every blend, from germination to the end, in a run that is recorded."""

from pathlib import Path

import pytest
import torch

from kasmina import BlendPlan, GatePolicy, Stage
from kasmina.adapters.torch.measurement import SlotNotEvaluated
from kasmina.adapters.torch.optimizer import SEED_KEY
from kasmina.domain import events as e
from kasmina.domain.errors import InvalidCommand
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.policies import G2Policy
from kasmina.domain.projections import Behaviour
from kasmina.domain.stages import Blend, Health, Incubator
from tests.journeys.loop import LENIENT, PATIENT, Loop
from tests.journeys.test_resume import same, tensors
from tests.journeys.test_run import history, stages

REHEARSAL = IncubationPlan(incubator=Incubator.REHEARSAL, share=0.5)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


def until(loop: Loop, run: object, stage: Stage, *, slot_id: str = "2") -> None:
    while run.state.slot(slot_id).stage is not stage:
        loop.epoch(run)
        assert run.state.epoch < 15


def events(database: Path, run: object, kind: type) -> list[object]:
    return [event for event in history(database, run.run_id) if isinstance(event, kind)]


@pytest.mark.parametrize(
    ("incubator", "blend"),
    [
        *((incubator, Blend.LERP) for incubator in Incubator),
        (Incubator.REHEARSAL, Blend.GATED),
        (Incubator.PROXIMAL, Blend.MULTIPLY),
    ],
)
def test_a_seed_lives_through_all_its_stages(
    database: Path, incubator: Incubator, blend: Blend
) -> None:
    loop = Loop.fresh()
    with loop.open(database) as run:
        plan = IncubationPlan(incubator=incubator)
        run.germinate("2", "conv_light", incubation=plan, blend=BlendPlan(blend=blend))
        born = {k: v.clone() for k, v in loop.slots["2"].seed.state_dict().items()}
        loop.epoch(run)
        learned = any(
            not torch.equal(v, born[k]) for k, v in loop.slots["2"].seed.state_dict().items()
        )
        assert learned is (incubator is not Incubator.NONE)
        assert run.state.slot("2").seed.best_rehearsal is not None
        until(loop, run, Stage.FOSSILIZED)
        shown = Behaviour.SEED if blend is Blend.LERP else Behaviour.BLEND
        assert loop.slots["2"].view.behaviour is shown
        assert loop.slots["2"].alpha == (0.0 if shown is Behaviour.SEED else 1.0)
        loop.epoch(run)


def test_a_host_beside_a_rehearsing_seed_is_the_host_without_it_bit_for_bit(
    database: Path,
) -> None:
    alone, grown = Loop.fresh(), Loop.fresh()
    with (
        alone.open(database, policy=PATIENT) as bare,
        grown.open(database, policy=PATIENT) as run,
    ):
        torch.manual_seed(5)
        for _ in range(10):
            alone.epoch(bare)
        drawn = torch.get_rng_state()
        torch.manual_seed(5)
        run.germinate("2", "conv_light", incubation=REHEARSAL)
        run.germinate("0", "attention", incubation=REHEARSAL)
        for _ in range(10):
            grown.epoch(run)
        assert set(stages(run).values()) == {Stage.TRAINING}
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


@pytest.mark.parametrize("incubation", [IncubationPlan(), REHEARSAL])
def test_a_broken_seed_in_incubation_does_not_make_a_scaler_skip_its_hosts_steps(
    database: Path, incubation: IncubationPlan
) -> None:
    loop = Loop.fresh()
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    with loop.open(database) as run:
        run.germinate("2", "conv_light", incubation=incubation)
        torch.nn.init.constant_(next(loop.slots["2"].seed.parameters()), torch.nan)
        before = loop.host[0][0].weight.clone()
        batch = loop.images[:12], loop.labels[:12]

        def loss(*part: torch.Tensor) -> torch.Tensor:
            return scaler.scale(loop.loss(*part))

        loss(*batch).backward()
        run.rehearse(loss, *batch)
        scaler.unscale_(loop.optimizer)
        loop.slots.clip_grad_norm_(1.0)
        scaler.step(loop.optimizer)
        scaler.update()
        run.step()
        assert scaler.get_scale() == 64.0
        assert not torch.equal(loop.host[0][0].weight, before)
        run.end_epoch(loop.evaluate)
        (found,) = events(database, run, e.HealthChanged)
        assert found.health is Health.UNHEALTHY


class TestRehearsing:
    def test_a_loop_that_forgets_it_is_told_what_to_call(self, database: Path) -> None:
        loop = Loop.fresh()
        with loop.open(database) as run:
            run.germinate("2", "norm", incubation=REHEARSAL)
            with pytest.raises(
                InvalidCommand, match=r"\['2'\] learn by rehearsal.*run\.rehearse\(loss, \*batch\)"
            ):
                loop.train(run.step)
            assert run.state.step == 0

    def test_a_germination_between_backward_and_step_is_no_omission(self, database: Path) -> None:
        loop = Loop.fresh()
        with loop.open(database) as run:
            batch = loop.images[:12], loop.labels[:12]
            for step in range(4):
                loop.optimizer.zero_grad()
                loop.loss(*batch).backward()
                run.rehearse(loop.loss, *batch)
                if step == 1:
                    run.germinate("2", "norm", incubation=REHEARSAL)
                loop.optimizer.step()
                run.step()

    def test_nothing_is_asked_of_a_loop_whose_seeds_learn_otherwise(self, database: Path) -> None:
        loop, calls = Loop.fresh(), []
        with loop.open(database) as run:
            run.germinate("2", "norm")
            run.germinate("0", "norm", incubation=IncubationPlan(incubator=Incubator.NONE))
            run.rehearse(lambda *batch: calls.append(batch), loop.images)
            loop.train(run.step)
            assert calls == []

    def test_each_seed_has_a_pass_of_its_own_until_it_is_exposed(self, database: Path) -> None:
        loop, acting = Loop.fresh(), []

        def loss(*batch: torch.Tensor) -> torch.Tensor:
            acting.append({s: slot.view.behaviour.value for s, slot in loop.slots.items()})
            assert len(batch[0]) == 6, "half of the twelve"
            return loop.loss(*batch)

        with loop.open(database) as run:
            run.germinate("0", "norm", incubation=REHEARSAL)
            run.germinate("2", "norm", incubation=REHEARSAL)
            run.rehearse(loss, loop.images[:12], loop.labels[:12])
            assert acting == [
                {"0": "blend", "2": "identity"},
                {"0": "identity", "2": "blend"},
            ]
            loop.epoch(run)
            assert set(stages(run).values()) == {Stage.BLENDING}
            run.rehearse(loss, loop.images[:12], loop.labels[:12])
            assert len(acting) == 2
            loop.train(run.step)

    def test_a_paused_seed_needs_none_and_a_resumed_one_does(self, database: Path) -> None:
        loop = Loop.fresh()
        with loop.open(database, policy=PATIENT) as run:
            run.germinate("2", "norm", incubation=REHEARSAL)
            loop.epoch(run)
            run.pause("2")
            loop.train(run.step)
            run.resume_seed("2")
            with pytest.raises(InvalidCommand, match="learn by rehearsal"):
                loop.train(run.step)

    def test_a_loss_of_another_model_is_told(self, database: Path) -> None:
        loop, other = Loop.fresh(), Loop.fresh()
        with loop.open(database) as run:
            run.germinate("2", "norm", incubation=REHEARSAL)
            with pytest.raises(SlotNotEvaluated):
                run.rehearse(other.loss, loop.images, loop.labels)

    def test_each_seed_draws_its_own_numbers_in_each_step(self, database: Path) -> None:
        loop, drawn = Loop.fresh(), []

        def loss(*batch: torch.Tensor) -> torch.Tensor:
            drawn.append(torch.rand(()).item())
            return loop.loss(*batch)

        with loop.open(database) as run:
            run.germinate("0", "norm", incubation=REHEARSAL)
            run.germinate("2", "norm", incubation=REHEARSAL)
            for _ in range(3):
                run.rehearse(loss, loop.images, loop.labels)
                run.step()
        assert len(set(drawn)) == 6

    def test_several_calls_in_a_step_accumulate(self, database: Path) -> None:
        loop = Loop.fresh()
        with loop.open(database) as run:
            run.germinate("2", "norm", incubation=REHEARSAL)
            loop.epoch(run)
            for half in (slice(0, 12), slice(12, 24)):
                run.rehearse(loop.loss, loop.images[half], loop.labels[half])
            loop.optimizer.step()
            run.step()


PLANS = {
    "proximal": {},
    "straight": {"incubation": IncubationPlan(incubator=Incubator.STRAIGHT_THROUGH)},
    "rehearsal": {"incubation": REHEARSAL},
    "none": {"incubation": IncubationPlan(incubator=Incubator.NONE)},
    "gated": {"incubation": REHEARSAL, "blend": BlendPlan(blend=Blend.GATED)},
    "searched": {"blend": BlendPlan(blend=Blend.MULTIPLY, search=(0.25, 0.5, 1.0))},
}


@pytest.mark.parametrize(
    ("plan", "stopped_at"), [*((plan, 2) for plan in PLANS), ("gated", 4), ("searched", 4)]
)
def test_a_run_resumed_within_incubation_or_blend_ends_with_the_same_bits(
    database: Path, tmp_path: Path, plan: str, stopped_at: int
) -> None:
    slow = GatePolicy(
        g2=G2Policy(min_improvement=-100.0, min_epochs=3, min_rehearsed_contribution=-100.0)
    )

    def grow(run: object) -> None:
        run.germinate("2", "conv_light", **PLANS[plan])
        run.germinate("0", "attention", **PLANS[plan])

    def go_on(loop: Loop, run: object, epochs: int) -> None:
        for _ in range(epochs):
            loop.epoch(run)

    whole = Loop.fresh()
    with whole.open(database, policy=slow) as run:
        grow(run)
        go_on(whole, run, stopped_at + 2)
    expected = tensors(whole)

    first = Loop.fresh()
    run = first.open(database, policy=slow)
    grow(run)
    go_on(first, run, stopped_at)
    run.checkpoint(tmp_path / "run.pt")
    go_on(first, run, 1)  # to be taken back
    torch.manual_seed(99)

    again = Loop.fresh()
    with again.open(database, resume=run.run_id) as resumed:
        incubating = resumed.state.slot("2").stage is Stage.TRAINING
        assert incubating is (stopped_at == 2 and plan != "none")
        go_on(again, resumed, 2)
        assert same(tensors(again), expected)


def test_a_gated_seeds_mixer_learns_once_it_is_exposed(database: Path) -> None:
    loop = Loop.fresh()
    with loop.open(database) as run:
        run.germinate("2", "conv_light", blend=BlendPlan(blend=Blend.GATED))
        slot = loop.slots["2"]
        mixer = slot.mixer
        (group,) = [group for group in loop.optimizer.param_groups if SEED_KEY in group]
        assert {id(p) for p in mixer.parameters()} <= {id(p) for p in group["params"]}
        assert "kasmina.2.mixer.logit.weight" in loop.host.state_dict()
        parameters = sum(p.numel() for p in slot.seed_parameters())
        assert run.state.slot("2").seed.parameters == parameters
        loop.epoch(run)
        assert stages(run)["2"] is Stage.BLENDING
        assert not mixer.logit.weight.any(), "while it incubated nothing was weighed"
        loop.epoch(run)
        assert mixer.logit.weight.any()
        run.cull("2", "seen enough")
        assert "kasmina.2.mixer.logit.weight" not in loop.host.state_dict()
        assert [group for group in loop.optimizer.param_groups if SEED_KEY in group] == []


class TestTheTarget:
    def test_a_line_search_takes_the_alpha_that_was_measured_to_contribute_most(
        self, database: Path
    ) -> None:
        loop, tried = Loop.fresh(), []
        best = {0.0: 50.0, 0.25: 51.0, 0.5: 57.0, 1.0: 44.0}

        def evaluate() -> dict[str, float]:
            slot = loop.slots["2"]
            shown = slot.view.behaviour is Behaviour.BLEND and stages(run)["2"] is Stage.TRAINING
            loop.evaluate()
            tried.append(slot.alpha.item() if shown else 0.0)
            return {"val_accuracy": best[tried[-1]]}

        with loop.open(database) as run:
            run.germinate("2", "conv_light", blend=BlendPlan(search=(0.25, 0.5, 1.0)))
            loop.epoch(run, evaluate)
            assert tried == [0.0, 0.25, 0.5, 1.0]
            assert stages(run)["2"] is Stage.BLENDING
            assert run.state.slot("2").seed.target == 0.5
            measured = events(database, run, e.CounterfactualMeasured)
            assert [m.alpha for m in measured] == [0.25, 0.5, 1.0]
            (scheduled,) = events(database, run, e.BlendScheduled)
            assert scheduled.schedule.end == 0.5

    def test_it_is_decided_by_the_real_blend(self, database: Path) -> None:
        """The recorded contributions are those of a model whose slot was shown at that alpha."""
        loop = Loop.fresh()
        with loop.open(database) as run:
            run.germinate("2", "conv_light", blend=BlendPlan(search=(0.25, 1.0)), learning_rate=1.0)
            loop.epoch(run)
            seed = run.state.slot("2").seed
            slot, told = loop.slots["2"], dict(seed.rehearsals)
            expected = {}
            for alpha in (0.25, 1.0):
                run.override_alpha("2", alpha)
                with_seed = loop.evaluate()["val_accuracy"]
                run.override_alpha("2", 0.0)
                expected[alpha] = with_seed - loop.evaluate()["val_accuracy"]
            assert told == expected
            assert slot.view.behaviour is Behaviour.BLEND
            assert seed.target == max(told, key=lambda alpha: (told[alpha], alpha))

    def test_below_1_a_fossil_stays_a_blend_at_it(self, database: Path) -> None:
        loop = Loop.fresh()
        with loop.open(database, policy=LENIENT) as run:
            run.germinate("2", "conv_light", blend=BlendPlan(target=0.5))
            until(loop, run, Stage.FOSSILIZED)
            for _ in range(2):
                assert loop.slots["2"].alpha == 0.5
                assert loop.slots["2"].view.behaviour is Behaviour.BLEND
                loop.epoch(run)
