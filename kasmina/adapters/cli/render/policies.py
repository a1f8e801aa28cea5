"""The thresholds by which a run's gates decide."""

from collections.abc import Iterator

import attrs

from kasmina.adapters.cli.render.figures import number
from kasmina.domain.policies import GatePolicy, MetricCheck


def policy_text(policy: GatePolicy) -> str:
    """What of a policy is not as kasmina ships it: ``g2.min_improvement 1``."""
    default = dict(_thresholds(attrs.asdict(GatePolicy())))
    changed = [
        f"{name} {number(value)}"
        for name, value in _thresholds(attrs.asdict(policy))
        if value != default[name]
    ]
    return ", ".join([*changed, *map(_extra, policy.extra_checks)]) or "the default thresholds"


def _thresholds(policy: dict[str, object], prefix: str = "") -> Iterator[tuple[str, float | None]]:
    for name, value in policy.items():
        if isinstance(value, dict):
            yield from _thresholds(value, f"{prefix}{name}.")
        elif value is None or isinstance(value, int | float):
            yield f"{prefix}{name}", value


def _extra(check: MetricCheck) -> str:
    required = number(check.required)
    return f"{check.gate.value} asks {check.metric} {check.comparison.value} {required}"
