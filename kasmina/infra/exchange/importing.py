"""Taking in what was exported as JSON lines: all of it, verified, or nothing."""

from io import BufferedIOBase

from kasmina.infra.event_store import SqlEventStore
from kasmina.infra.exchange import jsonl
from kasmina.infra.exchange.continuation import Continuation, Transfer


def import_lines(
    store: SqlEventStore, stream: BufferedIOBase, source: str, *, longest: int = jsonl.LONGEST_LINE
) -> tuple[Transfer, ...]:
    """Add the events of ``stream`` that ``store`` lacks, in one transaction, digests and all.

    What is there already must be the same. ``source`` names the stream in errors, ``longest`` is
    the number of bytes that a line may have. Raises ``UnreadableLine``, ``UnreadableEvent``,
    ``OtherHistory``, ``BrokenChain``, ``ConcurrentAppend`` and ``StoreUnavailable``, with nothing
    added.
    """
    continuation = Continuation(store)
    store.adopt(continuation.of(jsonl.rows(stream, source, longest=longest)))
    return continuation.transfers
