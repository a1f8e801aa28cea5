"""Events to store, and a way to expect an error."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from kasmina.domain import events as e
from kasmina.domain.evidence import HostDescription
from kasmina.domain.objective import Objective
from kasmina.domain.policies import GatePolicy

P = ParamSpec("P")
E = TypeVar("E", bound=Exception)


def run_opened(run_id: str = "digits-1", **changes: object) -> e.RunOpened:
    """The first event of a run, for tests that need one."""
    values: dict[str, object] = {
        "epoch": 0,
        "step": 0,
        "run_id": run_id,
        "name": "digits",
        "objective": Objective.maximize("val_accuracy", unit="percent"),
        "policy": GatePolicy(),
        "host": HostDescription(kind="tests.Host", parameters=858, digest="0" * 64),
        "random_seed": 7,
    }
    return e.RunOpened(**(values | changes))  # type: ignore[arg-type] # attrs checks the names


def epochs(count: int, *, first: int = 1) -> tuple[e.EpochRecorded, ...]:
    """Epochs with ten steps each and a rising objective."""
    return tuple(
        e.EpochRecorded(epoch=epoch, step=10 * epoch, objective=50.0 + epoch)
        for epoch in range(first, first + count)
    )


def caught(kind: type[E], act: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> E:
    """The error of that kind that ``act`` raises; a failed test where it raises none."""
    try:
        act(*args, **kwargs)
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised")
