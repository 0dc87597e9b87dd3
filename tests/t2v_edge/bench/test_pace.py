from __future__ import annotations

import pytest

from t2v_edge.bench.pace import PaceClock, keep_pace


class FakeTime:
    """A clock that goes forward by what frames take and by what is slept."""

    def __init__(self, takes):
        self.now, self.takes = 100.0, iter(takes)
        self.clock = PaceClock(now=lambda: self.now, cpu=lambda: self.now / 2, sleep=self.sleep)

    def sleep(self, seconds):
        self.now += seconds

    def __next__(self):
        self.now += next(self.takes)


def test_frames_on_time_leave_the_rest_as_headroom():
    time = FakeTime([0.025] * 40)
    found = keep_pace(time, 10, 40, time.clock)
    assert found.late == 0 and found.latest_ms == 0
    assert found.headroom == pytest.approx(0.75)
    assert found.cpu_share == pytest.approx(0.5, abs=0.02)  # half of what passed, but for the wait after the last frame
    assert found.frame.median_ms == pytest.approx(25) == found.frame.max_ms == found.mean_ms
    assert found.frame.jitter_ms == pytest.approx(0)


def test_a_slow_frame_is_late_and_so_are_those_it_holds_up():
    # due at 0.1, 0.2, ...: the third ends 0.25 s after its start at 0.2, the fourth at 0.5 for 0.4, the fifth on time
    time = FakeTime([0.05, 0.05, 0.25, 0.05, 0.0, 0.05])
    found = keep_pace(time, 10, 6, time.clock)
    assert found.late == 2
    assert found.latest_ms == pytest.approx(150)
    assert found.frame.max_ms == pytest.approx(250)
    assert found.frame.jitter_ms == pytest.approx(200)  # up by 200 and down by 200


def test_a_stream_that_cannot_keep_up_has_no_headroom():
    time = FakeTime([0.2] * 10)
    found = keep_pace(time, 10, 10, time.clock)
    assert found.late == 10 and found.headroom == pytest.approx(0)


def test_every_frame_is_told():
    time, told = FakeTime([0.01] * 5), []
    keep_pace(time, 10, 5, time.clock, lambda: told.append(time.now))
    assert len(told) == 5
