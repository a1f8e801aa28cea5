"""What a checkpoint holds, as values."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from attrs import frozen
from torch import Tensor

from kasmina.adapters.torch.optimizer import Group
from kasmina.adapters.torch.randomness import RandomStreams
from kasmina.domain.stages import Stage


class Stateful(Protocol):
    """What a user may add to checkpoints: a scheduler, a scaler, an averaged model."""

    def state_dict(self) -> dict[str, Any]:
        """The state, as tensors, numbers, text and containers of them."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object:
        """Take the state on."""
        ...


@frozen(kw_only=True)
class Occupant:
    """The seed that a slot holds, if any, and the slot's stage."""

    seed_id: str | None
    stage: Stage


@frozen(kw_only=True, eq=False)
class OptimizerState:
    """An optimizer's ``state_dict``, with the names of parameters in the place of their numbers.

    Each of ``groups`` has the names of its parameters under ``"params"``, and ``state`` the moments
    of each; ``shared`` is state that belongs to no parameter, ``other`` what the ``state_dict`` has
    besides. ``kind`` is the optimizer's class.
    """

    kind: str
    groups: Sequence[Group]
    state: Mapping[str, Mapping[str, Any]]
    shared: Mapping[str, Any]
    other: Mapping[str, Any]


@frozen(kw_only=True)
class Shards:
    """The folder, beside a checkpoint's file, that holds its tensors which are spread over ranks.

    ``files`` has the SHA-256 of each file in it, in hexadecimal.
    """

    folder: str
    files: Mapping[str, str]


@frozen(kw_only=True, eq=False)
class Checkpoint:
    """A checkpoint in memory, on the CPU.

    The tensors are those after event ``sequence``, which had ``digest`` (32 bytes), of run
    ``run_id``, ``step`` optimizer steps and ``epoch`` epochs into it.

    One of ``version`` 1 does not say what its slots held, and names parameters by their positions
    in the optimizer. Where there are ``shards``, tensors that lie there are without values, on the
    meta device, until they are placed.
    """

    path: str
    version: int
    run_id: str
    sequence: int
    digest: bytes
    epoch: int
    step: int
    slots: Mapping[str, Occupant]
    model: Mapping[str, Any]
    optimizer: OptimizerState
    extra: Mapping[str, Mapping[str, Any]]
    random: RandomStreams
    seed_streams: Mapping[str, Mapping[str, Tensor]]
    shards: Shards | None = None
