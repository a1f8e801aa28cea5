"""The random streams of a process: what they are now, and how to put them back.

They are torch's CPU generator, the generators of the devices in use, Python's ``random``, and
NumPy's global generator where it is loaded. A generator that somebody made (a ``DataLoader``'s,
for instance) is not among them: only its owner knows of it.
"""

import importlib
import importlib.util
import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from attrs import frozen
from torch import Tensor, nn

from kasmina.adapters.torch import streams


def devices_of(module: nn.Module) -> tuple[torch.device, ...]:
    """The devices on which the module's parameters and buffers lie, in order of first sight."""
    tensors = [*module.parameters(), *module.buffers()]
    return tuple(dict.fromkeys(tensor.device for tensor in tensors))


@frozen(kw_only=True, eq=False)
class RandomStreams:
    """The states of the random streams at one moment.

    ``generators`` holds torch's default generators by device (``"cuda:0"``), each with the CPU's.
    ``numpy`` is ``None`` where NumPy's generator was not loaded, so that nobody had drawn from it.
    """

    generators: Mapping[str, Mapping[str, Tensor]]
    python: tuple[Any, ...]
    numpy: Mapping[str, Any] | None

    @classmethod
    def capture(cls, devices: Iterable[torch.device] = ()) -> Self:
        """The streams as they are now; ``devices`` are those in use (``devices_of``)."""
        used = (torch.device("cpu"), *devices)
        numpy = sys.modules.get("numpy.random")
        return cls(
            generators={str(d): streams.positions(d) for d in used if d.type != "meta"},
            python=random.getstate(),
            numpy=None if numpy is None else _tensors(numpy.get_state(legacy=False)),
        )

    def restore(self) -> tuple[str, ...]:
        """Put the streams back. Returns what cannot be, since it is not on this machine."""
        absent = [name for name in self.generators if not _present(torch.device(name))]
        for name in self.generators.keys() - set(absent):
            streams.rewind(torch.device(name), self.generators[name])
        random.setstate(self.python)
        if self.numpy is not None:
            if importlib.util.find_spec("numpy") is None:
                absent.append("numpy")
            else:
                # The state may be another process's, and the first need of NumPy in this one.
                importlib.import_module("numpy.random").set_state(_arrays(self.numpy))
        return tuple(absent)

    def state_dict(self) -> dict[str, Any]:
        """The streams as values that ``torch.load(weights_only=True)`` reads."""
        return {"generators": self.generators, "python": self.python, "numpy": self.numpy}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Self:
        """The streams whose ``state_dict`` is ``state``."""
        return cls(generators=state["generators"], python=state["python"], numpy=state["numpy"])


@contextmanager
def undisturbed(devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Whatever is drawn inside, the streams are as before at the end, also after an error."""
    before = RandomStreams.capture(devices)
    try:
        yield
    finally:
        before.restore()


def _present(device: torch.device) -> bool:
    module = torch.get_device_module(device)
    return bool(module.is_available() and (device.index or 0) < module.device_count())


def _tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    """NumPy's state with copies of its arrays as tensors."""
    # The state of a bit generator nests one level: {"state": {"key": array, "pos": int}, ...}.
    return {
        name: _tensors(value)
        if isinstance(value, dict)
        else value
        if isinstance(value, str | int | float)
        else torch.from_numpy(value.copy())
        for name, value in state.items()
    }


def _arrays(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _arrays(value)
        if isinstance(value, dict)
        else value.numpy()
        if isinstance(value, Tensor)
        else value
        for name, value in state.items()
    }
