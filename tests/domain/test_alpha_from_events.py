"""Alpha is what the recorded schedules say, whatever the plan was and whatever was measured."""

from hypothesis import given as each
from hypothesis import settings
from hypothesis import strategies as st

from kasmina.domain import commands as c
from kasmina.domain import events as e
from kasmina.domain.decide import decide
from kasmina.domain.errors import KasminaError
from kasmina.domain.evolve import evolve, replay
from kasmina.domain.policies import G3Policy, GatePolicy, Timeouts
from kasmina.domain.projections import slot_view
from kasmina.domain.schedules import AlphaSchedule, BlendPlan, Curve
from kasmina.domain.stages import Blend, Incubator, Stage
from tests.domain.scenario import SLOT, contrasted, evidence, planned, ready, record_epoch

targets = st.floats(0.0, 1.0, exclude_min=True)
plans = st.builds(
    BlendPlan,
    blend=st.sampled_from(Blend),
    target=targets,
    search=st.lists(targets, max_size=3, unique=True).map(tuple),
    epochs=st.floats(0.0, 4.0),
    curve=st.sampled_from(Curve),
    temperature=st.none() | st.floats(0.1, 100.0),
)
policies = st.builds(
    GatePolicy,
    cull_ramp_epochs=st.floats(0.0, 3.0),
    timeouts=st.builds(Timeouts, blending=st.none() | st.integers(1, 5)),
    g3=st.builds(G3Policy, min_alpha=st.floats(0.0, 1.0), min_epochs=st.integers(0, 3)),
)
alphas = st.floats(0.0, 1.0)
figures = st.none() | st.floats(0.0, 10.0) | st.just(float("nan"))
MEASUREMENTS = (
    e.EpochRecorded,
    e.GateEvaluated,
    e.CounterfactualMeasured,
    e.HealthChanged,
)


def commands_at(step):
    """What may be asked of a seed on its ramp."""
    place = {"step": st.just(step), "slot_id": st.just(SLOT)}
    schedule = st.builds(
        AlphaSchedule,
        start_step=st.integers(0, step + 20),
        steps=st.integers(0, 40),
        start=alphas,
        end=alphas,
    )
    return st.one_of(
        st.builds(c.OverrideAlpha, **place, alpha=alphas),
        st.builds(c.ScheduleAlpha, **place, schedule=schedule),
        st.builds(c.PauseSeed, **place),
        st.builds(c.ResumeSeed, **place),
        st.builds(c.Cull, **place, reason=st.just("enough"), ramp_steps=st.integers(1, 30)),
        st.builds(c.Advance, **place),
        st.builds(c.Advance, **place),
    )


@st.composite
def lives(draw):
    """The events of a seed that was rehearsed, blended in, and meddled with."""
    plan = draw(plans)
    past = ready(Stage.TRAINING, policy=draw(policies))
    past = planned(past, incubator=draw(st.sampled_from(Incubator)), blend=plan)
    rehearsals = [
        contrasted(at=4, alpha=alpha, objective_with=draw(figures), objective_without=0.0)
        for alpha in (*plan.search, plan.target)
    ]
    events = [*past, *rehearsals]
    state = replay(events)
    wishes = [c.Advance(step=40, slot_id=SLOT)]
    for number in range(5, 5 + draw(st.integers(0, 6))):
        wishes += [record_epoch(number, 53.0, evidence()), draw(commands_at(10 * number))]
    for wish in wishes:
        try:
            decided = decide(state, wish, state.policy)
        except KasminaError:
            continue
        events += decided
        for event in decided:
            state = evolve(state, event)
    return events, state


@settings(max_examples=200)
@each(lives(), st.lists(st.integers(0, 200), min_size=5, max_size=5))
def test_for_any_plan_the_alpha_at_any_step_comes_from_the_recorded_schedules(life, steps):
    events, live = life
    told = replay([event for event in events if not isinstance(event, MEASUREMENTS)])
    for step in (*steps, live.step, live.step + 1, 10**9):
        alpha = live.slot(SLOT).seed.alpha(step)
        assert 0.0 <= alpha <= 1.0
        assert told.slot(SLOT).seed.alpha(step) == alpha
        assert replay(events).slot(SLOT).seed.alpha(step) == alpha
        if live.slot(SLOT).stage.holds_seed:
            assert slot_view(live, SLOT).alpha(step) == alpha


@settings(max_examples=200)
@each(lives())
def test_the_target_is_where_the_last_recorded_ramp_leads(life):
    events, live = life
    seed = live.slot(SLOT).seed
    ends = [event.schedule.end for event in events if isinstance(event, e.BlendScheduled)]
    led = [end for end in ends if end > 0.0]
    assert seed.target == (led[-1] if led else seed.blend.target)
    assert 0.0 < seed.target <= 1.0
    if ends:
        assert ends[0] in {*seed.candidates, seed.blend.target}
