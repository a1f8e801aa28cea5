"""Random streams: a seed that draws must not move its host's."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

_GENERATORLESS = frozenset({"cpu", "meta"})


def _generators(device: torch.device) -> tuple[torch.device, ...]:
    """The devices whose default generators code that works on ``device`` may draw from."""
    cpu = torch.device("cpu")
    return (cpu,) if device.type in _GENERATORLESS else (cpu, device)


def _state(device: torch.device) -> Tensor:
    if device.type == "cpu":
        return torch.get_rng_state()
    state: Tensor = torch.get_device_module(device).get_rng_state(device)
    return state


def _set_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)


def positions(device: torch.device) -> dict[str, Tensor]:
    """Where the default generators stand that work on ``device`` may draw from, by device type."""
    return {generator.type: _state(generator) for generator in _generators(device)}


def rewind(device: torch.device, states: Mapping[str, Tensor]) -> None:
    """Set the default generators back to what ``positions`` gave."""
    for generator in _generators(device):
        _set_state(generator, states[generator.type])


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The device types whose generator does not stand where it stood."""
    return tuple(kind for kind in before if not torch.equal(before[kind], after[kind]))


class Stream:
    """A random stream of a seed's own, swapped in around each of its forwards.

    Holds one generator state per device type, begun from ``seed`` when first needed. Swapping
    costs two copies of the state each way (5 KB on a CPU) and never waits for the device.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._states: dict[str, Tensor] = {}

    @classmethod
    def standing(cls, states: Mapping[str, Tensor], *, seed: int = 0) -> "Stream":
        """A stream that goes on from ``states``."""
        stream = cls(seed)
        stream.set_state(states)
        return stream

    @contextmanager
    def entered(self, device: torch.device) -> Iterator[None]:
        """Draws on ``device`` and on the CPU come from this stream; the host's stay untouched."""
        hosts = positions(device)
        rewind(device, {kind: self._standing(kind) for kind in hosts})
        try:
            yield
        finally:
            self._states.update(positions(device))
            rewind(device, hosts)

    def _standing(self, kind: str) -> Tensor:
        if kind not in self._states:
            self._states[kind] = torch.Generator(kind).manual_seed(self.seed).get_state()
        return self._states[kind]

    def state(self) -> dict[str, Tensor]:
        """Where it stands: one uint8 tensor on the CPU for each device type, for a checkpoint."""
        return {kind: state.clone() for kind, state in self._states.items()}

    def set_state(self, states: Mapping[str, Tensor]) -> None:
        """Stand where ``state()`` stood."""
        self._states = {kind: state.clone() for kind, state in states.items()}


@contextmanager
def aside(stream: Stream, device: torch.device) -> Iterator[None]:
    """Draw from ``stream``, with gradients and without autocast, whatever surrounds this."""
    with ExitStack() as contexts:
        contexts.enter_context(stream.entered(device))
        contexts.enter_context(torch.inference_mode(mode=False))
        contexts.enter_context(torch.enable_grad())
        if device.type != "meta":
            contexts.enter_context(torch.autocast(device.type, enabled=False))
        yield
