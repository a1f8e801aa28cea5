"""What features a place has: seen in one forward of the host, or read off its last layer."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from attrs import define, frozen
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from kasmina.adapters.torch.acts import described
from kasmina.adapters.torch.buffers import buffers_kept
from kasmina.adapters.torch.grafted import swap_in, swap_out
from kasmina.adapters.torch.outputs import features_in
from kasmina.adapters.torch.places import require_called
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


@define
class Sight:
    """A passage that notes how often a module was called, and what it returned the first time.

    ``shape`` is that of its features, ``None`` where it returned none.
    """

    calls: int = 0
    returned: str = ""
    shape: tuple[int, ...] | None = None

    def forward(self, output: object, /) -> object:
        """The very same output."""
        if not self.calls:
            features = features_in(output)
            if features is not None and features.is_nested:
                self.returned = "a nested tensor"  # which has no shape
            elif features is not None:
                self.returned, self.shape = described(features), tuple(features.shape)
            else:
                kind = type(output).__name__
                self.returned = described(output) if isinstance(output, Tensor) else kind
        self.calls += 1
        return output


def look(
    model: nn.Module, places: Mapping[str, nn.Module], example_inputs: tuple[Any, ...]
) -> dict[str, Sight]:
    """What each of the modules did in one forward of ``model`` on ``example_inputs``.

    In eval mode and without gradients; modes, buffers and random streams are as before.
    """
    sights = {path: Sight() for path in places}
    with undisturbed(model), ExitStack() as swapped:
        for path, module in places.items():
            swap_in(module, sights[path])
            swapped.callback(swap_out, module)
        model.eval()
        with torch.no_grad():
            model(*example_inputs)
    return sights


def judged(path: str, topology: Topology, sight: Sight) -> Features:
    """The features that were seen. Raises ``UngraftableModule`` where they serve no such slot."""
    dimensions, channel, layout = _LAYOUTS[topology]
    if not sight.calls:
        raise UngraftableModule(
            path,
            "its forward was not called for the example inputs, in eval mode",
            "graft a module whose output the model uses (fused layers bypass those inside them)",
        )
    if sight.shape is None:
        raise UngraftableModule(
            path,
            f"it returns {sight.returned}, where a slot needs floating-point features",
            "graft a module that returns a dense tensor of them, alone or in a container",
        )
    if len(sight.shape) != dimensions:
        raise UngraftableModule(
            path,
            f"it returns {sight.returned}, but {topology.value} features are {layout}",
            "name the topology that its features have, or another module",
        )
    return Features(width=sight.shape[channel], shape=sight.shape)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put modes, buffers and random streams of ``model`` back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    with ExitStack() as kept:
        kept.enter_context(buffers_kept(model.modules()))
        for device in {tensor.device for tensor in (*model.parameters(), *model.buffers())} or {
            torch.device("cpu")
        }:
            kept.enter_context(Stream(0).entered(device))
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


def unseen(path: str, modules: Mapping[str, nn.Module], width: int | None) -> Features:
    """The features of the module at ``path``, of all ``modules``, told without a look at them.

    They have the ``width`` given, or that of the module's last layer. Raises
    ``UngraftableModule`` where no layer tells, and where only a look could show whether the
    module is called at all.
    """
    require_called(path, modules)
    if width is not None:
        return Features(width=width)
    for layer in reversed(list(modules[path].modules())):
        known = _width(layer)
        if known is not None:
            return Features(width=known)
    raise UngraftableModule(
        path,
        f"{type(modules[path]).__name__} does not tell the width of its features",
        "pass example_inputs, to look at them",
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
