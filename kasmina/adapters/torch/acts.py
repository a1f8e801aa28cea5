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

from kasmina.adapters.torch import finite, graphs, leaks, ops, streams
from kasmina.adapters.torch.outputs import features_in, with_features
from kasmina.adapters.torch.surroundings import surroundings
from kasmina.domain.errors import FeatureMismatch, UngraftableModule
from kasmina.domain.projections import Behaviour
from kasmina.domain.stages import Blend, Incubator, SeedInput

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
    """Let the features in ``output`` pass: itself, or the first in a container."""
    if isinstance(output, Tensor):
        return slot.inner(slot, output)
    features = features_in(output)
    if features is None:
        raise UngraftableModule(
            slot.slot_id,
            f"it returned {type(output).__name__}, where a slot needs floating-point features",
            "graft on a module that returns a tensor of them, alone or in a container",
        )
    return with_features(output, slot.inner(slot, features))


# --- with the features: what the host shall see ---


def live(slot: "SeedSlot", features: Tensor) -> Tensor:
    """A seed beside its host: the eager act for the present alpha, or the traceable one.

    The transforms of ``torch.func`` get the latter, which looks at no number and at no version.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():  # noqa: SLF001
        return _mixed(slot, features)
    return slot.eager(slot, features)


def alone(slot: "SeedSlot", features: Tensor) -> Tensor:
    """The seed instead of the host: no blend and no guard is left."""
    if torch.compiler.is_compiling():
        graphs.depend_on(slot.lease)
    return _seed(slot)(slot.inlet(features))  # type: ignore[no-any-return]  # unguarded


def _mixed(slot: "SeedSlot", features: Tensor) -> Tensor:
    graphs.depend_on(slot.lease)
    seen = slot.traced_inlet(slot, features)
    share = _share(slot, seen)
    seed = _fitted(slot, features, slot.traced_run(slot, seen))
    sound = finite.count_nonfinite(seed, slot.nonfinite_outputs)
    shown = slot.blended(slot, features, seed, sound, share)
    return slot.tapped(slot, shown, features, seed)


def _blend(slot: "SeedSlot", features: Tensor) -> Tensor:
    seen = slot.inlet(features)
    share = _share(slot, seen)
    seed = _fitted(slot, features, slot.run(slot, seen))
    sound = finite.count_nonfinite(seed, slot.nonfinite_outputs)
    return slot.blended(slot, features, seed, sound, share)


def _share(slot: "SeedSlot", seen: Tensor) -> Tensor | None:
    """What a gated blend weighs the seed by; taken before the seed runs, which may write to it."""
    return None if slot.mixer is None else slot.mixer(seen)


def _blend_within(slot: "SeedSlot", features: Tensor) -> Tensor:
    seed = _fitted(slot, features, slot.run(slot, slot.inlet(features)))
    sound = finite.count_nonfinite(seed, slot.nonfinite_outputs)
    return ops.blend_within(features, seed, slot.alpha, sound)


def _blend_at_seed(slot: "SeedSlot", features: Tensor) -> Tensor:
    seed = _fitted(slot, features, slot.run(slot, slot.inlet(features)))
    sound = finite.count_nonfinite(seed, slot.nonfinite_outputs)
    return ops.blend_at_seed(features, seed, slot.alpha, sound)


def _blend_at_host(slot: "SeedSlot", features: Tensor) -> Tensor:
    seed = _fitted(slot, features, slot.run(slot, slot.inlet(features)))
    sound = finite.count_nonfinite(seed, slot.nonfinite_outputs)
    return ops.blend_at_host(features, seed, slot.alpha, sound)


def blend_at(alpha: float, blend: Blend) -> Act:
    """The eager act for a blend at ``alpha``, as rounded to the alpha buffer's dtype."""
    if blend is not Blend.LERP:
        return _blend
    if alpha == 0.0:
        return _blend_at_host
    return _blend_at_seed if alpha == 1.0 else _blend_within


def _lerped(
    slot: "SeedSlot",
    features: Tensor,
    seed: Tensor,
    sound: Tensor,
    share: Tensor | None,  # noqa: ARG001  # a blend like the others
) -> Tensor:
    return ops.blend(features, seed, slot.alpha, sound)


def _gated(
    slot: "SeedSlot", features: Tensor, seed: Tensor, sound: Tensor, share: Tensor | None
) -> Tensor:
    return ops.gated(features, seed, slot.alpha, sound, cast("Tensor", share))


def _multiplied(
    slot: "SeedSlot",
    features: Tensor,
    seed: Tensor,
    sound: Tensor,
    share: Tensor | None,  # noqa: ARG001  # a blend like the others
) -> Tensor:
    return ops.multiplied(features, seed, slot.alpha, sound)


BLENDS = {Blend.LERP: _lerped, Blend.GATED: _gated, Blend.MULTIPLY: _multiplied}


# --- how an incubating seed gets its gradient ---


def _through(slot: "SeedSlot", shown: Tensor, features: Tensor, seed: Tensor) -> Tensor:  # noqa: ARG001
    return ops.tap(shown, seed, slot.incubating)


def _near(slot: "SeedSlot", shown: Tensor, features: Tensor, seed: Tensor) -> Tensor:
    penalty = slot.view.incubation.penalty
    return ops.tap_near(shown, seed, slot.incubating, features, penalty)


def _untapped(slot: "SeedSlot", shown: Tensor, features: Tensor, seed: Tensor) -> Tensor:  # noqa: ARG001
    return shown


TAPS = {
    Incubator.STRAIGHT_THROUGH: _through,
    Incubator.PROXIMAL: _near,
    Incubator.REHEARSAL: _untapped,
    Incubator.NONE: _untapped,
}


def _taught(slot: "SeedSlot", features: Tensor, seed: Tensor) -> Tensor:
    incubation = slot.view.incubation
    if incubation.incubator is Incubator.PROXIMAL:
        return ops.incubate_near(features, seed, incubation.penalty)
    return ops.incubate(features, seed)


def _incubate(slot: "SeedSlot", features: Tensor) -> Tensor:
    return _taught(slot, features, _fitted(slot, features, slot.run(slot, features.detach())))


def _incubate_copied(slot: "SeedSlot", features: Tensor) -> Tensor:
    seed = _fitted(slot, features, slot.run(slot, _detached_copy(features)))
    return _taught(slot, features, seed)


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


def _traced_detached(slot: "SeedSlot", features: Tensor) -> Tensor:  # noqa: ARG001
    return features.detach()


def _traced_open(slot: "SeedSlot", features: Tensor) -> Tensor:
    return ops.valve(features, slot.opened)


def traced_inlet(seed_input: SeedInput, *, copied: bool) -> Act:
    """The same for compiled code, where one graph serves incubation and blend."""
    act = _traced_detached if seed_input is SeedInput.DETACHED else _traced_open
    return partial(_copied, act) if copied else act


def _copied(act: Act, slot: "SeedSlot", features: Tensor) -> Tensor:
    return act(slot, features).clone()


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
    seed = _seed(slot)
    glimpse = leaks.watch(
        seed,
        partial(slot.traced_run, slot),
        features,
        around=surroundings(slot, seed),
        later=slot.sightings,
    )
    slot.note(glimpse)
    if isinstance(glimpse.output, Tensor) and slot.view.behaviour is Behaviour.INCUBATE:
        finite.count_nonfinite(glimpse.output, slot.nonfinite_outputs)
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
