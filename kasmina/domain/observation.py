"""A slot as the observation of a Markov decision process, for policies that decide when to grow."""

import math
from array import array

from attrs import asdict, frozen

from kasmina.domain.stages import Gate
from kasmina.domain.state import RunState

NOT_EVALUATED = 0.0
"""The score of a gate whose mask is 0."""


@frozen(kw_only=True)
class Observation:
    """One slot's features, in the order of the vector.

    ``stage`` is the code of the stage (0, UNKNOWN, is never produced), ``epochs_in_stage`` a count,
    ``alpha`` in [0, 1], ``improvement`` since the stage began in the objective's unit (0 until
    measured), gate scores in [0, 1] with a mask of 1 where the gate was evaluated,
    ``contribution`` in the objective's unit with its mask, ``relative_parameters`` the seed's
    parameters over the host's. Every feature is finite: a NaN or infinite measurement, which no
    policy could learn from, counts here as not measured.
    """

    stage: float
    epochs_in_stage: float
    alpha: float
    improvement: float
    g0: float
    g1: float
    g2: float
    g3: float
    g4: float
    g5: float
    g0_evaluated: float
    g1_evaluated: float
    g2_evaluated: float
    g3_evaluated: float
    g4_evaluated: float
    g5_evaluated: float
    contribution: float
    contribution_measured: float
    relative_parameters: float

    def vector(self) -> "array[float]":
        """The features as float32, shape ``(19,)``; it supports the buffer protocol."""
        return array("f", asdict(self).values())


def observe(run: RunState, slot_id: str) -> Observation:
    """The observation of one slot. Raises ``UnknownSlot``."""
    slot = run.slot(slot_id)
    seed = slot.seed
    improvement = _finite(run.objective.improvement(slot.stage_baseline, run.latest))
    contribution = None if seed is None else _finite(seed.contribution)
    scores = {gate.value.lower(): outcome.score for gate, outcome in slot.outcomes.items()}
    gates = [gate.value.lower() for gate in Gate]
    return Observation(
        stage=float(slot.stage.code),
        epochs_in_stage=float(slot.epochs_in_stage),
        alpha=0.0 if seed is None else seed.alpha(run.step),
        improvement=improvement or 0.0,
        **{gate: scores.get(gate, NOT_EVALUATED) for gate in gates},
        **{f"{gate}_evaluated": float(gate in scores) for gate in gates},
        contribution=contribution or 0.0,
        contribution_measured=float(contribution is not None),
        relative_parameters=0.0 if seed is None else relative_parameters(run, seed.parameters),
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def relative_parameters(run: RunState, parameters: int) -> float:
    """``parameters`` over the host's; a host without any counts as one."""
    return parameters / max(run.host.parameters, 1)
