"""A stream on the GPU plays what a stream on the host plays: the player's own logic, on a device of plain memory."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from t2v_edge.bundle.bundle import write_bundle
from t2v_edge.errors import EngineError, UsageError
from t2v_edge.live.options import LiveOptions
from t2v_edge.live.stream import LiveStream
from t2v_edge.pipeline import Pipeline
from t2v_edge.spec import NoiseSpec
from tests.t2v_edge.conftest import CONDITION, SPECS, make_graph, make_parts, make_tiny
from tests.t2v_edge.fake_gpu import FakeCuda, install
from tests.t2v_edge.fake_time import FakeClock

PLAY = {"then": [(0.5, "a person is running"), (0.8, "a person is dancing")], "seconds": 1.5, "seed": 3}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("T2V_EDGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    tiny, path = make_tiny(), tmp_path_factory.mktemp("resident") / "bundle"
    manifest = replace(tiny.manifest, golden=None, variants={"fp32": tiny.variants["fp32"]})
    write_bundle(path, manifest, {name: tiny.files[name] for name in manifest.needed_files()})
    return path


@pytest.fixture(scope="module")
def plain_bundle(tmp_path_factory):
    """Without noise that is drawn at every step: a step then uploads its condition alone, and only where it is new."""
    tiny, path = make_tiny(), tmp_path_factory.mktemp("plain") / "bundle"
    spec = replace(SPECS["motion"], noises=(NoiseSpec("code", (1, 4)),))
    nodes, weights = make_parts("motion")
    nodes[0].input.remove("noise.jitter")
    variants = {"fp32": tiny.variants["fp32"]}
    manifest = replace(tiny.manifest, golden=None, variants=variants, stages={**SPECS, "motion": spec})
    files = {name: tiny.files[name] for name in manifest.needed_files()}
    write_bundle(path, manifest, {**files, "fp32/motion.onnx": make_graph(spec, nodes, weights)})
    return path


@pytest.fixture(params=range(3))
def gpu(request):
    """In three orders of what may be done in any order."""
    return FakeCuda(seed=request.param)


def play(pipeline, **options):
    return list(pipeline.stream("a person is walking", **{**PLAY, **options}))


@pytest.mark.parametrize("integrated", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fps": 60},
        {"fps": 7},
        {"ahead": True},
        {"fps": 60, "ahead": True},
        {"smoothing": 0.5},
        {"blend_steps": 0},
        {"fps": 7, "ahead": True},
        {"smoothing": 0.5, "fps": 40, "ahead": True},
    ],
    ids=str,
)
def test_a_stream_on_the_gpu_is_the_stream_on_the_host(bundle, gpu, monkeypatch, options, integrated):
    gpu.integrated = integrated
    install(monkeypatch, gpu)
    with Pipeline.open(bundle, "onnxruntime", threads=1) as host:
        expected = play(host, **{**options, "ahead": False})
    with Pipeline.open(bundle, "tensorrt") as device:
        assert device.engines == dict.fromkeys(("text", "motion", "render"), "tensorrt")
        gpu.streams.clear()  # those of the builder's
        frames = play(device, **options)
    assert [(f.index, f.pts, f.generation, f.caption) for f in frames] == [
        (f.index, f.pts, f.generation, f.caption) for f in expected
    ]
    for found, wanted in zip(frames, expected):
        np.testing.assert_array_equal(found.pixels, wanted.pixels)
    assert not gpu.memory and gpu.launches > len(frames)
    assert len(gpu.streams) == 3


@pytest.mark.parametrize("batch", [2, 5])
@pytest.mark.parametrize("ahead", [False, True])
def test_frames_that_are_made_together_are_the_frames_made_one_by_one(bundle, gpu, monkeypatch, batch, ahead):
    install(monkeypatch, gpu)
    with Pipeline.open(bundle, "onnxruntime", threads=1) as host:
        expected = play(host, fps=37)
    with Pipeline.open(bundle, "tensorrt", batch=batch) as device:
        frames = play(device, fps=37, ahead=ahead)
    assert len(frames) == len(expected)
    for found, wanted in zip(frames, expected):
        np.testing.assert_array_equal(found.pixels, wanted.pixels)
    assert not gpu.memory


def test_a_condition_is_uploaded_where_it_is_new_and_only_there(plain_bundle, gpu, monkeypatch):
    install(monkeypatch, gpu)
    import cuda.bindings.runtime as runtime

    with Pipeline.open(plain_bundle, "onnxruntime", threads=1) as host:
        expected = play(host, blend_steps=2)
    copied = []
    copy = runtime.cudaMemcpyAsync
    with Pipeline.open(plain_bundle, "tensorrt") as device:
        stream = device.stream("a person is walking", **{**PLAY, "blend_steps": 2})
        upload = (4 * CONDITION, runtime.cudaMemcpyKind.cudaMemcpyHostToDevice)
        monkeypatch.setattr(runtime, "cudaMemcpyAsync", lambda *at: (copied.append(at[2:4]), copy(*at))[1])
        frames = list(stream)
    for found, wanted in zip(frames, expected):
        np.testing.assert_array_equal(found.pixels, wanted.pixels)
    # into both places at the start, and again after each of two blends of two steps
    assert copied.count(upload) == 2 + 2 * 3


@pytest.mark.parametrize("batch, ahead", [(1, 0), (2, 1), (4, 2)])
def test_a_live_stream_on_the_gpu_is_the_stream_on_the_host(bundle, gpu, monkeypatch, batch, ahead):
    install(monkeypatch, gpu)
    with Pipeline.open(bundle, "onnxruntime", threads=1) as host:
        expected = list(host.stream("a person is walking", fps=37, seconds=1, seed=3))
    clock = FakeClock()
    with Pipeline.open(bundle, "tensorrt", batch=batch) as device:
        with LiveStream(device.model, LiveOptions(fps=37, seed=3, ahead=ahead), clock) as live:
            live.set_caption("a person is walking")
            for wanted in expected:
                frame = next(live)
                assert frame.index == wanted.index
                np.testing.assert_array_equal(frame.pixels, wanted.pixels)
            held = len(gpu.memory)
            assert live.set_caption("a person is running") == next(live).generation == 1
            assert live.reset(3) == 2
            again = next(live)
            assert again.generation == 2 and again.index == len(expected) + 1
            assert len(gpu.memory) == held, "a reset frees what the motion before it held"
    assert not gpu.memory
    with Pipeline.open(bundle, "tensorrt") as device:
        live = device.live("a person is walking")
        next(live)
    assert not gpu.memory and list(live) == []


@pytest.mark.parametrize("ahead", [False, True])
def test_streams_share_a_pipeline_and_do_not_disturb_each_other(bundle, gpu, monkeypatch, ahead):
    install(monkeypatch, gpu)
    with Pipeline.open(bundle, "tensorrt") as pipeline:
        alone = play(pipeline)
        one, other = (pipeline.stream("a person is walking", ahead=ahead, **{**PLAY, "seed": seed}) for seed in (3, 4))
        together = [next(stream).pixels for _ in range(24) for stream in (one, other)][::2]
    np.testing.assert_array_equal(np.stack(together), np.stack([f.pixels for f in alone]))
    assert not gpu.memory
    with pytest.raises(EngineError, match="closed"):
        next(pipeline.stream("a person is walking"))


def test_streams_of_several_threads_play_what_each_plays_alone(bundle, gpu, monkeypatch):
    install(monkeypatch, gpu)
    options = [{"seed": seed, "fps": fps, "ahead": seed == 4} for seed, fps in ((3, 16), (4, 40), (5, 7))]
    with Pipeline.open(bundle, "tensorrt") as pipeline:
        alone = [play(pipeline, **one) for one in options]
        with ThreadPoolExecutor(len(options)) as pool:
            together = list(pool.map(lambda one: play(pipeline, **one), options))
    for found, wanted in zip(together, alone):
        np.testing.assert_array_equal(np.stack([f.pixels for f in found]), np.stack([f.pixels for f in wanted]))
    assert not gpu.memory


def test_a_caption_set_in_mid_stream_takes_effect_at_the_next_base_step(bundle, gpu, monkeypatch):
    install(monkeypatch, gpu)
    made = []
    for engine in ("onnxruntime", "tensorrt"):
        with Pipeline.open(bundle, engine) as pipeline:
            stream = pipeline.stream("a person is walking", seconds=2)
            frames = [next(stream) for _ in range(4)]
            assert stream.set_caption("a person is waving") == 1
            frames += list(stream)
        assert [f.generation for f in frames[:6]] == [0, 0, 0, 0, 1, 1]
        made.append(np.stack([f.pixels for f in frames]))
    np.testing.assert_array_equal(*made)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_stream_that_is_left_in_the_middle_gives_its_memory_back(bundle, gpu, monkeypatch, ahead):
    install(monkeypatch, gpu)
    with Pipeline.open(bundle, "tensorrt") as pipeline:
        before = len(gpu.memory)
        stream = pipeline.stream("a person is walking", ahead=ahead)
        next(stream)
        next(stream)
        assert len(gpu.memory) > before
        stream.close()
        assert len(gpu.memory) == before
        with pytest.raises(EngineError, match="the stream is closed"):
            next(stream)


def test_a_stream_that_is_dropped_gives_its_memory_back(bundle, gpu, monkeypatch):
    install(monkeypatch, gpu)
    with Pipeline.open(bundle, "tensorrt") as pipeline:
        before = len(gpu.memory)
        gc.disable()  # at once, and not when a collector comes by
        try:
            next(pipeline.stream("a person is walking"))
            assert len(gpu.memory) == before
        finally:
            gc.enable()


@pytest.mark.parametrize("ahead", [False, True])
def test_without_cuda_graphs_the_frames_are_the_same(bundle, gpu, monkeypatch, ahead):
    install(monkeypatch, gpu)
    with Pipeline.open(bundle, "tensorrt") as pipeline:
        expected = play(pipeline)
        import cuda.bindings.runtime as runtime

        monkeypatch.setattr(runtime, "cudaGraphInstantiate", lambda graph, flags: (1, None))
        launches = gpu.launches
        frames = play(pipeline, ahead=ahead)
        assert gpu.launches == launches
    np.testing.assert_array_equal(np.stack([f.pixels for f in frames]), np.stack([f.pixels for f in expected]))


def test_other_engines_make_one_frame_at_once(bundle):
    with pytest.raises(UsageError, match="leave batch at 1"):
        Pipeline.open(bundle, "onnxruntime", batch=4)
