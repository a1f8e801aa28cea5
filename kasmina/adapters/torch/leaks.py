"""Seeing a seed touch its host: observations of one forward, and of shared memory."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from attrs import frozen
from torch import Tensor, nn

from kasmina.adapters.torch import streams
from kasmina.domain.stages import Leak


@frozen(kw_only=True, eq=False)
class Sighting:
    """One leak, seen once: what leaked is a tensor, or something with only a name."""

    leak: Leak
    subject: Tensor | str


@frozen(kw_only=True, eq=False)
class Glimpse:
    """What one forward of a seed did besides computing ``output``.

    ``reached`` are the leaf tensors in the output's autograd graph that are not the seed's own;
    ``drew_from`` the device types whose random generator it moved.
    """

    output: object
    wrote: bool
    reached: tuple[Tensor, ...]
    drew_from: tuple[str, ...]


def watch(seed: nn.Module, run: Callable[[Tensor], object], inlet: Tensor) -> Glimpse:
    """Run ``seed`` (through ``run``) on ``inlet``, and see what it touched.

    Generators are left where the seed put them. Looks at no value, so it never waits for the
    device.
    """
    version = inlet._version  # noqa: SLF001  # the only sign of an in-place write
    before = streams.positions(inlet.device)
    output = run(inlet)
    return Glimpse(
        output=output,
        wrote=inlet._version != version,  # noqa: SLF001
        reached=foreign(output, seed.parameters()) if isinstance(output, Tensor) else (),
        drew_from=streams.moved(before, streams.positions(inlet.device)),
    )


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Put the values of all buffers back afterwards."""
    kept = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(kept[name])


def foreign(output: Tensor, own: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """The leaf tensors that the backward of ``output`` would reach and that are not ``own``."""
    leaves, allowed = reached(output), {id(tensor) for tensor in own}
    return tuple(leaf for leaf in leaves if id(leaf) not in allowed)


def reached(output: Tensor) -> tuple[Tensor, ...]:
    """The leaf tensors that the backward of ``output`` would give a gradient to."""
    seen: set[torch.autograd.graph.Node] = set()
    leaves: list[Tensor] = []
    stack: list[torch.autograd.graph.Node | None] = [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        stack.extend(follower for follower, _ in node.next_functions)
        if node.name() == "torch::autograd::AccumulateGrad":
            leaves.append(node.variable)  # type: ignore[attr-defined]  # this kind has one
    return tuple(leaves)


def tensors(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """All parameters and buffers of ``module``, by name."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def shared(
    seed: nn.Module, host: Iterable[tuple[str, Tensor]]
) -> tuple[tuple[str, str, Tensor], ...]:
    """``(seed's name, host's name, tensor)`` of all tensors that share memory with the host's."""
    owners = {_memory(tensor): name for name, tensor in host}
    return tuple(
        (name, owners[_memory(tensor)], tensor)
        for name, tensor in tensors(seed)
        if _memory(tensor) in owners
    )


def _memory(tensor: Tensor) -> tuple[str, int]:
    """Which memory a tensor lies in; one without any (empty, meta) is known by its identity."""
    address = tensor.untyped_storage().data_ptr()
    return (str(tensor.device), address) if address else ("object", id(tensor))
