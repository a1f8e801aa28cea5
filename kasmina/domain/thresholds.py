"""The numbers by which gates decide, each by a name of its own, and a policy with others instead.

``G2.min_improvement`` is a field of the gate's policy, ``tolerance`` one of the whole policy,
``timeouts.training`` a stage's time-out, and ``G5.val_loss`` the bound of a user's own check.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import attrs
from attrs import field, frozen
from attrs.validators import min_len

from kasmina.domain.errors import KasminaError, UnknownName
from kasmina.domain.policies import GatePolicy
from kasmina.domain.validators import not_blank

_NONE = "none"
_MOST_VALUES = 1000

_SCALE = "it scales a score, by which nothing is decided"
_DECIDES_NOTHING = {
    "G2.full_score_improvement": _SCALE,
    "G5.full_score_improvement": _SCALE,
    "embargo_epochs": "it is how long a slot rests after a cull, and no gate asks for it",
    "cull_ramp_epochs": "it is how a culled seed is ramped out, and no gate asks for it",
}


class UnknownThreshold(UnknownName):
    """No gate of the policies in force decides by a number of that name."""

    kind = "threshold"


class InvalidThreshold(KasminaError):
    """A threshold that cannot be meant: a text, a value or a combination that makes no sense."""

    def __init__(self, name: str, problem: str, mend: str) -> None:
        self.name = name
        self.problem = problem
        self.mend = mend
        super().__init__(f"threshold {name!r}: {problem}; {mend}")


@frozen(kw_only=True)
class Threshold:
    """Another value for the threshold ``name``; ``None`` lifts a time-out."""

    name: str = field(validator=not_blank)
    value: float | None

    @classmethod
    def parse(cls, text: str) -> "Threshold":
        """The threshold in ``NAME=VALUE``. Raises ``InvalidThreshold``."""
        name, value = _parted(text, "NAME=VALUE, as in G2.min_improvement=1.0")
        return cls(name=name, value=_number(name, value))


@frozen(kw_only=True)
class Sweep:
    """Several values for one threshold, to be tried one by one."""

    name: str = field(validator=not_blank)
    values: tuple[float | None, ...] = field(validator=min_len(1))

    @classmethod
    def parse(cls, text: str) -> "Sweep":
        """The sweep in ``NAME=START:STOP:STEP``, both ends included, or ``NAME=A,B,C``.

        Raises ``InvalidThreshold``, also for a range of more than a thousand values.
        """
        name, wanted = _parted(text, "NAME=START:STOP:STEP, as in G2.min_improvement=0:3:0.25")
        if ":" in wanted:
            return cls(name=name, values=_range(name, wanted))
        return cls(name=name, values=tuple(_number(name, value) for value in wanted.split(",")))

    @property
    def thresholds(self) -> tuple[Threshold, ...]:
        """A threshold for each value."""
        return tuple(Threshold(name=self.name, value=value) for value in self.values)


def thresholds_of(policy: GatePolicy) -> dict[str, float | None]:
    """Every threshold of ``policy`` by name.

    A user's checks that ask one metric of one gate twice share a name, and have the first's bound
    here.
    """
    found: dict[str, float | None] = {
        f"{prefix}.{attribute}": value
        for prefix, part in _parts(policy).items()
        for attribute, value in attrs.asdict(part).items()
        if f"{prefix}.{attribute}" not in _DECIDES_NOTHING
    }
    found["tolerance"] = policy.tolerance
    for check in policy.extra_checks:
        found.setdefault(f"{check.gate.value}.{check.metric}", check.required)
    return found


def with_thresholds(policy: GatePolicy, thresholds: Iterable[Threshold]) -> GatePolicy:
    """``policy`` with other values. Raises ``UnknownThreshold`` and ``InvalidThreshold``."""
    for threshold in thresholds:
        policy = _with_threshold(policy, threshold)
    return policy


def in_force(
    policies: Sequence[GatePolicy], thresholds: Sequence[Threshold]
) -> dict[str, tuple[float | None, ...]]:
    """The values that ``thresholds`` have in ``policies``, each once, by the threshold's name.

    Raises ``UnknownThreshold`` for one that no policy has, and ``InvalidThreshold`` for one that
    is given twice or decides nothing.
    """
    for name, times in Counter(threshold.name for threshold in thresholds).items():
        if times > 1:
            raise InvalidThreshold(name, "it is given more than once", "give it one value")
    known = [thresholds_of(policy) for policy in policies]
    found = {}
    for threshold in thresholds:
        name = threshold.name
        values = dict.fromkeys(named[name] for named in known if name in named)
        if not values:
            raise _unknown(name, {other for named in known for other in named})
        found[name] = tuple(values)
    return found


def _parts(policy: GatePolicy) -> Mapping[str, Any]:
    return {
        "G2": policy.g2,
        "G3": policy.g3,
        "G4": policy.g4,
        "G5": policy.g5,
        "timeouts": policy.timeouts,
    }


def _unknown(name: str, known: Iterable[str]) -> KasminaError:
    if name in _DECIDES_NOTHING:
        return InvalidThreshold(name, _DECIDES_NOTHING[name], "name a threshold of a gate")
    return UnknownThreshold(name, known)


def _with_threshold(policy: GatePolicy, threshold: Threshold) -> GatePolicy:
    name, value = threshold.name, threshold.value
    known = thresholds_of(policy)
    if name not in known:
        raise _unknown(name, known)
    try:
        return _replaced(policy, name, value)
    except (TypeError, ValueError) as error:
        raise InvalidThreshold(name, str(error), "give another value") from None


def _replaced(policy: GatePolicy, name: str, value: float | None) -> GatePolicy:
    prefix, _, attribute = name.partition(".")
    if name == "tolerance":
        fitting = _fitting(attrs.fields(GatePolicy).tolerance, value)
        return attrs.evolve(policy, **{name: fitting})
    parts = _parts(policy)
    fields = attrs.fields_dict(type(parts[prefix])) if prefix in parts else {}
    if attribute in fields:
        fitting = _fitting(fields[attribute], value)
        part = attrs.evolve(parts[prefix], **{attribute: fitting})
        return attrs.evolve(policy, **{prefix.lower(): part})
    return _with_bound(policy, name, value)


def _with_bound(policy: GatePolicy, name: str, value: float | None) -> GatePolicy:
    """``policy`` with another bound for a user's check."""
    if value is None:
        raise ValueError("the check needs a number, got none")
    asked = [f"{check.gate.value}.{check.metric}" == name for check in policy.extra_checks]
    if sum(asked) > 1:
        raise ValueError("the gate asks for this metric more than once, by bounds of one name")
    checks = tuple(
        attrs.evolve(check, required=value) if chosen else check
        for check, chosen in zip(policy.extra_checks, asked, strict=True)
    )
    return attrs.evolve(policy, extra_checks=checks)


def _fitting(attribute: "attrs.Attribute[Any]", value: float | None) -> Any:  # noqa: ANN401 - int or float, as the attribute has it
    """``value`` as the attribute's own type has it. Raises ``ValueError`` where it cannot."""
    if value is None:
        if attribute.type == int | None:
            return None
        raise ValueError(f"{attribute.name} needs a number, got none")
    if attribute.type is float:
        return value
    if not math.isfinite(value) or value != round(value):
        raise ValueError(f"{attribute.name} must be a whole number, got {value!r}")
    return round(value)


def _parted(text: str, form: str) -> tuple[str, str]:
    # From the right: a metric's name may hold anything.
    name, sign, value = (part.strip() for part in text.rpartition("="))
    if not (sign and name and value):
        raise InvalidThreshold(text, "it has no name or no value", f"write {form}")
    return name, value


def _number(name: str, text: str) -> float | None:
    if text.strip() == _NONE:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise InvalidThreshold(name, f"{text.strip()!r} is not a number", "give a number, or none")
    return value


def _range(name: str, text: str) -> tuple[float, ...]:
    """START:STOP:STEP, in decimal arithmetic: a tenth three times is 0.3."""
    try:
        start, stop, step = map(Decimal, text.split(":"))
        count = math.floor((stop - start) / step) + 1
    except (ArithmeticError, ValueError):
        raise InvalidThreshold(
            name, f"{text!r} is not a range", "write START:STOP:STEP, as in 0:3:0.25"
        ) from None
    if not 1 <= count <= _MOST_VALUES:
        raise InvalidThreshold(
            name,
            f"the range {text!r} holds no value, or more than {_MOST_VALUES:,}",
            "choose another step",
        )
    return tuple(float(start + index * step) for index in range(count))
