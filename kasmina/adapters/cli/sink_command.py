"""``kasmina sink``: passes the log on to receivers that others watch."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

from cyclopts import App, Parameter

from kasmina.adapters.cli.errors import MissingExtra
from kasmina.adapters.cli.options import DEFAULT_DATABASE, Database
from kasmina.adapters.cli.output import complain
from kasmina.adapters.cli.reading import find_run, open_reader
from kasmina.adapters.cli.render.figures import plural
from kasmina.adapters.cli.render.sentences import sentence
from kasmina.adapters.sinks.follower import Follower, Sink
from kasmina.domain.ports import EventStore

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

STATE = Path("kasmina-opentelemetry.json")

sink = App(name="sink", help="Pass the log on to TensorBoard, MLflow or OpenTelemetry.")

OneRun: TypeAlias = Annotated[
    str | None, Parameter(name="--run", help="Only this run, named as for the other commands.")
]
Follow: TypeAlias = Annotated[
    bool,
    Parameter(negative=(), show_default=False, help="Go on as events arrive, until Ctrl-C."),
]


@sink.command
def tensorboard(
    logdir: Annotated[Path, Parameter(help="The folder that TensorBoard is pointed at.")],
    /,
    *,
    run: OneRun = None,
    follow: Follow = False,
    database: Database = DEFAULT_DATABASE,
) -> None:
    """Write runs as TensorBoard's event files, a folder each."""
    with _extra("tensorboard", package="tensorboard"):
        from kasmina.adapters.sinks.tensorboard import TensorBoardSink
    _pass_on(
        lambda _: TensorBoardSink(logdir, words=sentence), run=run, follow=follow, url=database
    )


@sink.command
def mlflow(
    tracking_uri: Annotated[
        str, Parameter(help="MLflow's tracking store, as sqlite:///mlflow.db or http://host:5000.")
    ],
    /,
    *,
    experiment: Annotated[str, Parameter(help="The experiment, made if need be.")] = "kasmina",
    run: OneRun = None,
    follow: Follow = False,
    database: Database = DEFAULT_DATABASE,
) -> None:
    """Log runs to MLflow, each as a run of one experiment."""
    with _extra("mlflow", package="mlflow"):
        from kasmina.adapters.sinks.mlflow import MlflowSink
    _pass_on(
        lambda _: nullcontext(MlflowSink(tracking_uri, experiment=experiment, words=sentence)),
        run=run,
        follow=follow,
        url=database,
    )


@sink.command
def opentelemetry(
    *,
    endpoint: Annotated[
        str | None,
        Parameter(
            help="Where OTLP over HTTP is taken, as http://localhost:4318/v1/traces. "
            "Without it spans are printed, as a JSON line each."
        ),
    ] = None,
    state: Annotated[Path, Parameter(help="The file that says what was handed on so far.")] = STATE,
    run: OneRun = None,
    follow: Follow = False,
    database: Database = DEFAULT_DATABASE,
) -> None:
    """Hand runs on as traces: spans of runs, seeds and their stages, with the gates' decisions."""
    with _extra("opentelemetry", package="opentelemetry"):
        from kasmina.adapters.sinks.opentelemetry import OpenTelemetrySink
    exporter = _printer() if endpoint is None else _sender(endpoint)
    _pass_on(
        lambda store: OpenTelemetrySink(store, exporter, state=state, words=sentence),
        run=run,
        follow=follow,
        url=database,
    )


def _printer() -> "SpanExporter":
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter

    return ConsoleSpanExporter(
        out=sys.stdout, formatter=lambda span: f"{span.to_json(indent=None)}\n"
    )


def _sender(endpoint: str) -> "SpanExporter":
    with _extra("opentelemetry", package="opentelemetry"):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # type: ignore[import-not-found, unused-ignore]
            OTLPSpanExporter,
        )
    exporter: SpanExporter = OTLPSpanExporter(endpoint=endpoint)
    return exporter


@contextmanager
def _extra(command: str, *, package: str) -> Iterator[None]:
    """Name the extra that is missing where a module of ``package`` is."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = error.name or ""
        if name.partition(".")[0] != package:
            raise
        raise MissingExtra(f"kasmina sink {command}", name, extra=command) from error


def _pass_on(
    opened: Callable[[EventStore], AbstractContextManager[Sink]],
    *,
    run: str | None,
    follow: bool,
    url: str,
) -> None:
    """Counts and troubles go to the stream of errors: the other may carry spans."""
    with open_reader(url) as store:
        run_id = None if run is None else find_run(store, run)
        with opened(store) as receiver:
            follower = Follower(store, receiver, run_id=run_id)
            if follow:
                complain("following, until Ctrl-C")
                follower.follow(
                    threading.Event(), troubled=lambda error: complain(f"error: {error}")
                )
            else:
                complain(f"{plural(follower.catch_up(), 'event')} passed on")
