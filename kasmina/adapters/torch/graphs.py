"""What a model that grows asks of ``torch.compile``: more graphs than one, and no dead ones.

Compiled graphs are kept with the code of the outermost function compiled, whosever it is. From the
ninth on (``recompile_limit``) PyTorch gives that function up: it raises with ``fullgraph=True``,
and otherwise logs a warning and runs it uncompiled for ever. The limit is there to stop recompiles
that nobody asked for. Those of a growing model are asked for, so each new seed raises it.
"""

import sys
from types import FunctionType
from typing import Any

from typing_extensions import override

_STRUCTURES = 3  # of a life: the seed beside its host, the seed alone, the host without it again
_GRAPHS = 8  # of each: as many as PyTorch allows a model that never changes, for modes and shapes


def make_room() -> None:
    """Raise the limit on graphs for one more seed's life, in a process that may compile at all.

    A process that has built an optimizer has loaded the compiler; one that has not is spared it.
    """
    compiler = sys.modules.get("torch._dynamo")
    if compiler is not None:
        # The names that torch 2.6 knows; later ones keep them as aliases of `recompile_limit`.
        compiler.config.cache_size_limit += _STRUCTURES * _GRAPHS
        compiler.config.accumulated_cache_size_limit += _STRUCTURES * _GRAPHS


def _nothing() -> None:
    """What the mark of a lease is made of; it is never called."""


class Lease:
    """How long the graphs live that have a seed in them: dropped, it takes them along.

    Compiled code that reads ``mark`` is guarded by the identity of its code object, and PyTorch
    discards a graph once something is gone by whose identity it is guarded. Otherwise every graph
    of every seed ever grown would stay: on a CPU 8 MB each for a GPT of eight blocks, 64 wide
    (``aot_eager``; 4 MB by the default compiler), of which so 1 MB stays. Copies and pickles are
    leases of their own.
    """

    def __init__(self) -> None:
        self.mark: Any = FunctionType(_nothing.__code__.replace(), {})

    @override
    def __reduce__(self) -> tuple[type["Lease"], tuple[()]]:
        return (Lease, ())


def depend_on(lease: Lease) -> None:
    """Let the graph that is being traced live no longer than ``lease``."""
    _ = lease.mark is None  # the tracer guards what is compared, not what is merely read
