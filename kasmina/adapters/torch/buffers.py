"""Putting buffers back, whatever a forward has done to them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def buffers_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """The buffers that ``modules`` themselves hold are at the end the same, with the same values.

    Never waits for the device. What cannot be written to is let be: an expanded buffer, whose
    entries share memory, and one made in inference mode.
    """
    kept = [
        (module, name, buffer, buffer.clone())
        for module in modules
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, before in kept:
                module._buffers[name] = buffer  # noqa: SLF001  # it may have been replaced
                # Always: the version of a BatchNorm's statistics does not count its updates.
                if _writable(buffer):
                    buffer.copy_(before)


def _writable(buffer: Tensor) -> bool:
    return not buffer.is_inference() and all(
        size == 1 or stride != 0 for size, stride in zip(buffer.shape, buffer.stride(), strict=True)
    )
