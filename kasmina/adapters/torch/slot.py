"""The slot: a module that knows how to act on its host's features, never whether it should."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn
from typing_extensions import override

from kasmina.adapters.torch import acts
from kasmina.adapters.torch.graphs import Lease, make_room
from kasmina.adapters.torch.leaks import Glimpse
from kasmina.adapters.torch.streams import Stream
from kasmina.adapters.torch.surroundings import Sighting
from kasmina.domain.errors import KasminaError
from kasmina.domain.evidence import Probe
from kasmina.domain.projections import Behaviour, SlotView
from kasmina.domain.stages import Leak, SeedInput, Topology

_SPATIAL = (8, 8)
_POSITIONS = 16
_LEAST_BATCH = 2  # BatchNorm in training refuses a single value per channel


class SlotMisuse(KasminaError):
    """Something asked of a slot that it cannot do in its present state; nothing was changed."""

    def __init__(self, slot_id: str, problem: str, mend: str) -> None:
        self.slot_id = slot_id
        self.problem = problem
        self.mend = mend
        super().__init__(f"slot {slot_id!r} {problem}; {mend}")


@frozen(kw_only=True, eq=False)
class Sprout:
    """A new seed that was probed and fits its slot.

    ``parameters`` counts all entries of all its parameters. ``stream`` is the seed's own random
    stream, ``None`` for a seed that was not seen to draw. ``mixer`` weighs it in a gated blend.
    """

    module: nn.Module
    probe: Probe
    parameters: int
    stream: Stream | None
    mixer: nn.Module | None = None

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The seed, and its mixer if it has one."""
        return (self.module,) if self.mixer is None else (self.module, self.mixer)

    @property
    def draws_randomness(self) -> bool:
        """Whether it was seen to draw from a random generator in training mode."""
        return self.stream is not None


class SeedSlot(nn.Module):
    """A place in a host where a seed may grow.

    Receives the output of the module it is grafted on, and returns what the host shall see. The
    features of a ``CNN`` slot are ``(batch, width, height, width)``, of a ``TRANSFORMER`` slot
    ``(batch, positions, width)``. An empty slot has no parameters and nothing in ``state_dict``;
    a seed's tensors appear below ``seed``, those of a gated blend's weight below ``mixer``.

    ``alpha`` is a 0-dim buffer filled in place, so that compiled code follows it without a
    recompile; it has the features' dtype. ``nonfinite_outputs`` counts, on the device, the forwards
    in which the seed's output was not finite: all of them once the host sees it, before that those
    that are watched.
    """

    seed: nn.Module | None
    mixer: nn.Module | None
    _act: acts.Outer
    alpha: Tensor
    incubating: Tensor
    opened: Tensor
    nonfinite_outputs: Tensor
    nonfinite_gradients: Tensor

    def __init__(
        self,
        slot_id: str,
        *,
        topology: Topology,
        width: int,
        feature_shape: tuple[int, ...] | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.slot_id = slot_id
        self.topology = topology
        self.width = width
        self.feature_shape = _probe_shape(topology, width, feature_shape)
        self.register_module("seed", None)
        self.register_module("mixer", None)
        for name, kind in (
            ("alpha", dtype),
            ("incubating", dtype),
            ("opened", dtype),
            ("nonfinite_outputs", torch.int64),
            ("nonfinite_gradients", torch.int64),
        ):
            zero = torch.zeros((), device=device, dtype=kind)
            self.register_buffer(name, zero, persistent=False)
        self._vacate()

    def _vacate(self) -> None:
        self.seed = self.mixer = None
        self.lease = Lease()
        self.stream: Stream | None = None
        self.sightings: list[Sighting] = []
        self.gradient_norm: Tensor | None = None
        self.writes = False
        self.overwritten: bool | None = None
        self.handed: tuple[Tensor, int] | None = None
        self._trainable: frozenset[str] = frozenset()
        self.step = 0
        self.visits: acts.Visits | None = None
        self.view = SlotView(slot_id=self.slot_id)
        self.forget()
        self.show(self.view, 0)

    @override
    def forward(self, output: object) -> object:
        """What the host shall see in place of ``output``.

        ``output`` is the features, or a container whose first floating-point tensor they are
        (see ``outputs``). Raises ``FeatureMismatch`` if the seed does not keep their shape and
        dtype.
        """
        return self._act(self, output)

    def attach(self, seed: nn.Module | Sprout) -> None:
        """Take ``seed`` in, without letting it act or learn until ``follow`` says so.

        A bare module is taken for one that draws no random numbers. Where the compiler is loaded,
        its limits on recompiles are raised for the whole process: see ``graphs``. Raises
        ``SlotMisuse`` if there is a seed already.
        """
        if self.seed is not None:
            raise SlotMisuse(self.slot_id, "holds a seed already", "detach() that first")
        make_room()
        if isinstance(seed, Sprout):
            self.stream, self.seed, self.mixer = seed.stream, seed.module, seed.mixer
        else:
            self.seed = seed
        self.train(self.training)
        self._trainable = frozenset(n for n, p in self.named_parameters() if p.requires_grad)
        self._learn(wanted=False)
        self.forget()

    def detach(self) -> nn.Module:
        """Give the seed back as it was handed in, trainable, and be empty again.

        Raises ``SlotMisuse`` if there is none.
        """
        if self.seed is None:
            raise SlotMisuse(self.slot_id, "has no seed to give back", "attach() one first")
        seed = self.seed
        self._learn(wanted=True)
        self._vacate()
        return seed

    def follow(self, view: SlotView, step: int) -> None:
        """Act as ``view`` says from now on, at the alpha of ``step``.

        Without ``learning`` the seed's parameters need no gradient and hold none. Raises
        ``SlotMisuse`` for the view of another slot, or one that needs a seed where there is none.
        """
        self._check(view)
        self._learn(wanted=view.learning)
        self.show(view, step)

    def show(self, view: SlotView, step: int, visits: acts.Visits | None = None) -> None:
        """Act as ``view`` says, leaving what learns as it is. Raises as ``follow``.

        With ``visits``, every forward is counted there until the slot is shown something else.
        """
        self._check(view)
        self.view = view
        self._filled = math.nan  # fill it, whatever a `to_empty()` left there
        self.incubating.fill_(view.behaviour is Behaviour.INCUBATE)
        self.opened.fill_(view.behaviour is not Behaviour.INCUBATE)
        self.visits = visits
        self.choose()
        self.set_alpha(step)

    def set_alpha(self, step: int) -> None:
        """Fill alpha with its value at ``step``, in place."""
        self.step = step
        blending = self.view.behaviour is Behaviour.BLEND
        value = self.view.alpha(step) if blending else 0.0
        if value != self._filled:
            self.alpha.fill_(value)
            self._filled = value
        if blending:
            self.eager = acts.blend_at(_rounded(value, self.alpha.dtype), self.view.blend)

    def choose(self) -> None:
        """Choose the functions that a forward runs through, from everything but alpha."""
        behaviour, incubator = self.view.behaviour, self.view.incubation.incubator
        detached = self.view.seed_input is SeedInput.DETACHED
        # A paused incubating seed is invisible to the host and learns nothing: it need not run.
        paused = behaviour is Behaviour.INCUBATE and not self.view.learning
        resting = self.seed is None or behaviour is Behaviour.IDENTITY or paused
        act = acts.identity if resting else acts.serve
        self._act = act if self.visits is None else partial(acts.counted, self.visits, act)
        self.inner = acts.alone if behaviour is Behaviour.SEED else acts.live
        self.inlet = acts.inlet(behaviour, detached=detached, copied=self.writes)
        self.traced_inlet = acts.traced_inlet(self.view.seed_input, copied=self.writes)
        self.blended = acts.BLENDS[self.view.blend]
        self.tapped = acts.TAPS[incubator]
        self.traced_run = acts.run_plainly if self.stream is None else acts.run_on_own_stream
        self.run = acts.run_watched if self.watching else self.traced_run
        if behaviour is Behaviour.INCUBATE:
            self.eager = acts.incubate_after(self.overwritten)

    def settle(self) -> None:
        """Take note of whether the host has overwritten the features it was last handed."""
        if self.handed is not None:
            shown, version = self.handed
            self.overwritten = shown._version != version  # noqa: SLF001  # the only sign
        self.handed = None
        self.choose()

    def watch(self) -> None:
        """Observe the next training forward; what it shows is added to ``sightings``."""
        self.watching = self.seed is not None
        self.choose()

    def note(self, glimpse: Glimpse) -> None:
        """Keep the leaks in ``glimpse`` for the monitor, and take precautions with ``choose``.

        A seed with a stream of its own may draw, and one that gets a copy may write to it.
        """
        self.seen = True
        if glimpse.wrote and not self.writes:
            self.sightings.append(Sighting(leak=Leak.IN_PLACE_WRITE, subject="activation"))
        self.writes = self.writes or glimpse.wrote
        for leaf in glimpse.reached:
            self.sightings.append(Sighting(leak=Leak.GRADIENT, subject=leaf))
        for kind in glimpse.drew_from if self.stream is None else ():
            self.sightings.append(Sighting(leak=Leak.RANDOM_STREAM, subject=kind))
        self.sightings.extend(glimpse.touched)

    def forget(self) -> None:
        """Drop what was observed, and watch the next training forward."""
        self.seen = False
        self.sightings.clear()
        self.gradient_norm = None
        self.nonfinite_outputs.zero_()
        self.nonfinite_gradients.zero_()
        self.watch()

    def draw_features(self) -> Tensor:
        """Normal features as the host's, to try a seed on; drawn on the CPU."""
        drawn = torch.randn(self.feature_shape, device="cpu")
        return drawn.to(self.alpha.device, self.alpha.dtype)

    @property
    def own_stream(self) -> Stream:
        """The seed's random stream. Raises ``SlotMisuse`` if it has none."""
        if self.stream is None:
            raise SlotMisuse(self.slot_id, "has no random stream", "attach a seed that draws")
        return self.stream

    @property
    def learning(self) -> bool:
        """Whether there is a seed that is meant to learn now."""
        return self.seed is not None and self.view.learning

    @override
    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,  # torch's own
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        # torch drops tensors of a child that is None without a word, since it has the name.
        absent = tuple(f"{prefix}{name}." for name, child in self._modules.items() if child is None)
        if strict:
            unexpected_keys.extend(key for key in state_dict if key.startswith(absent))

    def seed_parameters(self) -> tuple[nn.Parameter, ...]:
        """The seed's parameters, then its mixer's; none for an empty slot."""
        return tuple(self.parameters())

    def _learn(self, *, wanted: bool) -> None:
        for name, parameter in self.named_parameters():
            if name in self._trainable:
                parameter.requires_grad_(wanted)
                if not wanted:
                    parameter.grad = None  # a leftover would still be applied

    def _check(self, view: SlotView) -> None:
        if view.slot_id != self.slot_id:
            raise SlotMisuse(
                self.slot_id, f"was shown the view of {view.slot_id!r}", "give it its own"
            )
        if self.seed is None and view.behaviour is not Behaviour.IDENTITY:
            raise SlotMisuse(
                self.slot_id, f"is empty and cannot {view.behaviour.value}", "attach a seed first"
            )


def _probe_shape(topology: Topology, width: int, seen: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape in which to probe seeds: as seen, with a batch that BatchNorm can train on."""
    match topology, seen:
        case _, (batch, *rest):
            return (max(batch, _LEAST_BATCH), *rest)
        case Topology.CNN, _:
            return (_LEAST_BATCH, width, *_SPATIAL)
        case _:
            return (_LEAST_BATCH, _POSITIONS, width)


def _rounded(value: float, dtype: torch.dtype) -> float:
    """``value``, or the end of [0, 1] that a buffer of ``dtype`` would round it to."""
    limits = torch.finfo(dtype)
    if limits.tiny < value < 1 - limits.eps:
        return value
    return torch.tensor(value, dtype=dtype).item()
