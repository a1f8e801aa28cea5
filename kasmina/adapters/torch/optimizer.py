"""Seeds in the host's optimizer: a parameter group each, at the host's learning rate by a ratio.

Layout: the host's groups come first, untouched; a seed's group is appended at its germination and
taken away at its cull. ``SEED_KEY`` in a group holds the seed's identifier, ``RATIO_KEY`` the
ratio, and in a group that warms up ``WARMUP_KEY`` holds the length of the warm-up and
``LEARNED_KEY`` how many steps of it are over. All are ordinary group options, so they travel in
the optimizer's own ``state_dict``.

Before each step a seed's rate is set to the ratio times the rate of the host's first group, so it
follows whatever changes that rate: a scheduler of torch or of another library, or a loop that
writes ``group["lr"]`` itself. Schedulers need no word about the seeds (see ``schedulers``), nor
do clipping (``clipping``), gradient scalers (``shield``) and averages (``averages``).
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer, SparseAdam
from torch.utils.hooks import RemovableHandle

from kasmina.adapters.torch import averages, clipping, schedulers, trial
from kasmina.adapters.torch.schedulers import Rate, scaled
from kasmina.adapters.torch.shield import Shields
from kasmina.adapters.torch.slot import SeedSlot
from kasmina.adapters.torch.steps import BeforeSteps
from kasmina.domain.errors import KasminaError, UnknownName

SEED_KEY = "kasmina_seed"
RATIO_KEY = "kasmina_ratio"
WARMUP_KEY = "kasmina_warmup"
LEARNED_KEY = "kasmina_learned"

# The options of a group by which schedulers compute (torch 2.6 to 2.13).
_SCALED_OPTIONS = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")

# Looked up only where something else has loaded them. Their step is that of ``optimizer`` inside.
_WRAPPERS = (
    ("accelerate.optimizer", "AcceleratedOptimizer"),
    ("lightning.pytorch.core.optimizer", "LightningOptimizer"),
    ("pytorch_lightning.core.optimizer", "LightningOptimizer"),
)

Group = dict[str, Any]


class UnknownSeed(UnknownName):
    """No seed of that identifier in the optimizer."""

    kind = "seed"


class UnfitOptimizer(KasminaError):
    """An optimizer that would not train its seeds."""

    def __init__(self, optimizer: Optimizer, problem: str, mend: str) -> None:
        self.optimizer = type(optimizer).__name__
        self.problem = problem
        self.mend = mend
        super().__init__(f"{self.optimizer} {problem}; {mend}")


class AlreadyOptimized(KasminaError):
    """A seed with parameters that the optimizer already holds; nothing was added.

    ``positions`` are those of the shared ones among the seed's parameters.
    """

    def __init__(
        self, seed_id: str, parameters: Sequence[Tensor], positions: Iterable[int]
    ) -> None:
        self.seed_id = seed_id
        self.positions = tuple(positions)
        shapes = ", ".join(str(tuple(parameters[i].shape)) for i in self.positions)
        super().__init__(
            f"the optimizer already holds {len(self.positions)} of the {len(parameters)} "
            f"parameters of seed {seed_id!r}, of shapes {shapes}; a parameter belongs to one "
            f"group: build the optimizer from the host's parameters alone, and share none between "
            f"host and seeds"
        )


class OtherSeeds(KasminaError):
    """A saved optimizer state of other seeds, or in another order; nothing was loaded."""

    def __init__(self, saved: tuple[str, ...], present: tuple[str, ...]) -> None:
        self.saved = saved
        self.present = present
        super().__init__(
            f"the saved optimizer state holds seeds {list(saved)}, the optimizer {list(present)}; "
            f"each would get another's moments: resume the run, which grows its seeds again "
            f"first, or load a state without seeds before the run is opened"
        )


class SeedGroups:
    """The seeds' parameter groups in ``optimizer``, or in the one that it wraps.

    Raises ``UnfitOptimizer`` for one that never serves seeds; others are tried with each seed.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = unwrapped(optimizer)
        _require_fit(self.optimizer)
        schedulers.attend()
        clipping.attend()
        averages.attend()
        self._shields = Shields()
        self._steps = BeforeSteps(self.optimizer)
        self._steps.add(self._follow)
        self._loading = self.optimizer.register_load_state_dict_pre_hook(_require_same_seeds)

    @property
    def seeds(self) -> tuple[str, ...]:
        """The seeds' identifiers in the order of their groups."""
        return seed_order(self.optimizer.param_groups)

    @property
    def given_rate(self) -> float:
        """The learning rate that the host's first group was built with.

        Raises ``UnfitOptimizer`` where it was built without one.
        """
        leader = self._leader()
        if leader["lr"] is None:
            raise UnfitOptimizer(
                self.optimizer,
                "has no learning rate (lr is None), to which a seed's could be relative",
                "build it with one (for transformers' Adafactor: relative_step=False, lr=1e-3)",
            )
        return _given_rate(leader)

    def check(
        self,
        seed_id: str,
        parameters: Sequence[nn.Parameter],
        *,
        learning_rate: float | None = None,
        weight_decay: float | None = None,
    ) -> None:
        """Whether ``add`` would do, and the optimizer train the seed and leave its host alone.

        Raises ``AlreadyOptimized`` or ``UnfitOptimizer`` if not.
        """
        if seed_id in self.seeds:
            raise UnfitOptimizer(
                self.optimizer, f"holds seed {seed_id!r} already", "remove() that first"
            )
        held = {each for group in self.optimizer.param_groups for each in group["params"]}
        shared = [i for i, parameter in enumerate(parameters) if parameter in held]
        if shared:
            raise AlreadyOptimized(seed_id, parameters, shared)
        if learning_rate is not None and self.given_rate == 0.0:
            raise UnfitOptimizer(
                self.optimizer,
                "was built with a learning rate of 0",
                f"the rate of seed {seed_id!r} is relative to it: leave the seed's learning_rate "
                f"out, or build the optimizer with a rate above 0",
            )
        if weight_decay is not None and "weight_decay" not in self._leader():
            raise UnfitOptimizer(
                self.optimizer,
                f"knows no weight decay, but seed {seed_id!r} asks for one",
                "leave the seed's weight_decay out",
            )
        flaw = trial.flaw(self.optimizer, _options(self._leader(), 1.0), parameters)
        if flaw is not None:
            raise UnfitOptimizer(self.optimizer, flaw.problem, flaw.mend) from flaw.error

    def add(
        self,
        seed_id: str,
        parameters: Iterable[nn.Parameter],
        *,
        learning_rate: float | None = None,
        weight_decay: float | None = None,
        warmup_steps: int = 0,
    ) -> None:
        """Append a group with all of a seed's parameters, also those that do not learn at present.

        ``learning_rate`` is what the seed would have been given when the optimizer was built:
        where the host's first group was given 0.1 and now has 0.01, a seed at 0.05 starts with
        0.005. Left out, seed and host have the same rate, and so for ``weight_decay``. All other
        options are those of the host's first group.

        Over the first ``warmup_steps`` steps in which the seed learns, that is has a gradient, its
        rate rises linearly to the full one: an optimizer that divides by the gradient's size takes
        its first steps at full length, whatever their worth. A step that was captured as a CUDA
        graph keeps the rate it was captured at: capture it after the warm-up.

        Raises as ``check``, with nothing changed.
        """
        wanted = list(parameters)
        self.check(seed_id, wanted, learning_rate=learning_rate, weight_decay=weight_decay)
        leader = self._leader()
        ratio = 1.0 if learning_rate is None else learning_rate / _given_rate(leader)
        options = _options(leader, ratio)
        if weight_decay is not None:
            options["weight_decay"] = weight_decay
        if warmup_steps > 0:
            options |= {WARMUP_KEY: warmup_steps, LEARNED_KEY: 0}
        # An optimizer built from named parameters takes named ones only, and the reverse.
        named = [(f"{seed_id}.{position}", each) for position, each in enumerate(wanted)]
        options["params"] = named if "param_names" in leader else wanted
        trial.join(self.optimizer, {**options, SEED_KEY: seed_id, RATIO_KEY: ratio})
        schedulers.admit(self.optimizer, ratio)

    def remove(self, seed_id: str) -> None:
        """Take away the seed's group and its parameters' state; nothing else is touched.

        Raises ``UnknownSeed``.
        """
        if seed_id not in self.seeds:
            raise UnknownSeed(seed_id, self.seeds)
        groups = self.optimizer.param_groups
        index = next(i for i, g in enumerate(groups) if SEED_KEY in g and g[SEED_KEY] == seed_id)
        schedulers.dismiss(self.optimizer, index)
        for parameter in groups.pop(index)["params"]:
            self.optimizer.state.pop(parameter, None)

    def shield(self, slot: SeedSlot) -> None:
        """Keep the gradient of an incubating seed from its host's clipping and AMP scalers.

        Call it whenever the slot was shown another view, or lost its seed: it then does as the
        view asks.
        """
        self._shields.follow(slot)
        clipping.follow(slot)

    def on_step(self, callback: Callable[[], None]) -> RemovableHandle:
        """Call ``callback`` before each step, when gradients are final; see ``BeforeSteps``."""
        return self._steps.add(callback)

    def close(self) -> None:
        """Take away every seed and the hooks: the optimizer is as it was."""
        for seed_id in self.seeds:
            self.remove(seed_id)
        self._shields.close()
        self._steps.close()
        self._loading.remove()

    def _leader(self) -> Group:
        return next(group for group in self.optimizer.param_groups if SEED_KEY not in group)

    def _follow(self) -> None:
        self._shields.count(self.optimizer)
        rate = self._leader()["lr"]
        for group in self.optimizer.param_groups:
            if SEED_KEY in group:
                wanted = scaled(rate, group[RATIO_KEY])
                _assign_rate(group, _warmed(group, wanted) if WARMUP_KEY in group else wanted)


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """The optimizer that steps: hooks on the wrapper of another library would never be called."""
    for home, name in _WRAPPERS:
        loaded = sys.modules.get(home)
        if loaded is not None and isinstance(optimizer, vars(loaded)[name]):
            return unwrapped(optimizer.optimizer)
    return optimizer


def seed_order(groups: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The seeds in parameter groups, an optimizer's own or those of its ``state_dict``."""
    return tuple(group[SEED_KEY] for group in groups if SEED_KEY in group)


def _require_fit(optimizer: Optimizer) -> None:
    if isinstance(optimizer, LBFGS):
        raise UnfitOptimizer(
            optimizer,
            "steps its first parameter group alone, so seeds would never learn",
            "use an optimizer with parameter groups, such as AdamW or SGD",
        )
    if isinstance(optimizer, SparseAdam):
        raise UnfitOptimizer(
            optimizer,
            "takes sparse gradients alone, which seeds do not have",
            "give kasmina the optimizer of the host's dense parameters",
        )
    if "_optimizer_step_pre_hooks" not in vars(optimizer):  # what Optimizer.__init__ makes
        raise UnfitOptimizer(
            optimizer,
            "was not built as a torch optimizer is, so nothing would be known of its steps",
            "give the optimizer that it wraps, or call Optimizer.__init__ in its own",
        )


def _require_same_seeds(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    saved, present = (
        seed_order(groups) for groups in (state["param_groups"], optimizer.param_groups)
    )
    if saved != present:
        raise OtherSeeds(saved, present)


def _given_rate(group: Group) -> float:
    """The learning rate that the group was built with.

    A seed's own rate is relative to this one and not to the present one: a seed born at the
    start of a warm-up, or after a decay to zero, would be scaled by a huge number. ``OneCycleLR``
    calls the rate it was given ``max_lr``, other schedulers ``initial_lr``.
    """
    return float(group[next(name for name in ("max_lr", "initial_lr", "lr") if name in group)])


def _options(leader: Group, ratio: float) -> Group:
    """The leader's options, none of them shared with it, and its rates times ``ratio``."""
    options = {k: deepcopy(v) for k, v in leader.items() if k not in {"params", "param_names"}}
    for name in _SCALED_OPTIONS:
        if name in options:
            options[name] = scaled(options[name], ratio)
    return options


def _warmed(group: Group, rate: Rate) -> Rate:
    """The part of ``rate`` that the warm-up has reached, which this step takes further."""
    step = group[LEARNED_KEY] + 1
    warm = scaled(rate, step / group[WARMUP_KEY])
    if any(parameter.grad is not None for parameter in group["params"]):
        group[LEARNED_KEY] = step
        if step >= group[WARMUP_KEY]:
            del group[WARMUP_KEY], group[LEARNED_KEY]
    return warm


def _assign_rate(group: Group, rate: Rate) -> None:
    if isinstance(group["lr"], Tensor):
        # Captured and compiled steps hold on to this tensor.
        with torch.no_grad():
            group["lr"].copy_(torch.as_tensor(rate))
    else:
        group["lr"] = rate
