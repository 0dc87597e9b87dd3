from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2v_edge.errors import UsageError
from t2v_edge.play.clock import Blend, Clock, Smoother, exact, mix


def vector(*values):
    return np.array([values], np.float32)


@given(st.integers(1, 120), st.fractions(Fraction(1, 2), 240, max_denominator=1001), st.integers(0, 100_000))
def test_positions_are_exact_and_rise(base, fps, index):
    clock = Clock(Fraction(base), fps)
    step, share = clock.position(index)
    assert 0 <= share < 1
    assert (step + share) / base == index * clock.time_base
    assert clock.position(index + 1) > (step, share)


@pytest.mark.parametrize("fps", [24, 30, 60, 72, 90])
def test_shown_frames_fall_on_base_steps_every_second(fps):
    clock = Clock(Fraction(16), Fraction(fps))
    assert clock.position(fps * 3600) == (16 * 3600, 0)
    assert clock.frames_in(Fraction(4)) == 4 * fps


def test_decimal_seconds_count_no_frame_too_many():
    assert Clock(Fraction(16), Fraction(30)).frames_in(exact(0.1, "seconds")) == 3


@pytest.mark.parametrize("value", ["x", float("nan"), float("inf"), "1/0", "", "1e999999999"])
def test_what_is_no_number_is_refused_by_name(value):
    with pytest.raises(UsageError, match="fps"):
        exact(value, "fps")


@pytest.mark.parametrize("fps", [0, -1, 1001, 1e-7, Fraction(10**7 + 1, 10**6)])
def test_a_rate_out_of_range_is_refused(fps):
    with pytest.raises(UsageError, match="fps"):
        Clock(Fraction(16), Fraction(fps))


def test_mix_is_exact_at_both_ends():
    one, other = vector(0.1, -3), vector(0.7, 1e9)
    assert mix(one, other, 0.0) is one
    assert mix(one, other, 1.0) is other
    assert np.allclose(mix(one, vector(0.3, -1), 0.5), vector(0.2, -2))


def test_blend_takes_the_first_condition_at_once_and_later_ones_in_equal_parts():
    blend = Blend(4)
    blend.retarget(vector(0.0))
    assert blend.advance().item() == 0.0
    blend.retarget(vector(1.0))
    assert [blend.advance().item() for _ in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_blend_interrupted_goes_on_from_where_it_is():
    blend = Blend(4)
    blend.retarget(vector(0.0))
    blend.advance()
    blend.retarget(vector(1.0))
    assert [blend.advance().item() for _ in range(2)] == [0.25, 0.5]
    blend.retarget(vector(0.0))
    assert [blend.advance().item() for _ in range(5)] == [0.375, 0.25, 0.125, 0.0, 0.0]


def test_blend_of_no_steps_switches_at_once():
    blend = Blend(0)
    blend.retarget(vector(0.0))
    blend.advance()
    blend.retarget(vector(1.0))
    assert blend.advance().item() == 1.0


def test_smoother_is_a_one_pole_low_pass_that_starts_at_the_first_motion():
    smooth = Smoother(0.5)
    assert [smooth(vector(x)).item() for x in (4.0, 0.0, 0.0)] == [4.0, 2.0, 1.0]


def test_no_smoothing_passes_motion_through_untouched():
    smooth, motion = Smoother(0.0), vector(0.1)
    smooth(vector(5.0))
    assert smooth(motion) is motion
