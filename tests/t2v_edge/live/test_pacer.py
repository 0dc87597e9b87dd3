"""The schedule of a live stream, held against a clock that a test moves as it likes."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2v_edge.live.pacer import MARGIN_S, LeadTime, MotionTimeline, Pacer

RATES = [Fraction(24), Fraction(30000, 1001), Fraction(30), Fraction(60), Fraction(72), Fraction(90), Fraction(120)]


def started(fps=Fraction(30), at=100.0, **options):
    pacer = Pacer(fps, **options)
    pacer.go(at)
    return pacer


def made(pacer, now, stride=1):
    slot = pacer.plan(now, stride)
    pacer.commit(slot.index)
    return slot


@pytest.mark.parametrize("fps", RATES)
def test_frames_are_due_at_exact_multiples_and_never_a_bit_early(fps):
    start = 12345.678901
    pacer = started(fps, start)
    for index in (0, 1, 7, 1_000_003, 50_000_000):
        exact = Fraction(start) + index / fps
        assert 0 <= Fraction(pacer.due(index)) - exact < Fraction(1, 10**7)


def test_frames_that_are_on_time_come_one_after_another():
    pacer = started()
    slots = [made(pacer, pacer.due(index) - 0.004) for index in range(100)]
    assert [slot.index for slot in slots] == list(range(100))
    assert not any(slot.skipped or slot.restarted for slot in slots)


def test_a_frame_that_is_less_than_a_frame_late_is_still_made():
    pacer = started()
    made(pacer, 100.0)
    slot = pacer.plan(pacer.due(2) - 0.001)
    assert (slot.index, slot.skipped, slot.restarted) == (1, 0, False)


def test_frames_whose_time_is_over_are_left_out_by_number():
    pacer = started()
    made(pacer, 100.0)
    slot = made(pacer, pacer.due(4) + 0.001)
    assert (slot.index, slot.skipped, slot.restarted) == (4, 3, False)
    assert made(pacer, pacer.due(5)).index == 5, "what was missed is not caught up"


def test_a_stall_past_the_bound_takes_the_schedule_up_at_the_present():
    pacer = started(bound_s=0.25)
    made(pacer, 100.0)
    now = 100.0 + 3600.01
    slot = made(pacer, now)
    assert slot.restarted and slot.index == math.ceil(3600.01 * 30) and slot.skipped == slot.index - 1
    assert 0 <= slot.due_s - now < 1 / 30, "the frame that the stream goes on with is on time"
    assert not made(pacer, pacer.due(slot.index + 1)).restarted


def test_the_bound_is_two_frames_at_the_least():
    pacer = started(bound_s=0.001)
    made(pacer, 100.0)
    assert not pacer.plan(100.0 + 2 / 30 - 0.001).restarted
    assert pacer.plan(100.0 + 2 / 30 + 0.001).restarted


def test_every_other_frame_is_made_where_every_other_one_is_wanted():
    pacer = started()
    assert [made(pacer, pacer.due(2 * i), stride=2).index for i in range(4)] == [0, 2, 4, 6]
    assert made(pacer, pacer.due(10) + 0.001, stride=2).skipped == 1
    assert made(pacer, pacer.due(10) + 0.002, stride=1).index == 11


def test_a_pause_moves_what_is_due_by_what_it_lasted_and_leaves_no_gap():
    pacer = started()
    made(pacer, 100.0)
    pacer.hold(100.01)
    assert not pacer.running and pacer.present(5000.0) == 0
    pacer.hold(200.0)
    pacer.go(1100.01)
    pacer.go(1200.0)
    slot = pacer.plan(1100.01)
    assert (slot.index, slot.skipped, slot.restarted) == (1, 0, False)
    assert slot.due_s == pytest.approx(1100.0 + 1 / 30, abs=1e-9)


def test_numbers_of_frames_that_were_thrown_away_are_free_again():
    pacer = started()
    for index in range(5):
        made(pacer, pacer.due(index) - 0.1)
    pacer.rewind(1)
    pacer.rewind(3)
    assert pacer.last == 1 and pacer.plan(pacer.due(2)).index == 2


def test_numbers_must_rise_and_nothing_is_planned_before_the_start():
    pacer = Pacer(Fraction(30))
    assert not pacer.running and pacer.present(5.0) == -1
    pacer.hold(1.0)
    with pytest.raises(RuntimeError, match="started"):
        pacer.plan(0.0)
    pacer.go(0.0)
    pacer.commit(3)
    with pytest.raises(ValueError, match="frame 3 comes after frame 3"):
        pacer.commit(3)


def test_a_clock_that_goes_back_during_a_pause_moves_nothing_back():
    pacer = started()
    pacer.hold(101.0)
    pacer.go(100.5)
    assert pacer.due(0) == 100.0


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("render"), st.floats(0.0, 0.2)),
        st.tuples(st.just("stall"), st.floats(0.0, 5000.0)),
        st.tuples(st.just("pause"), st.floats(0.0, 5000.0)),
        st.tuples(st.just("switch"), st.integers(0, 3)),
        st.tuples(st.just("stride"), st.sampled_from([1, 2, 3, 4])),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(RATES), st.floats(0.0, 1e6), STEPS)
def test_no_order_of_events_breaks_the_schedule(fps, start, steps):
    """A renderer without an idea of what comes: it renders, is held up, paused, made to throw frames away."""
    pacer, now, stride, shown = Pacer(fps), start, 1, -1
    stood_still = Fraction(0)
    pacer.go(now)
    late_since_restart = 0
    for what, value in steps:
        if what == "stride":
            stride = value
        elif what == "stall":
            now += value
        elif what == "pause":
            pacer.hold(now)
            later = now + value
            stood_still += Fraction(later) - Fraction(now)
            now = later
            pacer.go(now)
        elif what == "switch":
            pacer.rewind(max(shown, pacer.last - value))
        else:
            slot = pacer.plan(now, stride)
            assert slot == pacer.plan(now, stride), "planning changes nothing"
            assert slot.index > shown and slot.index > pacer.last, "numbers rise strictly"
            now = max(now, slot.due_s - 0.004) + value
            pacer.commit(slot.index)
            now = max(now, slot.due_s)  # the consumer waits until it is due
            shown = slot.index
            late_by = now - slot.due_s
            late_since_restart = 0 if slot.restarted else late_since_restart
            late_since_restart += late_by > max(pacer.bound_s, 2 * stride / fps)
            assert late_since_restart <= 1, "then the schedule restarts"
            elapsed = Fraction(now) - Fraction(start) - stood_still
            assert pacer.present(now) >= shown
            assert Fraction(shown) / fps <= elapsed, "no frame before its time in the stream's own time"
            # What is shown is behind by what its making took, by a frame at the most besides.
            assert elapsed - Fraction(shown) / fps <= Fraction(value) + stride / fps + Fraction(late_by)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(RATES), st.floats(0.0, 1e5), st.data())
def test_there_is_no_drift_over_hours_of_jitter(fps, start, data):
    pacer, now = Pacer(fps), start
    pacer.go(now)
    index = -1
    for hour in range(1, 9):
        # jump close to the hour as if all frames before had been shown, then show a few with jitter
        near = int(hour * 3600 * fps)
        pacer.commit(max(near - 10, index + 1))
        now = pacer.due(pacer.last)
        for jitter in data.draw(st.lists(st.floats(0.0, 0.9 * float(1 / fps)), min_size=10, max_size=10)):
            slot = made(pacer, now)
            now = max(now, slot.due_s) + jitter
            index = slot.index
        assert abs(index / fps - (Fraction(now) - Fraction(start))) < 2 / fps
        assert abs(Fraction(pacer.due(index)) - Fraction(start) - index / fps) < Fraction(1, 10**6)


def test_motion_runs_along_a_line_that_can_be_begun_anew():
    course = MotionTimeline(Fraction(16, 30))
    assert [course.at(index) for index in (0, 15, 30)] == [0, 8, 16]
    course.restart(1000, Fraction(17))
    assert course.at(1000) == 17 and course.at(1030) == 33


def test_a_frame_is_begun_earlier_by_the_longest_time_of_late():
    lead = LeadTime()
    assert lead.lead_s(1 / 30) == MARGIN_S
    lead.observe(0.010)
    assert lead.lead_s(1 / 30) == pytest.approx(0.010 + MARGIN_S)
    for _ in range(200):
        lead.observe(0.004)
    assert lead.lead_s(1 / 30) == pytest.approx(0.004 + MARGIN_S, abs=1e-6)
    lead.observe(5.0)
    assert lead.lead_s(1 / 30) == 1 / 30 and lead.lead_s(1 / 30, ahead=2) == pytest.approx(3 / 30)
