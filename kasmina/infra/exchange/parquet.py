"""Parquet, through pyarrow (the extra ``export``): the one module that loads it."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow.parquet import ParquetWriter

from kasmina.infra.exchange.tables import COLUMNS, Cells, Kind, Table, records
from kasmina.infra.integrity import Row

GROUP_ROWS = 50_000
"""Rows of a row group, at most."""

GROUP_BYTES = 4 * 2**20
"""Bytes of text that make a row group full however few rows it has."""

_TYPES = {
    Kind.TEXT: pa.string(),
    Kind.INTEGER: pa.int64(),
    Kind.REAL: pa.float64(),
    Kind.FLAG: pa.bool_(),
    Kind.MOMENT: pa.timestamp("us", tz="UTC"),
    Kind.DIGEST: pa.binary(),
}


def write(path: Path, table: Table, rows: Iterable[Row]) -> int:
    """Write a table to a new file, group by group, and return its number of rows.

    Raises ``UnexportableEvent``, and ``OSError`` where the file cannot be written.
    """
    schema = pa.schema([(name, _TYPES[kind]) for name, kind in COLUMNS[table].items()])
    written = 0
    with ParquetWriter(path, schema, compression="zstd") as writer:
        for group in _groups(records(table, rows)):
            arrays = [
                pa.array(column, field.type)
                for column, field in zip(zip(*group, strict=True), schema, strict=True)
            ]
            writer.write_table(pa.table(arrays, schema=schema))
            written += len(group)
    return written


def _groups(table: Iterable[Cells]) -> Iterator[list[Cells]]:
    group: list[Cells] = []
    size = 0
    for cells in table:
        group.append(cells)
        size += sum(len(cell) for cell in cells if isinstance(cell, str | bytes))
        if len(group) == GROUP_ROWS or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
