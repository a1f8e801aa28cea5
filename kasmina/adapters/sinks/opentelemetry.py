"""Hands runs on to OpenTelemetry: a trace for each run, by any exporter of spans.

The receiver keeps no marks, so they are in a file that is replaced after the exporter has said
that it succeeded. A crash between the two exports some spans a second time: the same in every
byte, with the same identifiers, which are digests of what a span is.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from kasmina.adapters.sinks.errors import SinkUnavailable
from kasmina.adapters.sinks.exclusive import Exclusive
from kasmina.adapters.sinks.exported import exported, service
from kasmina.adapters.sinks.follower import Entry
from kasmina.adapters.sinks.marks import Mark
from kasmina.adapters.sinks.marks_file import read_marks, write_marks
from kasmina.adapters.sinks.spans import Spans, Tenancies
from kasmina.adapters.sinks.telling import Words
from kasmina.domain import events as e
from kasmina.domain.ports import EventStore


class OpenTelemetrySink:
    """Spans to ``exporter``, marks in the file ``state``, which is locked until it is closed.

    A span is exported when it ends; when following begins in the midst of a run, ``store`` is
    asked what was open then.
    """

    def __init__(
        self, store: EventStore, exporter: SpanExporter, *, state: Path, words: Words
    ) -> None:
        self._store = store
        self._exporter = exporter
        self._state = state
        self._words = words
        self._resource = service()
        self._marks: dict[str, Mark] = {}
        self._runs: dict[str, Spans] = {}
        self._lock = Exclusive(state.with_name(f"{state.name}.lock"), target=str(state))

    def marks(self) -> Mapping[str, Mark]:
        """The marks in the file."""
        self._runs.clear()
        self._marks = read_marks(self._state)
        return dict(self._marks)

    def show(self, entries: Sequence[Entry]) -> None:
        """Export the spans that end with the entries, then write the marks."""
        spans = list(self._ended(entries))
        if spans:
            self._export(spans)
        self._marks |= {entry.record.run_id: entry.mark for entry in entries}
        write_marks(self._state, self._marks)

    def close(self) -> None:
        """Shut the exporter down, and let another follower use the file."""
        self._exporter.shutdown()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ended(self, entries: Sequence[Entry]) -> Iterator[ReadableSpan]:
        for entry in entries:
            record = entry.record
            if record.run_id not in self._runs:
                self._runs[record.run_id] = self._recalled(record.run_id, record.sequence - 1)
            for span in self._runs[record.run_id].see(record):
                yield exported(span, words=self._words, resource=self._resource)
            if isinstance(record.event, e.RunClosed):
                del self._runs[record.run_id]

    def _recalled(self, run_id: str, until: int) -> Spans:
        """What was open in the run after event ``until``."""
        inherited: Tenancies = {}
        for first in self._store.read(run_id, until=1):
            if isinstance(first.event, e.RunForked):
                at = first.event.parent_sequence
                inherited = self._recalled(first.event.parent_run_id, at).at(at)
        spans = Spans(run_id, inherited)
        for record in self._store.read(run_id, until=until):
            spans.see(record)
        return spans

    def _export(self, spans: Sequence[ReadableSpan]) -> None:
        try:
            done = self._exporter.export(spans) is SpanExportResult.SUCCESS
            problem = f"the exporter did not take {len(spans)} spans"
            # An exporter that keeps nothing back need not say so: the SDK's own base returns None.
            done = done and self._exporter.force_flush() is not False
        except Exception as error:  # noqa: BLE001 - an exporter may raise anything
            done, problem = False, f"{type(error).__name__}: {error}"
        if not done:
            mend = "check its endpoint, and whether the receiver is up"
            raise SinkUnavailable(type(self._exporter).__name__, problem, mend)
