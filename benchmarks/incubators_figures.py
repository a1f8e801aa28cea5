"""The raw figures of the incubators' comparison, kept as CSV, and the tables made of them."""
# ruff: noqa: INP001 - beside a script, which imports it

import csv
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from attrs import define, field
from incubators_arms import AFTER, CLOSE, INCUBATION, LEVEL, LOOKS, Way

RESULTS = Path(__file__).parent / "results"

Row = Mapping[str, str]
"""One line of raw figures, by column. What does not apply is empty."""

Arms = Mapping[tuple[str, ...], Sequence[Row]]
"""The lines of each arm, one for each random seed, by what the arm is."""


@define
class Raw:
    """Raw figures: ``figures`` by ``what`` they are about, of which there is one line each."""

    path: Path
    what: tuple[str, ...]
    figures: tuple[str, ...]
    rows: dict[tuple[str, ...], Row] = field(factory=dict)

    def read(self) -> None:
        """Take in what earlier runs have kept."""
        if self.path.exists():
            with self.path.open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    self.rows[self._key(row)] = row

    def add(self, what: Mapping[str, object], figures: Mapping[str, float | None]) -> None:
        """Add a line, or replace the one about the same."""
        row = {name: str(what[name]) for name in self.what}
        found = ((name, figures[name]) for name in self.figures)
        row |= {name: "" if value is None else f"{value:.5g}" for name, value in found}
        self.rows[self._key(row)] = row

    def write(self) -> None:
        """Keep all of it."""
        if not self.rows:
            return
        self.path.parent.mkdir(exist_ok=True)
        with self.path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.what + self.figures, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows.values())

    def of(self, task: str) -> list[Row]:
        """The lines about one task."""
        return [row for row in self.rows.values() if row["task"] == task]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Those there are figures of, in order."""
        return tuple(dict.fromkeys(row["task"] for row in self.rows.values()))

    def _key(self, row: Row) -> tuple[str, ...]:
        return tuple(row[name] for name in self.what)


GROWN = Raw(
    RESULTS / "incubators.csv",
    ("task", "blueprint", "arm", "rate", "warmup", "seed"),
    ("accuracy", "shock", "size", "away", "gain", "target", "step_ms"),
)
FAR = Raw(
    RESULTS / "incubators_far.csv",
    ("task", "arm", "rate", "epochs", "seed"),
    ("size", "away", "gain"),
)

NOTES = f"""\
Every arm with one random seed parts from the same trained host, sees the same batches, and grows
at the same moment, {INCUBATION} epochs of 20 steps after germination; kasmina's gates let all
pass. Means ± standard errors over n random seeds; Δ is the paired difference to the host alone.

- *accuracy*: held out from training and gates, in percent, the mean of the last {LEVEL} epochs.
- *shock*: the mean accuracy of the {LEVEL} epochs before the exposure, minus the lowest seen after
  it, in points: at once, after every {LOOKS} steps of {CLOSE} epochs, and after each of {AFTER}
  epochs. The host alone is looked at in the same moments: its figure is its own wobble.
- *size*, *away*: norm of the seed's output, and of its distance from the host's features, by the
  norm of these, at the end of incubation on the gates' set.
- *gain*: the gates' loss without the seed minus with it at alpha 1, at the end of incubation
  (`rehearsed_contribution`), in nats; *gained*: with how many random seeds it was above 0.
- *rate*, *warm-up*: the seed's learning rate relative to the host's, and the steps in which it
  rises. After the exposure it keeps that rate.
- *target*: the alpha at which the seed stays.
- *step*: CPU time of a training step during incubation by that of the host alone, median. Noisy:
  other programs ran beside it."""

FAR_NOTES = """\
In-line seeds that are never exposed, after so many epochs of 20 steps: how far *away* from the
host's features, and the *gain*."""


def document() -> str:
    """The results, with where they come from."""
    where = (
        f"{platform.machine()}, {os.cpu_count()} CPUs, one thread, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )
    parts = [f"# Incubators compared\n\n{where}.", NOTES]
    parts += [f"## {task}\n\n{grown(GROWN.of(task))}" for task in GROWN.tasks]
    if FAR.tasks:
        parts += ["## Incubated for longer", FAR_NOTES, far()]
    return "\n\n".join(parts) + "\n"


def grown(rows: Sequence[Row]) -> str:
    """One task's arms."""
    alone = {row["seed"]: row for row in rows if row["arm"] == Way.ALONE.value}
    columns: dict[str, Callable[[Sequence[Row]], str]] = {
        "n": lambda those: str(len(those)),
        "accuracy": lambda those: _mean(those, "accuracy"),
        "Δ accuracy": lambda those: _against(alone, those, "accuracy"),
        "shock": lambda those: _mean(those, "shock"),
        "Δ shock": lambda those: _against(alone, those, "shock"),
        "size": lambda those: _mean(those, "size"),
        "away": lambda those: _mean(those, "away"),
        "gain": lambda those: _mean(those, "gain"),
        "gained": _gained,
        "target": lambda those: _mean(those, "target"),
        "step": lambda those: _ratio(alone, those),
    }
    arms = by(rows, "blueprint", "arm", "rate", "warmup")
    lines = [
        [*(part or "–" for part in arm), *(told(arms[arm]) for told in columns.values())]
        for arm in sorted(arms, key=_place)
    ]
    return table(["blueprint", "arm", "rate", "warm-up", *columns], lines)


def far() -> str:
    """How far seeds go, by the length of their incubation."""
    arms = by(list(FAR.rows.values()), "task", "arm", "rate")
    marks = sorted({int(row["epochs"]) for row in FAR.rows.values()})
    lines = [
        [
            *arm,
            *(
                _mean([row for row in rows if row["epochs"] == str(mark)], name)
                for name in ("away", "gain")
                for mark in marks
            ),
        ]
        for arm, rows in arms.items()
    ]
    heads = [f"{name}, {mark}" for name in ("away", "gain") for mark in marks]
    return table(["task", "arm", "rate", *heads], lines)


def by(rows: Sequence[Row], *names: str) -> Arms:
    """The lines grouped by some of their columns."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """As Markdown."""
    ruled = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in ruled)


def spread(values: Sequence[float]) -> str:
    """Mean ± standard error, where there is one."""
    if not values:
        return "–"
    if len(set(values)) == 1:
        return f"{values[0]:.2f}"
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.fmean(values):.2f} ± {error:.2f}"


def _place(arm: tuple[str, ...]) -> tuple[object, ...]:
    blueprint, name, *settings = arm
    by_hand = [way.value for way in Way]
    return blueprint, by_hand.index(name) if name in by_hand else len(by_hand), name, settings


def _mean(rows: Sequence[Row], name: str) -> str:
    return spread([float(row[name]) for row in rows if row[name]])


def _pairs(alone: Mapping[str, Row], rows: Sequence[Row], name: str) -> list[tuple[float, float]]:
    paired = [(row, alone[row["seed"]]) for row in rows if row["seed"] in alone]
    return [(float(ours[name]), float(theirs[name])) for ours, theirs in paired]


def _against(alone: Mapping[str, Row], rows: Sequence[Row], name: str) -> str:
    return spread([ours - theirs for ours, theirs in _pairs(alone, rows, name)])


def _ratio(alone: Mapping[str, Row], rows: Sequence[Row]) -> str:
    ratios = [ours / theirs for ours, theirs in _pairs(alone, rows, "step_ms")]
    return f"{statistics.median(ratios):.2f}" if ratios else "–"


def _gained(rows: Sequence[Row]) -> str:
    gains = [float(row["gain"]) for row in rows if row["gain"]]
    return f"{sum(gain > 0 for gain in gains)}/{len(gains)}" if gains else "–"
