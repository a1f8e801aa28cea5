"""``kasmina demo``: the one command that needs torch."""

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console

from kasmina.adapters.cli.errors import MissingExtra
from kasmina.adapters.cli.output import complain, say, show
from kasmina.adapters.cli.reading import open_reader
from kasmina.adapters.cli.render.demo import (
    Bars,
    farewell,
    render_growth,
    render_results,
    render_welcome,
)
from kasmina.domain.projections import gate_ledger

if TYPE_CHECKING:
    from kasmina.demo.study import Progress, Study

DEFAULT_DATABASE = "sqlite:///kasmina-demo.db"
RANDOM_SEEDS, EPOCHS = 3, 40
QUICK_RANDOM_SEEDS, QUICK_EPOCHS = 1, 24


def demo(
    *,
    seed: Annotated[int, Parameter(help="The first random seed; others follow it.")] = 0,
    quick: Annotated[
        bool, Parameter(negative=(), show_default=False, help="One random seed, fewer epochs.")
    ] = False,
    resume: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Go on with the last demo.")
    ] = False,
    log: Annotated[
        bool,
        Parameter(negative=(), show_default=False, help="A JSON line on stderr for every event."),
    ] = False,
    database: Annotated[
        str, Parameter(name="--database", help="The database, as a SQLAlchemy URL.")
    ] = DEFAULT_DATABASE,
) -> None:
    """Grow a small CNN on scikit-learn's digits under gates, and compare it with its host.

    Checkpoints lie in a folder beside the database. A demo that was interrupted goes on with
    --resume, given the same options.
    """
    study = _study(database, seed=seed, quick=quick, log=log)
    from kasmina.demo.study import results, resume_study, run_study

    show(render_welcome(study))
    program = "kasmina" if shutil.which("kasmina") else sys.argv[0]
    try:
        _follow(study, resume_study(study) if resume else run_study(study))
    except KeyboardInterrupt:
        options = f"{'--quick ' if quick else ''}--seed {seed} --database {database}"
        complain(f"interrupted; go on with: {program} demo --resume {options}")
        raise
    came_to = results(study)
    grown = came_to[-1]
    with open_reader(database) as store:
        ledger = gate_ledger(list(store.read(grown.run_id)))
    show(render_growth(grown.name, ledger))
    show(render_results(came_to))
    say(farewell(program, grown.run_id, database))


def _study(database: str, *, seed: int, quick: bool, log: bool) -> "Study":
    try:
        from kasmina.demo.study import Study
    except ModuleNotFoundError as error:
        if error.name not in {"numpy", "sklearn", "torch"}:
            raise
        raise MissingExtra("kasmina demo", error.name, extra="demo") from error
    from kasmina.infra.engine import locate
    from kasmina.infra.log import LogFormat
    from kasmina.infra.sqlite import SqliteDatabase

    place = locate(database)
    path = place.path if isinstance(place, SqliteDatabase) else Path("kasmina-demo").absolute()
    runs = QUICK_RANDOM_SEEDS if quick else RANDOM_SEEDS
    return Study(
        url=database,
        folder=path.with_name(f"{path.name}-checkpoints"),
        random_seeds=tuple(range(seed, seed + runs)),
        epochs=QUICK_EPOCHS if quick else EPOCHS,
        log=LogFormat.JSON if log else None,
    )


def _follow(study: "Study", progress: "Iterable[Progress]") -> None:
    """Show the epochs as they pass: bars in a terminal, and what happened to seeds anywhere."""
    with Bars(study, Console(file=sys.stdout, highlight=False)) as bars:
        for epoch in progress:
            bars.show(epoch)
