"""Where a slot can be grafted: patterns matched, paths resolved, obstacles named; no touching."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase

from torch import nn
from torch.fx import GraphModule

from kasmina.adapters.torch.grafted import BANK, is_grafted
from kasmina.domain.errors import UngraftableModule, UnknownModule

Where = str | Callable[[str, nn.Module], bool]
"""A path, a pattern of paths, or a predicate on path and module."""

# They compute with the tensors of the modules inside them, always or on their fast path.
_FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)

_WILDCARDS = frozenset("*?[")
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


class NothingMatches(UnknownModule):
    """A pattern or a predicate that no module of the host satisfies."""

    kind = "module that matches"


def matching(model: nn.Module, where: Where) -> dict[str, nn.Module]:
    """The modules that ``where`` names, in the model's order, each by the first path that matches.

    In a pattern ``*``, ``?`` and ``[...]`` match within one component of a path, as in
    ``"layers.*.mlp"``. A module's exact path is not read as a pattern, and the model itself is
    matched by neither pattern nor predicate.

    Raises ``UnknownModule`` with the nearest paths there are where nothing matches, and
    ``UngraftableModule`` for a model that cannot be grafted at all.
    """
    modules = modules_by_path(model)
    if isinstance(where, str) and where in modules:
        return {where: modules[where]}
    del modules[""]
    if isinstance(where, str):
        hits = [path for path in modules if _matches(path, where)]
    else:
        hits = [path for path, module in modules.items() if where(path, module)]
    if not hits and isinstance(where, str):
        raise (NothingMatches if _WILDCARDS & set(where) else UnknownModule)(where, modules)
    if not hits:
        raise NothingMatches("the predicate", modules)
    first = {modules[path]: path for path in reversed(hits)}
    return {path: modules[path] for path in hits if first[modules[path]] == path}


def _matches(path: str, pattern: str) -> bool:
    names, patterns = path.split("."), pattern.split(".")
    return len(names) == len(patterns) and all(map(fnmatchcase, names, patterns))


def resolve(model: nn.Module, paths: Iterable[str]) -> dict[str, nn.Module]:
    """The module at each path; all of them can be grafted together.

    Raises ``UnknownModule`` with the nearest paths there are, and ``UngraftableModule``.
    """
    modules = modules_by_path(model)
    found: dict[str, nn.Module] = {}
    for path in paths:
        if path not in modules:
            raise UnknownModule(path, [name for name in modules if name])
        require_graftable(path, modules)
        twin = next((name for name, other in found.items() if other is modules[path]), path)
        if twin != path:
            raise UngraftableModule(
                path,
                f"it is the same module as {twin!r}",
                "name it once: its slot acts wherever it is called",
            )
        found[path] = modules[path]
    return found


def modules_by_path(model: nn.Module) -> dict[str, nn.Module]:
    """Every module of a model that can be grafted, by each of its paths.

    Raises ``UngraftableModule`` for a model that is wrapped, compiled, or grafted already.
    """
    _require_unwrapped("", model)
    if BANK in dir(model):
        raise UngraftableModule(
            "",
            f"the model already has a {BANK!r}",
            "if that is a graft, ungraft() it and graft all slots at once; else rename it",
        )
    return dict(model.named_modules(remove_duplicate=False))


def require_graftable(path: str, modules: Mapping[str, nn.Module]) -> None:
    """Raise ``UngraftableModule`` unless the module at ``path``, of all ``modules``, can be."""
    if path == "":
        raise UngraftableModule(
            path, "it is the whole model", "name a module inside it, or put it inside another"
        )
    for ancestor in _ancestors(path):
        _require_unwrapped(ancestor, modules[ancestor])
    if is_grafted(modules[path]):
        raise UngraftableModule(path, "it has a slot, in another model", "ungraft() that one first")
    if isinstance(modules[path], GraphModule):
        raise UngraftableModule(
            path,
            "it was generated by torch.fx, whose copies are generated anew and lose the slot",
            "graft a module inside it, or the one that it was traced from",
        )
    if "forward" in vars(modules[path]):
        raise UngraftableModule(
            path,
            "its forward was replaced on the instance, where a slot would never be asked",
            "graft first, then patch or hook it",
        )


def require_called(path: str, modules: Mapping[str, nn.Module]) -> None:
    """Raise ``UngraftableModule`` where only a look shows whether the module is ever called."""
    for ancestor in ("", *_ancestors(path))[:-1]:
        if isinstance(modules[ancestor], _FUSED):
            kind = type(modules[ancestor]).__name__
            raise UngraftableModule(
                path,
                f"{_subject(ancestor)}, a {kind}, may compute without calling it",
                f"pass example_inputs, to see whether it does, or graft the {kind}",
            )


def _ancestors(path: str) -> Iterator[str]:
    """The path itself, and every module it leads through but the root."""
    parts = path.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts) + 1))


def _require_unwrapped(path: str, module: nn.Module) -> None:
    for home, name, problem, mend in _WRAPPERS:
        loaded = sys.modules.get(home)
        if loaded is not None and name in vars(loaded) and isinstance(module, vars(loaded)[name]):
            raise UngraftableModule(path, f"{_subject(path)} {problem}", mend)
    if module._compiled_call_impl is not None:  # noqa: SLF001  # what module.compile() sets
        raise UngraftableModule(path, f"{_subject(path)} is compiled", _COMPILE_LAST)


def _subject(path: str) -> str:
    return f"{path!r}" if path else "the model"
