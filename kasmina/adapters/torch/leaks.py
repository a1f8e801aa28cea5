"""Seeing a seed touch its host: observations of a forward and its backward, and of shared memory.

A backward takes the newest of the operations that are ready, device by device. A seed's are done
in one go therefore, from the gradient of its output to those of its parameters, and what changes
meanwhile is its doing. That cannot be told, and is not watched, where ``saved_tensors_hooks`` were
at work in the forward, as in activation checkpointing, which runs the host again in the midst of
a backward; where the seed's gradient leaks, so that its backward ends nowhere; where one of its
operations gets no gradient; and on other devices than the seed's.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

import torch
from attrs import define, evolve, field, frozen
from torch import Tensor, nn
from torch.autograd import Variable
from torch.autograd.graph import Node, disable_saved_tensors_hooks
from torch.utils.hooks import RemovableHandle

from kasmina.adapters.torch.sharding import parameters_in_forward
from kasmina.adapters.torch.streams import Draws
from kasmina.adapters.torch.surroundings import (
    NOTHING,
    Copies,
    Extent,
    Habitat,
    Sighting,
    Surroundings,
    gradients_aside,
)
from kasmina.domain.stages import Leak


@frozen(kw_only=True, eq=False)
class Glimpse:
    """What one forward of a seed did besides computing ``output``.

    ``wrote`` is whether it wrote to its input; ``reached`` are the leaf tensors in the output's
    autograd graph that are neither the seed's own nor behind its input; ``drew_from`` the device
    types whose random generator it moved; ``touched`` is all else.
    """

    output: object
    wrote: bool
    reached: tuple[Tensor, ...]
    drew_from: tuple[str, ...]
    touched: tuple[Sighting, ...]


def watch(
    seed: nn.Module,
    run: Callable[[Tensor], object],
    inlet: Tensor,
    *,
    around: Surroundings = NOTHING,
    later: list[Sighting] | None = None,
) -> Glimpse:
    """Run ``seed`` (through ``run``) on ``inlet``, and see what it touched.

    That is looked for ``around`` it as well, and, with ``later``, also while the backward runs,
    which appends there what it sees. Generators are left where the seed put them. Looks at no
    value, so it never waits for the device.
    """
    source, version = inlet.grad_fn, inlet._version  # noqa: SLF001  # the only sign of a write
    draws = Draws(inlet.device)
    with around.calls() as called, parameters_in_forward(seed) as own:
        output = run(inlet)
    wrote, drew_from = inlet._version != version, draws.from_torch()  # noqa: SLF001
    touched = (*called, *around.changes(), *_sighted(draws.from_others()))
    operations = way_back(output.grad_fn, source) if isinstance(output, Tensor) else ()
    reached = tuple(_foreign(operations, own))
    if isinstance(output, Tensor) and later is not None and not reached:
        output = _watch_backward(output, operations, around, later)
    return Glimpse(
        output=output, wrote=wrote, reached=reached, drew_from=drew_from, touched=touched
    )


def examine(seed: nn.Module, inlet: Tensor, habitat: Habitat, copies: Copies) -> Glimpse:
    """What a forward and a backward of ``seed`` touch in its ``habitat``, which are then undone.

    Unlike ``watch``, this compares values with those of ``copies``, and waits for the device. What
    the seed does outside of the model, or by a hook of the model that it runs, cannot be undone.
    """
    with gradients_aside(habitat.model):  # first: the surroundings include gradients
        around = habitat.around(seed)
        try:
            glimpse = watch(seed, seed, inlet, around=around)
            draws = Draws(inlet.device)
            _go_back(glimpse.output, tuple(seed.parameters()))
            drawn = (*draws.from_torch(), *draws.from_others())
            changes = (*around.changes(), *copies.differing(around))
            seen = (*glimpse.touched, *changes, *sharing(seed, around))
        finally:
            copies.restore()
    once = {(each.leak, each.subject): each for each in (*seen, *_sighted(drawn))}
    return evolve(glimpse, touched=tuple(once.values()))


def _go_back(output: object, parameters: Sequence[Tensor]) -> None:
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    if isinstance(output, Tensor) and output.requires_grad and wanted:
        torch.autograd.grad(output, wanted, torch.ones_like(output), allow_unused=True)


# --- the backward ---


def way_back(last: Node | None, source: Node | None = None) -> tuple[Node, ...]:
    """``last`` and all operations before it, but ``source`` and what is only behind that."""
    seen = {source}
    found: list[Node] = []
    stack = [last]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.append(node)
        stack.extend(follower for follower, _ in node.next_functions)
    return tuple(found)


def _leaves(operations: Iterable[Node]) -> Iterator[Tensor]:
    """The tensors to which ``operations`` give a gradient in the end."""
    for node in operations:
        if node.name() == "torch::autograd::AccumulateGrad":
            yield node.variable  # type: ignore[attr-defined]  # this kind has one


def _foreign(operations: Iterable[Node], own: Iterable[Tensor]) -> Iterator[Tensor]:
    allowed = {id(tensor) for tensor in own}
    return (leaf for leaf in _leaves(operations) if id(leaf) not in allowed)


def _watch_backward(
    output: Tensor, operations: Sequence[Node], around: Surroundings, later: list[Sighting]
) -> Tensor:
    """``output``, in whose backward there is a look before and after ``operations``."""
    # What a seed shares with its host gets its gradient when the host's backward is over, too.
    counted = tuple(
        node for node in operations if not any(leaf in around for leaf in _leaves((node,)))
    )
    if not counted or _recomputed() or torch._C._are_functorch_transforms_active():  # noqa: SLF001
        return output
    watch = _BackwardWatch(around, output.device, later, len(counted))
    # The gradient of an alias comes before all hooks that the seed may have put on its output.
    alias = output.view_as(output)
    cast("Node", alias.grad_fn).register_prehook(watch.begin)
    watch.handles.extend(node.register_hook(watch.count) for node in counted)
    return alias


@define(eq=False)
class _BackwardWatch:
    """Tells apart what a seed's backward does from what the host's does."""

    around: Surroundings
    device: torch.device
    later: list[Sighting]
    operations: int
    left: int = 0
    draws: Draws | None = None
    handles: list[RemovableHandle] = field(factory=list)

    def begin(self, _gradients: object) -> None:
        self.around = self.around.again()
        self.draws = Draws(self.device)
        self.left = self.operations
        # Some of the operations outlive the graph, and would count the next backward as well.
        Variable._execution_engine.queue_callback(self.end)  # noqa: SLF001  # no public name

    def count(self, *_gradients: object) -> None:
        self.left -= 1
        if self.left == 0 and self.draws is not None:
            self.later.extend(self.around.changes())
            drawn = (*self.draws.from_torch(), *self.draws.from_others())
            self.later.extend(_sighted(drawn))

    def end(self) -> None:
        for handle in self.handles:
            handle.remove()


def _recomputed() -> bool:
    """Whether ``saved_tensors_hooks`` are at work: then they cannot be disabled."""
    try:
        with disable_saved_tensors_hooks("only asked whether there are any"):
            return False
    except RuntimeError:
        return True


def _sighted(generators: Iterable[str]) -> Iterator[Sighting]:
    return (Sighting(leak=Leak.RANDOM_STREAM, subject=generator) for generator in generators)


# --- memory ---


def tensors(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """All parameters and buffers of ``module``, by name."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def shared(
    seed: nn.Module, host: Iterable[tuple[str, Tensor]]
) -> tuple[tuple[str, str, Tensor], ...]:
    """``(seed's name, host's name, tensor)`` of all tensors that share memory with the host's.

    That is a storage, wherever they lie in it, or some bytes of two storages. The host's name is
    that of the tensor which begins next to the seed's.
    """
    return tuple(_overlapping(seed, [Extent.of(name, tensor) for name, tensor in host]))


def sharing(seed: nn.Module, around: Surroundings) -> Iterator[Sighting]:
    """What of ``seed`` shares memory with what is ``around`` it."""
    for own, other, _ in _overlapping(seed, around.extents()):
        subject = f"{own} shares memory with {other}"
        yield Sighting(leak=Leak.SHARED_PARAMETER, subject=subject)


def _overlapping(seed: nn.Module, host: Sequence[Extent]) -> Iterator[tuple[str, str, Tensor]]:
    for own in (Extent.of(name, tensor) for name, tensor in tensors(seed)):
        near = [(abs(each.begin - own.begin), each.name) for each in host if own.overlaps(each)]
        if near:
            yield own.name, min(near)[1], own.tensor
