from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import replace
from fractions import Fraction

import cv2
import numpy as np
import pytest

from t2v_edge.bundle.bundle import write_bundle
from t2v_edge.errors import BundleError, CaptionError, EngineError, UsageError
from t2v_edge.pipeline import Pipeline
from t2v_edge.play.condition import settle_condition
from t2v_edge.play.model import Model

WALK, RUN, DANCE = "a person is walking", "a person is running", "一个人 dancing"


def digest(frames) -> str:
    return hashlib.sha256(b"".join(frame.pixels.tobytes() for frame in frames)).hexdigest()


class Spy:
    """A model that keeps what the stages were fed and gave."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.calls = []

    def __getattr__(self, name):
        return getattr(self._model, name)

    def run(self, stage, feeds):
        results = self._model.run(stage, feeds)
        self.calls.append((stage, {k: v.copy() for k, v in feeds.items()}, {k: v.copy() for k, v in results.items()}))
        return results

    def of(self, stage):
        return [(feeds, results) for name, feeds, results in self.calls if name == stage]

    def player(self, *args):
        return Model.player(self, *args)

    def stream(self, *args, **kwargs):
        return Pipeline(self).stream(*args, **kwargs)


@pytest.fixture
def spy(pipeline):
    return Spy(pipeline.model)


@pytest.mark.parametrize("fps", [24, 30, 60, 72, 90, 8, Fraction(30000, 1001)])
def test_timestamps_are_exact_at_any_rate(pipeline, fps):
    frames = list(pipeline.stream(WALK, fps=fps, seconds=4))
    assert len(frames) == -(-4 * Fraction(fps) // 1)
    for index, frame in enumerate(frames):
        assert (frame.index, frame.pts, frame.time_base) == (index, index, 1 / Fraction(fps))
        assert frame.seconds == Fraction(index) / Fraction(fps)
        assert frame.pixels.dtype == np.uint8 and frame.pixels.shape == (16, 16, 3)


def test_the_same_seed_gives_the_same_frames_and_another_seed_others(pipeline):
    once, again, other = (digest(pipeline.stream(WALK, fps=30, seconds=1, seed=seed)) for seed in (3, 3, 4))
    assert once == again != other


def test_frames_at_another_rate_agree_where_times_agree(pipeline):
    own = list(pipeline.stream(WALK, seconds=2))
    fast = list(pipeline.stream(WALK, fps=48, seconds=2))
    slow = list(pipeline.stream(WALK, fps=8, seconds=2))
    assert digest(own) == digest(fast[::3])
    assert digest(own[::2]) == digest(slow)


def test_motion_is_interpolated_linearly_between_base_steps(spy):
    list(spy.stream(WALK, fps=64, seconds=1))
    motions = [results["motion"] for _, results in spy.of("motion")]
    shown = [feeds["motion"] for feeds, _ in spy.of("render")]
    for index in range(60):
        step, quarter = divmod(index, 4)
        expected = motions[step] + (motions[step + 1] - motions[step]) * quarter / 4
        np.testing.assert_allclose(shown[index], expected, rtol=0, atol=1e-6)  # float32 rounding of values near 1


@pytest.mark.parametrize("fps, seconds, steps", [(16, 1, 16), (72, 1, 17), (16, Fraction(1, 16), 1), (8, 1, 15)])
def test_no_more_motion_steps_run_than_frames_need(spy, fps, seconds, steps):
    stream = spy.stream(WALK, fps=fps, seconds=seconds)
    count = sum(1 for _ in stream)
    assert len(spy.of("motion")) == stream.stats.motion_steps == steps
    assert len(spy.of("render")) == count


def test_state_is_carried_from_step_to_step_and_over_a_caption_change(spy):
    list(spy.stream(WALK, then=[(1.0, RUN)], seconds=2))
    motion = spy.of("motion")
    assert len(motion) == 32
    for (_, before), (after, _) in zip(motion, motion[1:]):
        assert np.array_equal(after["state.hidden"], before["next.hidden"])


def test_a_scheduled_caption_blends_in_condition_space(spy, pipeline):
    frames = list(spy.stream(WALK, then=[(1.0, RUN)], seconds=2))
    walk, run = pipeline.encode(WALK).vector, pipeline.encode(RUN).vector
    fed = [feeds["condition"] for feeds, _ in spy.of("motion")]
    assert np.array_equal(fed[15], walk)
    for i, share in enumerate((0.25, 0.5, 0.75, 1.0)):  # the tiny bundle blends over 4 steps
        np.testing.assert_allclose(fed[16 + i], walk + (run - walk) * share, atol=1e-6)
    assert np.array_equal(fed[-1], run)
    assert [frame.generation for frame in frames] == [0] * 16 + [1] * 16
    assert (frames[15].caption, frames[16].caption) == (WALK, RUN)


def test_a_live_caption_change_takes_effect_at_the_next_base_step(spy):
    stream = spy.stream(WALK)
    first = [next(stream) for _ in range(4)]
    assert stream.set_caption(RUN) == 1
    assert stream.caption == RUN
    later = [next(stream) for _ in range(6)]
    assert {frame.generation for frame in first} == {0}
    assert {frame.generation for frame in later} == {1}
    assert np.array_equal(spy.of("motion")[-1][0]["condition"], spy.encode(spy.read(RUN)).vector)


def test_of_several_live_captions_the_last_counts_and_an_unchanged_one_changes_nothing(pipeline):
    stream = pipeline.stream(WALK)
    next(stream)
    assert stream.set_caption(f"  {WALK} ") == 0
    assert [stream.set_caption(RUN), stream.set_caption(DANCE)] == [1, 2]
    frame = next(stream)
    assert (frame.generation, frame.caption) == (2, DANCE)


def test_a_caption_set_before_the_first_frame_takes_the_place_of_the_first(pipeline):
    stream = pipeline.stream(WALK)
    stream.caption = RUN
    frame = next(stream)
    assert (frame.generation, frame.caption) == (0, RUN)
    assert digest([frame]) == digest([next(pipeline.stream(RUN))])


def test_a_refused_caption_leaves_the_stream_as_it_was(pipeline):
    stream = pipeline.stream(WALK, seconds=1)
    next(stream)
    with pytest.raises(CaptionError):
        stream.caption = ""
    assert {frame.caption for frame in stream} == {WALK}


def test_a_bad_scheduled_caption_fails_before_any_frame(pipeline):
    with pytest.raises(CaptionError):
        pipeline.stream(WALK, then=[(1.0, " ")])


def test_an_unchanged_caption_is_not_encoded_again(bundle_path):
    with Pipeline.open(bundle_path, threads=1) as pipeline:
        spy = Spy(pipeline.model)
        first = pipeline.stream(WALK, seconds=1, then=[(0.5, f" {WALK}")])
        frames = list(first)
        assert first.stats.stages["text"].count == 1
        assert {frame.generation for frame in frames} == {0}
        second = spy.stream(WALK, seconds=1)
        list(second)
        assert second.stats.stages["text"].count == 0
        assert not spy.of("text")


def test_streams_of_one_pipeline_run_in_threads_without_disturbing_each_other(pipeline):
    alone = {seed: digest(pipeline.stream(WALK, seconds=2, seed=seed)) for seed in range(4)}
    found = {}

    def play(seed):
        found[seed] = digest(pipeline.stream(WALK, seconds=2, seed=seed))

    threads = [threading.Thread(target=play, args=(seed,)) for seed in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


def test_smoothing_damps_motion_alike_at_every_shown_rate(pipeline):
    def motions(fps, smoothing):
        spy = Spy(pipeline.model)
        list(spy.stream(WALK, fps=fps, seconds=2, smoothing=smoothing))
        return np.concatenate([feeds["motion"] for feeds, _ in spy.of("render")])

    rough, smooth, fast = motions(16, 0.0), motions(16, 0.8), motions(48, 0.8)
    assert np.array_equal(smooth, fast[::3])
    assert np.array_equal(rough[0], smooth[0])
    assert np.abs(np.diff(smooth, axis=0)).mean() < 0.5 * np.abs(np.diff(rough, axis=0)).mean()


@pytest.mark.parametrize("size, method", [((8, 4), cv2.INTER_AREA), ((40, 20), cv2.INTER_LANCZOS4)])
def test_frames_are_resized(pipeline, size, method):
    own, sized = (next(pipeline.stream(WALK, size=s)).pixels for s in (None, size))
    assert np.array_equal(sized, cv2.resize(own, size, interpolation=method))


def test_frames_do_not_share_memory(pipeline):
    frames = list(pipeline.stream(WALK, seconds=1))
    before = digest(frames[1:])
    frames[0].pixels[:] = 0
    assert digest(frames[1:]) == before


@pytest.mark.parametrize("stage", ["motion", "render"])
def test_the_time_of_a_stage_is_what_running_it_took(spy, monkeypatch, stage):
    run = spy.run

    def slow(name, feeds):
        time.sleep(0.02 if name == stage else 0.0)
        return run(name, feeds)

    monkeypatch.setattr(spy, "run", slow)
    stream = spy.stream(WALK, seconds=0.3)
    list(stream)
    assert stream.stats.stages[stage].median_ms >= 20, "of what the stage does, nothing goes uncounted"


def test_stats_count_what_ran(pipeline):
    stream = pipeline.stream(WALK, fps=32, seconds=1)
    assert stream.stats.fps is None and stream.stats.first_frame_ms is None
    list(stream)
    stats = stream.stats
    assert (stats.frames, stats.motion_steps, stats.stages["render"].count) == (32, 17, 32)
    for latency in (stats.stages["motion"], stats.stages["render"]):
        assert 0 < latency.median_ms <= latency.p95_ms
    assert stats.fps > 0 and stats.first_frame_ms > 0


@pytest.mark.parametrize(
    "options, named",
    [
        ({"fps": 0}, "fps"),
        ({"fps": "fast"}, "fps"),
        ({"seconds": 0}, "seconds"),
        ({"seconds": -1}, "seconds"),
        ({"seed": -1}, "seed"),
        ({"size": (0, 8)}, "size"),
        ({"size": (9000, 8)}, "size"),
        ({"smoothing": 1.0}, "smoothing"),
        ({"blend_steps": -1}, "blend_steps"),
        ({"then": [(0.0, RUN)]}, "caption times"),
        ({"then": [(2.0, RUN), (1.0, DANCE)]}, "caption times"),
        ({"then": [("soon", RUN)]}, "caption time"),
    ],
)
def test_options_out_of_range_are_named(pipeline, options, named):
    with pytest.raises(UsageError, match=named):
        pipeline.stream(WALK, **options)


def test_a_closed_pipeline_ends_its_streams_with_an_error(bundle_path):
    with Pipeline.open(bundle_path, threads=1) as pipeline:
        stream = pipeline.stream(WALK)
        next(stream)
    with pytest.raises(EngineError, match="closed"):
        next(stream)


def test_what_a_caption_says_beyond_doubt_is_settled_where_the_bundle_names_groups(tiny, tmp_path):
    numbers = np.array([[0.68, 0.22, 0.1, 0.5, 0.5, 0.1, 0.9]], np.float32)
    assert settle_condition(numbers, (3, 2, 2)).tolist() == [[1.0, 0.0, 0.0, 0.5, 0.5, 0.0, 1.0]]
    assert settle_condition(numbers, ()) is numbers and numbers[0, 0] == np.float32(0.68)
    caption = "a person is walking"
    with Pipeline.open(tiny.write(tmp_path / "plain")) as plain:
        given = plain.encode(caption).vector
    groups = (2, given.size - 2)
    write_bundle(tmp_path / "settled", replace(tiny.manifest, condition_groups=groups), tiny.files)
    with Pipeline.open(tmp_path / "settled") as pipeline:
        assert pipeline.manifest.condition_groups == groups
        np.testing.assert_array_equal(pipeline.encode(caption).vector, settle_condition(given, groups))
    with pytest.raises(BundleError, match="condition_groups make 3, the condition has 4 numbers"):
        replace(tiny.manifest, condition_groups=(1, 2))
