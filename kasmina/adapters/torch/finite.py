"""Whether features are finite: asked of every seed's output that a host could see.

Nothing here waits for a device: the answer stays there, as a 0-dim tensor.
"""

import math

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)
SOUND = torch.ones((), dtype=torch.bool, device="cpu")


def finite(features: Tensor) -> Tensor:
    """Whether all of ``features`` are finite: 0-dim, bool, left on the device.

    Decided from the sum, in which no NaN and no infinity can hide. A finite tensor whose sum
    leaves the range of its dtype (the range of float32 for halves) counts as not finite: its
    entries would have to be near 1e38. On a CPU the sum took 5 µs for 131,072 float32 entries,
    ``aminmax`` 25 µs, ``isfinite().all()`` 247 µs.
    """
    if features.numel() == 0:
        return torch.ones((), dtype=torch.bool, device=features.device)
    total = _total(features)
    return (total - total) == 0


def _total(features: Tensor) -> Tensor:
    plain = features.detach()
    # A float16 sum ends at 65504. The mean accumulates in float32, also under autocast.
    return plain.mean() if plain.dtype in HALVES else plain.sum()


def seen_finite(features: Tensor) -> bool:
    """Whether ``features`` are all finite, where that can be read at once.

    It can on a CPU, outside of compiled and transformed code: reading there waits for nothing,
    and spares a pass over the features wherever all is well, which is always but once.
    """
    return (
        type(features) is Tensor
        and features.is_cpu
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()  # noqa: SLF001
        and math.isfinite(_total(features).item())
    )


def count_nonfinite(seed: Tensor, nonfinite: Tensor) -> Tensor:
    """``finite(seed)``, after adding one to the integer ``nonfinite`` if it is not.

    Not within a transform of ``torch.func``, which may not write to what it captures.
    """
    if seen_finite(seed):
        return SOUND
    sound = finite(seed)
    if not torch._C._are_functorch_transforms_active():  # noqa: SLF001
        nonfinite.add_(~sound)
    return sound
