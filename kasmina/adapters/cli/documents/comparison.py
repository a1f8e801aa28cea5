"""What commands print with ``--json`` of two points, of forks and of rewinds."""

from collections.abc import Iterable, Mapping, Sequence

from kasmina.adapters.cli.documents import (
    Document,
    origin_document,
    record_document,
    stored_name,
    values,
)
from kasmina.domain.comparison import ABSENT, Difference, Parting, Stretch
from kasmina.domain.events import CheckpointSaved, RunForked
from kasmina.domain.points import Reversal, TensorsNotSaved
from kasmina.domain.ports import Recorded
from kasmina.domain.projections import Moment
from kasmina.domain.state import RunState

Histories = Mapping[Stretch, Sequence[Moment]]


def diff_document(
    before: RunState,
    after: RunState,
    found: Iterable[Difference],
    parting: Parting | None,
    histories: Histories,
) -> Document:
    """``kasmina diff``: two points, what differs, and what happened to each since they parted."""
    shared = None
    if parting is not None:
        shared = {
            "run_id": parting.run_id,
            "sequence": parting.sequence,
            "before": _history(parting.before, histories),
            "after": _history(parting.after, histories),
        }
    return {
        "before": _place(before),
        "after": _place(after),
        "differences": [_difference(each) for each in found],
        "parting": shared,
    }


def _place(state: RunState) -> Document:
    return {
        "run_id": state.run_id,
        "name": state.name,
        "sequence": state.sequence,
        "epoch": state.epoch,
        "step": state.step,
    }


def _difference(difference: Difference) -> Document:
    sides = {"before": difference.before, "after": difference.after}
    present = {side: values(value) for side, value in sides.items() if value is not ABSENT}
    return {"path": list(difference.path), **present}


def _history(stretches: Iterable[Stretch], histories: Histories) -> list[Document]:
    return [
        {"run_id": stretch.run_id, "type": stored_name(moment.event), **values(moment)}
        for stretch in stretches
        for moment in histories[stretch]
    ]


def fork_document(
    state: RunState, forked: RunForked, tensors: CheckpointSaved | TensorsNotSaved | None
) -> Document:
    """``kasmina fork``: the new run, and whether it can be trained, and from which checkpoint."""
    return {
        **_place(state),
        "forked_from": origin_document(forked),
        "trainable": not isinstance(tensors, TensorsNotSaved),
        "checkpoint": tensors.path if isinstance(tensors, CheckpointSaved) else None,
    }


def rewind_document(record: Recorded, reversal: Reversal) -> Document:
    """The line of ``kasmina replay --follow`` for a rewind: with what counts no longer, or again.

    Ranges of sequences, both ends included.
    """
    ranges = {"undone": reversal.undone, "restored": reversal.restored}
    return record_document(record) | {
        key: [{"first": first, "last": last} for first, last in found]
        for key, found in ranges.items()
    }
