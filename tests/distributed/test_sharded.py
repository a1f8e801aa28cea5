"""Seeds in a host that ``fully_shard`` has spread: they live as beside a whole host, in parts."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn import functional as F

from kasmina import Blend, BlendPlan, IncubationPlan, Incubator, Stage, Topology
from kasmina.adapters.torch.blueprints import BlueprintRegistry, blueprint
from kasmina.adapters.torch.distributed.ranks import RanksDiverged
from kasmina.domain import events as e
from kasmina.domain.blueprints import BlueprintKind
from kasmina.domain.stages import Leak
from tests.distributed.launch import launch, values
from tests.distributed.loop import BATCH, Training, close, equal
from tests.distributed.sharded import Layout, laid_out, tensors, whole
from tests.distributed.test_record import only

pytestmark = pytest.mark.skipif(
    torch.__version__ < (2, 7), reason="fully_shard of torch 2.6 does not run on CPUs"
)

STRAIGHT = IncubationPlan(incubator=Incubator.STRAIGHT_THROUGH)


def live(rank, folder, layout, incubation, blend):
    training = laid_out(layout)
    stages = []
    with training.open(folder) as run:
        training.epoch(run)
        run.germinate("1", "conv_light", incubation=incubation, blend=blend)
        for _ in range(9):
            rehearsed_epoch(training, run, incubation)
            stages.append(run.state.slot("1").stage)
    return stages, tensors(training)


def rehearsed_epoch(training, run, incubation):
    if incubation.incubator is not Incubator.REHEARSAL:
        return training.epoch(run)
    training.host.train()
    for x, y in zip(training.images.split(BATCH), training.labels.split(BATCH), strict=True):
        training.backward(x, y)
        run.rehearse(loss(training.model), training.share(x), training.share(y))
        training.slots.clip_grad_norm_(1.0)
        training.optimizer.step()
        run.step()
    return run.end_epoch(training.evaluate)


def loss(model):
    return lambda x, y: F.cross_entropy(model(x), y)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("incubator", "blend"),
    [
        (Incubator.STRAIGHT_THROUGH, Blend.LERP),
        (Incubator.PROXIMAL, Blend.GATED),
        (Incubator.REHEARSAL, Blend.MULTIPLY),
    ],
)
def test_a_seed_in_a_sharded_host_lives_as_in_a_whole_one(tmp_path: Path, incubator, blend) -> None:
    plans = IncubationPlan(incubator=incubator), BlendPlan(blend=blend)
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    for folder in (whole, sharded):
        folder.mkdir()
    expected = values(launch(live, whole, Layout.WHOLE, *plans))
    found = values(launch(live, sharded, Layout.SHARDED, *plans))
    assert found[0][0] == expected[0][0]
    assert Stage.PROBATIONARY in found[0][0]
    assert equal(found[0][1], found[1][1])
    assert close(found[0][1], expected[0][1])
    assert not only(sharded, e.IsolationViolated)


def hold_parts(rank, folder):
    training = laid_out(Layout.SHARDED)
    with training.open(folder) as run:
        training.epoch(run)  # after its evaluation the root holds its parameters whole
        run.germinate("1", "conv_light", incubation=STRAIGHT, blend=BlendPlan(blend=Blend.GATED))
        training.epoch(run)
        norm = training.slots.clip_grad_norm_(1.0)
        own = list(training.slots["1"].seed.parameters())
        (moments,) = {type(training.optimizer.state[each]["exp_avg"]) for each in own}
        held, size = sum(each.to_local().numel() for each in own), sum(p.numel() for p in own)
        run.cull("1", "to see what is left of it")
        training.epoch(run)
    return type(norm), moments, held, size, len(training.optimizer.state)


def test_each_rank_holds_a_part_of_a_seed_and_of_its_moments(tmp_path: Path) -> None:
    ended = values(launch(hold_parts, tmp_path))
    for norm, moments, _, _, states in ended:
        assert (norm, moments, states) == (torch.Tensor, DTensor, 6)
    (_, _, first, size, _), (_, _, second, _, _) = ended
    assert first + second == size
    assert 0 < first < size


class Meddler(nn.Module):
    """A seed that writes to its host's parameters, once it is in it."""

    victims = ()

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, features):
        for victim in self.victims:
            with torch.no_grad():
                victim.bias.mul_(1.0)
        return self.conv(features)


def meddle(rank, folder):
    training = laid_out(Layout.SHARDED)
    registry = BlueprintRegistry()
    about = {"kind": BlueprintKind.INLINE, "summary": "writes to its host"}
    blueprint("meddler", topology=Topology.CNN, registry=registry, **about)(Meddler)
    with training.open(folder, registry=registry) as run:
        run.germinate("1", "meddler", incubation=STRAIGHT)
        training.slots["1"].seed.victims = (training.host[4],)
        training.epoch(run)


def test_a_seed_that_writes_to_a_sharded_host_is_seen(tmp_path: Path) -> None:
    values(launch(meddle, tmp_path))
    assert {(each.leak, each.subject) for each in only(tmp_path, e.IsolationViolated)} == {
        (Leak.IN_PLACE_WRITE, "4.bias")
    }


def accumulate(rank, folder, layout):
    training = laid_out(layout)
    with training.open(folder) as run:
        run.germinate("1", "conv_light", incubation=STRAIGHT)
        x, y = training.images[:BATCH], training.labels[:BATCH]
        if layout is Layout.WHOLE:
            training.backward(x, y, parts=2)
        else:
            training.optimizer.zero_grad()
            for last, images, labels in zip(
                (False, True), training.share(x).chunk(2), training.share(y).chunk(2), strict=True
            ):
                training.host.set_requires_gradient_sync(last)
                (F.cross_entropy(training.model(images), labels) / 2).backward()
        return [whole(p.grad).clone() for p in training.slots.seed_parameters()]


def test_gradients_of_sharded_seeds_are_accumulated_and_then_averaged(tmp_path: Path) -> None:
    ended = {}
    for layout in (Layout.WHOLE, Layout.SHARDED):
        folder = tmp_path / layout.name
        folder.mkdir()
        ended[layout] = values(launch(accumulate, folder, layout))[0]
    pairs = zip(ended[Layout.WHOLE], ended[Layout.SHARDED], strict=True)
    assert all(torch.allclose(one, other, atol=1e-7) for one, other in pairs)


def live_as(rank, folder, layout, options):
    training = laid_out(layout, **options)
    with training.open(folder) as run:
        run.germinate("1", "conv_light", incubation=STRAIGHT)
        for _ in range(5):
            training.epoch(run)
        assert run.state.slot("1").stage in {Stage.SHADOWING, Stage.PROBATIONARY}
    return tensors(training)


@pytest.mark.slow
def test_copies_that_are_each_sharded_stay_equal(tmp_path: Path) -> None:
    first, *others = values(launch(live_as, tmp_path, Layout.COPIED, {}, size=4))
    assert all(equal(first, other) for other in others)


def test_seeds_follow_the_precision_of_their_host(tmp_path: Path) -> None:
    options = {"mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32)}
    first, second = values(launch(live_as, tmp_path, Layout.SHARDED, options))
    assert equal(first, second)
    assert first["kasmina.1.seed.delta.0.weight"].dtype is torch.float32


def disagree(rank, folder):
    training = laid_out(Layout.SHARDED)
    with pytest.raises(RanksDiverged, match="what to record"):
        training.open(folder).germinate("1", ("conv_light", "conv_heavy")[rank])


def test_ranks_that_would_shard_other_seeds_stop_before_they_do(tmp_path: Path) -> None:
    values(launch(disagree, tmp_path))
    assert not only(tmp_path, e.SeedGerminated)


def sharded_otherwise(rank, folder, how):
    training = Training.fresh()
    mesh = init_device_mesh("cpu", (2,))
    plan = {}
    match how:
        case "by hand":
            for module in training.host.modules():
                for name, parameter in list(module._parameters.items()):
                    spread = nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(0)]))
                    module.register_parameter(name, spread)
        case "over one rank":
            fully_shard(training.host, mesh=DeviceMesh("cpu", [rank]))
        case "each a run":
            fully_shard(training.host, mesh=mesh)
            plan = {"ranks": None}
    training.optimizer = torch.optim.SGD(training.slots.host_parameters(), lr=0.1)
    training.open(folder, **plan)


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("by hand", "a DTensor that fully_shard did not make"),
        ("over one rank", "sharded over 1 ranks of the 2 that there are"),
        ("each a run", "(ranks=None)"),
    ],
)
def test_a_host_that_is_sharded_otherwise_is_refused(tmp_path: Path, how, problem) -> None:
    for ended in launch(sharded_otherwise, tmp_path, how):
        assert ended.error == "ShardedHost"
        assert problem in ended.message
    assert not (tmp_path / "runs.db").exists()
