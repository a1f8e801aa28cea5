"""What ``export``, ``import``, ``db copy`` and ``db backup`` print with ``--json``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kasmina.adapters.cli.documents import Document, verification_document
from kasmina.infra.exchange.tables import Table

if TYPE_CHECKING:
    from kasmina.infra.backup import Backup
    from kasmina.infra.exchange.continuation import Transfer


def export_document(run_ids: Sequence[str], table: Table, *, rows: int, output: Path) -> Document:
    """``kasmina export --output``: which runs are in the file, and its number of rows."""
    return {"output": str(output), "table": table.value, "rows": rows, "runs": list(run_ids)}


def transfers_document(transfers: "Sequence[Transfer]") -> Document:
    """``kasmina import`` and ``kasmina db copy``: what became of each run."""
    return {
        "added": sum(transfer.added for transfer in transfers),
        "present": sum(transfer.present for transfer in transfers),
        "runs": [
            {"run_id": transfer.run_id, "added": transfer.added, "present": transfer.present}
            for transfer in transfers
        ],
    }


def backup_document(backup: "Backup") -> Document:
    """``kasmina db backup``: the file, and what ``kasmina verify`` says of its runs.

    ``verification`` is ``null`` for a database of another schema.
    """
    checked = None if backup.runs is None else verification_document(backup.runs)
    return {
        "output": str(backup.path),
        "bytes": backup.size,
        "schema": backup.schema,
        "verification": checked,
    }
