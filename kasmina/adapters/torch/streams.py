"""Random streams: a seed that draws must not move its host's."""

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

_REMEMBERED = 64  # forwards that activation checkpointing may still want again
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


class Draws:
    """Who draws from now on: the generators that code on ``device`` may use, and where they stand.

    Python's and NumPy's are among them. A generator that somebody made is not.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._torch = positions(device)
        self._others = _others()

    def from_torch(self) -> tuple[str, ...]:
        """The device types whose generator has moved."""
        return moved(self._torch, positions(self._device))

    def from_others(self) -> tuple[str, ...]:
        """Which of ``python`` and ``numpy`` have moved."""
        now = _others()
        return tuple(kind for kind, state in self._others.items() if now[kind] != state)


def _others() -> dict[str, object]:
    states: dict[str, object] = {"python": random.getstate()}
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:  # or nobody has drawn from it
        states["numpy"] = _comparable(numpy.get_state(legacy=False))
    return states


def _comparable(state: Mapping[str, Any]) -> dict[str, object]:
    """NumPy's state with its arrays as bytes, which are equal or not."""
    return {
        name: _comparable(value)
        if isinstance(value, dict)
        else value
        if isinstance(value, str | int | float)
        else value.tobytes()
        for name, value in state.items()
    }


class Stream:
    """A random stream of a seed's own, swapped in around each of its forwards.

    Holds one generator state per device type, begun from ``seed`` when first needed. Swapping
    costs two copies of the state each way (5 KB on a CPU) and never waits for the device.

    Activation checkpointing runs a forward again inside the backward, with the host's generators
    set back to where they stood. Such a forward is known by that, and draws what it drew. Where the
    host drew nothing in between, the last forward from there is taken.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._states: dict[str, Tensor] = {}
        self._begun: dict[int, dict[str, Tensor]] = {}

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
        moment = hash(tuple(state.numpy().tobytes() for state in hosts.values()))
        again = self._begun[moment] if _in_backward() and moment in self._begun else None
        begin = again or {kind: self._standing(kind) for kind in hosts}
        rewind(device, begin)
        try:
            yield
        finally:
            if again is None:
                self._remember(moment, begin)
                self._states.update(positions(device))
            rewind(device, hosts)

    def _remember(self, moment: int, begin: dict[str, Tensor]) -> None:
        self._begun.pop(moment, None)
        self._begun[moment] = begin
        if len(self._begun) > _REMEMBERED:
            del self._begun[next(iter(self._begun))]

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


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1  # noqa: SLF001  # torch.utils.checkpoint asks so


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
