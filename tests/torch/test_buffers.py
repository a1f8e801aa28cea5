import pytest
import torch
from torch import nn

from kasmina.adapters.torch.buffers import buffers_kept


class Held(nn.Module):
    def __init__(self, buffer):
        super().__init__()
        self.register_buffer("held", buffer)


def test_what_was_written_or_replaced_is_put_back_into_the_same_tensor():
    written, replaced = Held(torch.ones(3)), Held(torch.ones(3))
    before = written.held, replaced.held
    with buffers_kept([written, replaced]):
        written.held.fill_(float("nan"))
        replaced.held = torch.zeros(5)
    assert written.held is before[0]
    assert replaced.held is before[1]
    assert torch.equal(torch.stack(before), torch.ones(2, 3))


def test_statistics_whose_version_does_not_tell_are_put_back():
    norm = nn.BatchNorm2d(3)
    with buffers_kept(norm.modules()):
        norm(torch.randn(4, 3, 2, 2))
        assert norm.num_batches_tracked == 1
    assert torch.equal(norm.running_mean, torch.zeros(3))
    assert norm.num_batches_tracked == 0


def test_a_module_that_is_not_among_them_goes_on():
    norm = nn.BatchNorm2d(3)
    with buffers_kept([nn.Sequential(norm)]):
        norm(torch.randn(4, 3, 2, 2))
    assert norm.num_batches_tracked == 1


def test_buffers_are_put_back_after_an_error_too():
    holder = Held(torch.ones(3))

    def fail():
        with buffers_kept([holder]):
            holder.held.zero_()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert torch.equal(holder.held, torch.ones(3))


def test_what_cannot_be_written_to_is_let_be():
    with torch.inference_mode():
        inferred = torch.ones(3)
    modules = [Held(torch.ones(1).expand(3)), Held(inferred)]
    with buffers_kept(modules):
        pass
    assert all(torch.equal(module.held, torch.ones(3)) for module in modules)
