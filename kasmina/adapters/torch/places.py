"""Where a slot can be grafted: paths resolved, obstacles named; nothing is touched."""

import sys
from collections.abc import Iterator, Mapping

from torch import nn

from kasmina.adapters.torch.grafted import BANK, is_grafted
from kasmina.domain.errors import UngraftableModule, UnknownModule

_COMPILE_LAST = "graft first, then compile"
_WRAP_LAST = "graft the bare model first, then wrap it"

# Looked up only where something else has loaded them: importing them takes seconds.
_WRAPPERS = (
    ("torch._dynamo.eval_frame", "OptimizedModule", "is compiled", _COMPILE_LAST),
    ("torch.jit", "ScriptModule", "is TorchScript", "graft the Python module it was made from"),
    ("torch.nn.parallel", "DataParallel", "is wrapped in DataParallel", _WRAP_LAST),
    ("torch.nn.parallel", "DistributedDataParallel", "is wrapped in DDP", _WRAP_LAST),
    ("torch.distributed.fsdp", "FullyShardedDataParallel", "is wrapped in FSDP", _WRAP_LAST),
    ("torch.distributed.fsdp", "FSDPModule", "is sharded", "graft first, then fully_shard"),
)


def resolve(model: nn.Module, paths: Mapping[str, str]) -> dict[str, nn.Module]:
    """The module for each slot, given its path; all of them can be grafted together.

    Raises ``UnknownModule`` with the nearest paths there are, and ``UngraftableModule``.
    """
    _require_free(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, nn.Module] = {}
    for slot_id, path in paths.items():
        if path not in modules:
            raise UnknownModule(path, [name for name in modules if name])
        _require_graftable(path, modules)
        module = modules[path]
        twin = next((name for name, other in found.items() if other is module), None)
        if twin is not None:
            raise UngraftableModule(
                path,
                f"it is the same module as {paths[twin]!r}",
                "name it once: its slot acts wherever it is called",
            )
        found[slot_id] = module
    return found


def _require_graftable(path: str, modules: Mapping[str, nn.Module]) -> None:
    if path == "":
        raise UngraftableModule(
            path, "it is the whole model", "name a module inside it, or put it inside another"
        )
    for ancestor in _ancestors(path):
        _require_unwrapped(ancestor, modules[ancestor])
    if is_grafted(modules[path]):
        raise UngraftableModule(path, "it has a slot, in another model", "ungraft() that one first")
    if "forward" in vars(modules[path]):
        raise UngraftableModule(
            path,
            "its forward was replaced on the instance, where a slot would never be asked",
            "graft first, then patch or hook it",
        )


def _ancestors(path: str) -> Iterator[str]:
    """The path itself, and every module it leads through but the root."""
    parts = path.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts) + 1))


def _require_free(model: nn.Module) -> None:
    _require_unwrapped("", model)
    if BANK in dir(model):
        raise UngraftableModule(
            "",
            f"the model already has a {BANK!r}",
            "if that is a graft, ungraft() it and graft all slots at once; else rename it",
        )


def _require_unwrapped(path: str, module: nn.Module) -> None:
    for home, name, problem, mend in _WRAPPERS:
        loaded = sys.modules.get(home)
        if loaded is not None and name in vars(loaded) and isinstance(module, vars(loaded)[name]):
            raise UngraftableModule(path, f"{_subject(path)} {problem}", mend)
    if module._compiled_call_impl is not None:  # noqa: SLF001  # what module.compile() sets
        raise UngraftableModule(path, f"{_subject(path)} is compiled", _COMPILE_LAST)


def _subject(path: str) -> str:
    return f"{path!r}" if path else "the model"
