"""What a run costs a training loop, of one's own and of frameworks, in steps and at epochs' ends.

    python benchmarks/loops.py            # prints the table, in about three minutes
    python benchmarks/loops.py --write    # and keeps it in benchmarks/results/loops.md
    python benchmarks/loops.py --quick    # fewer rounds

One thread, CPU time. Each round trains every loop anew in each of its arms, in turns: alone, alone
again (what these two differ by, the run cannot tell apart), under a run without a seed, and with
one seed in TRAINING all the time. The first epoch, in which everything is warmed up, is left out.
A time is the median over rounds of the median over epochs, a ratio the median of the rounds' own.
"""
# ruff: noqa: INP001, T201 - a script: its output is the terminal

import argparse
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from loops_frameworks import Arm, Span, lightning, transformers
from loops_plain import plain

RESULTS = Path(__file__).parent / "results" / "loops.md"
ROUNDS = 15

READING = """The evaluation is part of an epoch's end. A run without a seed adds the event of the
epoch, durable on disk. With a seed in TRAINING a step holds the seed's own forward and backward,
which is work that was asked for (`forward.md` holds it against the same by hand), and an epoch's
end holds one more evaluation, G2's rehearsal, without a trace in the model."""


class Figure(NamedTuple):
    """What one arm of one loop came to."""

    seconds: float
    ratio: float
    more: float


Train = Callable[[Arm, Path], list[Span]]


def measured(train: Train, rounds: int) -> dict[Arm, list[Span]]:
    """The median epoch of each arm in every round."""
    found: dict[Arm, list[Span]] = {arm: [] for arm in Arm}
    arms = list(Arm)
    for n in range(rounds):
        for k in range(len(arms)):
            arm = arms[(n + k) % len(arms)]
            with tempfile.TemporaryDirectory() as folder:
                epochs = train(arm, Path(folder))
            found[arm].append(Span(*map(statistics.median, zip(*epochs, strict=True))))
    return found


def figure(times: Sequence[float], alone: Sequence[float]) -> Figure:
    """An arm's times against those alone, round by round."""
    pairs = list(zip(times, alone, strict=True))
    return Figure(
        statistics.median(times),
        statistics.median(ours / theirs for ours, theirs in pairs),
        statistics.median(ours - theirs for ours, theirs in pairs),
    )


def rows(name: str, found: dict[Arm, list[Span]]) -> list[str]:
    """The loop's lines of the table."""
    text = []
    for arm, spans in found.items():
        step = figure([s.step for s in spans], [s.step for s in found[Arm.ALONE]])
        end = figure([s.end for s in spans], [s.end for s in found[Arm.ALONE]])
        text.append(
            f"| {name} | {arm.value} | {step.seconds * 1e6:,.0f} | {step.more * 1e6:+,.0f} "
            f"| {step.ratio:.3f} | {end.seconds * 1e3:.2f} | {end.more * 1e3:+.2f} "
            f"| {end.ratio:.2f} |"
        )
    return text


def table(rounds: int) -> str:
    """Every loop in every arm, as Markdown."""
    loops: dict[str, Train] = {
        "of one's own": plain,
        "Lightning": lightning,
        "Transformers": transformers,
    }
    text = [
        "| loop | arm | a step, µs | more | ratio | an epoch's end, ms | more | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, train in loops.items():
        text += rows(name, measured(train, rounds))
    return "\n".join(text)


def main() -> None:
    """Measure, print, and keep the table where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--write", action="store_true", help="keep it in results/loops.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 3 if options.quick else ROUNDS
    used = ", ".join(f"{name} {version(name)}" for name in ("pytorch-lightning", "transformers"))
    text = (
        f"# A run in a training loop, against the loop alone\n\nDevice cpu, {os.cpu_count()} CPUs, "
        f"one thread, torch {torch.__version__}, {used}, Python {platform.python_version()}. CPU "
        f"time, {rounds} rounds.\n\n{table(rounds)}\n\n{READING}\n"
    )
    print(text)
    if options.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
