from __future__ import annotations

import pytest

from t2v_edge.util.timing import WINDOW, Latency, Stopwatch


def test_percentiles_lie_between_the_times_they_fall_between():
    latency = Latency.of([float(ms) for ms in range(101)])
    assert (latency.count, latency.median_ms, latency.p95_ms, latency.p99_ms, latency.max_ms) == (101, 50, 95, 99, 100)
    assert Latency.of([1.0, 3.0]).median_ms == 2.0


def test_order_counts_for_jitter_and_not_for_percentiles():
    drifting, jumping = Latency.of([1.0, 2.0, 3.0, 4.0]), Latency.of([1.0, 4.0, 2.0, 3.0])
    assert drifting.jitter_ms == pytest.approx(1.0)
    assert jumping.jitter_ms == pytest.approx(2.9)  # differences 3, 2, 1: the 95th percentile is 2 + 0.9
    assert drifting.p99_ms == jumping.p99_ms


def test_few_times_leave_open_what_they_cannot_tell():
    assert Latency.of([]) == Latency(0)
    once = Latency.of([5.0])
    assert (once.median_ms, once.p99_ms, once.jitter_ms) == (5.0, 5.0, None)


def test_a_stopwatch_counts_all_runs_and_keeps_the_last():
    watch = Stopwatch(("render",))
    for _ in range(10):
        watch.add("render", 1000.0)
    for _ in range(WINDOW):
        watch.add("render", 2.0)
    latency = watch.latency("render")
    assert latency.count == WINDOW + 10 and latency.max_ms == 2.0
    with watch.time("render"):
        pass
    assert watch.latency("render").count == WINDOW + 11
