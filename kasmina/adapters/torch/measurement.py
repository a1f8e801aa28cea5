"""Evaluations with seeds and without them, of which only the figures remain.

The plain evaluation is the user's own, called once and left alone. Every further pass leaves no
trace: modes, buffers, gradients, random streams and slots are afterwards as they were, also when
the user's function fails. Generators that the user made, such as a ``DataLoader``'s, are out of
reach: give held-out data a fixed order.

A further pass begins with the modes and the random streams of the last plain one, so that an
evaluation that draws its data sees the same data, and one that forgets ``eval()`` compares like
with like. It runs eagerly: in a compiled model no hook would be seen and
each change of a slot would compile again.
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, SupportsFloat

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from typing_extensions import override

from kasmina.adapters.torch.acts import Visits
from kasmina.adapters.torch.buffers import buffers_kept
from kasmina.adapters.torch.graft import Slots
from kasmina.adapters.torch.randomness import RandomStreams, devices_of, undisturbed
from kasmina.domain.errors import KasminaError, UnknownName
from kasmina.domain.evidence import Metric
from kasmina.domain.objective import Objective
from kasmina.domain.projections import SlotView

Evaluate = Callable[[], Mapping[str, SupportsFloat]]
"""Metrics on held-out data by name, the objective's among them."""

Prediction = Callable[[Any], Tensor]
"""The tensor to compare, out of the model's output."""

_CHUNK = 1 << 20  # elements that are held in float64 at a time: a language model's logits are many


class MissingObjective(UnknownName):
    """An evaluation that did not return the run's objective."""

    kind = "metric"

    @override
    def _hint(self) -> str:
        return f"{super()._hint()} (the objective must be among what evaluate() returns)"


class UnusableMetrics(KasminaError):
    """An evaluation that returned something else than numbers by name."""

    def __init__(self, what: str, value: object) -> None:
        self.what = what
        self.value = value
        super().__init__(
            f"{what} is a {type(value).__qualname__}, {str(value)[:80]!r}; evaluate() must return "
            f"a mapping from names to numbers"
        )


class SlotNotEvaluated(KasminaError):
    """An evaluation that never ran the slot whose seed it was to judge."""

    def __init__(self, slot_id: str) -> None:
        self.slot_id = slot_id
        super().__init__(
            f"evaluate() never ran slot {slot_id!r}, so it cannot tell what the seed there is "
            f"worth; evaluate the grafted model itself, not a copy or an average of it nor kept "
            f"figures, and do not graft a module that torch fuses in eval mode, as "
            f"nn.TransformerEncoder does with its layers' parts (cull the seed to go on without "
            f"it, or end_epoch(None) for an epoch without measurement)"
        )


class IncomparableOutputs(KasminaError):
    """A model whose outputs with and without a seed cannot be compared."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(
            f"agreement cannot be measured: {problem}; name the tensor to compare with "
            f"prediction=..., a function of the model's output"
        )


@frozen(kw_only=True)
class Measured:
    """The figures of one evaluation, finite or not; nothing for an epoch without one."""

    objective: float | None = None
    metrics: tuple[Metric, ...] = ()


@frozen(kw_only=True)
class Shadow:
    """The model without a seed, against the model with it on the same batches.

    ``agreement`` is the Pearson correlation over all ``values`` output elements, in [-1, 1]. It is
    NaN where an output was not finite, 1 for equal outputs, and ``None`` where it is undefined:
    one of the outputs was constant and the other not equal to it, or no output was seen.
    """

    objective_without: float | None
    agreement: float | None
    values: int


class Evaluator:
    """Measures the model of ``slots`` by the user's own evaluation.

    ``prediction`` picks the tensor to compare out of the model's output. Left out, it is the
    output itself, or else the largest floating-point tensor in it.
    """

    def __init__(
        self, slots: Slots, objective: Objective, *, prediction: Prediction | None = None
    ) -> None:
        self._slots = slots
        self._objective = objective.name
        self._prediction = prediction or largest_tensor
        self._began: RandomStreams | None = None
        self._modes: list[tuple[nn.Module, bool]] = []

    def measure(self, evaluate: Evaluate) -> Measured:
        """The plain evaluation: one call, and nothing else.

        Raises ``MissingObjective`` and ``UnusableMetrics``.
        """
        self._began = RandomStreams.capture(devices_of(self._slots.model))
        self._modes = [(module, module.training) for module in self._slots.model.modules()]
        return self._figures(evaluate())

    def showing(self, evaluate: Evaluate, view: SlotView) -> Measured:
        """The evaluation of the model with one slot acting as ``view`` says.

        Raises as measure, and ``SlotNotEvaluated``.
        """
        with self._without_trace(), self._slots.showing(view.slot_id, view) as visits:
            figures = self._figures(evaluate())
        _require_visits(visits, view.slot_id)
        return figures

    def shadow(self, evaluate: Evaluate, with_view: SlotView, without_view: SlotView) -> Shadow:
        """One evaluation as ``without_view`` says, each batch run as ``with_view`` says too.

        Outputs count that the model gives without gradient. Raises as measure, and
        ``SlotNotEvaluated`` and ``IncomparableOutputs``.
        """
        correlation = Correlation()
        with (
            self._without_trace(),
            self._slots.showing(without_view.slot_id, without_view) as visits,
            self._compared(with_view, correlation),
        ):
            figures = self._figures(evaluate())
        _require_visits(visits, without_view.slot_id)
        return Shadow(
            objective_without=figures.objective,
            agreement=correlation.value(),
            values=correlation.values,
        )

    def _figures(self, returned: object) -> Measured:
        if not isinstance(returned, Mapping):
            raise UnusableMetrics("what evaluate() returned", returned)
        metrics = tuple(_metric(name, value) for name, value in returned.items())
        if self._objective not in returned:
            raise MissingObjective(self._objective, returned)
        objective = next(metric.value for metric in metrics if metric.name == self._objective)
        return Measured(objective=objective, metrics=metrics)

    @contextmanager
    def _without_trace(self) -> Iterator[None]:
        model = self._slots.model
        streams = [slot.stream for slot in self._slots.values() if slot.stream is not None]
        with ExitStack() as stack:
            for stream in streams:
                stack.callback(stream.set_state, stream.state())
            stack.enter_context(undisturbed(devices_of(model)))
            if self._began is not None:
                self._began.restore()
            stack.enter_context(eagerly())
            stack.enter_context(torch.no_grad())
            stack.enter_context(buffers_kept(model.modules()))
            stack.enter_context(_kept(model))
            for module, training in self._modes:
                module.training = training
            yield

    @contextmanager
    def _compared(self, view: SlotView, correlation: "Correlation") -> Iterator[None]:
        devices = devices_of(self._slots.model)
        began = RandomStreams.capture(devices)

        def begin(model: nn.Module, _args: tuple[Any, ...]) -> None:
            nonlocal began
            if model is self._slots.model:
                began = RandomStreams.capture(devices)

        def compare(
            model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
        ) -> None:
            # A copy of the model has a copy of this hook, and slots of its own.
            if model is not self._slots.model or torch.is_grad_enabled():
                return
            with undisturbed(devices), self._slots.showing(view.slot_id, view):
                began.restore()
                # Not model(): its other hooks have run, or are about to.
                other = model.forward(*args, **kwargs)
            correlation.add(self._prediction(other), self._prediction(output))

        model = self._slots.model
        handles = (
            model.register_forward_pre_hook(begin, prepend=True),
            model.register_forward_hook(compare, prepend=True, with_kwargs=True),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class Correlation:
    """Pearson's correlation of two streams of values, one pass, in float64 on their device.

    Moments are those of deviations from each stream's first value, so that a constant has exactly
    no variance; batches are merged after Chan, Golub and LeVeque (1979). The device is waited for
    in ``value`` alone.
    """

    def __init__(self) -> None:
        self.values = 0
        self._origin = self._mean = self._scatter = torch.zeros(0)
        self._equal = torch.ones((), dtype=torch.bool)

    def add(self, one: object, other: object) -> None:
        """Take a pair of tensors of one shape. Raises ``IncomparableOutputs``."""
        if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
            raise IncomparableOutputs(f"the prediction is a {type(one).__qualname__}")
        if one.shape != other.shape:
            raise IncomparableOutputs(
                f"the output has shape {tuple(one.shape)} with the seed and {tuple(other.shape)} "
                f"without it"
            )
        parts = (torch.split(tensor.detach().reshape(-1), _CHUNK) for tensor in (one, other))
        for pair in zip(*parts, strict=True):
            if pair[0].numel():
                self._merge(torch.stack([_double(values) for values in pair]))

    def _merge(self, pair: Tensor) -> None:
        count = pair.shape[1]
        equal = (pair[0] == pair[1]).all()
        if self.values == 0:
            self._origin, self._equal = pair[:, :1].clone(), equal
            self._mean, self._scatter = pair.new_zeros(2), pair.new_zeros(2, 2)
        shifted = pair - self._origin
        mean = shifted.mean(1)
        deviations = shifted - mean[:, None]
        total, drift = self.values + count, mean - self._mean
        between = torch.outer(drift, drift) * (self.values * count / total)
        self._scatter = self._scatter + deviations @ deviations.T + between
        self._mean = self._mean + drift * (count / total)
        self._equal = self._equal & equal
        self.values = total

    def value(self) -> float | None:
        """The correlation, as ``Shadow.agreement`` describes it."""
        if self.values == 0:
            return None
        figures = torch.cat([self._scatter.flatten(), self._equal[None].to(self._scatter.dtype)])
        told: list[float] = figures.tolist()
        first, product, _, second, equal = told
        if not math.isfinite(first + second + product):
            return math.nan
        if equal:
            return 1.0
        if first == 0.0 or second == 0.0:
            return None
        return min(max(product / math.sqrt(first) / math.sqrt(second), -1.0), 1.0)


def largest_tensor(output: Any) -> Tensor:  # noqa: ANN401 - whatever a model returns
    """The output itself, or the first of the largest floating-point tensors in it.

    Raises ``IncomparableOutputs`` where there is none.
    """
    if isinstance(output, Tensor):
        return output
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    floating = [leaf for leaf in leaves if leaf.is_floating_point()]
    if not floating:
        raise IncomparableOutputs(
            f"the model returned a {type(output).__qualname__} without a floating-point tensor"
        )
    return max(floating, key=Tensor.numel)


def _double(values: Tensor) -> Tensor:
    # Apple's devices know no float64.
    return (values.cpu() if values.device.type == "mps" else values).to(torch.float64)


def _require_visits(visits: Visits, slot_id: str) -> None:
    """A contrast that never ran the slot would read as "no difference", and pass every gate."""
    if visits.count == 0:
        raise SlotNotEvaluated(slot_id)


def _metric(name: object, value: object) -> Metric:
    if not (isinstance(name, str) and name.strip()):
        raise UnusableMetrics("the name of a metric", name)
    if not isinstance(value, SupportsFloat):
        raise UnusableMetrics(f"metric {name!r}", value)
    try:
        return Metric(name=name, value=float(value))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # an array of several
        raise UnusableMetrics(f"metric {name!r}", value) from error


@contextmanager
def eagerly() -> Iterator[None]:
    """Run compiled code eagerly, where the compiler is loaded at all (which takes a second)."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    """Modes and gradients of ``model`` are at the end what they were.

    Meanwhile there are no gradients, so that nothing is added to those that there were.
    """
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, gradient in gradients:
            parameter.grad = gradient
