"""Values that ``torch.load(weights_only=True)`` reads again, made of those of a ``state_dict``."""

from collections import Counter, OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from kasmina.adapters.torch.sharding import is_sharded

_TENSORS = (Tensor, nn.Parameter)


def plain(value: Any, where: str) -> Any:  # noqa: ANN401 - any value of a state_dict
    """``value`` as it can be stored. Raises ``TypeError`` if it cannot.

    NumPy's float64 is a ``float``, but is pickled as an object: rates are often made with NumPy.
    """
    if value is None or isinstance(value, bool | torch.Size | torch.dtype):
        return value
    if isinstance(value, Tensor):
        return _readable(value, where)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, dict):
        kind = type(value) if type(value) in (OrderedDict, Counter) else dict
        return kind(
            {plain(key, where): plain(each, f"{where}[{key!r}]") for key, each in value.items()}
        )
    if type(value) in (list, tuple):
        return type(value)(plain(each, f"{where}[{i}]") for i, each in enumerate(value))
    raise TypeError(f"{where} is a {type(value).__qualname__}")


def _readable(tensor: Tensor, where: str) -> Tensor:
    """The tensor; one of another class, or without values, would be lost or never read again.

    A sharded one is for ``spread`` to set apart.
    """
    if is_sharded(tensor):
        return tensor
    if type(tensor) not in _TENSORS:
        raise TypeError(f"{where} is a {type(tensor).__qualname__}")
    if tensor.is_meta:
        raise TypeError(f"{where} is on the meta device, and has no values")
    return tensor
