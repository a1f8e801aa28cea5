"""What is to happen before an optimizer's step, when the gradients that it takes are there."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

Callback = Callable[[], None]


class BeforeSteps:
    """Callbacks before each step of ``optimizer``, in the order in which they were added.

    A step with a closure, which computes the gradients within the step, has them when it first
    returns. Of a step that an AMP scaler skips nobody hears.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._callbacks: OrderedDict[int, Callback] = OrderedDict()
        self._handle = optimizer.register_step_pre_hook(self._come)

    def add(self, callback: Callback) -> RemovableHandle:
        """Call ``callback`` from now on."""
        handle = RemovableHandle(self._callbacks)
        self._callbacks[handle.id] = callback
        return handle

    def close(self) -> None:
        """Call nobody any more."""
        self._handle.remove()

    def _come(
        self, _optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        # In words that the dynamo of torch 2.6 traces, where a compiled step comes by.
        if "closure" in kwargs and kwargs["closure"] is not None:
            return args, {**kwargs, "closure": _Computing(kwargs["closure"], self._call)}
        if len(args) > 1 and args[1] is not None:  # the first is the optimizer
            return (args[0], _Computing(args[1], self._call), *args[2:]), kwargs
        self._call()
        return None

    def _call(self) -> None:
        for callback in tuple(self._callbacks.values()):
            callback()


class _Computing:
    """A closure, after whose first call ``then`` is called. Some optimizers call it again."""

    def __init__(self, closure: Callable[[], Any], then: Callback) -> None:
        self._closure = closure
        self._then: Callback | None = then

    def __call__(self) -> object:
        loss = self._closure()
        then, self._then = self._then, None
        if then is not None:
            then()
        return loss
