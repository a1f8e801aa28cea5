"""What went out of a database, and what came in."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.text import Text

from kasmina.adapters.cli.render.figures import plural

if TYPE_CHECKING:
    from kasmina.infra.backup import Backup
    from kasmina.infra.exchange.continuation import Transfer


def told_export(run_ids: Sequence[str], *, rows: int, output: Path) -> str:
    """How much is in which file, in a line that does not break the path."""
    return f"{plural(rows, 'row')} of {plural(len(run_ids), 'run')} in {output}"


def render_transfers(transfers: "Sequence[Transfer]") -> RenderableType:
    """What became of each run, a run a line."""
    if not transfers:
        return Text("it holds no events")
    return Lines(*map(render_transfer, transfers))


def render_transfer(transfer: "Transfer") -> RenderableType:
    """What became of a run."""
    added = plural(transfer.added, "event")
    present = plural(transfer.present, "event")
    if not transfer.added:
        said = f"nothing to add to the {present} that were here"
    elif transfer.present:
        said = f"{added} added to the {transfer.present:,} that were here"
    else:
        said = f"{added} added"
    return Text.assemble((transfer.run_id, "bold"), f"  {said}")


def told_backup(backup: "Backup") -> str:
    """What the backup holds, in a line that does not break the path."""
    where = f"{plural(backup.size, 'byte')} in {backup.path}"
    if backup.runs is None:
        return f"{where}, schema {backup.schema}: the pages were checked, the runs were not"
    events = plural(sum(run.events for run in backup.runs), "event")
    broken = sum(not run.sound for run in backup.runs)
    found = f"{broken:,} broken as in the database itself" if broken else "every digest checked"
    return f"{where}: {plural(len(backup.runs), 'run')}, {events}, {found}"
