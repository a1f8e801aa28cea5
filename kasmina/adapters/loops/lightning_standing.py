"""Where a run in a ``Trainer`` stands, for its checkpoints: read by one rank and told to all."""

from functools import partial
from typing import Any

from kasmina.adapters.loops.lightning_state import Place
from kasmina.adapters.torch.distributed.randomness import RANKS, RankStreams
from kasmina.adapters.torch.distributed.ranks import Ranks
from kasmina.domain.errors import ConcurrentAppend
from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store
from kasmina.run import Run


class Standing:
    """The place of ``run`` in the log at ``url``, and with it the random streams of all ranks.

    ``ranks`` is ``None`` where one process trains.
    """

    def __init__(self, url: str, run: Run, ranks: Ranks | None) -> None:
        self._url = url
        self._run = run
        self._ranks = ranks
        self._streams = None if ranks is None else RankStreams(run.slots, ranks)
        self._first = ranks is None or ranks.rank == 0
        self._last: Place | None = None

    @property
    def told(self) -> bool:
        """Whether this rank is told, and need not read a log that it may not have."""
        return self._first or self._ranks is not None or self._last is not None

    def at(self, step: int) -> Place:
        """Where the run stands after ``step``; where there are ranks, an exchange.

        Raises ``ConcurrentAppend`` where the log holds more than the run knows of.
        """
        if self._last is not None:
            return self._last
        find = partial(self._found, step)
        if self._ranks is None or self._streams is None:
            return find()
        place = self._ranks.from_first("find the log's end", find)
        self._streams.gather()
        return place

    def settle(self, step: int) -> None:
        """From now on, be where the run stands after ``step``, though it goes on to its end."""
        self._last = self.at(step)

    def part(self) -> None:
        """Ask no other rank any more; after an error their streams are not known."""
        self._ranks = None
        if self._last is None:
            self._streams = None

    def extra(self) -> dict[str, Any]:
        """What belongs among the extras of a checkpoint: the streams of all ranks."""
        return {} if self._streams is None else {RANKS: self._streams.state_dict()}

    def _found(self, step: int) -> Place:
        state = self._run.state
        with open_store(self._url, access=Access.READ) as store:
            head = store.head(state.run_id)
        if head.sequence != state.sequence:
            raise ConcurrentAppend(state.run_id, expected=state.sequence, found=head.sequence)
        return Place(
            run_id=state.run_id,
            sequence=head.sequence,
            digest=head.digest,
            epoch=state.epoch,
            step=step,
        )
