"""The rules of G0 to G5: state in, outcome out. They may change; recorded outcomes do not."""

from collections.abc import Callable

from kasmina.domain.evidence import Check, Comparison, GateOutcome
from kasmina.domain.policies import GatePolicy
from kasmina.domain.stages import Gate, Health, Incubator, Stage
from kasmina.domain.state import RunState, SeedState, SlotState

Rule = Callable[[RunState, SlotState, SeedState, GatePolicy, int], tuple[tuple[Check, ...], float]]


def evaluate(
    gate: Gate, run: RunState, slot: SlotState, policy: GatePolicy, step: int
) -> GateOutcome:
    """What ``gate`` (G1 to G5) decides about the seed in ``slot`` at optimizer step ``step``."""
    seed = slot.seed
    if seed is None:
        raise ValueError(f"slot {slot.slot_id!r} holds no seed for {gate.value} to judge")
    identity = _identity(seed.seed_id, seed.blueprint_id)
    checks, score = _RULES[gate](run, slot, seed, policy, step)
    return GateOutcome.of(gate, identity + checks + _extra(gate, run, policy), score)


def evaluate_g0(seed_id: str, blueprint_id: str, run: RunState, policy: GatePolicy) -> GateOutcome:
    """What G0 decides about a seed that is about to germinate."""
    checks = _identity(seed_id, blueprint_id) + _extra(Gate.G0, run, policy)
    return GateOutcome.of(Gate.G0, checks, float(all(check.passed for check in checks)))


def stability(slot: SlotState, run: RunState, policy: GatePolicy) -> float | None:
    """The share of the present stage's measured epochs no worse than its start by the tolerance.

    ``None`` before the first epoch with an objective. An epoch whose objective was not finite
    counts as worse.
    """
    changes = [
        run.objective.improvement(slot.stage_baseline, objective)
        for objective in slot.objectives
        if objective is not None
    ]
    judged = [change for change in changes if change is not None]
    if not judged:
        return None
    return sum(change >= -policy.tolerance for change in judged) / len(judged)


def _identity(seed_id: str, blueprint_id: str) -> tuple[Check, ...]:
    return (
        _holds("seed_id_present", fact=bool(seed_id.strip())),
        _holds("blueprint_id_present", fact=bool(blueprint_id.strip())),
    )


def _holds(name: str, *, fact: bool | None) -> Check:
    measured = None if fact is None else float(fact)
    return Check.of(name, measured, Comparison.EQUAL, 1.0)


def _extra(gate: Gate, run: RunState, policy: GatePolicy) -> tuple[Check, ...]:
    return tuple(
        Check.of(
            extra.metric,
            run.metrics.get(extra.metric),
            extra.comparison,
            extra.required,
        )
        for extra in policy.extra_checks
        if extra.gate is gate
    )


def _g1(
    run: RunState, slot: SlotState, seed: SeedState, policy: GatePolicy, step: int
) -> tuple[tuple[Check, ...], float]:
    checks = (
        Check.of(
            "stage_code",
            float(slot.stage.code),
            Comparison.EQUAL,
            float(Stage.GERMINATED.code),
        ),
        _holds("shape_preserved", fact=seed.probe.preserves_shape),
        _holds("dtype_preserved", fact=seed.probe.preserves_dtype),
        Check.of(
            "trainable_parameters", float(seed.probe.trainable_parameters), Comparison.AT_LEAST, 1.0
        ),
    )
    return checks, float(all(check.passed for check in checks))


def _g2(
    run: RunState, slot: SlotState, seed: SeedState, policy: GatePolicy, step: int
) -> tuple[tuple[Check, ...], float]:
    improvement = run.objective.improvement(slot.stage_baseline, run.latest)
    score = (improvement or 0.0) / policy.g2.full_score_improvement
    isolated = Check.of(
        "isolation_violations",
        float(seed.violations),
        Comparison.AT_MOST,
        float(policy.g2.max_isolation_violations),
    )
    if seed.incubation.incubator is Incubator.NONE:  # it learnt nothing that could be judged
        return (isolated, _rehearsed(seed, policy)), score
    checks = [
        Check.of("improvement", improvement, Comparison.AT_LEAST, policy.g2.min_improvement),
        isolated,
        Check.of(
            "epochs_in_stage",
            float(slot.epochs_in_stage),
            Comparison.AT_LEAST,
            float(policy.g2.min_epochs),
        ),
        Check.of("seed_gradient_norm", seed.gradient_norm, Comparison.FINITE, None),
        Check.of("nonfinite_values", float(seed.nonfinite), Comparison.AT_MOST, 0.0),
    ]
    if seed.best_rehearsal is not None:
        checks.append(_rehearsed(seed, policy))
    return tuple(checks), score


def _rehearsed(seed: SeedState, policy: GatePolicy) -> Check:
    """The held-out objective with the seed at its best candidate for alpha, against without it."""
    contribution = None if seed.best_rehearsal is None else seed.best_rehearsal[1]
    return Check.of(
        "rehearsed_contribution",
        contribution,
        Comparison.AT_LEAST,
        policy.g2.min_rehearsed_contribution,
    )


def _g3(
    run: RunState, slot: SlotState, seed: SeedState, policy: GatePolicy, step: int
) -> tuple[tuple[Check, ...], float]:
    alpha = seed.alpha(step)
    required = policy.g3.min_alpha * seed.target
    checks = (
        Check.of("alpha", alpha, Comparison.AT_LEAST, required),
        Check.of(
            "epochs_in_stage",
            float(slot.epochs_in_stage),
            Comparison.AT_LEAST,
            float(policy.g3.min_epochs),
        ),
    )
    return checks, alpha / seed.target


def _g4(
    run: RunState, slot: SlotState, seed: SeedState, policy: GatePolicy, step: int
) -> tuple[tuple[Check, ...], float]:
    checks = (
        Check.of(
            "shadow_evaluations",
            float(seed.shadow_evaluations),
            Comparison.AT_LEAST,
            float(policy.g4.min_shadow_evaluations),
        ),
        Check.of("agreement", seed.agreement, Comparison.AT_LEAST, policy.g4.min_agreement),
        Check.of(
            "shadow_contribution", seed.shadow_contribution, Comparison.AT_LEAST, -policy.tolerance
        ),
    )
    return checks, seed.agreement or 0.0


def _g5(
    run: RunState, slot: SlotState, seed: SeedState, policy: GatePolicy, step: int
) -> tuple[tuple[Check, ...], float]:
    improvement = run.objective.improvement(seed.baseline, run.latest)
    checks = [
        Check.of("total_improvement", improvement, Comparison.ABOVE, policy.g5.min_improvement),
        Check.of(
            "epochs_in_stage",
            float(slot.epochs_in_stage),
            Comparison.AT_LEAST,
            float(policy.g5.min_epochs),
        ),
        _holds("healthy", fact=seed.health is Health.HEALTHY),
        Check.of(
            "stability",
            stability(slot, run, policy),
            Comparison.AT_LEAST,
            policy.g5.min_stability,
        ),
    ]
    if seed.contribution is not None:
        checks.append(
            Check.of(
                "contribution", seed.contribution, Comparison.ABOVE, policy.g5.min_contribution
            )
        )
    return tuple(checks), (improvement or 0.0) / policy.g5.full_score_improvement


_RULES: dict[Gate, Rule] = {
    Gate.G1: _g1,
    Gate.G2: _g2,
    Gate.G3: _g3,
    Gate.G4: _g4,
    Gate.G5: _g5,
}
