"""The vocabulary of the lifecycle. Every value is stored text, so every value is a promise."""

from enum import Enum


class Stage(Enum):
    """Where a slot stands. The value is the stored name, ``code`` the observation code."""

    DORMANT = "DORMANT"
    GERMINATED = "GERMINATED"
    TRAINING = "TRAINING"
    BLENDING = "BLENDING"
    SHADOWING = "SHADOWING"
    PROBATIONARY = "PROBATIONARY"
    FOSSILIZED = "FOSSILIZED"
    CULLED = "CULLED"
    EMBARGOED = "EMBARGOED"
    RESETTING = "RESETTING"

    @property
    def code(self) -> int:
        """1 to 10 in the order of definition; 0 is UNKNOWN and never a stored stage."""
        return _CODES[self]

    @property
    def holds_seed(self) -> bool:
        """Whether a seed is attached to the slot in this stage."""
        return self in _SEEDED

    @property
    def exposed(self) -> bool:
        """Whether the seed's output reaches the host's loss in this stage."""
        return self in _EXPOSED


_CODES = {stage: code for code, stage in enumerate(Stage, start=1)}
_EXPOSED = frozenset({Stage.BLENDING, Stage.SHADOWING, Stage.PROBATIONARY, Stage.FOSSILIZED})
_SEEDED = _EXPOSED | {Stage.GERMINATED, Stage.TRAINING}


class Trigger(Enum):
    """What may be asked of the machine."""

    GERMINATE = "germinate"
    BEGIN_TRAINING = "begin_training"
    BEGIN_BLENDING = "begin_blending"
    BEGIN_SHADOWING = "begin_shadowing"
    BEGIN_PROBATION = "begin_probation"
    FOSSILIZE = "fossilize"
    CULL = "cull"
    EMBARGO = "embargo"
    RESET = "reset"
    RECYCLE = "recycle"


class Gate(Enum):
    """The six quality gates, in the order in which a seed meets them."""

    G0 = "G0"
    G1 = "G1"
    G2 = "G2"
    G3 = "G3"
    G4 = "G4"
    G5 = "G5"


class Topology(Enum):
    """The layout of a slot's features, which decides the blueprints that fit.

    ``CNN`` features are ``(batch, width, height, width)``; ``TRANSFORMER`` features are
    ``(batch, positions, width)``.
    """

    CNN = "cnn"
    TRANSFORMER = "transformer"


class Incubator(Enum):
    """How a seed learns in TRAINING, unseen by the host; ``docs/incubators.md`` has the formulas.

    ``STRAIGHT_THROUGH`` gives the seed the gradient at the host's output; ``PROXIMAL`` adds a
    penalty on the distance between the two; ``REHEARSAL`` gives it the gradient of the loss with
    the seed blended in, on a share of each batch; ``NONE`` lets it wait for the ramp, as born.
    """

    STRAIGHT_THROUGH = "straight_through"
    PROXIMAL = "proximal"
    REHEARSAL = "rehearsal"
    NONE = "none"


class Blend(Enum):
    """What the host sees of host features ``h`` and seed ``s`` at a given alpha.

    ``LERP`` is ``h + alpha * (s - h)``; ``GATED`` is the same with ``alpha * g(h)``, a learned
    weight in (0, 1) for each sample; ``MULTIPLY`` is ``h * (1 + alpha * tanh(s - h))``. All are
    exactly ``h`` at alpha 0.
    """

    LERP = "lerp"
    GATED = "gated"
    MULTIPLY = "multiply"


class SeedInput(Enum):
    """What of a seed's input gradient the host receives from BLENDING on.

    ``DETACHED`` cuts it: the host upstream of the slot then learns only through the ``1 - alpha``
    that the blend leaves it, and through nothing at alpha 1.
    """

    OPEN = "open"
    DETACHED = "detached"


class Leak(Enum):
    """A way in which an incubating seed was seen to touch its host.

    ``SHARED_PARAMETER`` covers buffers too: any memory that both hold. ``HOOK`` is a change of the
    hooks that are registered on the host, or for all modules.
    """

    GRADIENT = "gradient"
    SHARED_PARAMETER = "shared_parameter"
    IN_PLACE_WRITE = "in_place_write"
    RANDOM_STREAM = "random_stream"
    HOOK = "hook"


class Health(Enum):
    """Whether everything measured of a seed in its present stage was finite and isolated."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


class CullCause(Enum):
    """Who or what removed a seed."""

    REQUESTED = "requested"
    TIMED_OUT = "timed_out"
