"""How the benchmarks time: every line in every round, its works in turns, in CPU time.

A time is the median over the rounds, a ratio the median of the rounds' own ratios.
"""
# ruff: noqa: INP001 - beside a script, which imports it

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

SAMPLE = 0.006
"""Seconds of CPU time that a sample lasts, in as many calls as it takes."""

Work = Callable[[], object]


class Line(NamedTuple):
    """One comparison. ``wanted`` bounds the ratio, ``within`` the microseconds on top."""

    name: str
    kind: str
    limit: Work
    ours: Work
    textbook: Work | None = None
    wanted: float | None = None
    within: float | None = None
    units: int = 1
    """How many forwards or steps one call does."""


class Row(NamedTuple):
    """What a line came to: seconds a unit, and ratios with their quartiles."""

    line: Line
    limit: float
    ours: float
    ratios: tuple[float, float, float]
    textbook: float | None

    @property
    def missed(self) -> bool:
        """Whether the wanted figure, to the digits that are printed, was not reached."""
        if self.line.within is not None:
            return round(self.more * 1e6, 1) > self.line.within
        return self.line.wanted is not None and round(self.ratios[1], 2) > self.line.wanted

    @property
    def more(self) -> float:
        """Seconds on top of those by hand, by the ratio."""
        return (self.ratios[1] - 1) * self.limit

    @property
    def wanted(self) -> str:
        """The wanted figure as text."""
        if self.line.within is not None:
            return f"+{self.line.within:.0f} µs"
        return "–" if self.line.wanted is None else f"{self.line.wanted:.2f}"


def both_clocks(act: Work) -> tuple[float, float]:
    """Seconds by the wall and of CPU time that ``act`` takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    act()
    return time.perf_counter() - wall, time.process_time() - cpu


def calls(*works: Work) -> int:
    """How many calls a sample takes; runs all of them equally often, for caches and pages."""
    for work in works * 2:
        work()
    return max(1, round(SAMPLE / min(both_clocks(work)[1] for work in works)))


def sample(work: Work, times: int) -> float:
    """Seconds of CPU time that a call takes."""
    start = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - start) / times


def compare(lines: Sequence[Line], rounds: int) -> list[Row]:
    """Every line in every round, its works in turns."""
    works = [[line.limit, line.ours, *filter(None, [line.textbook])] for line in lines]
    times = [calls(*each) for each in works]
    found: list[list[list[float]]] = [[] for _ in lines]
    for n in range(rounds):
        for compared, each, count, took in zip(lines, works, times, found, strict=True):
            order = [(n + k) % len(each) for k in range(len(each))]
            if compared.units == 1:
                each[order[-1]]()  # whoever is first would pay for the caches of the line before
            taken = {k: sample(each[k], count) for k in order}
            took.append([taken[k] for k in range(len(each))])
    return [row(line, taken) for line, taken in zip(lines, found, strict=True)]


def row(line: Line, taken: Sequence[Sequence[float]]) -> Row:
    """Medians of one line's rounds."""
    limit, ours = (statistics.median(each[k] for each in taken) / line.units for k in (0, 1))
    low, middle, high = statistics.quantiles([each[1] / each[0] for each in taken], n=4)
    textbook = None
    if line.textbook is not None:
        textbook = statistics.median(each[1] / each[2] for each in taken)
    return Row(line, limit, ours, (low, middle, high), textbook)


def table(rows: Sequence[Row]) -> str:
    """The comparison as Markdown, the missed figures in bold."""
    text = [
        "| what | by hand, µs | kasmina, µs | kasmina : by hand | wanted | kasmina : textbook |",
        "|---|---|---|---|---|---|",
    ]
    for each in rows:
        low, ratio, high = each.ratios
        bold = "**" * each.missed
        textbook = "–" if each.textbook is None else f"{each.textbook:.2f}"
        text.append(
            f"| {each.line.name} | {each.limit * 1e6:,.1f} | {each.ours * 1e6:,.1f} "
            f"| {bold}{ratio:.2f}{bold} ({low:.2f}–{high:.2f}) | {each.wanted} | {textbook} |"
        )
    return "\n".join(text)
