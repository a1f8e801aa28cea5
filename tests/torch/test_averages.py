"""An average of a model grows with it: no seed is left out of it, or averaged with another."""

import copy

import pytest
import torch
from attrs import evolve
from torch import nn
from torch.optim import swa_utils
from torch.optim.swa_utils import AveragedModel

from kasmina import Topology, graft
from kasmina.adapters.torch.averages import NoCopy, follow_growth
from kasmina.adapters.torch.graft import Slots
from kasmina.domain.projections import Behaviour
from kasmina.domain.schedules import held
from kasmina.domain.stages import Stage
from tests.torch.continuity import (
    AVERAGES,
    BORN,
    DECAY,
    GONE,
    STEPS,
    Alone,
    alike,
    build_host,
    by_hand,
    growing,
)

ALPHA = 0.4  # that `by_hand` of it twice is not


def averaged(arm, build):
    """Let the arm's loop keep an average, updated after each step."""
    arm.average = build(arm.model)
    plain = arm.step

    def step():
        plain()
        arm.average.update_parameters(arm.model)

    arm.step = step
    return arm


def host_of(average):
    return {k: v for k, v in average.state_dict().items() if "kasmina" not in k}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return tmp_path_factory.mktemp("grown") / "runs.db"


@pytest.fixture
def grown(database):
    with growing(database) as make:
        yield make


@pytest.mark.parametrize("build", AVERAGES.values(), ids=AVERAGES)
class TestEveryAverage:
    @pytest.mark.parametrize("gone", [None, GONE], ids=["that stays", "that is culled"])
    def test_of_the_host_is_as_without_a_seed(self, build, gone, grown):
        alone, seeded = averaged(Alone(), build), averaged(grown(gone=gone), build)
        alone.train()
        seeded.train()
        assert alike(host_of(alone.average), host_of(seeded.average))

    def test_of_the_host_has_the_same_statistics_after_update_bn(self, build, grown):
        alone, seeded = averaged(Alone(), build), averaged(grown(gone=None), build)
        drawn = []
        for arm in (alone, seeded):
            arm.train()
            torch.manual_seed(5)
            data = torch.Generator().manual_seed(6)
            swa_utils.update_bn([torch.randn(4, 5, 3, generator=data)] * 3, arm.average)
            drawn.append(torch.get_rng_state())
        assert alike(host_of(alone.average), host_of(seeded.average))
        assert torch.equal(*drawn)

    def test_holds_the_seed_from_the_first_update_after_its_birth_to_its_cull(self, build, grown):
        seeded = averaged(grown(), build)
        seeded.train(BORN)
        assert self.names(seeded.average.module) == self.names(seeded.model)
        seeded.train(1)
        assert any("seed" in name for name in self.names(seeded.average.module))
        assert self.names(seeded.average.module) == self.names(seeded.model)
        seeded.train(STEPS - BORN - 1)
        assert self.names(seeded.average.module) == self.names(seeded.model)
        assert not any("seed" in name for name in self.names(seeded.average.module))

    def names(self, model):
        return list(model.state_dict())

    def test_acts_as_its_model_would_with_averaged_weights(self, build, grown):
        seeded = averaged(grown(gone=None), build)
        seeded.train(BORN + 3)
        slot = seeded.slots["0"]
        with seeded.slots.showing("0", exposed(slot.view)):
            seeded.average.update_parameters(seeded.model)
            twin = copy.deepcopy(seeded.model)
        twin.load_state_dict(seeded.average.module.state_dict())
        x = torch.randn(4, 5, 3)
        twin.eval()
        seeded.average.eval()
        assert torch.equal(twin(x), seeded.average(x))
        alpha = Slots(seeded.average.module)["0"].alpha
        assert torch.equal(alpha, torch.tensor(ALPHA))


def exposed(view):
    return evolve(view, behaviour=Behaviour.BLEND, stage=Stage.BLENDING, schedule=held(ALPHA))


def test_a_seeds_average_begins_with_its_weights_and_is_averaged_like_the_hosts(grown):
    seeded = averaged(grown(gone=None), AVERAGES["the same, an `avg_fn` of one's own"])
    seeded.train(BORN + 1)
    wanted = [p.detach().clone() for p in seeded.slots.seed_parameters()]
    there = list(Slots(seeded.average.module).seed_parameters())
    for average, now in zip(there, wanted, strict=True):
        torch.testing.assert_close(average, now)
    seeded.train(3)
    assert next(Slots(seeded.average.module).seed_parameters()) is there[0]
    before = [p.detach().clone() for p in there]
    seeded.train(1)
    for average, then, now in zip(there, before, seeded.slots.seed_parameters(), strict=True):
        assert torch.equal(average, by_hand(then, now, 0))
        assert not torch.equal(average, now)


class TestSeedsInSeveralSlots:
    def test_are_each_averaged_with_themselves_in_whatever_order_they_were_born(self):
        slots = slots_of_three()
        model = slots.model
        average = AveragedModel(model, avg_fn=by_hand)
        grow(slots, "4")
        average.update_parameters(model)
        grow(slots, "0")
        average.update_parameters(model)
        for slot_id, mine in slots.items():
            theirs = Slots(average.module)[slot_id]
            assert (mine.seed is None) == (theirs.seed is None)
            for one, other in zip(mine.seed_parameters(), theirs.seed_parameters(), strict=True):
                torch.testing.assert_close(one, other)
                assert one is not other

    def test_that_follow_one_another_in_a_slot_are_told_apart(self):
        slots = slots_of_three()
        average = AveragedModel(slots.model, avg_fn=by_hand)
        grow(slots, "4", seed_id="first")
        average.update_parameters(slots.model)
        slots["4"].detach()
        grow(slots, "4", seed_id="second")
        average.update_parameters(slots.model)
        (mine,), (theirs,) = (
            list(each["4"].seed_parameters()) for each in (slots, Slots(average.module))
        )
        torch.testing.assert_close(mine, theirs, check_stride=False)


def slots_of_three():
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(5)))
    return graft(model, dict.fromkeys(("0", "2", "4"), Topology.TRANSFORMER))


def grow(slots, slot_id, seed_id=None):
    slot = slots[slot_id]
    slot.attach(nn.Linear(3, 3, bias=False))
    slot.follow(
        evolve(slot.view, seed_id=seed_id or slot_id, behaviour=Behaviour.INCUBATE, learning=True),
        0,
    )


class Wrapped(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


class TestWhatIsAveraged:
    def test_may_be_wrapped(self, grown):
        seeded = grown(gone=None)
        seeded.average = AveragedModel(Wrapped(seeded.model), avg_fn=by_hand)
        seeded.train(BORN + 1)
        seeded.average.update_parameters(Wrapped(seeded.model))
        assert list(Slots(seeded.average.module.module).seed_parameters())

    def test_without_slots_is_averaged_as_ever(self, grown):
        grown()
        model = build_host()
        average = AveragedModel(model, avg_fn=by_hand)
        for _ in range(2):
            before = [p.detach().clone() for p in average.parameters()]
            with torch.no_grad():
                model[0].weight.add_(1.0)
            average.update_parameters(model)
        expected = by_hand(before[0], model[0].weight, 0)
        assert torch.equal(average.module[0].weight, expected)

    def test_before_it_was_grafted_is_refused_with_the_slots_it_lacks(self, grown):
        model = build_host()
        average = AveragedModel(model)
        seeded = grown()
        with pytest.raises(
            NoCopy, match=r"slots \['0'\] was expected, got one with none"
        ) as raised:
            average.update_parameters(seeded.model)
        assert (raised.value.expected, raised.value.found) == ((("0",),), ())

    def test_needs_no_gradient_for_a_seed_of_its_own(self, grown):
        seeded = averaged(grown(gone=None), AVERAGES["`AveragedModel`"])
        seeded.train(BORN + 2)
        assert not any(p.requires_grad for p in Slots(seeded.average.module).seed_parameters())
        assert all(p.requires_grad for p in seeded.slots.seed_parameters())


class TestACopyOfOnesOwn:
    """As the packages of averages keep it: a deep copy, and parameters paired as they come."""

    def update(self, shadow, model):
        with torch.no_grad():
            for mine, theirs in zip(shadow.parameters(), model.parameters(), strict=False):
                mine.lerp_(theirs, 1 - DECAY)

    def test_lacks_the_seed_unless_it_follows_the_growth(self, grown):
        seeded = grown(gone=None)
        shadow = copy.deepcopy(seeded.model)
        seeded.train(BORN + 1)
        self.update(shadow, seeded.model)
        assert not list(Slots(shadow).seed_parameters())
        follow_growth(shadow, seeded.model)
        self.update(shadow, seeded.model)
        theirs, mine = (list(each.seed_parameters()) for each in (seeded.slots, Slots(shadow)))
        assert all(map(torch.equal, theirs, mine))

    def test_that_follows_takes_on_a_grown_state(self, grown):
        seeded = averaged(grown(gone=None), AVERAGES["`AveragedModel`"])
        fresh = AveragedModel(seeded.model)
        seeded.train(BORN + 2)
        saved = seeded.average.state_dict()
        follow_growth(fresh, seeded.model)
        fresh.load_state_dict(saved)
        assert alike(fresh.state_dict(), saved)
        seeded.train(1)
        fresh.update_parameters(seeded.model)

    def test_of_shadows_by_name_fails_at_the_first_new_name(self, grown):
        seeded = grown(gone=None)
        shadows = {n: p.detach().clone() for n, p in seeded.model.named_parameters()}
        seeded.train(BORN + 1)

        def update():
            for name, parameter in seeded.model.named_parameters():
                shadows[name].lerp_(parameter.detach(), 1 - DECAY)

        with pytest.raises(KeyError, match="kasmina"):
            update()
