"""Growing a new seed aside, and trying it once before any host depends on it."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from attrs import frozen
from torch import Tensor, nn

from kasmina.adapters.torch import leaks
from kasmina.adapters.torch.acts import described
from kasmina.adapters.torch.buffers import buffers_kept
from kasmina.adapters.torch.mixer import Mixer
from kasmina.adapters.torch.slot import SeedSlot, Sprout
from kasmina.adapters.torch.streams import Stream, aside
from kasmina.domain.errors import KasminaError, UnfitSeed
from kasmina.domain.evidence import Probe
from kasmina.domain.stages import Blend

__all__ = ["Sprout", "sprout"]


def sprout(
    slot: SeedSlot,
    build: Callable[[], nn.Module],
    *,
    blueprint_id: str,
    init_seed: int,
    host_parameters: Iterable[Tensor],
    blend: Blend = Blend.LERP,
) -> Sprout:
    """Build a seed for ``slot`` and try one forward and backward of it in training mode.

    It is built on the CPU, its weights drawn from a random stream of its own begun at
    ``init_seed``, then moved to the slot's device, dtype and memory format. The trial works on
    drawn features of the slot's shape, not on the host, and leaves the seed's buffers as they were
    born. ``host_parameters`` are what it must not share: give the host's buffers too. A ``blend``
    that is gated brings its mixer.

    Raises ``UnfitSeed``, naming every defect found. Host, slot and random streams are untouched
    either way.
    """
    host, stream, device = tuple(host_parameters), Stream(init_seed), slot.alpha.device
    with aside(stream, device):
        seed = _built(slot, build, blueprint_id)
        shared = tuple(
            f"its {name} shares memory with the host (shape {tuple(tensor.shape)})"
            for name, _, tensor in leaks.shared(seed, (("", tensor) for tensor in host))
        )
        if shared:  # nothing may be moved or tried: it would happen to the host
            raise UnfitSeed(blueprint_id, slot.slot_id, shared)
        seed.to(device=device, dtype=slot.alpha.dtype).train()
        features = slot.draw_features()
        if features.dim() == _SPATIAL_DIMENSIONS:
            layout = _memory_format(host)
            seed.to(memory_format=layout)  # type: ignore[call-overload]  # not in the stubs
            features = features.contiguous(memory_format=layout)
        trial = _tried(seed, features)
    if trial.defects:
        raise UnfitSeed(blueprint_id, slot.slot_id, trial.defects) from trial.error
    mixer = Mixer(slot.topology, slot.width) if blend is Blend.GATED else None
    if mixer is not None:
        mixer.to(device=device, dtype=slot.alpha.dtype)
    grown = (seed,) if mixer is None else (seed, mixer)
    return Sprout(
        module=seed,
        probe=trial.probe,
        parameters=sum(p.numel() for module in grown for p in module.parameters()),
        stream=stream if trial.drew else None,
        mixer=mixer,
    )


_SPATIAL_DIMENSIONS = 4


@frozen(kw_only=True, eq=False)
class _Trial:
    probe: Probe
    defects: tuple[str, ...]
    drew: bool = False
    error: Exception | None = None


def _built(slot: SeedSlot, build: Callable[[], nn.Module], blueprint_id: str) -> nn.Module:
    try:
        with torch.device("cpu"):
            seed: object = build()
    except KasminaError:
        raise
    except Exception as error:
        problem = f"it could not be built: {type(error).__name__}: {error}"
        raise UnfitSeed(blueprint_id, slot.slot_id, (problem,)) from error
    if not isinstance(seed, nn.Module):
        problem = f"it was built as a {type(seed).__name__}, not an nn.Module"
        raise UnfitSeed(blueprint_id, slot.slot_id, (problem,))
    return seed


def _memory_format(host: Iterable[Tensor]) -> torch.memory_format:
    """``channels_last`` where a convolution of the host is laid out so."""
    for tensor in host:
        if (
            tensor.dim() == _SPATIAL_DIMENSIONS
            and tensor.is_contiguous(memory_format=torch.channels_last)
            and not tensor.is_contiguous()
        ):
            return torch.channels_last
    return torch.contiguous_format


def _tried(seed: nn.Module, features: Tensor) -> _Trial:
    trainable = tuple(parameter for parameter in seed.parameters() if parameter.requires_grad)
    count = sum(parameter.numel() for parameter in trainable)
    defects = [] if trainable else ["it has no trainable parameters"]
    kept = features.clone()
    with buffers_kept(seed.modules()):
        try:
            glimpse = leaks.watch(seed, seed, features)
        except Exception as error:  # noqa: BLE001  # whatever a stranger's module may raise
            defects.append(f"its forward raised {type(error).__name__}: {error}")
            return _Trial(probe=_probe(features, None, count), defects=tuple(defects), error=error)
        defects += _forward_defects(glimpse, features, kept)
        if isinstance(glimpse.output, Tensor) and trainable:
            defects += _backward_defects(glimpse.output, trainable)
    return _Trial(
        probe=_probe(features, glimpse.output, count),
        defects=tuple(defects),
        drew=bool(glimpse.drew_from),
    )


def _probe(features: Tensor, output: object, trainable: int) -> Probe:
    tensor = output if isinstance(output, Tensor) else None
    return Probe(
        input_shape=tuple(features.shape),
        output_shape=None if tensor is None else tuple(tensor.shape),
        input_dtype=str(features.dtype).removeprefix("torch."),
        output_dtype=None if tensor is None else str(tensor.dtype).removeprefix("torch."),
        trainable_parameters=trainable,
    )


def _forward_defects(glimpse: leaks.Glimpse, features: Tensor, kept: Tensor) -> Iterator[str]:
    output = glimpse.output
    if not isinstance(output, Tensor):
        yield f"it returns a {type(output).__name__}, not a tensor"
        return
    if output.shape != kept.shape or output.dtype != kept.dtype:
        yield f"it turns features {described(kept)} into {described(output)}"
    with_values = not kept.is_meta
    if glimpse.wrote or (with_values and not torch.equal(features, kept)):
        yield "it writes in place on its input, which is the host's activation"
    for leaf in glimpse.reached:
        yield f"its gradient reaches a tensor that is not its own (shape {tuple(leaf.shape)})"
    if with_values and not bool(output.isfinite().all()):
        yield "its output is not finite at birth"


def _backward_defects(output: Tensor, trainable: tuple[Tensor, ...]) -> Iterator[str]:
    if not output.requires_grad:
        yield "no gradient reaches any of its parameters"
        return
    try:
        gradients: Sequence[Tensor | None] = torch.autograd.grad(
            output, trainable, torch.ones_like(output), allow_unused=True
        )
    except Exception as error:  # noqa: BLE001  # whatever a stranger's module may raise
        yield f"its backward raised {type(error).__name__}: {error}"
        return
    reached = [gradient for gradient in gradients if gradient is not None]
    if not reached:
        yield "no gradient reaches any of its parameters"
    if any(not each.is_meta and not bool(each.isfinite().all()) for each in reached):
        yield "its gradient is not finite at birth"
