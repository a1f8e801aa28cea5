"""Random streams are values: captured, stored, and put back."""
# ruff: noqa: NPY002 - NumPy's global generator is what these tests are about

import io
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from kasmina.adapters.torch.randomness import RandomStreams, devices_of, undisturbed

WITHOUT_NUMPY = """
import sys, torch
from kasmina.adapters.torch.randomness import RandomStreams
streams = RandomStreams.capture()
assert streams.numpy is None
assert streams.restore() == ()
assert "numpy.random" not in sys.modules
"""


def draws():
    return [
        torch.rand(2).tolist(),
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.normal(),
    ]


@pytest.mark.parametrize("draws_before", [0, 1, 5])
def test_restored_streams_draw_the_same_again(draws_before):
    for _ in range(draws_before):
        draws()
    streams = RandomStreams.capture()
    drawn = draws()
    assert draws() != drawn
    assert streams.restore() == ()
    assert draws() == drawn


def test_captured_streams_survive_a_file_that_is_read_without_unpickling_objects():
    streams, file = RandomStreams.capture(), io.BytesIO()
    drawn = draws()
    torch.save(streams.state_dict(), file)
    file.seek(0)
    RandomStreams.of(torch.load(file, weights_only=True)).restore()
    assert draws() == drawn


@pytest.mark.parametrize("generator", [np.random.MT19937, np.random.PCG64, np.random.SFC64])
def test_numpy_is_served_with_whatever_generator_it_uses(generator):
    usual = np.random.get_bit_generator()
    np.random.set_bit_generator(generator(1))
    try:
        streams = RandomStreams.capture()
        drawn = np.random.rand()
        streams.restore()
        assert np.random.rand() == drawn
    finally:
        np.random.set_bit_generator(usual)


def test_a_captured_state_does_not_move_with_the_stream():
    streams = RandomStreams.capture()
    drawn = draws()
    for _ in range(700):  # past the 624 numbers that numpy's generator holds at a time
        draws()
    streams.restore()
    assert draws() == drawn


def test_numpy_is_not_loaded_for_those_who_do_not_use_it():
    subprocess.run([sys.executable, "-c", WITHOUT_NUMPY], check=True)


def test_a_device_that_is_not_there_is_reported_and_the_rest_restored():
    here = RandomStreams.capture()
    drawn = draws()
    elsewhere = RandomStreams(
        generators={**here.generators, "cuda:77": {"cpu": torch.zeros(3), "cuda": torch.zeros(3)}},
        python=here.python,
        numpy=here.numpy,
    )
    assert elsewhere.restore() == ("cuda:77",)
    assert draws() == drawn


def test_what_is_drawn_undisturbed_was_never_drawn():
    before = RandomStreams.capture()
    drawn = draws()
    before.restore()
    with undisturbed():
        draws()
    assert draws() == drawn


def test_an_error_inside_changes_nothing_about_that():
    before = RandomStreams.capture()
    drawn = draws()
    before.restore()
    with pytest.raises(ZeroDivisionError), undisturbed():
        _ = random.random() / 0
    assert draws() == drawn


def test_a_module_on_the_meta_device_has_no_stream():
    module = torch.nn.BatchNorm1d(2, device="meta")
    assert devices_of(module) == (torch.device("meta"),)
    assert RandomStreams.capture(devices_of(module)).generators.keys() == {"cpu"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same_again():
    device = torch.device("cuda", torch.cuda.current_device())
    streams = RandomStreams.capture([device])
    drawn = torch.rand(3, device=device)
    streams.restore()
    assert torch.equal(torch.rand(3, device=device), drawn)
