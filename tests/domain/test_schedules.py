"""Alpha is a pure function of a recorded schedule and the step."""

import itertools
import math

import pytest
from attrs import evolve as changed
from hypothesis import given as each
from hypothesis import settings
from hypothesis import strategies as st

from kasmina.domain.schedules import AlphaSchedule, BlendPlan, Curve, held

alphas = st.floats(0.0, 1.0)
temperatures = st.none() | st.floats(1e-6, 1e6)
schedules = st.builds(
    AlphaSchedule,
    curve=st.sampled_from(Curve),
    start_step=st.integers(0, 10**12),
    steps=st.integers(0, 10**6),
    start=alphas,
    end=alphas,
    temperature=temperatures,
)
any_step = st.integers(-(10**30), 10**30)


@st.composite
def schedules_and_steps(draw):
    """A schedule with a step that is as likely inside its ramp as outside."""
    schedule = draw(schedules)
    inside = st.integers(schedule.start_step - 2, schedule.end_step + 2)
    return schedule, draw(inside | any_step)


@each(schedules_and_steps())
def test_alpha_stays_between_its_ends_at_every_step(case):
    schedule, step = case
    low, high = sorted((schedule.start, schedule.end))
    assert low <= schedule.alpha(step) <= high


def test_rounding_does_not_carry_alpha_past_its_end():
    # 0.06 + (0.87 - 0.06) is 0.8700000000000001.
    steep = AlphaSchedule(start_step=0, steps=100, start=0.06, end=0.87, temperature=1e-3)
    assert steep.alpha(99) == 0.87


@each(schedules_and_steps(), st.integers(0, 1000) | st.integers(0, 10**30))
def test_alpha_never_turns_back(case, later):
    schedule, step = case
    first, second = schedule.alpha(step), schedule.alpha(step + later)
    assert first <= second if schedule.start <= schedule.end else first >= second


@each(schedules, st.integers(0, 10**30))
def test_alpha_is_exact_at_both_ends_and_beyond(schedule, beyond):
    assert schedule.alpha(schedule.end_step) == schedule.end
    assert schedule.alpha(schedule.end_step + beyond) == schedule.end
    if schedule.steps:
        assert schedule.alpha(schedule.start_step) == schedule.start
    assert schedule.alpha(schedule.start_step - 1 - beyond) == schedule.start


@each(schedules_and_steps(), st.integers(0, 10**9))
def test_a_shifted_schedule_is_the_same_ramp_later(case, shift):
    schedule, step = case
    moved = changed(schedule, start_step=schedule.start_step + shift)
    assert moved.alpha(step + shift) == schedule.alpha(step)


@each(
    st.integers(2, 10**6),
    st.floats(0.01, 1e5),
    alphas,
    alphas,
    st.data(),
)
def test_the_sigmoid_is_the_seed_system_s_formula(steps, temperature, start, end, data):
    schedule = AlphaSchedule(
        start_step=1000, steps=steps, start=start, end=end, temperature=temperature
    )
    step = data.draw(st.integers(1001, 1000 + steps - 1))
    x = (step - (1000 + steps / 2)) / temperature
    expected = start + (end - start) * (0.5 + 0.5 * math.tanh(x))
    assert schedule.alpha(step) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0), (0.2, 0.7)])
def test_the_default_temperature_meets_both_ends_without_a_jump(ends):
    start, end = ends
    schedule = AlphaSchedule(start_step=0, steps=10**7, start=start, end=end)
    assert abs(schedule.alpha(1) - start) <= 1e-5
    assert abs(schedule.alpha(10**7 - 1) - end) <= 1e-5


@pytest.mark.parametrize("curve", Curve)
@pytest.mark.parametrize("steps", [10, 100, 1000])
def test_no_step_of_a_default_ramp_is_a_jump(curve, steps):
    schedule = AlphaSchedule(curve=curve, start_step=0, steps=steps)
    course = [schedule.alpha(step) for step in range(steps + 1)]
    largest = max(after - before for before, after in itertools.pairwise(course))
    # The sigmoid is the steepest: its slope in the middle is half of twelve.
    assert largest <= 6.0 / steps + 1e-12


@pytest.mark.parametrize(
    ("curve", "quarter"),
    [
        (Curve.LINEAR, 0.25),
        (Curve.COSINE, 0.5 - math.sqrt(0.5) / 2),
        (Curve.SIGMOID, 0.5 + 0.5 * math.tanh(-3.0)),
    ],
)
def test_every_curve_has_its_shape(curve, quarter):
    schedule = AlphaSchedule(curve=curve, start_step=0, steps=100)
    assert schedule.alpha(25) == pytest.approx(quarter)
    assert schedule.alpha(50) == pytest.approx(0.5)
    assert schedule.alpha(75) == pytest.approx(1 - quarter)


@settings(max_examples=30)
@each(alphas, st.integers(0, 10**9), any_step)
def test_a_held_alpha_is_the_same_at_every_step(alpha, since, step):
    assert held(alpha, step=since).alpha(step) == alpha


def test_a_ramp_without_length_is_a_step():
    schedule = AlphaSchedule(start_step=5, steps=0)
    assert [schedule.alpha(step) for step in (4, 5, 6)] == [0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "fields",
    [
        {"start_step": -1},
        {"steps": -1},
        {"start": -0.1},
        {"end": 1.1},
        {"end": math.nan},
        {"temperature": 0.0},
        {"temperature": math.inf},
    ],
)
def test_an_impossible_schedule_is_not_built(fields):
    with pytest.raises(ValueError, match="must"):
        AlphaSchedule(**{"start_step": 0, "steps": 10, **fields})


def test_an_impossible_plan_is_not_built():
    with pytest.raises(ValueError, match="epochs must be finite and at least 0"):
        BlendPlan(epochs=-1.0)
