"""The domain's rules as tests read them: ``given(...).when(...).then(...)``, on values alone."""
# ruff: noqa: S101 - a test's helper asserts

from typing import TypeVar

from attrs import frozen

from kasmina.domain import commands as c
from kasmina.domain import events as e
from kasmina.domain.decide import decide
from kasmina.domain.evidence import GateOutcome
from kasmina.domain.evolve import replay
from kasmina.domain.policies import GatePolicy
from kasmina.domain.state import RunState, SlotState

Events = tuple[e.Event, ...]
Raised = TypeVar("Raised", bound=Exception)


@frozen
class Given:
    """What has happened so far."""

    events: Events

    @property
    def state(self) -> RunState | None:
        """The state after all of it; ``None`` before the first event."""
        return replay(self.events)

    def when(self, command: c.Command, policy: GatePolicy | None = None) -> "Decided":
        """Decide about ``command``, by the run's own policy unless another is given."""
        state = self.state
        before = repr(state)
        ruling = policy or (GatePolicy() if state is None else state.policy)
        try:
            events, error = decide(state, command, ruling), None
        except Exception as raised:  # noqa: BLE001 - what was raised is the result
            events, error = (), raised
        assert repr(state) == before, "a decision changed the state it was made on"
        return Decided(self.events, events, error)


@frozen
class Decided:
    """What a command led to: events, or an error and no events."""

    past: Events
    _events: Events
    error: Exception | None

    @property
    def events(self) -> Events:
        """The events that were decided. Raises the error where there was one instead."""
        if self.error is not None:
            raise self.error
        return self._events

    @property
    def after(self) -> "Given":
        """All that has happened now, for the next command."""
        return Given((*self.past, *self.events))

    @property
    def state(self) -> RunState:
        """The state after the decision."""
        state = self.after.state
        assert state is not None
        return state

    @property
    def slot(self) -> SlotState:
        """The run's only slot after the decision."""
        (only,) = self.state.slots.values()
        return only

    @property
    def outcome(self) -> GateOutcome:
        """The one gate outcome among the events."""
        (found,) = [event for event in self.events if isinstance(event, e.GateEvaluated)]
        return found.outcome

    def then(self, *expected: e.Event) -> "Decided":
        """Precisely these events. Compared as text too, because NaN is not equal to itself."""
        assert self.events == expected or repr(self.events) == repr(expected)
        return self

    def then_only(self, *kinds: type[e.Event]) -> "Decided":
        """Events of precisely these classes, in this order."""
        assert tuple(type(event) for event in self.events) == kinds
        return self

    def raises(self, kind: type[Raised], *, saying: str = "") -> Raised:
        """The error, which must be of precisely this kind and whose text must hold ``saying``."""
        assert self._events == ()
        assert type(self.error) is kind, f"{self.error!r} is not a {kind.__name__}"
        assert saying in str(self.error)
        return self.error


def given(*events: e.Event) -> Given:
    """A run with these events behind it."""
    return Given(events)
