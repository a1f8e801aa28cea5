"""Shows runs in MLflow: an MLflow run for each, found again by its tags.

What makes it exactly once, read from the source of MLflow 3.17 (``sqlalchemy_store.log_batch``):
parameters, metrics and tags of one call are committed one after the other, not together. But a
metric's key, value, step and time are together unique in its run, a repetition is left out, and
everything here is a function of the log alone. So the mark goes last, and what a crash left
before it is written again to no effect.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import TypeVar

from mlflow.entities import Metric, Param, Run, RunStatus, RunTag
from mlflow.tracking import MlflowClient

from kasmina.adapters.sinks.errors import SinkUnavailable
from kasmina.adapters.sinks.follower import Entry
from kasmina.adapters.sinks.marks import Mark
from kasmina.adapters.sinks.mlflow_names import key, shortened
from kasmina.adapters.sinks.telling import Words, description, figures, line, topic
from kasmina.domain import events as e
from kasmina.domain.errors import KasminaError

T = TypeVar("T")

RUN_TAG, MARK_TAG, PARENT_TAG = "kasmina.run_id", "kasmina.mark", "kasmina.parent"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_METRICS, _OTHERS = 1000, 100  # the most that MLflow takes in one call
_OURS = f"tags.`{RUN_TAG}` LIKE '%'"


class MlflowSink:
    """The experiment of a tracking store, made where there is none.

    Metrics are recorded at optimizer steps and at the times of the log. Decisions are tags, each
    the latest of its kind. Two followers of one experiment agree on all but the making of a run.
    """

    def __init__(self, tracking_uri: str, *, experiment: str, words: Words) -> None:
        self._target = f"MLflow at {tracking_uri}"
        self._experiment = experiment
        self._words = words
        self._runs: dict[str, str] = {}
        with self._translated():
            self._client = MlflowClient(tracking_uri=tracking_uri)

    def marks(self) -> Mapping[str, Mark]:
        """The marks in the tags of the experiment's runs."""
        marks = {}
        self._runs.clear()
        with self._translated():
            for run in self._found():
                tags, mlflow_id = run.data.tags, run.info.run_id
                run_id = tags[RUN_TAG]
                if run_id in self._runs:
                    problem = f"run {run_id!r} is there twice: {self._runs[run_id]}, {mlflow_id}"
                    mend = "delete one of them, and let one follower at a time begin runs"
                    raise SinkUnavailable(self._target, problem, mend)
                self._runs[run_id] = mlflow_id
                if MARK_TAG in tags:
                    marks[run_id] = Mark.parse(tags[MARK_TAG])
        return marks

    def show(self, entries: Sequence[Entry]) -> None:
        """Log the entries, run by run."""
        with self._translated():
            for run_id, group in groupby(sorted(entries, key=_run_id), key=_run_id):
                self._log(run_id, list(group))

    def _found(self) -> Iterator[Run]:
        token: str | None = None
        while True:
            page = self._client.search_runs([self._experiment_id()], _OURS, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is None:
            return str(self._client.create_experiment(self._experiment))
        return str(found.experiment_id)

    def _log(self, run_id: str, entries: Sequence[Entry]) -> None:
        if run_id not in self._runs:
            self._runs[run_id] = self._begun(entries[0])
        mlflow_id = self._runs[run_id]
        for metrics in _chunks([m for entry in entries for m in _metrics(entry)], _METRICS):
            self._client.log_batch(mlflow_id, metrics=metrics, synchronous=True)
        for params in _chunks([p for entry in entries for p in _params(entry)], _OTHERS):
            self._client.log_batch(mlflow_id, params=params, synchronous=True)
        said = {tag.key: tag for entry in entries for tag in self._tags(entry)}
        for tags in _chunks(list(said.values()), _OTHERS):
            self._client.log_batch(mlflow_id, tags=tags, synchronous=True)
        for entry in entries:
            self._set_status(mlflow_id, entry)
        mark = RunTag(MARK_TAG, entries[-1].mark.text)
        self._client.log_batch(mlflow_id, tags=[mark], synchronous=True)

    def _begun(self, first: Entry) -> str:
        run = self._client.create_run(
            self._experiment_id(),
            start_time=_milliseconds(first),
            run_name=first.state.name,
            tags={RUN_TAG: first.record.run_id},
        )
        return str(run.info.run_id)

    def _tags(self, entry: Entry) -> Iterator[RunTag]:
        event, about = entry.record.event, topic(entry.record.event)
        if about is not None:
            said = line(entry.record, self._words)
            yield RunTag(key(f"kasmina/{about}"), shortened(said))
        if isinstance(event, e.RunForked):
            yield RunTag(PARENT_TAG, f"{event.parent_run_id}#{event.parent_sequence}")

    def _set_status(self, mlflow_id: str, entry: Entry) -> None:
        """A closed run is finished; one that goes on after that, from a checkpoint, is not."""
        if isinstance(entry.record.event, e.RunClosed):
            finished = RunStatus.to_string(RunStatus.FINISHED)
            self._client.set_terminated(mlflow_id, finished, end_time=_milliseconds(entry))
        if isinstance(entry.record.event, e.RunRewound):
            self._client.update_run(mlflow_id, status=RunStatus.to_string(RunStatus.RUNNING))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except KasminaError:
            raise
        except Exception as error:  # MLflow also lets out what its database or network raises
            problem = " ".join(f"{type(error).__name__}: {error}".split())
            mend = "check the address, the server or database behind it, and the experiment"
            raise SinkUnavailable(self._target, problem, mend) from error


def _run_id(entry: Entry) -> str:
    return entry.record.run_id


def _milliseconds(entry: Entry) -> int:
    return (entry.record.recorded_at - _EPOCH) // _MILLISECOND


def _metrics(entry: Entry) -> list[Metric]:
    at, step = _milliseconds(entry), entry.record.event.step
    return [Metric(key(figure.name), figure.value, at, step) for figure in figures(entry)]


def _params(entry: Entry) -> list[Param]:
    if entry.record.sequence > 1:
        return []
    told = description(entry)
    return [Param(key(name), shortened(str(value))) for name, value in told.items()]


def _chunks(items: list[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
