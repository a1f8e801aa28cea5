r"""CSV by RFC 4180, in UTF-8: a header, lines ended by CR LF, quotes doubled.

Text is always quoted and nothing else is, so that ``""`` is an empty text and an empty field is
null. Truth values are ``true`` and ``false``, digests hexadecimal, times ISO 8601 in UTC with
microseconds, floats as short as they can be exact, or ``nan``, ``inf``, ``-inf``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

from kasmina.infra.exchange.errors import UnexportableEvent
from kasmina.infra.exchange.tables import COLUMNS, Kind, Table, records
from kasmina.infra.integrity import Row

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def header(table: Table) -> bytes:
    """The first line: the names of the columns."""
    return _joined(COLUMNS[table])


def lines(table: Table, rows: Iterable[Row]) -> Iterator[bytes]:
    """A line for each row of the table. Raises ``UnexportableEvent``."""
    written = [_WRITTEN[kind] for kind in COLUMNS[table].values()]
    for row in rows:
        try:
            for cells in records(table, (row,)):
                pairs = zip(written, cells, strict=True)
                yield _joined("" if cell is None else write(cell) for write, cell in pairs)
        except OverflowError as error:
            raise UnexportableEvent(row, "its time lies outside the years 1 to 9999") from error


def _joined(fields: Iterable[str]) -> bytes:
    return (",".join(fields) + "\r\n").encode()


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _moment(microseconds: int) -> str:
    moment = _EPOCH + timedelta(microseconds=microseconds)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _flag(flag: object) -> str:
    return "true" if flag else "false"


_WRITTEN: Mapping[Kind, Callable[[Any], str]] = MappingProxyType(
    {
        Kind.TEXT: _quoted,
        Kind.INTEGER: str,
        Kind.REAL: repr,
        Kind.FLAG: _flag,
        Kind.MOMENT: _moment,
        Kind.DIGEST: bytes.hex,
    }
)
