"""Figures of all ranks as one: what any of them saw counts, and metrics are averaged."""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.distributed as dist
from typing_extensions import override

from kasmina.adapters.torch.distributed.ranks import Ranks, RanksDiverged, Reading
from kasmina.adapters.torch.graft import Slots
from kasmina.adapters.torch.isolation import Monitor, SlotObservation
from kasmina.adapters.torch.measurement import Evaluate, Evaluator, Measured, Prediction, Shadow
from kasmina.domain.evidence import Metric, Violation
from kasmina.domain.objective import Objective
from kasmina.domain.projections import SlotView

Observed = Mapping[str, SlotObservation]

_SAME = 1e-3  # relative; norms of the same gradients on unlike devices differ by less


class RankedEvaluator(Evaluator):
    """Evaluates on every rank, in lockstep, and gives all of them the same figures.

    A rank on which ``evaluate`` raises makes the others raise ``RankFailed``.
    """

    def __init__(
        self,
        slots: Slots,
        objective: Objective,
        ranks: Ranks,
        *,
        prediction: Prediction | None = None,
    ) -> None:
        super().__init__(slots, objective, prediction=prediction)
        self._ranks = ranks

    @override
    def measure(self, evaluate: Evaluate) -> Measured:
        share_buffers(self._slots)
        act = partial(super().measure, evaluate)
        return self._ranks.together("evaluate()", act, self._read)

    @override
    def showing(self, evaluate: Evaluate, view: SlotView) -> Measured:
        act = partial(super().showing, evaluate, view)
        return self._ranks.together("evaluate() with a seed shown otherwise", act, self._read)

    @override
    def shadow(self, evaluate: Evaluate, with_view: SlotView, without_view: SlotView) -> Shadow:
        """As on one process; the agreement is the ranks' mean, by the values each compared."""
        act = partial(super().shadow, evaluate, with_view, without_view)
        return self._ranks.together("evaluate() with a shadow", act, self._overlaid)

    def _read(self, measured: Sequence[Measured]) -> Measured:
        names = [tuple(metric.name for metric in each.metrics) for each in measured]
        for rank, other in enumerate(names):
            if other != names[0]:
                raise RanksDiverged(
                    "which metrics there are", first=str(names[0]), rank=rank, other=str(other)
                )
        columns = zip(*(each.metrics for each in measured), strict=True)
        return Measured(
            objective=self._figure([each.objective for each in measured]),
            metrics=tuple(
                Metric(name=column[0].name, value=self._value([m.value for m in column]))
                for column in columns
            ),
        )

    def _overlaid(self, shadows: Sequence[Shadow]) -> Shadow:
        values = sum(each.values for each in shadows)
        known = [(each.agreement, each.values) for each in shadows if each.agreement is not None]
        weighed = sum(count for _, count in known)
        agreed = [agreement for agreement, _ in known]
        return Shadow(
            objective_without=self._figure([each.objective_without for each in shadows]),
            agreement=None
            if not known
            else agreed[0]
            if len(set(agreed)) == 1
            else math.fsum(agreement * count for agreement, count in known) / weighed,
            values=values,
        )

    def _figure(self, values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return self._value(known) if len(known) == len(values) else None

    def _value(self, values: Sequence[float]) -> float:
        alike = all(value == values[0] for value in values)
        if alike or self._ranks.plan.reading is Reading.FIRST:
            return values[0]
        if all(map(math.isfinite, values)):
            return math.fsum(values) / len(values)
        return sum(values) / len(values)  # NaN, or an infinity


def share_buffers(slots: Slots) -> None:
    """Give the seeds of every rank the buffers of rank 0, as a wrapper does for its host.

    In training those of BatchNorm are written and not read, so once before a look is enough.
    """
    with torch.no_grad():
        for slot in slots.values():
            if slot.seed is not None:
                for buffer in slot.seed.buffers():
                    dist.broadcast(buffer, src=0)


class RankedMonitor(Monitor):
    """Observes on every rank; what is collected is the worst that any of them saw."""

    def __init__(self, slots: Slots, ranks: Ranks, *, every: int = 50) -> None:
        super().__init__(slots, every=every)
        self._ranks = ranks

    @override
    def collect(self) -> dict[str, SlotObservation]:
        return self._ranks.together("collect the epoch's evidence", super().collect, worst)


def worst(observed: Sequence[Observed]) -> dict[str, SlotObservation]:
    """The most that any rank counted, of each kind, by slot.

    Not the sum: the bounds of the gates are those of one process, and what happens on all ranks
    at once is one mishap. Raises ``RanksDiverged`` where the seeds' gradients are not the same.
    """
    return {
        slot_id: _worst(slot_id, [each[slot_id] for each in observed]) for slot_id in observed[0]
    }


def _worst(slot_id: str, observed: Sequence[SlotObservation]) -> SlotObservation:
    first = observed[0]
    for rank, other in enumerate(observed):
        if not _same(first.gradient_norm, other.gradient_norm):
            raise RanksDiverged(
                f"the gradient of the seed in slot {slot_id!r}, which was not averaged",
                first=f"norm {first.gradient_norm}",
                rank=rank,
                other=f"norm {other.gradient_norm}",
            )
    violations: dict[tuple[object, str], Violation] = {}
    for seen in (violation for each in observed for violation in each.violations):
        key = seen.leak, seen.subject
        if key not in violations or violations[key].count < seen.count:
            violations[key] = seen
    return SlotObservation(
        gradient_norm=first.gradient_norm,
        nonfinite_outputs=max(each.nonfinite_outputs for each in observed),
        nonfinite_gradients=max(each.nonfinite_gradients for each in observed),
        violations=tuple(violations.values()),
    )


def _same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    if not (math.isfinite(one) and math.isfinite(other)):
        return math.isfinite(one) == math.isfinite(other)
    return math.isclose(one, other, rel_tol=_SAME, abs_tol=1e-12)
