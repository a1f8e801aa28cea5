"""The processes of a training, and the one way in which they agree on something.

Rank 0 hears every other rank, decides, and tells all of them: an exchange is a message from each
rank to rank 0 and one broadcast back, on a gloo group of its own, so that it needs no device, never
mixes with the collectives of the training, and has a time-out of its own.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from enum import Enum
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from attrs import field, frozen

from kasmina.domain.errors import KasminaError

T = TypeVar("T")
R = TypeVar("R")

# Whether a group that ends gives the interpreter's lock to the threads that it waits for. In torch
# 2.6 it does not, and may wait for ever; 2.13 is the first that was seen to.
_ENDS_UNLOCKED = torch.__version__ >= "2.13"

_LARGEST_SHOWN = 200  # characters of another library's error


class Reading(Enum):
    """What becomes of the metrics that ``evaluate`` returns on each rank."""

    MEAN = "mean"
    """Their mean over the ranks, each with the same weight; exactly the value where all agree."""
    FIRST = "first"
    """Those of rank 0; the other ranks evaluate too, and what they find is dropped."""


def _positive(_instance: object, _attribute: object, value: timedelta) -> None:
    if value <= timedelta():
        raise ValueError(f"a time-out must be longer than nothing, got {value}")


@frozen(kw_only=True)
class RankPlan:
    """How the processes of ``torch.distributed`` act as one run.

    ``timeout`` is how long a rank waits for another at an exchange: longer than one rank can be
    behind another there, in an evaluation for instance.
    """

    reading: Reading = Reading.MEAN
    timeout: timedelta = field(default=timedelta(minutes=10), validator=_positive)


TOGETHER = RankPlan()


class RankLost(KasminaError):
    """A rank that did not come to an exchange: it died, hangs, or is on another way.

    ``rank`` is ``None`` where it is not known which.
    """

    def __init__(self, rank: int | None, what: str, *, timeout: timedelta, problem: str) -> None:
        self.rank = rank
        self.what = what
        self.timeout = timeout
        self.problem = problem
        missed = "a rank" if rank is None else f"rank {rank}"
        super().__init__(
            f"{missed} did not come to {what} within {timeout.total_seconds():g} s ({problem}); "
            f"every rank must make the same calls on its run, in the same order; look for the "
            f"first error among the ranks' output, then start all of them again with resume= (or "
            f"allow more with RankPlan.timeout)"
        )


class RankFailed(KasminaError):
    """What was asked of all ranks failed on another one."""

    def __init__(self, rank: int, what: str, *, problem: str) -> None:
        self.rank = rank
        self.what = what
        self.problem = problem
        super().__init__(
            f"{what} failed on rank {rank} ({problem}), so it counts on none; mend it there"
        )


class RanksDiverged(KasminaError):
    """Ranks that are no longer one training; nothing was recorded or changed."""

    def __init__(self, what: str, *, first: str, rank: int, other: str) -> None:
        self.what = what
        self.first = first
        self.rank = rank
        self.other = other
        super().__init__(
            f"the ranks disagree on {what}: rank 0 has {first}, rank {rank} has {other}; every "
            f"rank must train the same host with the same settings and as many steps, and make "
            f"the same calls on its run; nothing was recorded"
        )


@frozen(kw_only=True)
class _Carried:
    """An error on its way to another process: as itself where all it holds is plain values."""

    rank: int
    text: str
    kind: type[KasminaError] | None = None
    arguments: tuple[Any, ...] = ()
    attributes: dict[str, Any] = field(factory=dict)

    @classmethod
    def of(cls, error: Exception, rank: int) -> "_Carried":
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, KasminaError) and _plain((*error.args, *vars(error).values())):
            return cls(
                rank=rank,
                text=text,
                kind=type(error),
                arguments=error.args,
                attributes=dict(vars(error)),
            )
        return cls(rank=rank, text=text)

    def error(self, what: str) -> KasminaError:
        """The same error again, or one that tells it."""
        if self.kind is None:
            return RankFailed(self.rank, what, problem=self.text)
        again = self.kind.__new__(self.kind)
        again.args = self.arguments
        vars(again).update(self.attributes)
        return again


def _plain(value: object) -> bool:
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_plain, value))
    return value is None or isinstance(value, str | bytes | int | float | Enum)


@frozen(kw_only=True)
class _Said:
    """What a rank brings to an exchange, or the answer to all: a value, or what went wrong."""

    value: Any = None
    failure: _Carried | None = None


class Ranks:
    """All processes of the default group, one of which is this one.

    Every method is an exchange: all ranks must call it, with the same ``what``. Made by ``join``.
    ``exchanges`` counts them. Raises ``RankLost`` when a rank does not come; from then on each
    exchange raises it at once.
    """

    def __init__(self, plan: RankPlan) -> None:
        self.plan = plan
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._lost: RankLost | None = None
        self.exchanges = 0
        with self._meeting("open_run()", other=None):
            self._group = dist.new_group(backend="gloo", timeout=plan.timeout)

    @property
    def group(self) -> dist.ProcessGroup:
        """The ranks' own group, on gloo."""
        group: dist.ProcessGroup = self._group
        return group

    def together(self, what: str, act: Callable[[], T], merge: Callable[[Sequence[T]], R]) -> R:
        """Let every rank ``act``, and rank 0 ``merge`` what came of it, in the order of ranks.

        ``merge`` runs on rank 0 alone, and only when every rank succeeded. Where a rank fails, it
        raises its own error, and every other ``RankFailed``. Where ``merge`` raises a
        ``KasminaError``, every rank raises that.
        """
        self._require_whole()
        mine, error = self._attempt(act)
        answer = self._exchange(what, mine, merge)
        if error is not None:
            raise error
        return cast("R", self._opened(what, answer))

    def from_first(self, what: str, act: Callable[[], T]) -> T:
        """What ``act`` returns on rank 0, where alone it runs; its error is every rank's."""
        self._require_whole()
        answer, error = self._attempt(act) if self.rank == 0 else (_Said(), None)
        answer = self._told(what, answer)
        if error is not None:
            raise error
        return cast("T", self._opened(what, answer))

    def on_first(self, what: str, act: Callable[[], object]) -> None:
        """Let rank 0 ``act`` while the others wait; its error is every rank's."""

        def done() -> None:
            act()

        self.from_first(what, done)

    def close(self) -> None:
        """Let go of the group; a rank that still waits for this one learns it at once.

        Gloo's threads end with the last reference to it. One that still lets go of a tensor while
        the interpreter ends would abort the process.
        """
        if dist.is_initialized():
            dist.destroy_process_group(self._group)
        if _ENDS_UNLOCKED:
            del self._group

    def _exchange(self, what: str, mine: _Said, merge: Callable[[Sequence[T]], R]) -> _Said:
        if self.rank == 0:
            said = [mine, *(self._heard(what, rank) for rank in range(1, self.size))]
            return self._told(what, self._merged(said, merge))
        with self._meeting(what, other=0):
            dist.send_object_list([mine], dst=0, group=self._group)
        return self._told(what, _Said())

    def _merged(self, said: Sequence[_Said], merge: Callable[[Sequence[T]], R]) -> _Said:
        for each in said:
            if each.failure is not None:
                # Its class is that rank's own affair; the others tell whose it was.
                return _Said(failure=_Carried(rank=each.failure.rank, text=each.failure.text))
        merged, _ = self._attempt(lambda: merge([each.value for each in said]))
        return merged

    def _heard(self, what: str, rank: int) -> _Said:
        heard: list[Any] = [None]
        with self._meeting(what, other=rank):
            dist.recv_object_list(heard, src=rank, group=self._group)
        return cast("_Said", heard[0])

    def _told(self, what: str, answer: _Said) -> _Said:
        told: list[Any] = [answer]
        with self._meeting(what, other=0):
            dist.broadcast_object_list(told, src=0, group=self._group)
        self.exchanges += 1
        return cast("_Said", told[0])

    def _attempt(self, act: Callable[[], object]) -> tuple[_Said, Exception | None]:
        try:
            return _Said(value=act()), None
        except Exception as error:  # noqa: BLE001  # the other ranks must not wait for this one
            return _Said(failure=_Carried.of(error, self.rank)), error

    def _opened(self, what: str, answer: _Said) -> object:
        if answer.failure is not None:
            raise answer.failure.error(what)
        return answer.value

    def _require_whole(self) -> None:
        if self._lost is not None:
            raise self._lost

    def _meeting(self, what: str, *, other: int | None) -> "_Meeting":
        return _Meeting(self, what, other)

    def lose(self, rank: int | None, what: str, error: Exception) -> RankLost:
        """Note that ``rank`` did not come, for good: the group cannot be used after that."""
        problem = (
            str(error).splitlines()[0][:_LARGEST_SHOWN] if str(error) else type(error).__name__
        )
        self._lost = RankLost(rank, what, timeout=self.plan.timeout, problem=problem)
        return self._lost


@frozen
class _Meeting:
    """Turns the errors of the transport into the one that says who was missed at what."""

    ranks: Ranks
    what: str
    other: int | None

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, RuntimeError):  # what every backend raises
            raise self.ranks.lose(self.other, self.what, error) from error


def join(plan: RankPlan | None, *, least: int = 2) -> Ranks | None:
    """The ranks that act as one run; ``None`` for a process that is a run by itself.

    Where there are several, every one of them must call this. Fewer than ``least`` are none.
    """
    if plan is None or not dist.is_available() or not dist.is_initialized():
        return None
    return Ranks(plan) if dist.get_world_size() >= least else None
