"""A checkpoint holds no trace of where it was taken: any device, compiled, wrapped, or none."""

import pytest
import torch
from torch import nn
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel

from kasmina.adapters.torch.checkpoint import (
    StreamsLost,
    read_checkpoint,
    restore_checkpoint,
)
from kasmina.domain.errors import CheckpointError
from tests.torch.checkpointed import Host, Training, alike


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.pt"


@pytest.fixture
def process_group():
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    destroy_process_group()


def bare(model):
    return model


def compiled(model):
    return torch.compile(model, backend="eager")


def wrapped(model):
    return DistributedDataParallel(model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
# The compiler's own look at the inputs of a graph that begins in the middle of a model.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize(
    ("saved_in", "restored_in"),
    [
        (bare, wrapped),
        (wrapped, bare),
        pytest.param(bare, compiled, marks=pytest.mark.slow),
        pytest.param(wrapped, compiled, marks=pytest.mark.slow),
        pytest.param(compiled, bare, marks=pytest.mark.slow),
    ],
)
def test_a_host_may_be_compiled_or_wrapped_here_and_not_there(
    path, saved_in, restored_in, process_group
):
    torch.compiler.reset()
    training = Training(wrap=saved_in)
    training.run(2)
    training.save(path)
    again = Training(wrap=restored_in)
    again.run(1)
    again.restore(path)
    assert alike(dict(again.model.state_dict()), dict(training.model.state_dict()))
    assert alike(again.optimizer.state_dict(), training.optimizer.state_dict())
    again.run(1)


@pytest.mark.parametrize("way", [compiled, wrapped])
def test_the_file_has_no_prefixes(path, way, process_group):
    training = Training(wrap=way)
    training.save(path)
    read = read_checkpoint(path)
    assert read.model.keys() == Training().model.state_dict().keys()
    assert all("module." not in name for name in read.optimizer.groups[0]["params"])


def test_a_module_that_was_compiled_before_the_graft_has_other_names_and_is_refused(path):
    Training().save(path)
    again = Training()
    again.model.head = torch.compile(again.model.head, backend="eager")
    with pytest.raises(CheckpointError, match=r"it has no head\._orig_mod\.bias"):
        again.restore(path)


@pytest.mark.gpu
@pytest.mark.parametrize("ways", [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")])
def test_tensors_go_to_the_device_of_their_places(path, ways, accelerator):
    source, target = (accelerator if way == "cuda" else "cpu" for way in ways)
    training = Training(device=source)
    training.run(2)
    training.save(path)
    again = Training(device=target)
    again.restore(path)
    assert all(each.device.type == torch.device(target).type for each in again.model.parameters())
    moved = {name: each.cpu() for name, each in training.model.state_dict().items()}
    assert alike({name: each.cpu() for name, each in again.model.state_dict().items()}, moved)
    again.run(1)


def test_a_checkpoint_from_a_device_that_is_not_here_is_taken_on_and_says_what_is_lost(path):
    training = Training()
    training.run(1)
    training.save(path)
    checkpoint = read_checkpoint(path)
    checkpoint.random.generators["cuda:7"] = checkpoint.random.generators["cpu"]
    with pytest.warns(StreamsLost, match="the random streams of cuda:7 are not on") as caught:
        absent = restore_checkpoint(
            checkpoint, slots=training.slots, optimizer=training.optimizer, extra=training.extra
        )
    assert caught[0].message.streams == absent == ("cuda:7",)


def test_every_tensor_is_read_onto_the_cpu(path):
    """Whatever the default is at the moment."""
    Training().save(path)
    with torch.device("meta"):
        read = read_checkpoint(path)
    assert {each.device.type for each in read.model.values()} == {"cpu"}


@pytest.mark.parametrize("lost", ["meta", "subclass"])
def test_tensors_that_could_not_be_read_again_are_not_written(path, lost):
    class Odd(torch.Tensor):
        pass

    training, stranger = Training(), nn.Module()
    stranger.state_dict = lambda: {
        "it": torch.zeros(2, device="meta") if lost == "meta" else torch.zeros(2).as_subclass(Odd)
    }
    problem = r"extra\['x'\]\['it'\] is (on the meta device, and has no values|a .*Odd)"
    with pytest.raises(CheckpointError, match=problem):
        training.save(path, extra={"x": stranger})
    assert not path.exists()


def test_a_host_that_is_still_on_the_meta_device_is_not_written(path):
    training = Training(())
    training.model.head.to("meta")
    with pytest.raises(CheckpointError, match=r"not written, head\.weight is on the meta device"):
        training.save(path)
    assert isinstance(training.model, Host)
