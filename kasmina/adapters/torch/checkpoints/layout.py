"""How a checkpoint is laid out in its file.

Version 2 knows optimizer state by the names of parameters, and which seed each slot held. Version
1 knew the state by the positions of parameters, and had no seal; its files are still read. Version
3 is version 2 for a sharded host: some tensors lie in a folder beside the file (see ``spread``).
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kasmina.adapters.torch.checkpoints import forms
from kasmina.adapters.torch.checkpoints.archive import OLDER, Unpacked
from kasmina.adapters.torch.checkpoints.contents import (
    Checkpoint,
    Occupant,
    OptimizerState,
    Shards,
)
from kasmina.adapters.torch.randomness import RandomStreams
from kasmina.domain.errors import CheckpointError
from kasmina.domain.stages import Stage

FORMAT = "kasmina checkpoint"
VERSION = 2
SHARDED = 3

_TEXT = forms.a(str)
_MOMENTS = forms.by(_TEXT, forms.anything)
_STREAMS = forms.by(_TEXT, forms.by(_TEXT, forms.a(Tensor)))
_DIGEST = 32  # bytes

_COMMON: Mapping[str, forms.Form] = {
    "run_id": _TEXT,
    "sequence": forms.at_least_zero,
    "digest": forms.hexadecimal(_DIGEST),
    "epoch": forms.at_least_zero,
    "step": forms.at_least_zero,
    "model": forms.by(_TEXT, forms.anything),
    "extra": forms.by(_TEXT, forms.by(forms.anything, forms.anything)),
    "random": forms.record(
        generators=_STREAMS,
        python=forms.row(forms.at_least_zero, forms.a(tuple), forms.absent_or(forms.a(float))),
        numpy=forms.absent_or(forms.by(_TEXT, forms.anything)),
    ),
    "seed_streams": _STREAMS,
}
_VERSION_1 = forms.record(
    **_COMMON,
    optimizer_kind=_TEXT,
    optimizer=forms.record(
        param_groups=forms.each(forms.record(params=forms.each(forms.at_least_zero))),
        state=forms.by(forms.at_least_zero, _MOMENTS),
    ),
)
_NAMED: Mapping[str, forms.Form] = {
    **_COMMON,
    "slots": forms.by(_TEXT, forms.record(seed=forms.absent_or(_TEXT), stage=forms.member(Stage))),
    "optimizer": forms.record(
        kind=_TEXT,
        groups=forms.each(forms.record(params=forms.each(_TEXT))),
        state=forms.by(_TEXT, _MOMENTS),
        shared=forms.by(_TEXT, forms.anything),
        other=forms.by(_TEXT, forms.anything),
    ),
}
_VERSIONS = {
    1: _VERSION_1,
    2: forms.record(**_NAMED),
    SHARDED: forms.record(
        **_NAMED,
        shards=forms.record(folder=_TEXT, files=forms.by(_TEXT, forms.hexadecimal(_DIGEST))),
    ),
}


def packed(checkpoint: Checkpoint) -> dict[str, Any]:
    """The content of the file of ``checkpoint``, whose parts must be plain (see ``plain``)."""
    optimizer = checkpoint.optimizer
    return {
        "format": FORMAT,
        "version": checkpoint.version,
        "run_id": checkpoint.run_id,
        "sequence": checkpoint.sequence,
        "digest": checkpoint.digest.hex(),
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
        "slots": {
            slot_id: {"seed": each.seed_id, "stage": each.stage.value}
            for slot_id, each in checkpoint.slots.items()
        },
        "model": checkpoint.model,
        "optimizer": {
            "kind": optimizer.kind,
            "groups": optimizer.groups,
            "state": optimizer.state,
            "shared": optimizer.shared,
            "other": optimizer.other,
        },
        "extra": checkpoint.extra,
        "random": checkpoint.random.state_dict(),
        "seed_streams": checkpoint.seed_streams,
    }


def unpacked(found: Unpacked, source: str) -> Checkpoint:
    """The checkpoint in ``source``. Raises ``CheckpointError`` for anything else.

    Whatever the file holds, the parts have the types that are written here; what is inside the
    state of an optimizer, or of ``extra``, is judged by those who take it on.
    """
    content = found.content
    if type(content) is not dict or "format" not in content or content["format"] != FORMAT:
        raise CheckpointError(
            source,
            "was not written by kasmina",
            "give a file that run.checkpoint() wrote; for other weights, load_state_dict() them "
            "into the host before the run is opened",
        )
    try:
        forms.record(version=forms.at_least_zero)(content, "it")
        _require_known(content["version"], source, sealed=found.sealed)
        _VERSIONS[content["version"]](content, "it")
    except forms.Malformed as error:
        raise CheckpointError(source, f"is malformed: {error}", OLDER) from error
    return _checkpoint(content, source)


def _require_known(version: int, source: str, *, sealed: bool) -> None:
    if version not in _VERSIONS:
        raise CheckpointError(
            source, f"has format {version}, this kasmina reads up to {SHARDED}", "upgrade kasmina"
        )
    if version != 1 and not sealed:
        raise CheckpointError(source, "is damaged: its end, with its seal, is lost", OLDER)


def _checkpoint(content: Mapping[str, Any], source: str) -> Checkpoint:
    version = content["version"]
    return Checkpoint(
        path=source,
        version=version,
        run_id=content["run_id"],
        sequence=content["sequence"],
        digest=bytes.fromhex(content["digest"]),
        epoch=content["epoch"],
        step=content["step"],
        slots={} if version == 1 else _occupants(content["slots"]),
        model=_own(content["model"]),
        optimizer=_numbered(content) if version == 1 else _named(content["optimizer"]),
        extra={name: _own(state) for name, state in content["extra"].items()},
        random=RandomStreams.of(content["random"]),
        seed_streams=content["seed_streams"],
        shards=Shards(**content["shards"]) if version == SHARDED else None,
    )


def _occupants(slots: Mapping[str, Mapping[str, Any]]) -> dict[str, Occupant]:
    return {
        slot_id: Occupant(seed_id=each["seed"], stage=Stage(each["stage"]))
        for slot_id, each in slots.items()
    }


def _named(state: Mapping[str, Any]) -> OptimizerState:
    return OptimizerState(
        kind=state["kind"],
        groups=state["groups"],
        state=state["state"],
        shared=state["shared"],
        other=state["other"],
    )


def _numbered(content: Mapping[str, Any]) -> OptimizerState:
    """The optimizer's state in version 1, with the number of each parameter as its name."""
    state = content["optimizer"]
    return OptimizerState(
        kind=content["optimizer_kind"],
        groups=[
            {**group, "params": [str(number) for number in group["params"]]}
            for group in state["param_groups"]
        ],
        state={str(number): moments for number, moments in state["state"].items()},
        shared={},
        other={},
    )


def _own(state: dict[str, Any]) -> dict[str, Any]:
    """``state`` with no attributes but the one in which torch notes versions."""
    if type(state) is not OrderedDict:
        return state
    own: OrderedDict[str, Any] = OrderedDict(dict.items(state))
    if "_metadata" in vars(state):
        own._metadata = vars(state)["_metadata"]  # type: ignore[attr-defined]  # noqa: SLF001
    return own
