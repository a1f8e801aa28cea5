"""``kasmina audit``."""

from typing import Annotated

from cyclopts import Parameter

from kasmina.adapters.cli import whatif
from kasmina.adapters.cli.documents import audit_document
from kasmina.adapters.cli.errors import ContradictoryOptions, NothingNamed
from kasmina.adapters.cli.options import DEFAULT_DATABASE, Database, Json, Run
from kasmina.adapters.cli.output import show, show_document
from kasmina.adapters.cli.reading import find_run, open_reader, state_of
from kasmina.adapters.cli.render.ledger import render_ledger
from kasmina.adapters.cli.whatif import Chosen
from kasmina.domain.errors import UnknownSlot
from kasmina.domain.ports import EventStore
from kasmina.domain.projections import gate_ledger
from kasmina.domain.stages import Gate
from kasmina.domain.thresholds import Sweep, Threshold


def audit(
    run: Run | None = None,
    /,
    *,
    slot: Annotated[str | None, Parameter(help="Only decisions about this slot.")] = None,
    gate: Annotated[
        Gate | None,
        Parameter(name="--gate", name_transform=str.upper, help="Only decisions of this gate."),
    ] = None,
    refused: Annotated[
        bool,
        Parameter(
            negative=(),
            show_default=False,
            help="Only refusals; with --what-if, those by the other thresholds.",
        ),
    ] = False,
    what_ifs: Annotated[
        tuple[str, ...],
        Parameter(
            name="--what-if",
            negative=(),
            show_default=False,
            help="Decide again by another threshold, as in G2.min_improvement=1.0; repeatable.",
        ),
    ] = (),
    sweep: Annotated[
        str | None,
        Parameter(help="Try one threshold at many values: G2.min_improvement=0:3:0.25, or =0,1,2."),
    ] = None,
    every: Annotated[
        bool,
        Parameter(
            name="--all",
            negative=(),
            show_default=False,
            help="Every run, with --what-if or --sweep.",
        ),
    ] = False,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Show what the gates decided, and every figure on which they did."""
    _refuse(
        {"RUN": run is not None, "--all": every},
        {"--what-if": bool(what_ifs), "--sweep": sweep is not None},
        {"--all": every, "--slot": slot is not None},
        {"--sweep": sweep is not None, "--refused": refused},
    )
    if run is None and not every:
        raise NothingNamed(("a RUN", "--all"))
    if every and not what_ifs and sweep is None:
        raise NothingNamed(("--what-if", "--sweep"))
    chosen = Chosen(slot, gate, refused)
    thresholds = [Threshold.parse(text) for text in what_ifs]
    over = None if sweep is None else Sweep.parse(sweep)
    with open_reader(database) as store:
        named = None if run is None else find_run(store, run)
        if named is not None and slot is not None:
            _require_slot(store, named, slot)
        if over is not None:
            whatif.show_sweep(store, named, over, chosen, json=json)
        elif thresholds:
            whatif.show_what_if(store, named, thresholds, chosen, json=json)
        elif named is not None:
            _ledger(store, named, chosen, json=json)


def _refuse(*groups: dict[str, bool]) -> None:
    for group in groups:
        if all(group.values()):
            raise ContradictoryOptions(tuple(group))


def _require_slot(store: EventStore, run_id: str, slot: str) -> None:
    """Raise ``UnknownSlot`` for one that the run never had, not even before a rewind."""
    decided = {decision.slot_id for decision in gate_ledger(list(store.read(run_id)))}
    known = {*state_of(store, run_id).slots, *decided}
    if slot not in known:
        raise UnknownSlot(slot, known)


def _ledger(store: EventStore, run_id: str, chosen: Chosen, *, json: bool) -> None:
    decisions = [*filter(chosen.decision, gate_ledger(list(store.read(run_id))))]
    if json:
        show_document(audit_document(run_id, decisions))
    else:
        show(render_ledger(decisions))
