"""Streams whose frames are made ahead on a processor, several at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from t2v_edge.engine.base import Engine
from t2v_edge.engine.registry import is_installed
from t2v_edge.errors import EngineError
from t2v_edge.pipeline import Pipeline
from t2v_edge.play.player import WAITING

WALK, RUN = "a person is walking", "a person is running"


class Makers(Engine):
    """A renderer for so many callers at the same time. The first frame of a stream comes alone; each later call waits
    until that many have come, or until `let_go`."""

    def __init__(self, engine, parallel):
        self._engine, self.parallel = engine, parallel
        self.name, self.spec = engine.name, engine.spec
        self.free = False
        self.fail_on = None
        self.running = self.most = 0
        self.motions, self.threads = [], []
        self._changed = threading.Condition()

    def run(self, feeds):
        with self._changed:
            self.running += 1
            self.motions.append(feeds["motion"])
            self.threads.append(threading.current_thread())
            alone = len(self.motions) == 1
            self.most = max(self.most, self.running)
            self._changed.notify_all()
            met = self._changed.wait_for(lambda: alone or self.most == self.parallel or self.free, 20)
        try:
            assert met, "the frames are made one after another"
            if self.fail_on is not None and np.array_equal(feeds["motion"], self.fail_on):
                raise EngineError("the renderer fails")
            return self._engine.run(feeds)
        finally:
            with self._changed:
                self.running -= 1

    def let_go(self):
        with self._changed:
            self.free = True
            self._changed.notify_all()

    def close(self):
        self._engine.close()


@pytest.fixture
def makers(bundle_path):
    """A pipeline, and what its renderer has become."""
    with Pipeline.open(bundle_path, engine="onnxruntime", threads=1) as pipeline:
        found = pipeline.model._loaded["render"] = Makers(pipeline.model._loaded["render"], 3)
        yield pipeline, found
        found.let_go()


def pixels(stream):
    return np.stack([frame.pixels for frame in stream])


@pytest.mark.parametrize(
    "options", [{"fps": 37}, {"smoothing": 0.5}, {"then": [(0.5, RUN)], "blend_steps": 3}], ids=str
)
def test_frames_made_at_once_are_those_made_one_by_one(pipeline, makers, options):
    made, engine = makers
    wanted = pixels(pipeline.stream(WALK, seconds=1, seed=3, **options))
    assert np.array_equal(pixels(made.stream(WALK, seconds=1, seed=3, ahead=True, **options)), wanted)
    assert engine.most == 3


def test_only_as_many_frames_are_made_as_the_stream_has(makers):
    pipeline, engine = makers
    stream = pipeline.stream(WALK, fps=16, seconds=0.5, ahead=True)
    assert len(pixels(stream)) == len(engine.motions) == 8
    with pytest.raises(StopIteration):
        next(stream)


def test_frames_are_made_by_the_stream_s_own_thread_where_none_is_made_ahead(makers):
    pipeline, engine = makers
    engine.let_go()
    stream = pipeline.stream(WALK)
    next(stream)
    assert engine.threads == [threading.current_thread()]


def test_a_caption_shows_once_the_frames_on_their_way_are_shown(makers):
    pipeline, engine = makers
    stream = pipeline.stream(WALK, ahead=True)
    assert next(stream).generation == 0 and len(engine.motions) == 1, "the first frame waits for no other"
    assert next(stream).generation == 0
    changed = stream.set_caption(RUN)
    generations = [next(stream).generation for _ in range(12)]
    stream.close()
    assert generations == [changed - 1] * (3 + WAITING - 1) + [changed] * (12 - 3 - WAITING + 1)


def test_a_renderer_that_fails_is_told_of_in_its_frame_s_place(makers):
    pipeline, engine = makers
    engine.let_go()
    pixels(pipeline.stream(WALK, seconds=0.5))
    engine.fail_on = engine.motions[2]
    stream = pipeline.stream(WALK, seconds=0.5, ahead=True)
    next(stream), next(stream)
    with pytest.raises(EngineError, match="the renderer fails"):
        next(stream)
    stream.close()


def test_a_stream_that_is_closed_says_so_and_makes_no_more(makers):
    pipeline, engine = makers
    engine.let_go()
    stream = pipeline.stream(WALK, ahead=True)
    next(stream), next(stream)
    stream.close()
    with pytest.raises(EngineError, match="the stream is closed; open another"):
        for _ in range(20):
            next(stream)
    assert len(engine.motions) <= 1 + 3 + WAITING


def test_closing_a_pipeline_frees_who_waits_for_a_frame(makers):
    pipeline, engine = makers
    stream = pipeline.stream(WALK, ahead=True)
    engine.parallel = 4  # a fourth never comes: all wait
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: [next(stream) for _ in range(20)])
        with engine._changed:
            assert engine._changed.wait_for(lambda: engine.running == 3, 20)
        stream.close()
        engine.let_go()
        with pytest.raises(EngineError, match="closed"):
            waiting.result(20)


@pytest.mark.parametrize(
    "engine, parallel",
    [
        ("onnxruntime", 2),
        pytest.param(
            "openvino", 4, marks=pytest.mark.skipif(not is_installed("openvino"), reason="it is not installed")
        ),
    ],
)
def test_an_engine_makes_them_so_where_the_pipeline_was_opened_for_it(bundle_path, monkeypatch, engine, parallel):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with (
        Pipeline.open(bundle_path, engine=engine) as plain,
        Pipeline.open(bundle_path, engine=engine, ahead=True) as ahead,
        Pipeline.open(bundle_path, engine=engine, threads=1, ahead=True) as single,
    ):
        assert plain.stream(WALK, ahead=True)._rollout.slots == 1
        assert single.stream(WALK, ahead=True)._rollout.slots == 1
        stream = ahead.stream(WALK, seconds=2, fps=60, seed=5, ahead=True)
        assert stream._rollout.slots == parallel + WAITING
        assert np.array_equal(pixels(stream), pixels(plain.stream(WALK, seconds=2, fps=60, seed=5)))


def test_the_rate_of_frames_made_ahead_counts_the_time_between_them(makers, monkeypatch):
    pipeline, engine = makers
    engine.let_go()
    now = [0.0]
    monkeypatch.setattr("t2v_edge.play.stream.time.perf_counter", lambda: now[0])
    stream = pipeline.stream(WALK, ahead=True)
    for _ in range(5):
        next(stream)
        now[0] += 0.5
    stream.close()
    assert stream.stats.fps == 5 / 2.0 and stream.stats.first_frame_ms == 0
