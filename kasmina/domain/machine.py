"""The one authority over which transitions are legal: a single shared ``transitions`` machine.

It is asked once per decision and never during replay. It holds no models: each question puts a
throw-away cursor through it, because registering a model costs a hundred microseconds and fails on
slotted classes.
"""

from attrs import define, field, frozen
from transitions import Machine

from kasmina.domain.evidence import GateOutcome
from kasmina.domain.stages import Gate, Stage, Trigger

CULLABLE = (
    Stage.GERMINATED,
    Stage.TRAINING,
    Stage.BLENDING,
    Stage.SHADOWING,
    Stage.PROBATIONARY,
)


@frozen(kw_only=True)
class Edge:
    """One legal transition, and the gate that guards it if there is one."""

    trigger: Trigger
    source: Stage
    target: Stage
    gate: Gate | None = None


EDGES = (
    Edge(trigger=Trigger.GERMINATE, source=Stage.DORMANT, target=Stage.GERMINATED, gate=Gate.G0),
    Edge(
        trigger=Trigger.BEGIN_TRAINING,
        source=Stage.GERMINATED,
        target=Stage.TRAINING,
        gate=Gate.G1,
    ),
    Edge(
        trigger=Trigger.BEGIN_BLENDING, source=Stage.TRAINING, target=Stage.BLENDING, gate=Gate.G2
    ),
    Edge(
        trigger=Trigger.BEGIN_SHADOWING,
        source=Stage.BLENDING,
        target=Stage.SHADOWING,
        gate=Gate.G3,
    ),
    Edge(
        trigger=Trigger.BEGIN_PROBATION,
        source=Stage.SHADOWING,
        target=Stage.PROBATIONARY,
        gate=Gate.G4,
    ),
    Edge(
        trigger=Trigger.FOSSILIZE,
        source=Stage.PROBATIONARY,
        target=Stage.FOSSILIZED,
        gate=Gate.G5,
    ),
    *(Edge(trigger=Trigger.CULL, source=stage, target=Stage.CULLED) for stage in CULLABLE),
    Edge(trigger=Trigger.EMBARGO, source=Stage.CULLED, target=Stage.EMBARGOED),
    Edge(trigger=Trigger.RESET, source=Stage.EMBARGOED, target=Stage.RESETTING),
    Edge(trigger=Trigger.RECYCLE, source=Stage.RESETTING, target=Stage.DORMANT),
)


@frozen(kw_only=True)
class Warrant:
    """What entitles a slot to move: already computed, so that the machine only compares.

    A gated edge wants the passing ``outcome`` of its own gate, a cull a ``reason``, a reset an
    ``embargo_left`` of 0 epochs.
    """

    outcome: GateOutcome | None = None
    reason: str = ""
    embargo_left: int = 0


@define
class _Cursor:
    state: Stage = field()


def _admits(edge: Edge, warrant: Warrant) -> bool:
    if edge.gate is not None:
        outcome = warrant.outcome
        return outcome is not None and outcome.gate is edge.gate and outcome.passed
    if edge.trigger is Trigger.CULL:
        return bool(warrant.reason.strip())
    if edge.trigger is Trigger.RESET:
        return warrant.embargo_left == 0
    return True


def _build() -> Machine:
    machine = Machine(
        model=None, states=Stage, initial=Stage.DORMANT, auto_transitions=False, send_event=False
    )
    for edge in EDGES:
        machine.add_transition(
            edge.trigger.value,
            edge.source,
            edge.target,
            conditions=lambda warrant, edge=edge: _admits(edge, warrant),
        )
    return machine


MACHINE = _build()


def legal_triggers(stage: Stage) -> tuple[Trigger, ...]:
    """The triggers with an edge from ``stage``, in the machine's own order; none at the end."""
    return tuple(Trigger(name) for name in MACHINE.get_triggers(stage))


def edge(stage: Stage, trigger: Trigger) -> Edge:
    """The edge that ``trigger`` takes from ``stage``; ``KeyError`` where there is none."""
    return _EDGES[stage, trigger]


def forward(stage: Stage) -> Trigger | None:
    """The trigger by which a slot advances from ``stage``: never germinate, never cull."""
    advancing = set(legal_triggers(stage)) - {Trigger.GERMINATE, Trigger.CULL}
    return advancing.pop() if advancing else None


def permits(stage: Stage, trigger: Trigger, warrant: Warrant) -> bool:
    """Whether the machine lets a slot in ``stage`` move by ``trigger`` with this ``warrant``.

    ``stage`` must have an edge for ``trigger``.
    """
    cursor = _Cursor(stage)
    return bool(MACHINE.events[trigger.value].trigger(cursor, warrant))


_EDGES = {(edge.source, edge.trigger): edge for edge in EDGES}
