"""Shows runs in TensorBoard: a folder for each run, and one record for each event of the log.

TensorFlow is not needed, and never imported.
"""

import textwrap
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from tensorboard.compat.proto.event_pb2 import Event, SourceMetadata
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.hparams import summary_v2 as hparams

from kasmina.adapters.sinks.event_files import framed, newest_first, next_file, records
from kasmina.adapters.sinks.exclusive import Exclusive, unwritable
from kasmina.adapters.sinks.follower import Entry
from kasmina.adapters.sinks.marks import Mark
from kasmina.adapters.sinks.telling import Words, description, figures, line, topic

MARK_TAG = "kasmina/mark"
_MARK_PLUGIN = "kasmina"  # TensorBoard has none of that name, so it does not show the marks


class TensorBoardSink:
    """Event files under ``folder``, locked until it is closed.

    An event of the log is one record, with the run's mark inside: a crash leaves the whole of it
    or nothing. A record that it tore stays behind, unread, and a new file begins after it. Steps
    are optimizer steps. Raises ``SinkUnavailable`` where the folder cannot be written, or another
    follower is writing to it.
    """

    def __init__(self, folder: Path, *, words: Words) -> None:
        self._folder = folder
        self._words = words
        self._files: dict[str, Path] = {}
        self._lock = Exclusive(folder / ".kasmina.lock", target=str(folder))

    def marks(self) -> Mapping[str, Mark]:
        """The marks in the last whole record of each run."""
        self._files.clear()  # the last one may be torn by now
        try:
            found = [_last_mark(path) for path in sorted(self._folder.iterdir()) if path.is_dir()]
        except OSError as error:
            raise unwritable(str(self._folder), error) from error
        return {mark.run_id: mark for mark in found if mark is not None}

    def show(self, entries: Sequence[Entry]) -> None:
        """Append the entries, those of each run at once."""
        in_runs = sorted(entries, key=_run_id)
        try:
            for run_id, group in groupby(in_runs, key=_run_id):
                self._append(run_id, list(group))
        except OSError as error:
            raise unwritable(str(self._folder), error) from error

    def close(self) -> None:
        """Let another follower write here."""
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

    def _append(self, run_id: str, entries: Sequence[Entry]) -> None:
        data = [self._event(entry).SerializeToString() for entry in entries]
        if run_id not in self._files:
            folder = self._folder / folder_name(run_id)
            folder.mkdir(parents=True, exist_ok=True)
            self._files[run_id] = next_file(folder, sequence=entries[0].record.sequence)
            data.insert(0, _preamble(entries[0]))
        with self._files[run_id].open("ab") as file:
            file.write(b"".join(map(framed, data)))

    def _event(self, entry: Entry) -> Event:
        record = entry.record
        return Event(
            wall_time=record.recorded_at.timestamp(),
            step=record.event.step,
            summary=Summary(value=self._values(entry)),
        )

    def _values(self, entry: Entry) -> Iterator[Summary.Value]:
        record, about = entry.record, topic(entry.record.event)
        if record.sequence == 1:
            yield from hparams.hparams_pb(
                description(entry),
                trial_id=record.run_id,
                start_time_secs=record.recorded_at.timestamp(),
            ).value
        for figure in figures(entry):
            yield Summary.Value(tag=figure.name, simple_value=figure.value)
        if about is not None:
            said = textwrap.indent(line(record, self._words), "    ")  # Markdown's "as it is"
            yield _text(f"decisions/{about}", said, plugin="text")
        yield _text(MARK_TAG, entry.mark.text, plugin=_MARK_PLUGIN)


def folder_name(run_id: str) -> str:
    """The folder of a run: its identifier, with what a path cannot hold as per cent codes."""
    return quote(run_id, safe=" ").replace(".", "%2E", 1 if run_id.startswith(".") else 0)


def _run_id(entry: Entry) -> str:
    return entry.record.run_id


def _preamble(first: Entry) -> bytes:
    preamble = Event(
        wall_time=first.record.recorded_at.timestamp(),
        file_version="brain.Event:2",
        source_metadata=SourceMetadata(writer="kasmina"),
    )
    return bytes(preamble.SerializeToString())


def _text(tag: str, text: str, *, plugin: str) -> Summary.Value:
    data_class = DATA_CLASS_TENSOR if plugin != _MARK_PLUGIN else None
    return Summary.Value(
        tag=tag,
        tensor=TensorProto(
            dtype=DT_STRING, tensor_shape=TensorShapeProto(), string_val=[text.encode()]
        ),
        metadata=SummaryMetadata(
            plugin_data=SummaryMetadata.PluginData(plugin_name=plugin), data_class=data_class
        ),
    )


def _last_mark(folder: Path) -> Mark | None:
    """The mark that the run's records end with; ``None`` for a folder without any of ours."""
    for path in newest_first(folder):
        for last in deque(records(path), maxlen=1):
            for value in Event.FromString(last).summary.value:
                if value.tag == MARK_TAG:
                    return Mark.parse(value.tensor.string_val[0].decode())
    return None
