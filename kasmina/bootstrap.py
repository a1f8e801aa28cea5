"""The composition root: puts store, slots, optimizer and gates together into a run."""

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, cast

from attrs import evolve as changed
from attrs import frozen
from torch.optim import Optimizer
from typing_extensions import override

from kasmina.adapters.torch.blueprints import BlueprintRegistry, blueprints
from kasmina.adapters.torch.checkpoint import (
    Checkpoint,
    Pack,
    Stateful,
    read_checkpoint,
    restore_checkpoint,
    write_checkpoint,
)
from kasmina.adapters.torch.distributed.evidence import RankedEvaluator, RankedMonitor
from kasmina.adapters.torch.distributed.gradients import RankedGroups, share
from kasmina.adapters.torch.distributed.randomness import RANKS, RankStreams
from kasmina.adapters.torch.distributed.ranks import TOGETHER, RankPlan, Ranks, join
from kasmina.adapters.torch.distributed.store import RankedEventStore, RankedIdentifiers
from kasmina.adapters.torch.germination import Sprout
from kasmina.adapters.torch.graft import Slots
from kasmina.adapters.torch.isolation import Monitor
from kasmina.adapters.torch.measurement import Evaluator, Prediction
from kasmina.adapters.torch.optimizer import SeedGroups, seed_order
from kasmina.adapters.torch.sharding import is_sharded
from kasmina.domain import commands as c
from kasmina.domain.errors import CorruptHistory, HostMismatch, InvalidCommand, RunIsClosed
from kasmina.domain.evidence import HostDescription, Software
from kasmina.domain.objective import Objective
from kasmina.domain.policies import GatePolicy
from kasmina.domain.ports import EventStore, Identifiers
from kasmina.domain.stages import Stage
from kasmina.domain.state import RunState
from kasmina.history import beginning, load, resume_point, saved_tensors
from kasmina.infra.engine import Durability
from kasmina.infra.event_store import open_store
from kasmina.infra.log import LogFormat, LoggingEventStore, configure_logging
from kasmina.infra.system import RandomIdentifiers
from kasmina.run import Parts, Run
from kasmina.service import Journal

if TYPE_CHECKING:
    from kasmina.adapters.torch.distributed.shards import Sharding

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
    fork: str | None = None,
    checkpoint: str | PathLike[str] | None = None,
    extra: Mapping[str, Stateful] | None = None,
    prediction: Prediction | None = None,
    sample_every: int = 50,
    registry: BlueprintRegistry = blueprints,
    identifiers: Identifiers | None = None,
    durability: Durability = Durability.FULL,
    log: LogFormat | None = None,
    ranks: RankPlan | None = TOGETHER,
) -> Run:
    """Begin a run in the database at ``url``, which is created if need be, or go on with one.

    ``random_seed`` decides the first weights of every seed. ``resume`` is the identifier of a run
    that was begun with the same host: its seeds are grown again from the log, the tensors come
    from ``checkpoint`` (by default the last one it recorded), and what the log holds beyond the
    checkpoint is taken back by a recorded ``RunRewound``. Without any checkpoint the run goes back
    to its beginning. ``name``, ``objective``, ``policy`` and ``random_seed`` are then the log's.

    ``fork`` is the identifier of a run from which a new one, called ``name``, branches off at
    ``checkpoint``: by default the last one that it recorded, and without any its beginning. The
    run itself is left as it is. ``objective`` and ``random_seed`` are its own; so is ``policy``,
    unless another is given to rule from there on.

    ``extra`` names what else belongs into checkpoints: schedulers, scalers, averaged models.
    ``prediction`` picks the tensor to compare out of the model's output. ``sample_every`` is the
    number of steps from one sample of isolation and gradients to the next.

    Where ``torch.distributed`` runs several processes, all of them are one run: each makes the same
    calls, rank 0 alone has the log and writes checkpoints, and whatever fails on one fails on all.
    ``ranks`` says how; ``None`` makes each process a run of its own.

    Raises ``StoreUnavailable``, ``SchemaMismatch``, ``UnknownRun``, ``HostMismatch``,
    ``CheckpointError``, ``TensorsNotSaved``, ``RankLost``, ``RanksDiverged``; log, host
    and optimizer are then as they were.
    """
    if resume is not None and fork is not None:
        raise InvalidCommand("a run is either resumed or forked; give resume= or fork=, not both")
    identifiers = identifiers or RandomIdentifiers()
    if log is not None:
        configure_logging(log)
    with ExitStack() as undo:
        resources = undo.enter_context(ExitStack())
        resources.enter_context(slots.claimed())
        _require_unused(slots, optimizer)
        sharding = _sharding(slots, ranks)
        together = join(ranks, least=2 if sharding is None else 1)
        if together is not None:
            resources.callback(together.close)
            identifiers = RankedIdentifiers(together, identifiers)
        monitor, groups = _watchers(slots, optimizer, together, every=sample_every)
        undo.callback(groups.close)
        resources.callback(groups.on_step(monitor.observe_gradients).remove)

        def opened() -> EventStore:
            store = resources.enter_context(open_store(url, durability=durability))
            return store if log is None else LoggingEventStore(store)

        store = opened() if together is None else RankedEventStore.opened(together, opened)
        writer = identifiers.batch()
        past = None
        if resume is None:
            journal = Journal(store, identifiers.run_id(name), writer=writer, state=None)
        else:
            past = journal = Journal.open(store, resume, writer=writer)
        if fork is not None:
            past = Journal.open(store, fork, writer=writer)
        if past is not None:
            _require_same_host(past.state, slots)
            objective = past.state.objective
        parts = _Parts(
            journal=journal,
            slots=slots,
            groups=groups,
            monitor=monitor,
            evaluator=_evaluator(slots, objective, together, prediction),
            blueprints=registry,
            identifiers=identifiers,
            extra=extra or {},
            release=resources.close,
            ranks=together,
            sharding=sharding,
        )
        if past is None:
            run = _begun(parts, name, objective, policy or GatePolicy(), random_seed)
        elif fork is None:
            run = _resumed(parts, store, checkpoint)
        else:
            start = _start(store, past, checkpoint)
            draft = journal.fork(fork, at=start.state.sequence, name=name, policy=policy)
            run = _continued(parts, start, lambda: journal.commit(draft))
        undo.pop_all()
        return run


class RankedRun(Run):
    """A run of many processes. Each makes the same calls; rank 0 alone has the log."""

    @override
    def show(self, state: RunState, grown: Mapping[str, Sprout]) -> None:
        sharding = cast("_Parts", self._parts).sharding
        for each in grown.values():  # only now: all ranks have agreed that there are such seeds
            share(each)
            if sharding is not None:
                sharding.spread(each)
        super().show(state, grown)

    @override
    def _save(self, path: str | PathLike[str], pack: Pack) -> None:
        parts = cast("_Parts", self._parts)
        ranks = cast("Ranks", parts.ranks)
        streams = RankStreams(self.slots, ranks)
        streams.gather()
        packed = partial(pack, extra={**parts.extra, RANKS: streams})
        if parts.sharding is None:
            ranks.on_first("save a checkpoint", lambda: write_checkpoint(path, packed()))
        else:
            parts.sharding.save(path, ranks, packed)


@frozen(kw_only=True)
class _Parts(Parts):
    ranks: Ranks | None
    sharding: "Sharding | None"

    def run(self, *, step: int, steps_in_epoch: int) -> Run:
        kind = Run if self.ranks is None else RankedRun
        return kind(self, step=step, steps_in_epoch=steps_in_epoch)


def _watchers(
    slots: Slots, optimizer: Optimizer, ranks: Ranks | None, *, every: int
) -> tuple[Monitor, SeedGroups]:
    if ranks is None:
        return Monitor(slots, every=every), SeedGroups(optimizer)
    return RankedMonitor(slots, ranks, every=every), RankedGroups(optimizer, slots, ranks)


def _evaluator(
    slots: Slots, objective: Objective, ranks: Ranks | None, prediction: Prediction | None
) -> Evaluator:
    if ranks is None:
        return Evaluator(slots, objective, prediction=prediction)
    return RankedEvaluator(slots, objective, ranks, prediction=prediction)


def _sharding(slots: Slots, ranks: RankPlan | None) -> "Sharding | None":
    """How the host is sharded, if it is. Raises ``ShardedHost`` where seeds could not follow."""
    if not any(is_sharded(parameter) for parameter in slots.host_parameters()):
        return None
    from kasmina.adapters.torch.distributed.shards import Sharding  # noqa: PLC0415  # loads FSDP

    return Sharding.of(slots, ranks)


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


def _begun(
    parts: _Parts, name: str, objective: Objective, policy: GatePolicy, random_seed: int
) -> Run:
    opened = c.OpenRun(
        step=0,
        run_id=parts.journal.run_id,
        name=name,
        objective=objective,
        policy=policy,
        host=parts.slots.describe(),
        random_seed=random_seed,
        software=_software(),
    )
    parts.journal.handle(opened, *_places(parts.slots))
    return parts.run(step=0, steps_in_epoch=0)


def _software() -> tuple[Software, ...]:
    return tuple(
        Software(name=package, version=importlib.metadata.version(package))
        for package in _RECORDED_SOFTWARE
    )


def _places(slots: Slots) -> Iterator[c.OpenSlot]:
    for slot_id, slot in slots.items():
        yield c.OpenSlot(step=0, slot_id=slot_id, topology=slot.topology, width=slot.width)


@frozen(kw_only=True)
class _Start:
    """From where a run goes on; without a checkpoint the tensors are the host's, as given."""

    state: RunState
    checkpoint: Checkpoint | None


def _start(store: EventStore, past: Journal, path: str | PathLike[str] | None) -> _Start:
    """The point of ``past`` that the checkpoint at ``path``, or its last one, was taken at."""
    to, checkpoint = beginning(store, past.run_id), None
    if path is None:
        saved = past.state.checkpoint or saved_tensors(store, past.run_id, at=to)
        path = None if saved is None else saved.path
    if path is not None:
        checkpoint = read_checkpoint(path)
        to = resume_point(
            store,
            past.run_id,
            taken_in=checkpoint.run_id,
            sequence=checkpoint.sequence,
            digest=checkpoint.digest,
            path=checkpoint.path,
        )
    state = load(store, past.run_id, until=to)
    if state is None:
        raise CorruptHistory(f"run {past.run_id!r} has no event {to}")
    return _Start(state=state, checkpoint=checkpoint)


def _resumed(parts: _Parts, store: EventStore, path: str | PathLike[str] | None) -> Run:
    """The run of ``parts``, with what its log holds beyond the checkpoint taken back."""
    journal = parts.journal
    if journal.state.closed and journal.state.checkpoint is None and path is None:
        raise RunIsClosed(journal.run_id)
    start = _start(store, journal, path)
    to = start.state.sequence
    if to == journal.state.sequence:
        return _continued(parts, start, lambda: None)
    return _continued(parts, start, lambda: journal.rewind(to))


def _continued(parts: _Parts, start: _Start, record: Callable[[], object]) -> Run:
    """A run on host, slots and optimizer as they were at ``start``; ``record`` puts it on record.

    When it raises, slots and optimizer are as they were before.
    """
    state, checkpoint = start.state, start.checkpoint
    step = state.step if checkpoint is None else checkpoint.step
    run = parts.run(step=step, steps_in_epoch=step - state.epoch_ended)
    parts.monitor.resume(step)
    with ExitStack() as undo:
        undo.callback(run.show, _empty(state), {})
        run.show(state, _grown(state, parts))
        if checkpoint is not None:
            _restore(checkpoint, parts)
        record()
        undo.pop_all()
    return run


def _restore(checkpoint: Checkpoint, parts: _Parts) -> None:
    """Take on what ``checkpoint`` holds, by however many ranks it was saved."""
    extra = {name: state for name, state in checkpoint.extra.items() if name != RANKS}
    restore_checkpoint(
        changed(checkpoint, extra=extra),
        slots=parts.slots,
        optimizer=parts.groups.optimizer,
        extra=parts.extra,
    )
    if parts.ranks is not None and RANKS in checkpoint.extra:
        streams = RankStreams(parts.slots, parts.ranks)
        streams.load_state_dict(checkpoint.extra[RANKS])
        streams.restore()


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
