"""The object a training loop holds: it measures, asks the gates, records, and only then acts."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from os import PathLike, fspath
from types import TracebackType
from typing import Self

from attrs import frozen

from kasmina.adapters.torch.blueprints import BlueprintRegistry
from kasmina.adapters.torch.checkpoint import (
    Pack,
    Stateful,
    pack_checkpoint,
    write_checkpoint,
)
from kasmina.adapters.torch.germination import Sprout, sprout
from kasmina.adapters.torch.graft import Slots
from kasmina.adapters.torch.isolation import Monitor
from kasmina.adapters.torch.measurement import Evaluate, Evaluator, Measured
from kasmina.adapters.torch.optimizer import SeedGroups
from kasmina.adapters.torch.rehearsal import Attendance, Loss, rehearse
from kasmina.adapters.torch.watch import Watch
from kasmina.advance import advance_all, first_weights, only, settle
from kasmina.departure import Presence
from kasmina.domain import commands as c
from kasmina.domain import events as e
from kasmina.domain.errors import CorruptHistory, EpochWentBackwards, InvalidCommand, RunIsClosed
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.policies import GatePolicy
from kasmina.domain.ports import Identifiers, Recorded
from kasmina.domain.schedules import AlphaSchedule, BlendPlan
from kasmina.domain.stages import Blend, SeedInput, Stage
from kasmina.domain.state import RunState, SeedState, SlotState
from kasmina.examine import contrasts, epoch_evidence
from kasmina.service import Draft, Journal
from kasmina.showing import Showing
from kasmina.status import status_line
from kasmina.summary import RunSummary, summary

_LOG = logging.getLogger("kasmina")
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
        self._showing = Showing(parts.slots, parts.groups)
        self._watch = Watch(parts.journal.run_id, parts.slots, parts.groups)
        self._attendance = Attendance()
        self._presence = Presence(parts.journal.run_id)
        self._attending = False

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
        self._attend()
        slot = self.state.slot(slot_id)
        seed_id, init_seed = self._parts.identifiers.seed_id(), first_weights(self.state, slot)
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
        return only(recorded, e.GateEvaluated)

    def rehearse(self, loss: Loss, *batch: object) -> None:
        """Let the seeds whose incubator is ``REHEARSAL`` learn from a part of this batch.

        ``loss(*part)`` runs the model and returns the loss, as for the host: divided for
        accumulation and scaled where a ``GradScaler`` is used. It is called once for each such
        seed, with the seed blended in, and not at all where there is none. Call this after the
        host's backward and before clipping and ``optimizer.step()``; the host is not touched.

        Raises ``SlotNotEvaluated`` when ``loss`` did not run the slot.
        """
        for slot_id in self._showing.rehearsing:
            seed = self._seed(slot_id)
            rehearse(
                self.slots,
                self._showing.views[slot_id],
                max(seed.candidates),
                loss,
                batch,
                draws=(seed.init_seed + self._step) % _SEEDS,
            )
            self._attendance.came(slot_id)

    def step(self) -> None:
        """Count one optimizer step: moves alpha along its ramps. Call it after each.

        Raises ``InvalidCommand`` when a seed that learns by rehearsal was not rehearsed, and
        ``SeedNotOptimized`` when the optimizer does not hold a seed any more.
        """
        self._attend()
        self._watch.count(self.state, self._steps_in_epoch)
        self._attendance.end_step(expected=self._showing.rehearsing)
        self._step += 1
        self._steps_in_epoch += 1
        self._showing.set_alphas(self._step)
        self._parts.monitor.step()

    def end_epoch(self, evaluate: Evaluate | None, *, epoch: int | None = None) -> EpochReport:
        """Measure, record the epoch's evidence, and let every slot's gate decide.

        ``evaluate`` returns metrics on held-out data by name, the objective's among them; it is
        called once as the model is, and again for every seed that is rehearsed, shadowed or on
        probation, without a trace in modes, buffers or random streams. ``None`` records an epoch
        without measurement. ``epoch`` counts from 1 and by default goes on from the last.

        Raises ``InvalidCommand`` when no step was counted since the last epoch, and
        ``SeedNotOptimized``. Warns with ``SilentRun`` where the run does nothing, or trains
        something else than it seems to.
        """
        if self._steps_in_epoch == 0:
            raise InvalidCommand(
                "no optimizer step was counted in this epoch; call run.step() after every "
                "optimizer.step()"
            )
        number = self.state.epoch + 1 if epoch is None else epoch
        if number <= self.state.epoch:
            raise EpochWentBackwards(last=self.state.epoch, given=number)
        self._watch.inspect(self.state, steps=self._steps_in_epoch, measuring=evaluate is not None)
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
        advance_all(draft, self._step)
        recorded = self._commit(draft)
        self._parts.monitor.reset()
        self._watch.begin_epoch()
        self._steps_in_epoch = 0
        return EpochReport(
            epoch=number,
            objective=measured.objective,
            metrics={metric.name: metric.value for metric in measured.metrics},
            decisions=only(recorded, e.GateEvaluated),
            changes=only(recorded, e.StageChanged),
        )

    def cull(self, slot_id: str, reason: str, *, ramp_steps: int = 0) -> None:
        """Reject a seed: at once, or after its alpha was ramped down over ``ramp_steps``."""
        draft = self._journal.draft()
        draft.decide(c.Cull(step=self._step, slot_id=slot_id, reason=reason, ramp_steps=ramp_steps))
        settle(draft, slot_id, self._step)
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
        pack = partial(
            pack_checkpoint,
            path,
            slots=self.slots,
            optimizer=self._parts.groups.optimizer,
            run_id=self.run_id,
            sequence=head.sequence,
            digest=head.digest,
            epoch=self.state.epoch,
            step=self._step,
        )
        self._save(path, pack)
        self._do(c.SaveCheckpoint(step=self._step, path=fspath(path), sequence=head.sequence))

    def status(self) -> str:
        """Where the seeds stand at this step, in one short line for a progress bar."""
        return status_line(self.state, self._step)

    def summary(self) -> RunSummary:
        """What the run has come to; as text, a table of its slots."""
        return summary(self.state, self._step)

    def close(self) -> None:
        """Record that the training is over, and let go of the store."""
        try:
            self._do(c.CloseRun(step=self._step))
        finally:
            self._leave()
        if not any(slot.germinations for slot in self.state.slots.values()):
            _LOG.info("run %s was closed, and no seed was ever planted in it", self.run_id)
        self._watch.closed(self.state, self._steps_in_epoch)

    def __enter__(self) -> Self:
        self._attend()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None and not self.state.closed:
            self.close()
            return
        self._leave()
        if error is not None and not self.state.closed:
            error.add_note(f"run {self.run_id!r} is still open; {self._presence.way_back}")

    def show(self, state: RunState, grown: Mapping[str, Sprout]) -> None:
        """Make slots and optimizer what ``state`` says; ``grown`` holds the seeds new to them."""
        self._showing.show(state, self._step, grown)
        self._watch.follow()

    def _seed(self, slot_id: str) -> SeedState:
        seed = self.state.slot(slot_id).seed
        if seed is None:
            raise CorruptHistory(f"slot {slot_id!r} acts for a seed that the log does not know")
        return seed

    def _attend(self) -> None:
        # From the loop's first act on: a run that could not be resumed leaves no trace.
        if not self._attending:
            self._attending = True
            self._watch.begin()
            self._presence.note(self.state)
            self._presence.arrive()

    def _leave(self) -> None:
        self._watch.close()
        self._presence.leave()
        self._parts.release()

    def _save(self, path: str | PathLike[str], pack: Pack) -> None:
        write_checkpoint(path, pack(extra=self._parts.extra))

    def _do(self, command: c.Command) -> None:
        draft = self._journal.draft()
        draft.decide(command)
        self._commit(draft)

    def _commit(
        self, draft: Draft, attach: Mapping[str, Sprout] | None = None
    ) -> tuple[Recorded, ...]:
        recorded = self._journal.commit(draft)
        self.show(self.state, attach or {})
        self._presence.note(self.state)
        return recorded
