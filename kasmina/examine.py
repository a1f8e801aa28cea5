"""What is measured of the model at the end of an epoch, as commands to record it."""

from collections.abc import Iterator, Mapping

from attrs import evolve as changed

from kasmina.adapters.torch.isolation import SlotObservation
from kasmina.adapters.torch.measurement import Evaluate, Evaluator, Measured
from kasmina.adapters.torch.rehearsal import shown_at
from kasmina.domain import commands as c
from kasmina.domain.evidence import SeedEvidence
from kasmina.domain.projections import Behaviour, SlotView, slot_view
from kasmina.domain.stages import Incubator, Stage
from kasmina.domain.state import RunState, SlotState


def epoch_evidence(
    observed: Mapping[str, SlotObservation],
    measured: Measured,
    state: RunState,
    step: int,
    epoch: int,
) -> c.RecordEpoch:
    """The epoch's figures, and what was observed of each attached seed."""
    attached = {
        slot_id: slot.seed
        for slot_id, slot in state.slots.items()
        if slot.seed is not None and slot.stage.holds_seed
    }
    return c.RecordEpoch(
        step=step,
        epoch=epoch,
        objective=measured.objective,
        metrics=measured.metrics,
        seeds=tuple(
            SeedEvidence(
                slot_id=slot_id,
                seed_id=seed.seed_id,
                alpha=seed.alpha(step),
                gradient_norm=observed[slot_id].gradient_norm,
                nonfinite_outputs=observed[slot_id].nonfinite_outputs,
                nonfinite_gradients=observed[slot_id].nonfinite_gradients,
            )
            for slot_id, seed in attached.items()
        ),
        violations=tuple(
            (slot_id, violation)
            for slot_id in attached
            for violation in observed[slot_id].violations
        ),
    )


def contrasts(
    evaluator: Evaluator, evaluate: Evaluate, measured: Measured, state: RunState, step: int
) -> Iterator[c.Command]:
    """The model with each seed against the model without it, where the seed's stage asks for it.

    ``measured`` is the model as it is: without a seed that incubates, with one that is exposed.
    """
    for slot_id, slot in state.slots.items():
        view = slot_view(state, slot_id)
        if view.paused_at is not None:
            continue
        if slot.stage is Stage.SHADOWING:
            yield _shadow(evaluator, evaluate, measured, view, step)
        elif slot.stage is Stage.PROBATIONARY:
            without = evaluator.showing(evaluate, _without(view)).objective
            yield c.RecordCounterfactual(
                step=step,
                slot_id=slot_id,
                alpha=view.alpha(step),
                objective_with=measured.objective,
                objective_without=without,
            )
        elif slot.stage is Stage.TRAINING and slot.seed is not None and _nearly_due(slot, state):
            for alpha in slot.seed.candidates:
                yield c.RecordCounterfactual(
                    step=step,
                    slot_id=slot_id,
                    alpha=alpha,
                    objective_with=evaluator.showing(evaluate, shown_at(view, alpha)).objective,
                    objective_without=measured.objective,
                )


def _nearly_due(slot: SlotState, state: RunState) -> bool:
    """Whether G2 could pass with the epoch that is about to be recorded."""
    if slot.seed is not None and slot.seed.incubation.incubator is Incubator.NONE:
        return True
    return slot.epochs_in_stage + 1 >= state.policy.g2.min_epochs


def _without(view: SlotView) -> SlotView:
    return changed(view, behaviour=Behaviour.IDENTITY)


def _shadow(
    evaluator: Evaluator, evaluate: Evaluate, measured: Measured, view: SlotView, step: int
) -> c.RecordShadow:
    shadow = evaluator.shadow(evaluate, view, _without(view))
    return c.RecordShadow(
        step=step,
        slot_id=view.slot_id,
        agreement=shadow.agreement,
        values=shadow.values,
        objective_with=measured.objective,
        objective_without=shadow.objective_without,
    )
