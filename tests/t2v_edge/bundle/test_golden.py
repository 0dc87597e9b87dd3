"""Golden vectors: read with suspicion, run through an engine, judged by a bound."""

from __future__ import annotations

import io
import math
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t2v_edge.bundle.bundle import Bundle
from t2v_edge.bundle.golden import Golden, GoldenDifference, Tolerance
from t2v_edge.cli import main
from t2v_edge.engine.base import EngineOptions
from t2v_edge.engine.registry import open_engine
from t2v_edge.errors import BundleError, EngineError
from t2v_edge.spec import STAGES
from tests.t2v_edge.golden_samples import CAPTIONS, STEPS, golden_arrays, pack


@pytest.fixture
def arrays(tiny):
    return golden_arrays(tiny)


@pytest.fixture
def read(tiny, tmp_path):
    """read(arrays or bytes): the golden vectors of a tiny bundle that holds them."""

    def write_and_read(golden):
        tiny.files["golden.npz"] = golden if isinstance(golden, bytes) else pack(golden)
        with Bundle.open(tiny.write(tmp_path / "b")) as bundle:
            return Golden.read(bundle)

    return write_and_read


def engine_of(tiny, stage, variant="fp32"):
    graph = tiny.files[f"{variant}/{stage}.onnx"]
    return open_engine("onnxruntime", graph, tiny.manifest.stages[stage], EngineOptions(1))


@pytest.mark.parametrize("stage", STAGES)
def test_an_engine_that_is_right_differs_by_nothing(stage, tiny, arrays, read):
    golden = read(arrays)
    assert golden.steps == STEPS and golden.captions == CAPTIONS
    found = golden.check(stage, engine_of(tiny, stage).run)
    assert (found.stage, found.max_rel, found.max_abs, found.rms_rel) == (stage, 0.0, 0.0, 0.0)
    assert found.psnr_db == (100.0 if stage == "render" else None)
    assert golden.tolerance(stage, "fp32").allows(found)


@pytest.mark.parametrize("stage", STAGES)
def test_a_graph_of_other_weights_is_found_out(stage, tiny, arrays, read):
    golden = read(arrays)
    found = golden.check(stage, engine_of(tiny, stage, "fp16").run)
    assert found.max_rel > 0.1 and found.rms_rel > 0.01
    assert not golden.tolerance(stage, "fp16").allows(found)


@pytest.mark.parametrize(
    "name",
    [
        "condition",
        "motion",
        "next.hidden",
        "start.hidden",
        "motion.noise.jitter",
        "motion.noise.code",
        "render.noise.look",
        "frames",
    ],
)
def test_every_array_counts(name, tiny, arrays, read):
    last = arrays[name][-1]
    arrays[name] = arrays[name].copy()
    arrays[name][-1] = 255 - last if last.dtype == np.uint8 else last + 1
    golden = read(arrays)
    judged = {s: golden.tolerance(s, "fp32").allows(golden.check(s, engine_of(tiny, s).run)) for s in STAGES}
    assert not all(judged.values())


def test_motion_carries_the_states_that_the_engine_itself_returns(tiny, arrays, read):
    golden, engine, states = read(arrays), engine_of(tiny, "motion"), []

    def run(feeds):
        states.append(feeds["state.hidden"])
        outputs = engine.run(feeds)
        return {**outputs, "next.hidden": outputs["next.hidden"] + np.float32(0.01)}

    found = golden.check("motion", run)
    assert len(states) == STEPS and np.array_equal(states[0], arrays["start.hidden"])
    assert found.max_rel > 0.01 and not np.allclose(states[1:], arrays["start.hidden"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["motion", "next.hidden"])
def test_one_nan_or_infinity_makes_the_difference_infinite(bad, name, tiny, arrays, read):
    golden, engine = read(arrays), engine_of(tiny, "motion")

    def run(feeds):
        outputs = engine.run(feeds)
        outputs[name][0, -1] = bad
        return outputs

    found = golden.check("motion", run)
    assert found.max_rel == math.inf and found.rms_rel == math.inf and found.to_json()["max_rel"] is None
    assert not Tolerance(max_rel=1e30).allows(found) and str(found) == "NaN or infinite"


@pytest.mark.parametrize("spoil", [lambda frame: frame[:, :8], lambda frame: frame.astype(np.float32)])
def test_an_output_of_another_shape_or_dtype_is_named(spoil, tiny, arrays, read):
    golden, engine = read(arrays), engine_of(tiny, "render")
    with pytest.raises(EngineError, match=r"as frame, its contract says uint8\[1, 16, 16, 3\]"):
        golden.check("render", lambda feeds: {"frame": spoil(engine.run(feeds)["frame"])})
    with pytest.raises(EngineError, match="gives nothing as frame"):
        golden.check("render", lambda feeds: {})


def test_one_level_is_within_float32_and_two_are_not(tiny, arrays, read):
    golden, engine = read(arrays), engine_of(tiny, "render")

    def off_by(levels):
        return golden.check("render", lambda feeds: {"frame": engine.run(feeds)["frame"] ^ np.uint8(levels)})

    assert off_by(1).max_abs == 1 and golden.tolerance("render", "fp32").allows(off_by(1))
    assert not golden.tolerance("render", "fp32").allows(off_by(2))
    assert golden.tolerance("render", "fp16").allows(off_by(2))
    assert off_by(1).psnr_db == pytest.approx(10 * math.log10(255**2))


def test_bounds_of_int8_are_what_the_exporter_measured_with_slack(tiny, tmp_path):
    quality = {"int8": {"text": {"max_rel": 0.02}, "render": {"psnr_db": {"min": 38.0}}}}
    with Bundle.open(tiny.write(tmp_path / "b")) as bundle:
        golden = Golden(bundle.manifest, golden_arrays(tiny))
    golden._quality = quality
    assert golden.tolerance("text", "int8") == Tolerance(max_rel=0.05)
    assert golden.tolerance("render", "int8-u8", "int8") == Tolerance(psnr_db=35.0)
    assert Tolerance(psnr_db=35.0).allows(GoldenDifference("render", 0.5, 120.0, 0.01, 35.0))
    assert not Tolerance(psnr_db=35.0).allows(GoldenDifference("render", 0.5, 120.0, 0.01, 34.9))
    for variant, stage in (("int8", "motion"), ("int8-u8", "render")):
        with pytest.raises(BundleError, match="quality has no figure"):
            golden.tolerance(stage, variant)


def test_a_bundle_without_golden_vectors_has_none(bundle_path, tmp_path):
    with Bundle.open(bundle_path) as bundle:
        object.__setattr__(bundle.manifest, "golden", None)
        assert Golden.read(bundle) is None
        object.__setattr__(bundle.manifest, "golden", "golden.npz")


def spoils():
    def put(name, value):
        return lambda arrays: {**arrays, name: value(arrays[name])}

    return {
        "condition.npy is missing": lambda a: {k: v for k, v in a.items() if k != "condition"},
        "evil.npy is unknown": lambda a: {**a, "evil": np.zeros(1)},
        "motion has the shape": put("motion", lambda v: v[:, :2]),
        "next.hidden has the shape": put("next.hidden", lambda v: np.concatenate([v, v])),
        "motion.noise.jitter has the shape": put("motion.noise.jitter", lambda v: v[1:]),
        "input_ids has the shape": put("input_ids", lambda v: v[:2]),
        "frame_steps has the shape": put("frame_steps", lambda v: v[:1]),
        "attention_mask is int32": put("attention_mask", lambda v: v.astype(np.int32)),
        "frames is float32": put("frames", lambda v: v.astype(np.float32)),
        "captions is int64": put("captions", lambda v: np.arange(3)),
        "condition holds NaN": put("condition", lambda v: v * np.float32(np.nan)),
        "input_ids holds a negative": put("input_ids", lambda v: v - 1000),
        "are not steps of motion": put("frame_steps", lambda v: v + 1),
        "surrogates": put("captions", lambda v: np.array(["a", "b", "\ud800"])),
    }


@pytest.mark.parametrize("message", spoils())
def test_malformed_vectors_are_refused_by_name(message, arrays, read):
    with pytest.raises(BundleError, match=f"{message}.*export the bundle again"):
        read(spoils()[message](arrays))


def test_objects_are_never_unpickled(arrays, read):
    with pytest.raises(BundleError, match="captions is object"):
        read({**arrays, "captions": np.array([{}, {}, {}], dtype=object)})


def test_claims_of_size_are_checked_before_memory_is_taken(arrays, read):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 3)})
    file = io.BytesIO(pack({k: v for k, v in arrays.items() if k != "motion"}))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("motion.npy", header.getvalue())
    with pytest.raises(BundleError, match="motion has the shape"):
        read(file.getvalue())


@pytest.mark.parametrize("change", [lambda data: data[:-4], lambda data: data + b"\0"])
def test_an_array_shorter_or_longer_than_it_says_is_refused(change, arrays, read):
    plain = io.BytesIO()
    np.lib.format.write_array(plain, arrays["motion"])
    file = io.BytesIO(pack({k: v for k, v in arrays.items() if k != "motion"}))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("motion.npy", change(plain.getvalue()))
    with pytest.raises(BundleError, match="motion does not have the 72 bytes that its header declares"):
        read(file.getvalue())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_refused_and_nothing_else_is_raised(data, tiny, arrays, tmp_path_factory):
    packed = bytearray(pack(arrays))
    for _ in range(data.draw(st.integers(1, 8))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    packed = packed[: data.draw(st.sampled_from([len(packed), len(packed) // 2, 30, 0]))]
    tiny.files["golden.npz"] = bytes(packed)
    with Bundle.open(tiny.write(tmp_path_factory.mktemp("b") / "b")) as bundle:
        try:
            golden = Golden.read(bundle)
        except BundleError:
            return
    assert golden.steps == STEPS


def test_inspect_reads_no_more_than_the_contracts_allow(tiny, tmp_path, capsys):
    """Declared sizes are refused before anything of that size is read or made, as when an engine is checked."""
    huge = io.BytesIO()
    with zipfile.ZipFile(huge, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in golden_arrays(tiny).items():
            with archive.open(f"{name}.npy", "w") as file:
                if name == "motion":  # claims 4 TB, holds nothing
                    header = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 1)}
                    np.lib.format.write_array_header_1_0(file, header)
                else:
                    np.lib.format.write_array(file, array, (1, 0))
    tiny.files["golden.npz"] = huge.getvalue()
    path = tiny.write(tmp_path / "b")
    assert main(["inspect", str(path)]) == 0
    assert main(["inspect", str(path), "--verify"]) == 1
    assert "golden.npz cannot be read (motion has the shape (1000000000000, 1)" in capsys.readouterr().err
