"""What a slot may do in a forward: one small function each, chosen when the view changes.

They are module-level functions kept on the slot, so that a forward looks nothing up and decides
nothing, compiled code guards on their identity, and slots can be copied and pickled. Eager code
runs the act made for the present alpha; compiled code runs ``_mixed``, whose one graph serves
every alpha with the same bits.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from attrs import define
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from kasmina.adapters.torch import leaks, ops, streams
from kasmina.domain.errors import FeatureMismatch, UngraftableModule
from kasmina.domain.projections import Behaviour

if TYPE_CHECKING:
    from kasmina.adapters.torch.slot import SeedSlot

Act = Callable[["SeedSlot", Tensor], Tensor]
Outer = Callable[["SeedSlot", object], object]


@define
class Visits:
    """How many forwards went through a slot."""

    count: int = 0


def counted(visits: Visits, act: Outer, slot: "SeedSlot", output: object) -> object:
    """``act``, and one more forward in ``visits``."""
    visits.count += 1
    return act(slot, output)


def identity(slot: "SeedSlot", output: object) -> object:  # noqa: ARG001  # an act like the others
    """The very same object."""
    return output


def serve(slot: "SeedSlot", output: object) -> object:
    """Let the features in ``output`` pass: itself, or the first element of a tuple or list."""
    if isinstance(output, Tensor):
        return slot.inner(slot, output)
    if not (isinstance(output, tuple | list) and output and isinstance(output[0], Tensor)):
        raise UngraftableModule(
            slot.slot_id,
            f"it returned {type(output).__name__}, where a slot needs features",
            "graft on a module that returns a tensor, or a tuple that begins with one",
        )
    items = (slot.inner(slot, output[0]), *output[1:])
    kind = type(output)
    return kind(items) if kind in (tuple, list) else kind(*items)  # the latter a named tuple


# --- with the features: what the host shall see ---


def live(slot: "SeedSlot", features: Tensor) -> Tensor:
    """A seed beside its host: the eager act for the present alpha, or the traceable one."""
    if torch.compiler.is_compiling():
        return _mixed(slot, features)
    return slot.eager(slot, features)


def alone(slot: "SeedSlot", features: Tensor) -> Tensor:
    """The seed instead of the host: no blend and no guard is left."""
    return _seed(slot)(slot.inlet(features))  # type: ignore[no-any-return]  # unguarded


def _mixed(slot: "SeedSlot", features: Tensor) -> Tensor:
    seed = _fitted(slot, features, slot.traced_run(slot, slot.inlet(features)))
    return ops.mix(features, seed, slot.alpha, slot.incubating, slot.nonfinite_outputs)


def _blend_within(slot: "SeedSlot", features: Tensor) -> Tensor:
    seed = _fitted(slot, features, slot.run(slot, slot.inlet(features)))
    return ops.blend_within(features, seed, slot.alpha, slot.nonfinite_outputs)


def _blend_at_seed(slot: "SeedSlot", features: Tensor) -> Tensor:
    seed = _fitted(slot, features, slot.run(slot, slot.inlet(features)))
    return ops.blend_at_seed(features, seed, slot.alpha, slot.nonfinite_outputs)


def _blend_at_host(slot: "SeedSlot", features: Tensor) -> Tensor:
    seed = _fitted(slot, features, slot.run(slot, slot.inlet(features)))
    return ops.blend_at_host(features, seed, slot.alpha, slot.nonfinite_outputs)


def blend_at(alpha: float) -> Act:
    """The eager act for a blend at ``alpha``, as rounded to the alpha buffer's dtype."""
    if alpha == 0.0:
        return _blend_at_host
    return _blend_at_seed if alpha == 1.0 else _blend_within


def _incubate(slot: "SeedSlot", features: Tensor) -> Tensor:
    seed = _fitted(slot, features, slot.run(slot, slot.inlet(features)))
    ops.count_nonfinite(seed, slot.nonfinite_outputs)
    return ops.incubate(features, seed)


def _incubate_copied(slot: "SeedSlot", features: Tensor) -> Tensor:
    seed = _fitted(slot, features, slot.run(slot, _detached_copy(features)))
    ops.count_nonfinite(seed, slot.nonfinite_outputs)
    return ops.incubate(features, seed)


def _incubate_first(slot: "SeedSlot", features: Tensor) -> Tensor:
    """Find out whether the host overwrites its features later, as an in-place ReLU does.

    Host and incubating seed share the features' memory, so that would destroy what the seed
    kept of its input for the backward. Until it is known, the seed gets a copy.
    """
    if not torch.is_grad_enabled():
        return _incubate(slot, features)
    shown = _incubate_copied(slot, features)
    slot.handed = (shown.detach(), shown._version)  # noqa: SLF001  # the only sign of a write
    slot.eager = _incubate_second
    return shown


def _incubate_second(slot: "SeedSlot", features: Tensor) -> Tensor:
    slot.settle()
    return slot.eager(slot, features)


def incubate_after(overwritten: bool | None) -> Act:  # noqa: FBT001  # one fact, or unknown
    """The eager act for incubation, by whether the host is known to overwrite its features."""
    if overwritten is None:
        return _incubate_first
    return _incubate_copied if overwritten else _incubate


# --- before the seed: what it may see of the features ---


def _itself(features: Tensor) -> Tensor:
    return features


def _detached(features: Tensor) -> Tensor:
    return features.detach()


def _copy(features: Tensor) -> Tensor:
    return features.clone()


def _detached_copy(features: Tensor) -> Tensor:
    return features.detach().clone()


def _gated_copy(features: Tensor) -> Tensor:
    return ops.gate(features).clone()


def inlet(behaviour: Behaviour, *, detached: bool, copied: bool) -> Callable[[Tensor], Tensor]:
    """How features reach the seed. A seed that was seen to write to them gets a copy."""
    if detached:
        return _detached_copy if copied else _detached
    if behaviour is Behaviour.SEED:
        return _copy if copied else _itself
    return _gated_copy if copied else ops.gate


# --- the seed itself ---


def _seed(slot: "SeedSlot") -> nn.Module:
    return cast("nn.Module", slot.seed)  # no act that asks is chosen for an empty slot


def run_plainly(slot: "SeedSlot", features: Tensor) -> Tensor:
    """The seed's output."""
    return _seed(slot)(features)  # type: ignore[no-any-return]  # see _fitted


def run_on_own_stream(slot: "SeedSlot", features: Tensor) -> Tensor:
    """The seed's output, drawn from its own random stream.

    A generator's state cannot be swapped inside a compiled graph, so such a seed breaks it; with
    ``fullgraph=True`` that is an error and never a host that silently trains on other numbers.
    """
    if torch.compiler.is_compiling():
        return _run_outside_graphs(slot, features)
    with slot.own_stream.entered(features.device):
        return run_plainly(slot, features)


# The public torch.compiler.disable would load the compiler, a second's work, for eager users too.
@_disable_dynamo
def _run_outside_graphs(slot: "SeedSlot", features: Tensor) -> Tensor:
    with slot.own_stream.entered(features.device):
        return run_plainly(slot, features)


def run_watched(slot: "SeedSlot", features: Tensor) -> Tensor:
    """The seed's output, with a look at what else the seed did; once, then no more.

    Where it drew random numbers as nobody expected, the host's stream is set back; whatever it
    did, the slot takes precautions from then on.
    """
    if not (slot.training and torch.is_grad_enabled()):
        return slot.traced_run(slot, features)
    before = streams.positions(features.device)
    glimpse = leaks.watch(_seed(slot), partial(slot.traced_run, slot), features)
    slot.note(glimpse)
    slot.writes = slot.writes or glimpse.wrote
    if glimpse.drew_from:
        slot.stream = streams.Stream.standing(streams.positions(features.device))
        streams.rewind(features.device, before)
    slot.watching = False
    slot.choose()
    return cast("Tensor", glimpse.output)  # if it is one: see _fitted


def _fitted(slot: "SeedSlot", features: Tensor, seed: Tensor) -> Tensor:
    """``seed`` if it has the shape and dtype of ``features``; under autocast, in their dtype."""
    if not isinstance(seed, Tensor):
        raise FeatureMismatch(slot.slot_id, host=described(features), seed=type(seed).__name__)
    if seed.shape == features.shape:
        if seed.dtype == features.dtype:
            return seed
        if torch.is_autocast_enabled(features.device.type):
            return seed.to(features.dtype)
    raise FeatureMismatch(slot.slot_id, host=described(features), seed=described(seed))


def described(features: Tensor) -> str:
    """Shape and dtype, as in ``float32 (2, 16, 8, 8)``."""
    return f"{str(features.dtype).removeprefix('torch.')} {tuple(features.shape)}"
