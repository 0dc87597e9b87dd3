"""Live streams in made-up time: the test is the consumer, frames cost what it says, nothing sleeps."""

from __future__ import annotations

import hashlib
import threading
from fractions import Fraction

import numpy as np
import pytest

from t2v_edge.errors import CaptionError, UsageError
from tests.t2v_edge.live_device import DANCE, RUN, WALK, in_thread, numbers, show

FRAME_S = 1 / 30


# Pace.


@pytest.mark.parametrize("fps", [24, Fraction(30000, 1001), 30, 60, 72, 90, 120])
def test_every_frame_comes_when_it_is_due_and_never_before(live, device, clock, fps):
    device.cost_s["render"] = 0.003
    stream, start = live(fps=fps), clock.now()
    shown = show(stream, 200)
    assert numbers(shown) == list(range(200))
    for frame, at in shown[1:]:  # the first is due at once, and takes what it takes
        exact = Fraction(start) + frame.pts * frame.time_base
        assert frame.time_base == 1 / Fraction(fps)
        assert 0 <= Fraction(at) - exact < Fraction(1, 10**6)
    assert (stream.stats.shown, stream.stats.late) == (200, 0)
    assert stream.stats.fps == pytest.approx(float(fps))


def test_frames_that_are_on_time_are_those_of_a_stream_that_is_not_live(live, pipeline):
    def digest(frames):
        return hashlib.sha256(b"".join(frame.pixels.tobytes() for frame in frames)).hexdigest()

    shown = [frame for frame, _ in show(live(seed=3), 60)]
    assert digest(shown) == digest(pipeline.stream(WALK, fps=30, seconds=2, seed=3))


def test_a_frame_is_made_just_before_it_is_due(live, device, clock):
    device.cost_s["render"] = 0.005
    begun = []
    device.on_run = lambda stage: begun.append(clock.now() - 0.005) if stage == "render" else None
    stream = live()
    shown = show(stream, 50)
    for (_, at), start in zip(shown[1:], begun[1:]):
        assert 0.005 <= at - start < 0.012
    assert stream.stats.rendered - stream.stats.shown <= 1


def test_waiting_is_told_and_not_asked_for(live, device, clock, monkeypatch):
    stream, waits, wait = live(), [], clock.wait
    monkeypatch.setattr(clock, "wait", lambda *args: (waits.append(args), wait(*args)))
    show(stream, 100)
    assert len(waits) <= 5 * 100, "a few waits a frame, not one every so many milliseconds"


def test_a_stall_is_not_caught_up_and_motion_goes_on_from_where_it_was(live, device, clock):
    stream = live()
    before = show(stream, 30)
    steps = stream.stats.motion_steps
    stall = iter([3600.0])
    device.on_run = lambda stage: clock.work(next(stall, 0.0)) if stage == "render" else None
    after = show(stream, 60)
    late, following = after[0], after[1:]
    assert late[0].index == before[-1][0].index + 1
    gap = following[0][0].index - late[0].index
    assert gap == pytest.approx(3600 * 30, abs=2)
    assert numbers(following) == list(range(following[0][0].index, following[0][0].index + 59)), "no burst"
    assert all(b - a == pytest.approx(FRAME_S, abs=1e-6) for (_, a), (_, b) in zip(following, following[1:]))
    assert stream.stats.motion_steps - steps <= 60 * 16 / 30 + 2
    stats = stream.stats
    assert (stats.anchors, stats.dropped["skipped"]) == (1, gap - 1)


def test_missed_frames_leave_the_speed_of_motion_as_it_was(live, device):
    device.cost_s["render"] = 0.05  # at 30 fps, without adapting
    stream = live(adaptive=False)
    shown = show(stream, 40)
    last = shown[-1][0]
    assert last.index > 55
    assert stream.stats.motion_steps == pytest.approx(last.index * 16 / 30, abs=3)
    assert stream.stats.dropped["skipped"] >= 15 and stream.stats.anchors == 0
    assert all(at - float(frame.pts * frame.time_base) - 1000 < FRAME_S + 0.051 for frame, at in shown)


# Captions.


def test_without_a_caption_nothing_is_made_and_the_consumer_waits(live, device, clock):
    stream = live(None)
    assert (stream.generation, stream.caption) == (-1, "")
    clock.workers = 3  # nobody moves time while the test is not waiting
    first = in_thread(lambda: next(stream))
    assert not device.of("render") and not device.of("motion") and stream._thread is None
    clock.workers = 2
    assert stream.set_caption(WALK) == 0
    frame = first()
    assert (frame.index, frame.generation, frame.caption) == (0, 0, WALK)


@pytest.mark.parametrize("ahead", [0, 3])
def test_after_a_change_no_frame_of_the_old_caption_comes_over_500_changes(live, device, clock, ahead):
    device.cost_s["render"] = 0.004
    stream, last = live(ahead=ahead), -1
    for change in range(1, 501):
        assert stream.set_caption((WALK, RUN, DANCE)[change % 3]) == change
        for frame, _ in show(stream, 1 + change % 3):
            assert frame.generation == change and frame.caption == stream.caption
            assert frame.index > last
            last = frame.index
        if change % 7 == 0:
            clock.pass_time(stream, 0.01 * (change % 5))
    switch = stream.stats.switch
    assert switch.count == 500
    assert switch.max_ms <= 1000 * (FRAME_S + 0.004 + 0.002) + 0.1, "the next frame, or that and making it anew"
    assert stream.stats.dropped["skipped"] <= 500


def test_state_is_carried_over_changes_and_the_condition_blends(live, device, pipeline):
    stream = live(blend_steps=4)
    show(stream, 30)
    made = len(device.of("motion"))
    stream.set_caption(RUN)
    frame, _ = show(stream, 1)[0]
    assert frame.generation == 1
    show(stream, 20)
    motion = device.of("motion")
    for (_, before), (after, _) in zip(motion, motion[1:]):
        assert np.array_equal(after["state.hidden"], before["next.hidden"])
    walk, run = pipeline.encode(WALK).vector, pipeline.encode(RUN).vector
    for i, share in enumerate((0.25, 0.5, 0.75, 1.0, 1.0)):
        np.testing.assert_allclose(motion[made + i][0]["condition"], walk + (run - walk) * share, atol=1e-6)


def test_the_first_frame_of_a_new_caption_shows_something_of_it(live, device, pipeline):
    walk = pipeline.encode(WALK).vector
    for earlier in range(1, 9):  # wherever the frame is between base steps
        stream = live()
        show(stream, earlier)
        assert np.array_equal(device.of("render")[-1][0]["condition"], walk)
        position = stream._maker._position
        stream.set_caption(RUN)
        show(stream, 1)
        assert not np.array_equal(device.of("render")[-1][0]["condition"], walk)
        moved = stream._maker._position - position
        assert 0 <= moved - Fraction(16, 30) < 1, "and it passes over less than a base step"
        stream.close()


def test_a_frame_that_is_being_made_when_the_caption_changes_is_dropped_by_its_number_and_made_anew(live, device):
    stream = live()
    show(stream, 5)
    changes = iter([RUN])
    device.on_run = lambda stage: stage == "render" and [stream.set_caption(to) for to in changes]
    frame, _ = show(stream, 1)[0]
    assert (frame.index, frame.generation, frame.caption) == (5, 1, RUN)
    assert stream.stats.dropped["stale"] == 1


def test_captions_that_outrun_frames_cost_two_renders_a_frame_at_most(live, device, clock):
    stream = live()
    show(stream, 5)
    made = stream.stats.rendered
    captions = iter([WALK, RUN] * 1000)
    device.on_run = lambda stage: stage == "render" and stream.set_caption(next(captions))
    clock.pass_time(stream, 1.0)
    assert stream.stats.rendered - made <= 2 * 31
    device.on_run = lambda stage: None
    frame, _ = show(stream, 1)[0]
    assert frame.generation == stream.generation and frame.caption == stream.caption


def test_an_unchanged_caption_changes_nothing_and_a_bad_one_is_refused_where_it_is_set(live):
    stream = live()
    show(stream, 2)
    assert stream.set_caption(f"  {WALK} ") == 0
    with pytest.raises(CaptionError):
        stream.set_caption(" ")
    assert {frame.generation for frame, _ in show(stream, 5)} == {0}


def test_of_captions_that_are_read_at_once_the_last_one_asked_for_counts(live, device, monkeypatch):
    stream = live()
    may_end, encode = threading.Event(), device.encode

    def slow(caption):
        if caption.text == RUN:
            may_end.wait(10)
        return encode(caption)

    device.encode = slow
    first = in_thread(lambda: stream.set_caption(RUN))
    while stream._calls < 2:
        threading.Event().wait(0.001)
    assert stream.set_caption(DANCE) == 1
    may_end.set()
    assert first() == 1 and stream.caption == DANCE


# Standing still.


def test_a_paused_stream_gives_and_makes_nothing_and_goes_on_without_a_gap(live, device, clock):
    stream = live(ahead=2)
    shown = show(stream, 20)
    stream.pause()
    made = stream.stats.rendered
    clock.pass_time(stream, 1000.0)
    assert stream.stats.rendered <= made + 1 and stream.stats.shown == 20
    before, steps = stream.stats, stream.stats.motion_steps
    clock.pass_time(stream, 1000.0)
    assert stream.stats.rendered == before.rendered
    stream.resume()
    later = show(stream, 20)
    assert numbers(shown + later) == list(range(40))
    assert later[0][1] - shown[-1][1] == pytest.approx(2000 + FRAME_S, abs=1e-6)
    assert stream.stats.motion_steps - steps <= 12 and stream.stats.anchors == 0


def test_a_frame_that_was_made_before_a_pause_is_not_given_in_it(live, device, clock):
    clock.workers = 3
    stream = live(ahead=2)
    show_one = in_thread(lambda: next(stream))
    show_one()
    clock.workers = 2
    clock.pass_time(stream, 1.0)
    assert stream.stats.queued > 0
    stream.pause()
    waiting = in_thread(lambda: next(stream))
    clock.pass_time(stream, 0.0)
    stream.set_caption(RUN)
    assert stream.stats.queued == 0 and stream.stats.shown == 1
    stream.resume()
    assert waiting().generation == 1


def test_without_a_consumer_nothing_is_made_after_a_while_until_one_comes(live, device, clock):
    stream = live(idle_after_s=2.0)
    shown = show(stream, 10)
    clock.pass_time(stream, 2.1)
    made = stream.stats.rendered
    clock.pass_time(stream, 3600.0)
    assert stream.stats.rendered == made <= 10 + 2.1 * 30 + 1
    assert stream.stats.dropped["unwatched"] == 2 and stream.stats.queued == 0
    later = show(stream, 10)
    assert later[0][0].index - shown[-1][0].index <= 2.1 * 30 + 1, "the hour is not in the stream's own time"
    assert later[0][1] - clock.now() <= FRAME_S and stream.stats.anchors == 0
    assert numbers(later) == list(range(later[0][0].index, later[0][0].index + 10))


def test_a_stream_that_is_watched_does_not_fall_idle(live):
    stream = live(idle_after_s=0.05)
    assert numbers(show(stream, 100)) == list(range(100))


def test_a_reset_begins_the_motion_anew_and_nothing_from_before_it_comes(live, device):
    stream = live(seed=5, ahead=2)
    first = show(stream, 20)
    assert stream.reset() == 1
    again = show(stream, 20)
    assert stream.reset(6) == 2
    other = show(stream, 20)
    assert [{frame.generation for frame, _ in part} for part in (first, again, other)] == [{0}, {1}, {2}]
    assert numbers(first + again + other) == list(range(60))
    for (one, _), (same, _) in zip(first, again):
        assert np.array_equal(one.pixels, same.pixels)
    assert not np.array_equal(first[0][0].pixels, other[0][0].pixels)
    with pytest.raises(UsageError, match="seed is -1"):
        stream.reset(-1)


def test_a_reset_before_the_first_caption_sets_the_seed(live):
    stream = live(None, seed=5)
    assert stream.reset(6) == -1
    stream.set_caption(WALK)
    frame, _ = show(stream, 1)[0]
    stream.close()
    assert np.array_equal(frame.pixels, show(live(seed=6), 1)[0][0].pixels)


# Slow consumers.


def test_a_slow_consumer_gets_the_newest_frame(live, clock):
    stream = live(policy="latest")
    for _ in range(20):
        frame = next(stream)
        assert clock.now() - (1000 + float(frame.seconds)) < FRAME_S + 1e-6
        clock.pass_time(stream, 0.11)
    assert stream.stats.dropped["overtaken"] > 20 and stream.stats.dropped["skipped"] == 0
    assert stream.stats.queued <= 2


def test_a_slow_consumer_gets_frames_in_order_and_the_oldest_are_dropped(live, clock):
    stream = live(policy="drop-oldest", queue=3)
    show(stream, 1)
    clock.pass_time(stream, 1.0 + FRAME_S / 2)
    assert stream.stats.queued == 3
    now = clock.now()
    shown = show(stream, 4)
    assert numbers(shown) == [28, 29, 30, 31] and [at for _, at in shown[:3]] == [now] * 3
    assert stream.stats.dropped["overtaken"] == 27


def test_nothing_is_made_that_nobody_takes_where_the_queue_blocks(live, clock):
    stream = live(policy="block")
    show(stream, 1)
    clock.pass_time(stream, 100.0)
    stats = stream.stats
    assert (stats.rendered, stats.queued, stats.level) == (3, 2, 0)
    shown = show(stream, 4)
    assert numbers(shown[:2]) == [1, 2] and shown[2][0].index >= 3000
    assert numbers(shown[2:]) == [shown[2][0].index, shown[2][0].index + 1]
    assert stream.stats.dropped["overtaken"] == 0


def test_a_change_in_front_of_a_slow_consumer_is_no_stall(live, clock):
    stream = live(policy="latest")
    show(stream, 1)
    clock.pass_time(stream, 1.0)
    steps = stream.stats.motion_steps
    stream.set_caption(RUN)
    frame, _ = show(stream, 1)[0]
    assert frame.generation == 1 and frame.index in (30, 31)
    stats = stream.stats
    assert (stats.anchors, stats.dropped["skipped"]) == (0, 0) and stats.motion_steps - steps <= 2


# Quality.


def test_a_slow_device_shows_fewer_frames_on_time_and_more_when_it_has_room(live, device):
    device.cost_s["render"] = 0.045
    stream = live()
    show(stream, 60)
    steps, index = stream.stats.motion_steps, stream.stats.shown
    assert (stream.stats.level, stream.stats.divisor) == (1, 2)
    shown = show(stream, 60)
    assert {b - a for a, b in zip(numbers(shown), numbers(shown)[1:])} == {2}
    assert stream.stats.motion_steps - steps == pytest.approx(120 * 16 / 30, abs=2), f"{index}: as fast as ever"
    assert all(b - a == pytest.approx(2 * FRAME_S, abs=1e-6) for (_, a), (_, b) in zip(shown, shown[1:]))
    device.cost_s["render"] = 0.010
    show(stream, 120)
    assert stream.stats.level == 0
    motion = device.of("motion")
    assert all(
        np.array_equal(after["state.hidden"], before["next.hidden"])
        for (_, before), (after, _) in zip(motion, motion[1:])
    )


def test_quality_is_left_alone_where_that_is_wanted(live, device):
    device.cost_s["render"] = 0.045
    stream = live(adaptive=False)
    show(stream, 100)
    assert stream.stats.level == 0


def test_neither_captions_nor_a_slow_consumer_nor_a_stall_lower_the_quality(live, device, clock):
    device.cost_s["render"] = 0.012
    stream = live(policy="block")
    for turn in range(60):
        stream.set_caption((WALK, RUN)[turn % 2])
        show(stream, 2)
        clock.pass_time(stream, 0.4)
        clock.time += 0.5 if turn % 10 == 0 else 0.0
    assert stream.stats.level == 0
