"""The object a training loop holds: it measures, asks the gates, records, and only then acts."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from os import PathLike, fspath
from types import TracebackType
from typing import Self, TypeVar

from attrs import frozen

from kasmina.adapters.torch.blueprints import BlueprintRegistry
from kasmina.adapters.torch.checkpoint import Stateful, save_checkpoint
from kasmina.adapters.torch.germination import Sprout, sprout
from kasmina.adapters.torch.graft import Slots
from kasmina.adapters.torch.isolation import Monitor
from kasmina.adapters.torch.measurement import Evaluate, Evaluator, Measured
from kasmina.adapters.torch.optimizer import SeedGroups
from kasmina.adapters.torch.rehearsal import Attendance, Loss, rehearse, rehearses
from kasmina.adapters.torch.slot import SeedSlot
from kasmina.domain import commands as c
from kasmina.domain import events as e
from kasmina.domain.errors import CorruptHistory, EpochWentBackwards, InvalidCommand, RunIsClosed
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.policies import GatePolicy
from kasmina.domain.ports import Identifiers, Recorded
from kasmina.domain.progress import advanceable
from kasmina.domain.projections import Behaviour, SlotView, slot_view
from kasmina.domain.schedules import AlphaSchedule, BlendPlan
from kasmina.domain.stages import Blend, SeedInput, Stage
from kasmina.domain.state import RunState, SeedState, SlotState
from kasmina.examine import contrasts, epoch_evidence
from kasmina.service import Draft, Journal

E = TypeVar("E", bound=e.Event)

_SEEDS = 2**63  # random seeds there are


@frozen(kw_only=True)
class EpochReport:
    """What an epoch came to: its figures, and what the gates made of them."""

    epoch: int
    objective: float | None
    metrics: Mapping[str, float]
    decisions: tuple[e.GateEvaluated, ...]
    changes: tuple[e.StageChanged, ...]


@frozen(kw_only=True)
class Parts:
    """What a run is made of; ``open_run`` puts it together."""

    journal: Journal
    slots: Slots
    groups: SeedGroups
    monitor: Monitor
    evaluator: Evaluator
    blueprints: BlueprintRegistry
    identifiers: Identifiers
    extra: Mapping[str, Stateful]
    release: Callable[[], None]

    def grow(self, slot: SlotState, blueprint: str, init_seed: int, blend: Blend) -> Sprout:
        """A seed for ``slot``, with the first weights that ``init_seed`` gives it, and probed.

        Raises ``UnknownBlueprint`` and ``UnfitSeed``.
        """
        return sprout(
            self.slots[slot.slot_id],
            lambda: self.blueprints.build(slot.topology, blueprint, slot.width),
            blueprint_id=blueprint,
            init_seed=init_seed,
            host_parameters=(tensor for _, tensor in self.slots.host_tensors()),
            blend=blend,
        )


class Run:
    """One training of one host, as its loop sees it. Made by ``open_run``.

    Every method that changes something first makes its events durable and then changes slots and
    optimizer; when it raises, log, slots and optimizer are as they were.

    Use it as a context manager: leaving the block closes the run, an exception leaves it open so
    that it can be resumed.
    """

    def __init__(self, parts: Parts, *, step: int, steps_in_epoch: int) -> None:
        self._parts = parts
        self._journal = parts.journal
        self._step = step
        self._steps_in_epoch = steps_in_epoch
        self._views = {slot_id: SlotView(slot_id=slot_id) for slot_id in parts.slots}
        self._ramping: tuple[str, ...] = ()
        self._rehearsing: tuple[str, ...] = ()
        self._attendance = Attendance()

    @property
    def run_id(self) -> str:
        """The identifier under which the run is found in the store."""
        return self._journal.run_id

    @property
    def state(self) -> RunState:
        """The run as the log has it."""
        return self._journal.state

    @property
    def slots(self) -> Slots:
        """The slots of the host."""
        return self._parts.slots

    def germinate(
        self,
        slot_id: str,
        blueprint: str,
        *,
        learning_rate: float | None = None,
        weight_decay: float | None = None,
        incubation: IncubationPlan | None = None,
        blend: BlendPlan | None = None,
        seed_input: SeedInput = SeedInput.OPEN,
    ) -> tuple[e.GateEvaluated, ...]:
        """Put a new seed into a DORMANT slot, and begin its training if G0 and G1 pass.

        ``learning_rate`` and ``weight_decay`` are the seed's own; left out, they are those of the
        optimizer's first parameter group, but a tenth of the rate for ``STRAIGHT_THROUGH``. The
        rate follows the host's, whatever changes that. Returns what the gates decided.

        Raises ``UnknownSlot``, ``UnknownBlueprint``, ``SlotOccupied``, and ``UnfitSeed`` for a
        seed that would break its host; nothing is recorded or attached then.
        """
        slot = self.state.slot(slot_id)
        seed_id, init_seed = self._parts.identifiers.seed_id(), _init_seed(self.state, slot)
        learns, plan = incubation or IncubationPlan(), blend or BlendPlan()
        rate = learning_rate
        if rate is None:
            rate = learns.relative_rate * self._parts.groups.given_rate
        grown = self._parts.grow(slot, blueprint, init_seed, plan.blend)
        self._parts.groups.check(
            seed_id,
            tuple(grown.module.parameters()),
            learning_rate=rate,
            weight_decay=weight_decay,
        )
        draft = self._journal.draft()
        draft.decide(
            c.Germinate(
                step=self._step,
                slot_id=slot_id,
                seed_id=seed_id,
                blueprint_id=blueprint,
                probe=grown.probe,
                parameters=grown.parameters,
                init_seed=init_seed,
                incubation=learns,
                seed_input=seed_input,
                blend=plan,
                learning_rate=rate,
                weight_decay=weight_decay,
            )
        )
        if draft.state.slot(slot_id).stage is Stage.GERMINATED:
            draft.decide(c.Advance(step=self._step, slot_id=slot_id))
        recorded = self._commit(draft, {slot_id: grown})
        return _only(recorded, e.GateEvaluated)

    def rehearse(self, loss: Loss, *batch: object) -> None:
        """Let the seeds whose incubator is ``REHEARSAL`` learn from a part of this batch.

        ``loss(*part)`` runs the model and returns the loss, as for the host: divided for
        accumulation and scaled where a ``GradScaler`` is used. It is called once for each such
        seed, with the seed blended in, and not at all where there is none. Call this after the
        host's backward and before clipping and ``optimizer.step()``; the host is not touched.

        Raises ``SlotNotEvaluated`` when ``loss`` did not run the slot.
        """
        for slot_id in self._rehearsing:
            seed = self._seed(slot_id)
            rehearse(
                self.slots,
                self._views[slot_id],
                max(seed.candidates),
                loss,
                batch,
                draws=(seed.init_seed + self._step) % _SEEDS,
            )
            self._attendance.came(slot_id)

    def step(self) -> None:
        """Count one optimizer step: moves alpha along its ramps. Call it after each.

        Raises ``InvalidCommand`` when a seed that learns by rehearsal was not rehearsed.
        """
        self._attendance.end_step(expected=self._rehearsing)
        self._step += 1
        self._steps_in_epoch += 1
        for slot_id in self._ramping:
            self.slots[slot_id].set_alpha(self._step)
        self._parts.monitor.step()

    def end_epoch(self, evaluate: Evaluate | None, *, epoch: int | None = None) -> EpochReport:
        """Measure, record the epoch's evidence, and let every slot's gate decide.

        ``evaluate`` returns metrics on held-out data by name, the objective's among them; it is
        called once as the model is, and again for every seed that is rehearsed, shadowed or on
        probation, without a trace in modes, buffers or random streams. ``None`` records an epoch
        without measurement. ``epoch`` counts from 1 and by default goes on from the last.

        Raises ``InvalidCommand`` when no step was counted since the last epoch.
        """
        if self._steps_in_epoch == 0:
            raise InvalidCommand(
                "no optimizer step was counted in this epoch; call run.step() after every "
                "optimizer.step()"
            )
        number = self.state.epoch + 1 if epoch is None else epoch
        if number <= self.state.epoch:
            raise EpochWentBackwards(last=self.state.epoch, given=number)
        measured = Measured() if evaluate is None else self._parts.evaluator.measure(evaluate)
        contrasted = (
            ()
            if evaluate is None
            else tuple(contrasts(self._parts.evaluator, evaluate, measured, self.state, self._step))
        )
        observed = self._parts.monitor.collect()
        draft = self._journal.draft()
        draft.decide(epoch_evidence(observed, measured, self.state, self._step, number))
        for command in contrasted:
            draft.decide(command)
        _advance_all(draft, self._step)
        recorded = self._commit(draft)
        self._parts.monitor.reset()
        self._steps_in_epoch = 0
        return EpochReport(
            epoch=number,
            objective=measured.objective,
            metrics={metric.name: metric.value for metric in measured.metrics},
            decisions=_only(recorded, e.GateEvaluated),
            changes=_only(recorded, e.StageChanged),
        )

    def cull(self, slot_id: str, reason: str, *, ramp_steps: int = 0) -> None:
        """Reject a seed: at once, or after its alpha was ramped down over ``ramp_steps``."""
        draft = self._journal.draft()
        draft.decide(c.Cull(step=self._step, slot_id=slot_id, reason=reason, ramp_steps=ramp_steps))
        _settle(draft, slot_id, self._step)
        self._commit(draft)

    def pause(self, slot_id: str) -> None:
        """Stop a seed's learning, progress and clocks; its forward stays as it is."""
        self._do(c.PauseSeed(step=self._step, slot_id=slot_id))

    def resume_seed(self, slot_id: str) -> None:
        """Let a paused seed go on."""
        self._do(c.ResumeSeed(step=self._step, slot_id=slot_id))

    def schedule_alpha(self, slot_id: str, schedule: AlphaSchedule) -> None:
        """Replace the ramp of a BLENDING seed."""
        self._do(c.ScheduleAlpha(step=self._step, slot_id=slot_id, schedule=schedule))

    def override_alpha(self, slot_id: str, alpha: float) -> None:
        """Hold the alpha of a BLENDING seed."""
        self._do(c.OverrideAlpha(step=self._step, slot_id=slot_id, alpha=alpha))

    def change_policy(self, policy: GatePolicy) -> None:
        """Decide by other thresholds from now on."""
        self._do(c.ChangePolicy(step=self._step, policy=policy))

    def checkpoint(self, path: str | PathLike[str]) -> None:
        """Save every tensor to ``path``, atomically, and record that it was saved.

        Holds host, seeds, optimizer, random streams and what was given to ``open_run`` as
        ``extra``. ``open_run(..., resume=run_id)`` goes on from it.
        """
        if self.state.closed:
            raise RunIsClosed(self.run_id)
        head = self._journal.head()
        save_checkpoint(
            path,
            slots=self.slots,
            optimizer=self._parts.groups.optimizer,
            run_id=self.run_id,
            sequence=head.sequence,
            digest=head.digest,
            epoch=self.state.epoch,
            step=self._step,
            extra=self._parts.extra,
        )
        self._do(c.SaveCheckpoint(step=self._step, path=fspath(path), sequence=head.sequence))

    def close(self) -> None:
        """Record that the training is over, and let go of the store."""
        try:
            self._do(c.CloseRun(step=self._step))
        finally:
            self._parts.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None and not self.state.closed:
            self.close()
        else:
            self._parts.release()

    def show(self, state: RunState, grown: Mapping[str, Sprout]) -> None:
        """Make slots and optimizer what ``state`` says; ``grown`` holds the seeds new to them."""
        for slot_id, slot in self.slots.items():
            view, seen = slot_view(state, slot_id), self._views[slot_id]
            if view.seed_id != seen.seed_id:
                self._replace(slot, seen, state.slot(slot_id), grown)
            if view != seen:
                slot.follow(view, self._step)
                self._parts.groups.shield(slot)
            self._views[slot_id] = view
        self._ramping = tuple(
            slot_id
            for slot_id, view in self._views.items()
            if view.behaviour is Behaviour.BLEND
            and view.paused_at is None
            and self._step < view.schedule.end_step
        )
        self._rehearsing = tuple(
            slot_id for slot_id, view in self._views.items() if rehearses(view)
        )

    def _replace(
        self, slot: SeedSlot, seen: SlotView, now: SlotState, grown: Mapping[str, Sprout]
    ) -> None:
        if seen.seed_id is not None:
            slot.detach()
            self._parts.groups.remove(seen.seed_id)
        if now.seed is not None and now.stage.holds_seed:
            slot.attach(grown[now.slot_id])
            self._parts.groups.add(
                now.seed.seed_id,
                slot.seed_parameters(),
                learning_rate=now.seed.learning_rate,
                weight_decay=now.seed.weight_decay,
                warmup_steps=now.seed.incubation.warmup_steps,
            )

    def _seed(self, slot_id: str) -> SeedState:
        seed = self.state.slot(slot_id).seed
        if seed is None:
            raise CorruptHistory(f"slot {slot_id!r} acts for a seed that the log does not know")
        return seed

    def _do(self, command: c.Command) -> None:
        draft = self._journal.draft()
        draft.decide(command)
        self._commit(draft)

    def _commit(
        self, draft: Draft, attach: Mapping[str, Sprout] | None = None
    ) -> tuple[Recorded, ...]:
        recorded = self._journal.commit(draft)
        self.show(self.state, attach or {})
        return recorded


def _init_seed(state: RunState, slot: SlotState) -> int:
    """63 bits that depend on the run's random seed, the slot, and how often it was used."""
    text = f"{state.random_seed}/{slot.slot_id}/{slot.germinations}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def _advance_all(draft: Draft, step: int) -> None:
    for slot_id in draft.state.slots:
        if advanceable(draft.state.slot(slot_id), draft.state.policy, step):
            draft.decide(c.Advance(step=step, slot_id=slot_id))
            _settle(draft, slot_id, step)


def _settle(draft: Draft, slot_id: str, step: int) -> None:
    """Let a slot that lost its seed run through the stages that wait for no evidence."""
    while True:
        slot = draft.state.slot(slot_id)
        clearing = slot.seed is not None and not slot.stage.holds_seed
        if not (clearing and advanceable(slot, draft.state.policy, step)):
            return
        draft.decide(c.Advance(step=step, slot_id=slot_id))


def _only(recorded: Sequence[Recorded], kind: type[E]) -> tuple[E, ...]:
    return tuple(record.event for record in recorded if isinstance(record.event, kind))
