"""The first trial of examples/ray_digits.py, killed once before it can report an epoch."""

import os
import signal
import sys
from pathlib import Path

import ray_digits
from ray import tune

FATAL = 3


def train(config: dict, *, url: str, epochs: int, mark: Path) -> None:
    """A trial that dies when its log is an epoch ahead of Tune, unless it has done so."""
    reported = tune.report

    def report(metrics: dict, **given: object) -> None:
        if metrics["epoch"] == FATAL and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        reported(metrics, **given)

    ray_digits.tune.report = report
    ray_digits.train(config, url=url, epochs=epochs)


def main(folder: Path, url: str, epochs: int) -> None:
    trainable = tune.with_parameters(train, url=url, epochs=epochs, mark=folder / "killed")
    (result,) = ray_digits.compare(trainable, folder, trials=1)
    sys.stdout.write(f"{result.metrics['run_id']} {result.metrics['epoch']}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
