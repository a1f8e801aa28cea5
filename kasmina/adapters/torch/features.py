"""What features a place has: seen in one forward of the host, or read off its last layer."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from kasmina.adapters.torch.acts import described
from kasmina.adapters.torch.grafted import swap_in, swap_out
from kasmina.adapters.torch.streams import Stream
from kasmina.domain.errors import UngraftableModule
from kasmina.domain.stages import Topology

_LAYOUTS = {
    Topology.CNN: (4, 1, "(batch, width, height, width)"),
    Topology.TRANSFORMER: (3, 2, "(batch, positions, width)"),
}


@frozen(kw_only=True)
class Features:
    """The number of channels at a place and, where they were seen, the features' shape."""

    width: int
    shape: tuple[int, ...] | None = None


class _Recorder:
    """A passage that keeps a look at the first output that comes through."""

    def __init__(self) -> None:
        self.seen: object = None

    def forward(self, output: object, /) -> object:
        if self.seen is None:
            self.seen = output
        return output


def seen(
    model: nn.Module,
    places: Mapping[str, tuple[nn.Module, Topology]],
    example_inputs: tuple[Any, ...],
) -> dict[str, Features]:
    """The features at each path, from one forward of ``model`` on ``example_inputs``.

    In eval mode and without gradients; modes, buffers and random streams are as before.
    """
    recorders = {path: _Recorder() for path in places}
    with undisturbed(model), ExitStack() as swapped:
        for path, (module, _) in places.items():
            swap_in(module, recorders[path])
            swapped.callback(swap_out, module)
        model.eval()
        with torch.no_grad():
            model(*example_inputs)
    return {
        path: _judged(path, topology, recorders[path].seen)
        for path, (_, topology) in places.items()
    }


def _judged(path: str, topology: Topology, output: object) -> Features:
    first = output[0] if isinstance(output, tuple | list) and output else output
    dimensions, channel, layout = _LAYOUTS[topology]
    if output is None:
        raise UngraftableModule(
            path,
            "its forward was not called for the example inputs, in eval mode",
            "graft a module whose output the model uses (fused layers bypass those inside them)",
        )
    if not isinstance(first, Tensor) or not first.is_floating_point():
        got = described(first) if isinstance(first, Tensor) else type(output).__name__
        raise UngraftableModule(
            path,
            f"it returns {got}, where a slot needs floating-point features",
            "graft a module that returns a tensor, or a tuple that begins with one",
        )
    if first.dim() != dimensions:
        raise UngraftableModule(
            path,
            f"it returns {described(first)}, but {topology.value} features are {layout}",
            "name the topology that its features have, or another module",
        )
    return Features(width=first.shape[channel], shape=tuple(first.shape))


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put modes, buffers and random streams of ``model`` back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone(), buffer._version) for buffer in model.buffers()]  # noqa: SLF001
    with ExitStack() as streams:
        for device in {tensor.device for tensor in (*model.parameters(), *model.buffers())} or {
            torch.device("cpu")
        }:
            streams.enter_context(Stream(0).entered(device))
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            for buffer, kept, version in buffers:
                if buffer._version != version:  # noqa: SLF001  # whether it was written to
                    with torch.no_grad():
                        buffer.copy_(kept)


def inferred(path: str, module: nn.Module) -> Features:
    """The features that the last layer in ``module`` must give. Raises ``UngraftableModule``."""
    for layer in reversed(list(module.modules())):
        width = _width(layer)
        if width is not None:
            return Features(width=width)
    raise UngraftableModule(
        path,
        f"{type(module).__name__} does not tell the width of its features",
        "pass example_inputs to graft(), which looks at them",
    )


def _width(layer: nn.Module) -> int | None:
    match layer:
        case _ConvNd():
            return layer.out_channels
        case nn.Linear():
            return layer.out_features
        case _NormBase():
            return layer.num_features
        case nn.GroupNorm():
            return layer.num_channels
        case nn.LayerNorm() | nn.RMSNorm():
            return layer.normalized_shape[-1]
        case nn.Embedding():
            return layer.embedding_dim
        case _:
            return None
