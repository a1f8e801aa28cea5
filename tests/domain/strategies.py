"""Policies and plans from which hypothesis draws."""

from attrs import evolve as changed
from hypothesis import strategies as st

from kasmina.domain.evidence import Comparison
from kasmina.domain.incubation import IncubationPlan
from kasmina.domain.policies import (
    G2Policy,
    G3Policy,
    G4Policy,
    G5Policy,
    GatePolicy,
    MetricCheck,
    Timeouts,
)
from kasmina.domain.schedules import BlendPlan, Curve
from kasmina.domain.stages import Blend, Gate, Incubator

LENIENT = GatePolicy(
    g2=G2Policy(min_improvement=-1e9, min_epochs=0, min_rehearsed_contribution=-1e9),
    g3=G3Policy(min_alpha=0.0, min_epochs=0),
    g4=G4Policy(min_agreement=-1.0),
    g5=G5Policy(min_improvement=-1e9, min_contribution=-1e9, min_stability=0.0),
    tolerance=1e9,
    embargo_epochs=1,
)
HASTY = changed(
    LENIENT,
    g2=G2Policy(),
    timeouts=Timeouts(germinated=1, training=3, blending=2, shadowing=2, probationary=1),
    cull_ramp_epochs=0.0,
)
GENTLE = changed(
    LENIENT,
    g3=G3Policy(min_epochs=0),
    g4=G4Policy(),
    g5=G5Policy(min_epochs=1),
    timeouts=Timeouts(blending=2, shadowing=1, probationary=2),
    cull_ramp_epochs=1.5,
)
CURIOUS = changed(
    LENIENT,
    extra_checks=(
        MetricCheck(gate=Gate.G3, metric="speed", comparison=Comparison.ABOVE, required=0.0),
    ),
)

policies = st.sampled_from([LENIENT, LENIENT, HASTY, GENTLE, CURIOUS, GatePolicy()])
curves = st.sampled_from(Curve)
incubations = st.builds(
    IncubationPlan,
    incubator=st.sampled_from(Incubator),
    penalty=st.sampled_from([0.1, 10.0]),
    share=st.sampled_from([0.25, 1.0]),
    warmup_steps=st.sampled_from([0, 50]),
)
CANDIDATES = (0.25, 0.5, 1.0)
blends = st.builds(
    BlendPlan,
    blend=st.sampled_from(Blend),
    target=st.sampled_from([*CANDIDATES, 0.1]),
    search=st.sampled_from([(), (), CANDIDATES, CANDIDATES[::-1], (0.5,)]),
    epochs=st.sampled_from([0.0, 0.5, 2.0]),
    curve=curves,
)
