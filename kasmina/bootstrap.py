"""The composition root: puts store, slots, optimizer and gates together into a run."""

import importlib.metadata
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from os import PathLike

from attrs import evolve as changed
from torch.optim import Optimizer

from kasmina.adapters.torch.blueprints import BlueprintRegistry, blueprints
from kasmina.adapters.torch.checkpoint import Stateful, read_checkpoint, restore_checkpoint
from kasmina.adapters.torch.germination import Sprout
from kasmina.adapters.torch.graft import Slots
from kasmina.adapters.torch.isolation import Monitor
from kasmina.adapters.torch.measurement import Evaluator, Prediction
from kasmina.adapters.torch.optimizer import SeedGroups, seed_order
from kasmina.domain import commands as c
from kasmina.domain.errors import CorruptHistory, HostMismatch, InvalidCommand, RunIsClosed
from kasmina.domain.evidence import HostDescription, Software
from kasmina.domain.objective import Objective
from kasmina.domain.policies import GatePolicy
from kasmina.domain.ports import EventStore, Identifiers
from kasmina.domain.stages import Stage
from kasmina.domain.state import RunState
from kasmina.infra.engine import Durability
from kasmina.infra.event_store import open_store
from kasmina.infra.log import LogFormat, LoggingEventStore, configure_logging
from kasmina.infra.system import RandomIdentifiers
from kasmina.run import Parts, Run
from kasmina.service import Journal, load, resume_point

_RECORDED_SOFTWARE = ("kasmina", "torch", "transitions")


def open_run(
    url: str,
    *,
    name: str,
    slots: Slots,
    optimizer: Optimizer,
    objective: Objective,
    policy: GatePolicy | None = None,
    random_seed: int = 0,
    resume: str | None = None,
    checkpoint: str | PathLike[str] | None = None,
    extra: Mapping[str, Stateful] | None = None,
    prediction: Prediction | None = None,
    sample_every: int = 50,
    registry: BlueprintRegistry = blueprints,
    identifiers: Identifiers | None = None,
    durability: Durability = Durability.FULL,
    log: LogFormat | None = None,
) -> Run:
    """Begin a run in the database at ``url``, which is created if need be, or go on with one.

    ``random_seed`` decides the first weights of every seed. ``resume`` is the identifier of a run
    that was begun with the same host: its seeds are grown again from the log, the tensors come
    from ``checkpoint`` (by default the last one it recorded), and what the log holds beyond the
    checkpoint is taken back by a recorded ``RunRewound``. Without any checkpoint the run goes back
    to its beginning. ``name``, ``objective``, ``policy`` and ``random_seed`` are then the log's.

    ``extra`` names what else belongs into checkpoints: schedulers, scalers, averaged models.
    ``prediction`` picks the tensor to compare out of the model's output. ``sample_every`` is the
    number of steps from one sample of isolation and gradients to the next.

    Raises ``StoreUnavailable``, ``SchemaMismatch``, ``UnknownRun``, ``HostMismatch``,
    ``CheckpointError``; log, host and optimizer are then as they were.
    """
    identifiers = identifiers or RandomIdentifiers()
    if log is not None:
        configure_logging(log)
    with ExitStack() as undo:
        resources = undo.enter_context(ExitStack())
        resources.enter_context(slots.claimed())
        _require_unused(slots, optimizer)
        monitor, groups = Monitor(slots, every=sample_every), SeedGroups(optimizer)
        undo.callback(groups.close)
        resources.callback(groups.on_step(monitor.observe_gradients).remove)
        store: EventStore = resources.enter_context(open_store(url, durability=durability))
        if log is not None:
            store = LoggingEventStore(store)
        writer = identifiers.batch()
        if resume is None:
            journal = Journal(store, identifiers.run_id(name), writer=writer, state=None)
            opened = c.OpenRun(
                step=0,
                run_id=journal.run_id,
                name=name,
                objective=objective,
                policy=policy or GatePolicy(),
                host=slots.describe(),
                random_seed=random_seed,
                software=_software(),
            )
            journal.handle(opened, *_places(slots))
        else:
            journal = Journal.open(store, resume, writer=writer)
            _require_same_host(journal.state, slots)
        parts = Parts(
            journal=journal,
            slots=slots,
            groups=groups,
            monitor=monitor,
            evaluator=Evaluator(slots, journal.state.objective, prediction=prediction),
            blueprints=registry,
            identifiers=identifiers,
            extra=extra or {},
            release=resources.close,
        )
        if resume is None:
            run = Run(parts, step=0, steps_in_epoch=0)
        else:
            run = _resumed(parts, store, checkpoint)
        undo.pop_all()
        return run


def _require_unused(slots: Slots, optimizer: Optimizer) -> None:
    """Seeds of an earlier run are neither in the new run's log nor under its gates."""
    occupied = [slot_id for slot_id, slot in slots.items() if slot.seed is not None]
    if occupied:
        raise InvalidCommand(
            f"slots {occupied} hold seeds of an earlier run; build the host anew and graft it, and "
            f"to go on with that run resume it from its checkpoint"
        )
    if seed_order(optimizer.param_groups):
        raise InvalidCommand(
            "the optimizer holds seeds of an earlier run; build it anew from "
            "slots.host_parameters()"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(parameter) in held for parameter in slots.host_parameters()):
        raise InvalidCommand(
            "the optimizer holds none of the host's parameters; build it from "
            "slots.host_parameters() of the model that was grafted"
        )


def _software() -> tuple[Software, ...]:
    return tuple(
        Software(name=package, version=importlib.metadata.version(package))
        for package in _RECORDED_SOFTWARE
    )


def _places(slots: Slots) -> Iterator[c.OpenSlot]:
    for slot_id, slot in slots.items():
        yield c.OpenSlot(step=0, slot_id=slot_id, topology=slot.topology, width=slot.width)


def _resumed(parts: Parts, store: EventStore, path: str | PathLike[str] | None) -> Run:
    """A run on host, slots and optimizer as its checkpoint has them, and the log with them."""
    journal = parts.journal
    saved = journal.state.checkpoint
    if path is None and saved is not None:
        path = saved.path
    if path is None and journal.state.closed:
        raise RunIsClosed(journal.run_id)
    checkpoint = None if path is None else read_checkpoint(path)
    to = _beginning(journal)
    if checkpoint is not None:
        to = resume_point(
            journal,
            sequence=checkpoint.sequence,
            digest=checkpoint.digest,
            path=checkpoint.path,
        )
    there = load(store, journal.run_id, until=to)
    if there is None:
        raise CorruptHistory(f"run {journal.run_id!r} has no event {to}")
    step = there.step if checkpoint is None else checkpoint.step
    run = Run(parts, step=step, steps_in_epoch=step - there.epoch_ended)
    parts.monitor.resume(step)
    with ExitStack() as undo:
        undo.callback(run.show, _empty(there), {})
        run.show(there, _grown(there, parts))
        if checkpoint is not None:
            restore_checkpoint(
                checkpoint, slots=parts.slots, optimizer=parts.groups.optimizer, extra=parts.extra
            )
        if to != journal.state.sequence:
            journal.rewind(to)
        undo.pop_all()
    return run


def _beginning(journal: Journal) -> int:
    """The last event of a run's opening, before anything was trained."""
    return 1 + len(journal.state.slots)


def _empty(state: RunState) -> RunState:
    slots = {
        slot_id: changed(slot, stage=Stage.DORMANT, seed=None)
        for slot_id, slot in state.slots.items()
    }
    return changed(state, slots=slots)


def _grown(state: RunState, parts: Parts) -> dict[str, Sprout]:
    """The seeds that are attached in ``state``, with the weights they were born with."""
    return {
        slot_id: parts.grow(
            slot, slot.seed.blueprint_id, slot.seed.init_seed, slot.seed.blend.blend
        )
        for slot_id, slot in state.slots.items()
        if slot.seed is not None and slot.stage.holds_seed
    }


def _require_same_host(state: RunState, slots: Slots) -> None:
    recorded = _described(state.host, {k: v.width for k, v in state.slots.items()})
    given = _described(slots.describe(), {k: v.width for k, v in slots.items()})
    if recorded != given:
        raise HostMismatch(state.run_id, recorded=recorded, given=given)


def _described(host: HostDescription, widths: Mapping[str, int]) -> str:
    places = ", ".join(f"{slot_id} ({width})" for slot_id, width in sorted(widths.items()))
    return (
        f"{host.kind} with {host.parameters} parameters (tensors {host.digest[:12]}) and slots "
        f"{places}"
    )
