"""Comparing to the last bit, and taking the ways that code takes elsewhere than on a CPU."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from kasmina.adapters.torch import finite

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
NONFINITE = [math.nan, math.inf, -math.inf]
_WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """``torch.equal`` takes -0.0 for 0.0; this does not."""
    if not a.is_floating_point():
        return a.dtype == b.dtype and torch.equal(a, b)
    kind = _WHOLE[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.detach().view(kind), b.detach().view(kind))


def with_signed_zeros(*shape: int, draw: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers, one in four of which is a zero of either sign."""
    generator = torch.Generator().manual_seed(draw)
    values = torch.randn(shape, generator=generator)
    dropped = torch.rand(shape, generator=generator) < 0.25
    return torch.where(dropped, values * 0, values).to(dtype)


@contextmanager
def as_on_a_device() -> Iterator[None]:
    """Nothing can be read from a tensor at once."""
    with mock.patch.object(finite, "seen_finite", return_value=False):
        yield
