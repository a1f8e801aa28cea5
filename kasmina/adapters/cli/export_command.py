"""``kasmina export``."""

import sys
from collections.abc import Iterator
from enum import Enum
from io import BufferedIOBase
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

from cyclopts import Parameter

from kasmina.adapters.cli.documents.exchange import export_document
from kasmina.adapters.cli.errors import ContradictoryOptions, MissingExtra, NothingNamed
from kasmina.adapters.cli.options import DEFAULT_DATABASE, Database, Json
from kasmina.adapters.cli.output import say, show_document
from kasmina.adapters.cli.reading import find_run, open_reader
from kasmina.adapters.cli.render.exchange import told_export
from kasmina.infra.exchange import csv_lines, jsonl
from kasmina.infra.exchange.files import replacing, require_no_database
from kasmina.infra.exchange.tables import Table

if TYPE_CHECKING:
    from kasmina.infra.integrity import Row


class Format(Enum):
    """Kinds of files. ``JSONL`` alone can be imported again."""

    JSONL = "jsonl"
    PARQUET = "parquet"
    CSV = "csv"


def export(
    *runs: Annotated[str, Parameter(help="Runs, as `kasmina replay` takes them.")],
    to: Annotated[
        Format,
        Parameter(name_transform=str.lower, help="JSON lines can be imported and verified again."),
    ],
    every: Annotated[
        bool, Parameter(name="--all", negative=(), show_default=False, help="Export every run.")
    ] = False,
    table: Annotated[
        Table,
        Parameter(name_transform=str.lower, help="A row an event, or a row a check of a gate."),
    ] = Table.EVENTS,
    output: Annotated[
        Path | None, Parameter(help="The file; without one, the standard output.")
    ] = None,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Write runs, exactly as they are stored, to a file that appears when it is complete."""
    from kasmina.infra.copying import every_run

    _require_sense(runs, to, table, output, every=every)
    with open_reader(database) as store:
        found = every_run(store) if every else [find_run(store, run) for run in runs]
        run_ids = tuple(dict.fromkeys(found))
        rows = chain.from_iterable(map(store.rows, run_ids))
        if output is None:
            _write_lines(sys.stdout.buffer, rows, to, table)
            return
        written = _write_file(output, rows, to, table)
    if json:
        show_document(export_document(run_ids, table, rows=written, output=output))
    else:
        say(told_export(run_ids, rows=written, output=output))


def _require_sense(
    runs: tuple[str, ...], to: Format, table: Table, output: Path | None, *, every: bool
) -> None:
    if runs and every:
        raise ContradictoryOptions(("RUN", "--all"))
    if not runs and not every:
        raise NothingNamed(("a RUN", "--all"))
    if to is Format.JSONL and table is not Table.EVENTS:
        raise ContradictoryOptions(("--to jsonl", f"--table {table.value}"))
    if to is Format.PARQUET and output is None:
        raise NothingNamed(("--output: Parquet takes a file",))


def _write_file(output: Path, rows: "Iterator[Row]", to: Format, table: Table) -> int:
    require_no_database(output)
    if to is not Format.PARQUET:
        with replacing(output) as partial, partial.open("wb") as file:
            return _write_lines(file, rows, to, table)
    try:
        from kasmina.infra.exchange import parquet
    except ModuleNotFoundError as error:
        if error.name != "pyarrow":
            raise
        raise MissingExtra("kasmina export --to parquet", error.name, extra="export") from error
    with replacing(output) as partial:
        return parquet.write(partial, table, rows)


def _write_lines(
    stream: BinaryIO | BufferedIOBase, rows: "Iterator[Row]", to: Format, table: Table
) -> int:
    if to is Format.JSONL:
        lines = jsonl.lines(rows)
    else:
        stream.write(csv_lines.header(table))
        lines = csv_lines.lines(table, rows)
    written = 0
    for line in lines:
        stream.write(line)
        written += 1
    return written
