"""The arithmetic of live measurements, by frames and captions that are made up: nothing here is timed."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import islice

import pytest

from t2v_edge.bench.live.record import ClientRecord, Received, cue_offset, jitter_ms, latency, total
from t2v_edge.bench.live.report import LiveLimits, LiveReport, LiveRun, ServerSide
from t2v_edge.bench.live.run import LiveBenchOptions
from t2v_edge.bench.live.script import CAPTIONS, Script, make_script
from t2v_edge.bench.live.server import Sampler, ServerTarget, Trend, labelled, parse_metrics, stage_times
from t2v_edge.captions.wording import Wording
from t2v_edge.errors import CueError, UsageError
from t2v_edge.remote.frame_header import FrameHeader
from t2v_edge.remote.protocol import Showing
from t2v_edge.server.metrics import Metrics, frame_gauges
from t2v_edge.util.timing import Latency

FPS = Fraction(25)  # 40 ms a frame


def header(pts, generation=0, sequence=None):
    return FrameHeader("raw", generation, pts if sequence is None else sequence, pts, 1 / FPS, 1, 1, 3)


def watched(frames):
    """A record of (pts, arrival) and the like: the rest of `header`."""
    record = ClientRecord(FPS)
    for pts, at_s, *more in frames:
        record.frame_received(header(pts, *more), at_s)
    return record


def steady(count, start_s=10.0, first=0):
    return [(first + n, start_s + n / 25) for n in range(count)]


# What a client sees.


def test_frames_on_their_schedule_have_no_jitter_no_drift_and_no_misses():
    record = watched(steady(101))
    assert jitter_ms([record]) == pytest.approx(0, abs=1e-6) and record.drift_frames() == pytest.approx(0, abs=1e-6)
    received = record.received()
    assert (received.frames, received.missed, received.dropped, received.late, received.old) == (101, 0, 0, 0, 0)
    assert received.seconds == pytest.approx(4.0) and received.gap_ms == pytest.approx(40)


def test_jitter_is_how_far_frames_come_from_their_own_times():
    frames = [(pts, at_s + (0.012 if pts % 10 == 0 else 0.0)) for pts, at_s in steady(200)]
    assert jitter_ms([watched(frames)]) == pytest.approx(12, abs=1e-6), "a tenth of them: the 95th percentile sees it"
    frames = [(pts, at_s + (0.012 if pts % 50 == 0 else 0.0)) for pts, at_s in steady(200)]
    assert jitter_ms([watched(frames)]) == pytest.approx(0, abs=1e-6)
    assert watched([(pts, at + 0.021 * (pts == 7)) for pts, at in steady(100)]).received().late == 1
    assert watched([(pts, at + 0.019 * (pts == 7)) for pts, at in steady(100)]).received().late == 0, "of 20 ms"


def test_drift_is_what_offsets_grow_by_in_frames_whatever_single_frames_do():
    slow = [(pts, 10 + pts * 0.0401 + (0.5 if pts % 97 == 5 else 0.0)) for pts in range(1000)]
    assert watched(slow).drift_frames() == pytest.approx(0.9 * 1000 * 0.0001 / 0.04, rel=0.01)
    assert watched(steady(19)).drift_frames() is None


def test_frames_that_were_not_made_not_sent_or_replaced_are_told_apart():
    record = watched(
        [
            (0, 0.0, 0, 0),
            (1, 0.04, 0, 1),
            (4, 0.16, 0, 2),  # two numbers passed over, none made for them
            (6, 0.24, 0, 4),  # one was made and not sent
            (8, 0.32, 1, 6),
        ]
    )  # one was made, and then the caption changed
    received = record.received()
    assert (received.missed, received.dropped, received.replaced) == (2, 1, 1)
    assert received.gap_ms == pytest.approx(120)


def test_at_half_the_rate_every_other_frame_is_missed_and_none_dropped():
    received = watched([(2 * n, n / 12.5, 0, n) for n in range(11)]).received()
    assert (received.frames, received.missed, received.dropped) == (11, 10, 0)


@pytest.mark.parametrize("announced_first", [True, False])
def test_a_caption_is_answered_by_the_first_frame_of_its_generation(announced_first):
    record = watched([(0, 0.0, 0)])
    record.reset()
    record.caption_sent(5, 1.0)
    showing = Showing(1, 5, 0, "x")
    if announced_first:
        record.caption_shown(showing)
    record.frame_received(header(1, 0), 1.01) if not announced_first else None
    record.frame_received(header(2, 1), 1.05)
    record.frame_received(header(3, 1), 1.09)
    if not announced_first:
        record.caption_shown(showing)
    assert list(record.latencies_ms) == pytest.approx([50]) and not record.is_waiting
    assert record.received().old == 0 and record.received().lost == 0


def test_a_caption_that_a_newer_one_outran_is_answered_by_the_newer_ones_frame_or_left_out():
    record = watched([(0, 0.0, 0)])
    for segment, at_s in ((1, 1.0), (2, 1.1), (3, 1.2)):
        record.caption_sent(segment, at_s)
    record.caption_shown(Showing(1, 1, 0, "x"))
    record.caption_shown(Showing(2, 3, 0, "z"))  # the server took no notice of segment 2
    assert record.is_waiting
    record.frame_received(header(1, 2), 1.3)
    assert list(record.latencies_ms) == pytest.approx([300, 100])
    received = record.received()
    assert (received.captions, received.answered, received.overtaken, received.lost) == (3, 2, 1, 0)
    record.caption_sent(4, 2.0)
    assert record.received().lost == 1


def test_a_frame_of_an_old_generation_is_counted_after_it_was_announced_or_seen():
    record = watched([(0, 0.0, 0)])
    record.caption_shown(Showing(1, 0, 0, "x"))
    record.frame_received(header(1, 0), 0.04)
    record.frame_received(header(2, 1), 0.08)
    record.frame_received(header(3, 0), 0.12)
    assert record.received().old == 2


def test_what_was_before_the_beginning_is_not_counted():
    record = watched([*steady(10), (30, 12.0, 0, 40)])
    record.caption_sent(0, 5.0)
    record.reset()
    record.frame_received(header(31, 0, 41), 12.04)
    record.caption_shown(Showing(1, 0, 0, "x"))
    record.frame_received(header(32, 1, 42), 12.08)
    received = record.received()
    assert (received.frames, received.missed, received.dropped, received.captions, received.answered) == (2, 0, 0, 0, 0)
    assert received.seconds == pytest.approx(0.04)


def test_cues_are_held_against_their_own_times():
    record = watched([(0, 0.0, 0)])
    record.caption_sent(0, sent_s=1.02, due_s=1.0)
    record.caption_shown(Showing(1, 0, 0, "x"))
    record.frame_received(header(1, 1), 1.06)
    assert latency([record]).median_ms == pytest.approx(40) and cue_offset([record]).median_ms == pytest.approx(60)


def test_clients_are_added_up():
    received = total([Received(10, 1.0, 1, 2, 3, 4, 5, 6, 5, 1, 50.0), Received(20, 2.0, 1, 1, 1, 1, 0, 2, 2, 0, 40.0)])
    assert received == Received(30, 2.0, 2, 3, 4, 5, 5, 8, 7, 1, 50.0)
    assert jitter_ms([]) is None and total([]) == Received()


# What clients say.


def test_the_captions_of_our_own_are_all_different_and_none_says_what_the_one_before_said():
    assert len(set(CAPTIONS)) == len(CAPTIONS) > 3 * 64, "past what a pipeline remembers, for several clients"
    said = [Wording.of(text).units for text in CAPTIONS]
    assert all(one != other for one, other in zip(said, said[1:] + said[:1])), "the server shows each anew"


def test_switches_are_as_many_as_were_asked_for_and_fall_at_all_places_within_a_frame():
    script = make_script(None, None, 0.5, 500)
    lines = list(script.lines(0, 1, Fraction(30)))
    assert len(lines) == 500 and lines[-1].at_s < script.seconds
    phases = sorted((line.at_s * 30) % 1.0 for line in lines)
    gaps = [b - a for a, b in zip(phases, phases[1:])]
    assert max(gaps) < 0.02, "2,000ths of a frame apart on average, not at one place"
    assert len(list(make_script(None, 60.0, None, 30).lines(0, 1, Fraction(30)))) == 30


def test_clients_take_turns_and_say_different_things():
    script = Script(10.0, 1.0)
    said = [list(script.lines(client, 4, Fraction(30))) for client in range(4)]
    assert [lines[0].at_s for lines in said] == pytest.approx([0.25, 0.5, 0.75, 1.0], abs=1 / 30)
    assert len({line.text for lines in said for line in lines}) == sum(map(len, said))
    endless = Script(1e9, 1.0).lines(0, 1, Fraction(30))
    assert len(list(islice(endless, 3 * len(CAPTIONS)))) == 3 * len(CAPTIONS)


def test_cues_come_at_their_times_and_lines_in_turn(tmp_path):
    cues = tmp_path / "story.vtt"
    cues.write_text("WEBVTT\n\n00:01.000 --> 00:02.000\nwalking\n\n00:03.500 --> 00:04.000\nrunning\n")
    script = make_script(cues, None, None, None)
    assert script.is_timed and script.seconds == 4.5
    assert [(line.at_s, line.text) for line in script.lines(1, 2, FPS)] == [(1.0, "walking"), (3.5, "running")]
    assert [line.text for line in make_script(cues, 2.0, None, None).lines(0, 1, FPS)] == ["walking"]
    lines = tmp_path / "captions.txt"
    lines.write_text("one\ntwo\nthree\n")
    script = make_script(lines, 5.5, None, None)
    assert [line.text for line in script.lines(0, 1, FPS)] == ["one", "two", "three", "one", "two"]
    lines.write_text("one\n")
    with pytest.raises(UsageError, match="one caption"):
        make_script(lines, None, None, None)
    for wrong in ({"every_s": 1.0}, {"switches": 3}):
        with pytest.raises(UsageError, match="their own times"):
            make_script(cues, **{"seconds": None, "every_s": None, "switches": None, **wrong})
    with pytest.raises(UsageError, match="two of them give the third"):
        make_script(None, 1.0, 1.0, 1)
    with pytest.raises(CueError, match="cannot be read"):
        make_script(tmp_path / "absent.vtt", None, None, None)


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"clients": 0}, "--clients is 0"),
        ({"hostile": {"mute": -1}}, "--mute is -1"),
        ({"hostile": {"wire_flood": 9999}}, "--wire-flood is 9999"),
        ({"fps": "900"}, "--fps is 900"),
        ({"fps": "fast"}, "fps is 'fast'"),
        ({"size": (0, 5)}, "--size is 0x5"),
        ({"script": Script(0.0)}, "--seconds is 0"),
        ({"script": Script(float("nan"))}, "--seconds is nan"),
        ({"script": Script(1.0, -1.0)}, "--every is -1"),
    ],
)
def test_what_cannot_be_measured_is_refused(wrong, words):
    with pytest.raises(UsageError, match=words):
        LiveBenchOptions(**{"script": Script(1.0), **wrong})


# What the server says.


def test_metrics_are_read_as_the_server_writes_them():
    metrics = Metrics()
    metrics.count("t2v_refused_total", 3, code="too_fast")
    for elapsed_ms in range(101):
        metrics.time("render", float(elapsed_ms))
    samples = parse_metrics(metrics.to_text({("t2v_clients", ()): 2, ("t2v_fps", ()): 59.94}))
    assert samples["t2v_fps", ()] == 59.94 and labelled(samples, "t2v_refused_total", "code") == {"too_fast": 3}
    assert stage_times(samples) == {"render": Latency(101, 50.0, 95.0, 99.0)}
    assert parse_metrics('nonsense\n# HELP x y\nx{a="b"} many\n') == {}
    assert set(
        labelled(
            parse_metrics(metrics.to_text(frame_gauges(_counts(), 4))), "t2v_frames_dropped_total", "reason"
        ).items()
    ) == {("stale", 1), ("overtaken", 0), ("unwatched", 0), ("unsent", 4)}


def _counts():
    from t2v_edge.live.stats import LiveCounts

    return LiveCounts(9, {"stale": 1, "overtaken": 0, "skipped": 7, "unwatched": 0})


def test_memory_is_told_by_a_line_through_it_once_it_has_settled():
    times = [float(n) for n in range(101)]
    memory = [0.0] * 10 + [100 * 2**20 + n * 2**20 / 36 for n in range(10, 101)]  # 100 MiB an hour
    trend = Trend.of(times, memory, [0.5 * t for t in times])
    assert trend.slope_mib_per_hour == pytest.approx(100) and trend.cpu_share == pytest.approx(0.5)
    assert trend.start_bytes == int(memory[10]) and trend.end_bytes == trend.peak_bytes == int(memory[-1])
    assert Trend.of(times[:50], memory[:50], times[:50]).slope_mib_per_hour is None, "too short to tell"
    assert Trend.of([], [], []) == Trend() and Trend.of([1.0], [5.0], [0.0]).cpu_share is None


def test_samples_of_memory_are_bounded_however_long_it_takes(monkeypatch):
    monkeypatch.setattr(Sampler, "MOST", 16)
    sampler = Sampler(ServerTarget("ws://nowhere/live"))
    said = {("process_resident_memory_bytes", ()): 7.0, ("process_cpu_seconds_total", ()): 1.0}
    for at_s in range(1000):
        sampler.add(float(at_s), said)
        sampler.add(float(at_s), {})
        assert sampler.trend.samples < 16
    assert sampler._times[0] == 0 and sampler._times[-1] >= 990


# Limits.


def report(alone=None, **changes):
    side = ServerSide(
        20.0,
        40.0,
        {"render": Latency(9, 1.0, 2.0, 3.0)},
        {"1": 1, "2": 2},
        {},
        Trend(99, 100 << 20, 110 << 20, 120 << 20, 5.0, 0.4),
    )
    run = LiveRun(
        60.0,
        30.0,
        [29.9, 15.0],
        Received(100, 60.0, 3, 1, 2, 0, 0, 20, 20, 0, 70.0),
        Latency(20, 30.0, 50.0, 60.0, 70.0),
        Latency(20, 31.0, 51.0, 61.0, 71.0),
        5.0,
        -0.25,
        0.2,
        side,
    )
    run = replace(run, **changes)
    return LiveReport(
        "small", None, {}, (256, 256), "jpeg", {}, run, alone, False, {"cpu": "x", "usable_cores": 2}, {}, "2026-11-24"
    )


@pytest.mark.parametrize(
    "limit, kept, broken, words",
    [
        ("p95_ms", 50.0, 49.9, "caption to first frame"),
        ("cue_ms", 51.0, 50.0, "cue to first frame"),
        ("jitter_ms", 5.0, 4.9, "jitter"),
        ("drift_frames", 0.25, 0.2, "drift"),
        ("missed", 4, 3, "missed and dropped"),
        ("growth_mib_per_hour", 5.0, 4.0, "memory"),
        ("slowdown_percent", 25.1, 24.9, "with adversaries"),
    ],
)
def test_each_limit_is_kept_at_its_border_and_broken_past_it(limit, kept, broken, words):
    found = report(alone=replace(report().run, latency=Latency(20, 30.0, 40.0)))
    assert LiveLimits(**{limit: kept}).broken_by(found) == []
    broken_limit = LiveLimits(**{limit: broken}).broken_by(found)
    assert len(broken_limit) == 1 and words in broken_limit[0]
    unknown = report(
        latency=Latency(0), cue=None, jitter_ms=None, drift_frames=None, server=replace(found.run.server, trend=Trend())
    )
    if limit != "missed":
        assert "not measured" in LiveLimits(**{limit: 1e9}).broken_by(unknown)[0]


def test_frames_of_an_old_caption_and_a_lost_stream_break_every_run():
    assert LiveLimits().broken_by(report()) == []
    old = report(received=replace(report().run.received, old=1))
    assert "1 frames of an old caption" in LiveLimits().broken_by(old)[0]
    assert LiveLimits().broken_by(report(broken="a client lost its stream")) == ["a client lost its stream"]


def test_people_are_told_all_that_machines_are():
    text = replace(report(alone=report().run), failed=["jitter: too much"]).to_text()
    for words in (
        "2 clients at 30 fps, 256x256 jpeg, 60 s",
        "drift -0.25",
        "29.9, 15.0; 3 missed, 1 dropped, 0 late; 0 of an old caption, 2 of it left out",
        "+5.0 MiB an hour",
        "2 clients at 1/2 of the rate",
        "not kept: jitter",
        "p95 is +0 %",
        "median 20.0, p95 40.0",
    ):
        assert words in text
    rows = [line for line in text.splitlines() if line.startswith("  ")]
    assert len({len(row) for row in rows}) == 1 and len(rows) == 5
