"""What a grown slot comes to in plain torch: the same formula, the same tensors, no kasmina.

A part of ours becomes an instance of the torch class it is derived from. Where it has a forward of
its own, the instance gets that as generated code, which pickles as source: the code of an
``fx.GraphModule`` that holds no state and is handed the instance. (A GraphModule in its place
would do, but is called through two more Python frames: 8 % of a cheap seed's time on a CPU.)
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from kasmina.adapters.torch import acts
from kasmina.adapters.torch.slot import SeedSlot
from kasmina.domain.projections import Behaviour
from kasmina.domain.stages import Blend, SeedInput

_PACKAGE = __name__.partition(".")[0]

Inlet = Callable[[Tensor], Tensor]
Forward = Callable[[Any, Tensor], Tensor]
"""A forward as its class has it: of the module and the features."""


def grown(slot: SeedSlot) -> nn.Module:
    """What ``slot``, which must hold a seed, does to features: a module in plain torch.

    The seed itself where nothing of the host is left, else the blend at the alpha where it stands,
    which becomes a buffer. What shields a host from a seed that is not finite is left out.
    """
    view, seed = slot.view, plain(cast("nn.Module", slot.seed))
    detached = view.seed_input is SeedInput.DETACHED
    lerp = view.blend is Blend.LERP
    alone = view.behaviour is Behaviour.SEED or (lerp and view.alpha(slot.step) == 1.0)
    if alone and not detached and not slot.writes:
        return seed
    inlet = acts.inlet(Behaviour.SEED, detached=detached, copied=slot.writes)
    around = nn.Module().train(slot.training)
    around.add_module("seed", seed)
    if slot.mixer is not None:
        around.add_module("mixer", plain(slot.mixer))
    if not alone:
        # No number in the code: a lerp rounds tensor and number differently in half precision.
        around.register_buffer("alpha", slot.alpha.detach().clone())
    formula = _alone if alone else _FORMULAS[view.blend]
    _enact(around, partial(formula, inlet), f"seed, {view.blend.value}")
    return around


def _alone(inlet: Inlet, self: Any, features: Tensor) -> Tensor:  # noqa: ANN401
    return self.seed(inlet(features))  # type: ignore[no-any-return]


def _lerped(inlet: Inlet, self: Any, features: Tensor) -> Tensor:  # noqa: ANN401
    seed = self.seed(inlet(features)).to(features.dtype)
    return torch.lerp(features, seed, self.alpha.to(features.dtype))


def _gated(inlet: Inlet, self: Any, features: Tensor) -> Tensor:  # noqa: ANN401
    seen = inlet(features)
    weight = self.alpha * self.mixer(seen)  # first: the seed may write to what it sees
    seed = self.seed(seen).to(features.dtype)
    return torch.lerp(features, seed, weight.to(features.dtype))


def _multiplied(inlet: Inlet, self: Any, features: Tensor) -> Tensor:  # noqa: ANN401
    seed = self.seed(inlet(features)).to(features.dtype)
    alpha: Tensor = self.alpha.to(features.dtype)
    return features * (1 + alpha * torch.tanh(seed - features))


_FORMULAS = {Blend.LERP: _lerped, Blend.GATED: _gated, Blend.MULTIPLY: _multiplied}


def plain(module: nn.Module) -> nn.Module:
    """The same object, computing the same, with no class or code of ours left in it.

    What is not ours, a seed of the user's own class among it, stays as it is.
    """
    for part in module.modules():
        kind = type(part)
        if _ours(kind):
            base = cast("type[nn.Module]", next(each for each in kind.__mro__ if not _ours(each)))
            if kind.forward is not base.forward:
                _enact(part, kind.forward, kind.__name__)
            part.__class__ = base
    return module


def _ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == _PACKAGE


def _enact(module: nn.Module, forward: Forward, name: str) -> None:
    """Give ``module`` that forward, as code of its own.

    ``name`` is shown where a bare module is printed.
    """

    def code(module_: Any, features: Any) -> Any:  # noqa: ANN401  # proxies
        return forward(_Itself(module, module_), features)

    vars(module)["forward"] = partial(generated(code, name), module)
    if type(module).extra_repr is nn.Module.extra_repr:
        vars(module)["extra_repr"] = partial(str, name)


class _Itself:
    """A module to trace with: its layers and tensors are looked up at run time, all else now."""

    def __init__(self, module: nn.Module, proxy: fx.Proxy) -> None:
        self._module = module
        self._proxy = proxy

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever a module holds
        value = getattr(self._module, name)
        return getattr(self._proxy, name) if isinstance(value, nn.Module | Tensor) else value


def generated(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The operations of ``function``, which may not branch on its arguments, as code that pickles.

    They are traced again whenever it is unpickled, so they must be operators, methods and torch's
    functions.
    """
    graph = fx.Graph()  # a new one: the tracer's own remembers its class, and pickles it
    graph.output(graph.graph_copy(fx.Tracer().trace(function), {}))
    return fx.GraphModule({}, graph, name).forward
