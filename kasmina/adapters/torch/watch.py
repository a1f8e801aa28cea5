"""Looking out for a run that does nothing, or trains something else than its loop means to.

A few integers are counted in a step; the rest is looked at once an epoch, before anything of it is
recorded, so that a warning which is an error by the user's filters leaves all as it was. Each is
told once for its run or slot. What cannot be right (``SeedNotOptimized``) is an error in any case.
"""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kasmina.adapters.torch import findings
from kasmina.adapters.torch.graft import Slots
from kasmina.adapters.torch.optimizer import SEED_KEY, Group, SeedGroups
from kasmina.domain.errors import KasminaError
from kasmina.domain.projections import SlotView
from kasmina.domain.stages import Stage
from kasmina.domain.state import RunState
from kasmina.silence import Silence, SilentRun, tell


class SeedNotOptimized(KasminaError):
    """A seed whose parameters are not, or not all, in the optimizer that the run was given."""

    def __init__(self, slot_id: str, seed_id: str, *, held: int, parameters: int) -> None:
        self.slot_id = slot_id
        self.seed_id = seed_id
        self.held = held
        self.parameters = parameters
        super().__init__(
            f"the run's optimizer holds {held} of the {parameters} parameters of seed {seed_id!r} "
            f"in slot {slot_id!r}, so they would never be trained; leave the group that the "
            f"germination added in optimizer.param_groups, and replace no parameter of a grafted "
            f"model, as load_state_dict(assign=True) does (to go on with another optimizer, "
            f"checkpoint, and resume with that)"
        )


class _Acting(NamedTuple):
    """How a slot acts, what is to learn in it, and the optimizer's steps when that began."""

    view: SlotView
    learning: tuple[nn.Parameter, ...]
    since: int


class Watch:
    """Compares what a run counts with what its optimizer and slots do.

    Optimizer steps are seen between ``begin`` and ``close``.
    """

    def __init__(self, run_id: str, slots: Slots, groups: SeedGroups) -> None:
        self._run_id = run_id
        self._slots = slots
        self._groups = groups
        self._told: set[tuple[Silence, str]] = set()
        self._hook: RemovableHandle | None = None
        self._counted = self._taken = 0  # the run's steps and the optimizer's, in the window
        self._uncounted = 0  # the optimizer's since the last counted one
        self._total = self._epoch_began = 0  # the optimizer's since the watch began
        self._acting: dict[str, _Acting] = {}
        self._unmoved: set[str] = set()  # seeds that had no rate yet in this epoch

    def begin(self) -> None:
        """Count the optimizer's steps from now on."""
        if self._hook is None:
            self._hook = self._groups.on_step(self._optimizer_steps)

    def count(self, state: RunState, steps_in_epoch: int) -> None:
        """Before a step is counted that follows on so many in its epoch.

        Raises ``SeedNotOptimized``, looked for at the first.
        """
        if steps_in_epoch == 0:
            self._require_optimized()
        self._counted += 1
        self._uncounted = 0
        if steps_in_epoch == findings.LONG_EPOCH:
            self._tell(findings.endless_epoch(state))

    def follow(self) -> None:
        """Take note of the slots that have come to act in another way."""
        for slot_id, slot in self._slots.items():
            if slot_id not in self._acting or self._acting[slot_id].view is not slot.view:
                learning = tuple(p for p in slot.seed_parameters() if p.requires_grad)
                self._acting[slot_id] = _Acting(slot.view, learning, self._total)
                self._unmoved = {group[SEED_KEY] for group in self._seed_groups()}

    def inspect(self, state: RunState, *, steps: int, measuring: bool) -> None:
        """At the end of an epoch of so many ``steps``, before anything of it is recorded.

        Raises ``SeedNotOptimized``.
        """
        self._require_optimized()
        self._tell(
            findings.steps_apart(self._run_id, counted=self._counted, taken=self._taken),
            findings.never_measured(state, measuring=measuring),
        )
        rested = {g[SEED_KEY] for g in self._seed_groups() if float(g["lr"]) == 0.0}
        for slot_id, slot in self._slots.items():
            self._tell(findings.no_ramp(state.slot(slot_id), steps), findings.alpha_lost(slot))
            if self._ought_to_learn(slot_id):
                self._tell(findings.learns_nothing(slot, self._acting[slot_id].learning))
                if slot.view.seed_id in self._unmoved & rested:
                    self._tell(findings.rate_zero(slot_id))

    def begin_epoch(self) -> None:
        """After an epoch was recorded."""
        self._epoch_began = self._total
        self._unmoved = {group[SEED_KEY] for group in self._seed_groups()}
        if max(self._counted, self._taken) >= findings.WINDOW:
            self._counted = self._taken = 0

    def close(self) -> None:
        """Look out no more."""
        if self._hook is not None:
            self._hook.remove()

    def closed(self, state: RunState, steps: int) -> None:
        """After the run was closed, so many ``steps`` after its last epoch."""
        self._tell(
            findings.no_epoch(state, steps),
            findings.steps_apart(self._run_id, counted=self._counted, taken=self._taken),
        )

    def _optimizer_steps(self) -> None:
        self._total += 1
        self._taken += 1
        self._uncounted += 1
        if self._unmoved:
            self._unmoved &= {g[SEED_KEY] for g in self._seed_groups() if _may_rest(g)}
        if self._uncounted == findings.UNCOUNTED_STEPS:
            self._tell(findings.uncounted(self._run_id, counted=0, taken=self._uncounted))

    def _ought_to_learn(self, slot_id: str) -> bool:
        """Whether its seed was to learn for long enough that something must be seen of it.

        A fossil is part of its host, which may well be frozen. A seed that germinated between a
        backward and its step has none of that step's gradient.
        """
        slot = self._slots[slot_id]
        if not slot.learning or slot.view.stage is Stage.FOSSILIZED:
            return False
        return self._total > self._epoch_began and self._total - self._acting[slot_id].since > 1

    def _require_optimized(self) -> None:
        held = {group[SEED_KEY]: set(map(id, group["params"])) for group in self._seed_groups()}
        for slot_id, slot in self._slots.items():
            seed_id, own = slot.view.seed_id, slot.seed_parameters()
            if seed_id is not None:
                found = sum(id(parameter) in held.get(seed_id, ()) for parameter in own)
                if found < len(own):
                    raise SeedNotOptimized(slot_id, seed_id, held=found, parameters=len(own))

    def _seed_groups(self) -> Iterator[Group]:
        return (group for group in self._groups.optimizer.param_groups if SEED_KEY in group)

    def _tell(self, *found: SilentRun | None) -> None:
        for each in found:
            if each is not None and (each.silence, each.subject) not in self._told:
                self._told.add((each.silence, each.subject))
                tell(each)


def _may_rest(group: Group) -> bool:
    """Whether its rate may be 0. One on a device is not waited for: it is read once an epoch."""
    return isinstance(group["lr"], Tensor) or group["lr"] == 0.0
