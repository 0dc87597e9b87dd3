"""Decisions about quality, under loads that a test makes up."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2v_edge.live.quality import DOUBT, LOWEST_FPS, PATIENCE, Quality, QualityWindow

RATES = [Fraction(16), Fraction(24), Fraction(30), Fraction(60), Fraction(90), Fraction(120)]


def decide(quality, cost_s, missed_share=None):
    """One decision after a second of frames that take `cost_s` each."""
    wanted = max(1, int(quality.fps / quality.divisor))
    frames = min(wanted, max(1, int(1 / cost_s)))
    missed = wanted - frames if missed_share is None else round(missed_share * wanted)
    quality.observe(QualityWindow(frames, missed, cost_s))
    return quality.level


def test_every_level_is_a_divisor_of_the_rate_and_none_is_too_slow_to_be_seen_as_motion():
    assert Quality(Fraction(30)).divisors == (1, 2, 3, 4)
    assert Quality(Fraction(120)).divisors == (1, 2, 3, 4, 6, 8, 12, 16)
    assert Quality(Fraction(5)).divisors == (1,)
    assert all(fps / d >= LOWEST_FPS for fps in RATES for d in Quality(fps).divisors)


def test_a_device_that_keeps_up_shows_every_frame():
    quality = Quality(Fraction(30))
    assert {decide(quality, 0.020) for _ in range(100)} == {0}


def test_a_slow_device_goes_down_at_once_to_what_fits():
    quality = Quality(Fraction(30))
    assert decide(quality, 0.050) == 1  # of 1/15 s
    assert decide(Quality(Fraction(30)), 0.080) == 2
    assert decide(Quality(Fraction(30)), 5.0) == 3


def test_one_window_of_missed_frames_is_no_reason_and_two_are():
    quality = Quality(Fraction(30))
    assert [decide(quality, 0.01, 0.5), decide(quality, 0.01, 0.0), decide(quality, 0.01, 0.5)] == [0, 0, 0]
    assert decide(quality, 0.01, 0.5) == 1


def test_room_must_last_before_a_level_is_gone_up():
    quality = Quality(Fraction(30))
    decide(quality, 0.050)
    assert [decide(quality, 0.020) for _ in range(PATIENCE - 1)] == [1] * (PATIENCE - 1)
    decide(quality, 0.030)
    assert [decide(quality, 0.020) for _ in range(PATIENCE)] == [1] * (PATIENCE - 1) + [0]


def test_a_level_that_held_out_is_trusted_as_before():
    quality = Quality(Fraction(30))
    for _ in range(DOUBT):
        decide(quality, 0.010, 0.5)
    assert [decide(quality, 0.010) for _ in range(PATIENCE + 1)][-1] == 1, "it waits longer for one that failed"
    levels = [decide(quality, 0.010) for _ in range(10 * PATIENCE)]
    assert levels[-1] == 0
    for _ in range(DOUBT):
        decide(quality, 0.010, 0.5)
    assert quality.level == 1
    assert [decide(quality, 0.010) for _ in range(2 * PATIENCE)][-1] == 0, "twice the patience, not four times"


def test_a_window_without_frames_decides_nothing():
    quality = Quality(Fraction(30))
    assert quality.observe(QualityWindow(0, 50, 0.0)) is False and quality.level == 0


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(RATES), st.lists(st.floats(1e-4, 2.0), max_size=6), st.floats(1e-4, 2.0))
def test_under_any_constant_load_it_settles_and_stays(fps, before, cost_s):
    """Whatever came before, a cost that stays the same leads to a level that stays the same."""
    quality = Quality(fps)
    for other in before:
        for _ in range(3):
            decide(quality, other)
    for _ in range(quality.settles_after):
        decide(quality, cost_s)
    level = quality.level
    assert {decide(quality, cost_s) for _ in range(500)} == {level}
    fits = float(cost_s * fps / quality.divisor)
    assert fits <= 1.0 or level == len(quality.divisors) - 1, "and at that level frames are on time"
    if level:
        above = float(cost_s * fps / quality.divisors[level - 1])
        assert above > 0.7, "and there is no room for a higher one"


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(RATES), st.lists(st.floats(0.0, 1.0), min_size=8, max_size=8))
def test_misses_that_no_cost_explains_lead_to_ever_rarer_attempts(fps, shares):
    """Each level misses a constant share of frames for reasons of its own; frames themselves are made in no time."""
    quality = Quality(fps)
    levels = [decide(quality, 1e-4, shares[quality.level]) for _ in range(4000)]
    changes = sum(a != b for a, b in zip(levels, levels[1:]))
    # Patience doubles from 5: over 4,000 decisions each level fails at most 10 times and is tried again.
    assert changes <= 2 * 10 * len(quality.divisors)
    late = levels[2000:]
    assert sum(a != b for a, b in zip(late, late[1:])) <= 4 * len(quality.divisors)


@pytest.mark.parametrize("cost_s", [0.0330, 0.0340, 0.0231, 0.0236])
def test_noise_around_a_border_does_not_make_it_go_to_and_fro(cost_s):
    quality = Quality(Fraction(30))
    levels = [decide(quality, cost_s * (1.01 if i % 2 else 0.99)) for i in range(400)]
    assert sum(a != b for a, b in zip(levels, levels[1:])) <= 1
