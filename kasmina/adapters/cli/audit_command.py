"""``kasmina audit``."""

from typing import Annotated

from cyclopts import Parameter

from kasmina.adapters.cli.documents import audit_document
from kasmina.adapters.cli.options import DEFAULT_DATABASE, Database, Json, Run
from kasmina.adapters.cli.output import show, show_document
from kasmina.adapters.cli.reading import find_run, open_reader, state_of
from kasmina.adapters.cli.render.ledger import render_ledger
from kasmina.domain.errors import UnknownSlot
from kasmina.domain.ports import EventStore
from kasmina.domain.projections import Decision, gate_ledger
from kasmina.domain.stages import Gate


def audit(
    run: Run,
    /,
    *,
    slot: Annotated[str | None, Parameter(help="Only decisions about this slot.")] = None,
    gate: Annotated[
        Gate | None,
        Parameter(name="--gate", name_transform=str.upper, help="Only decisions of this gate."),
    ] = None,
    refused: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Only refusals.")
    ] = False,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Show what the gates decided, and every figure on which they did."""
    with open_reader(database) as store:
        run_id = find_run(store, run)
        ledger = gate_ledger(list(store.read(run_id)))
        if slot is not None:
            _require_slot(store, run_id, slot, ledger)
    chosen = [
        decision
        for decision in ledger
        if (slot is None or decision.slot_id == slot)
        and (gate is None or decision.outcome.gate is gate)
        and not (refused and decision.outcome.passed)
    ]
    if json:
        show_document(audit_document(run_id, chosen))
    else:
        show(render_ledger(chosen))


def _require_slot(store: EventStore, run_id: str, slot: str, ledger: list[Decision]) -> None:
    """Raise ``UnknownSlot`` for one that the run never had, not even before a rewind."""
    known = {*state_of(store, run_id).slots, *(decision.slot_id for decision in ledger)}
    if slot not in known:
        raise UnknownSlot(slot, known)
