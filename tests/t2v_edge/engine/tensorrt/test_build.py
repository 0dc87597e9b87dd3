"""Engines are right before they are fast, and the fastest right one is chosen; what is refused says why."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from t2v_edge.bundle.bundle import Bundle, GraphEntry, write_bundle
from t2v_edge.cli import main
from t2v_edge.errors import EngineError, UsageError
from t2v_edge.pipeline import Pipeline
from tests.t2v_edge.conftest import make_tiny
from tests.t2v_edge.fake_gpu import FakeCuda, install

KEPT = "PREFER_PRECISION_CONSTRAINTS"
VARIANTS = ("fp32", "fp16", "int8", "int8-u8")


def make_bundle(path, opset=17):
    """The same graphs under four names: what they are called is what they are judged by."""
    tiny = make_tiny()
    files = {name: data for name, data in tiny.files.items() if name == "tokenizer.json"}
    variants = {}
    for variant in VARIANTS:
        variants[variant] = {}
        for stage in ("text", "motion", "render"):
            name = f"{variant}/{stage}.onnx"
            files[name] = tiny.files[f"fp32/{stage}.onnx"]
            variants[variant][stage] = GraphEntry(name, variant, opset)
    figures = {"text": {"max_rel": 0.01}, "motion": {"max_rel": 0.01}, "render": {"psnr_db": {"min": 40.0}}}
    manifest = replace(tiny.manifest, golden=None, variants=variants, quality={"int8": figures})
    write_bundle(path, manifest, files)
    return path


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("build") / "bundle")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("T2V_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


@pytest.fixture
def tensorrt(monkeypatch):
    return install(monkeypatch, FakeCuda())


def build(path, **options):
    from t2v_edge.engine.tensorrt.build import Builder, BuildOptions

    with Bundle.open(path) as bundle:
        return Builder(bundle, BuildOptions(**options)).build()


def times(monkeypatch, of_variant):
    """Have each engine take a stated time: `of_variant` in the order in which they are tried."""
    import t2v_edge.engine.tensorrt.build

    monkeypatch.setattr(
        t2v_edge.engine.tensorrt.build, "time_in_turns", lambda engines: {v: of_variant[v] for v in engines}
    )


def double(graph, stage="render"):
    """A graph that is wrong: its first matrix of floats is doubled."""
    model = onnx.load_from_string(graph)
    if model.graph.name == stage:
        tensor = next(t for t in model.graph.initializer if t.dims and t.data_type == 1 and len(t.dims) == 2)
        tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))
    return model.SerializeToString()


def test_every_variant_that_tensorrt_takes_is_tried_and_proved(bundle_path, tensorrt):
    report = build(bundle_path)
    for result in report.stages.values():
        assert [t.variant for t in result.tried] == ["fp32", "fp16", "int8"]
        assert all(not t.refused and t.rollout and t.median_ms for t in result.tried)
    assert json.loads(json.dumps(report.to_json()))["gpu"]["name"] == "NVIDIA Fake"


def test_the_fastest_is_chosen_and_the_more_exact_where_it_is_as_fast(bundle_path, tensorrt, monkeypatch):
    times(monkeypatch, {"fp32": 2.0, "fp16": 1.0, "int8": 0.97})
    assert {r.variant for r in build(bundle_path).stages.values()} == {"fp16"}
    times(monkeypatch, {"fp32": 1.0, "fp16": 1.2, "int8": 0.9})
    report = build(bundle_path)
    assert {r.variant for r in report.stages.values()} == {"int8"}
    assert "fp16 1.200 ms" in report.stages["render"].why


def test_a_wrong_engine_is_refused_by_name_and_the_next_is_taken(bundle_path, tensorrt, monkeypatch, caplog):
    times(monkeypatch, {"fp32": 3.0, "fp16": 2.0, "int8": 1.0})
    built = []

    def spoil(graph):
        built.append(graph)
        return double(graph) if len(built) % 3 == 0 else graph  # int8 is the third of each stage

    monkeypatch.setattr(tensorrt, "spoil", spoil)
    with caplog.at_level(logging.WARNING):
        report = build(bundle_path)
    assert [r.variant for r in report.stages.values()] == ["int8", "int8", "fp16"]
    refused = report.stages["render"].tried[2]
    assert refused.variant == "int8" and "differs from ONNX Runtime" in refused.refused and "37.0 dB" in refused.refused
    assert "render int8 is refused" in caplog.text


def test_where_no_engine_is_right_onnx_runtime_runs_the_stage(bundle_path, tensorrt, monkeypatch):
    monkeypatch.setattr(tensorrt, "spoil", double)
    report = build(bundle_path)
    render = report.stages["render"]
    assert render.engine == "onnxruntime" and "fallback: it differs" in render.why
    assert all(t.refused for t in render.tried)
    with Pipeline.open(bundle_path, "tensorrt") as pipeline:
        assert pipeline.engines == {"text": "tensorrt", "motion": "tensorrt", "render": "onnxruntime"}
        frames = [f.pixels for f in pipeline.stream("a person is walking", seconds=0.5)]
    with Pipeline.open(bundle_path, "onnxruntime") as pipeline:
        wanted = [f.pixels for f in pipeline.stream("a person is walking", seconds=0.5)]
    np.testing.assert_array_equal(frames, wanted)


def test_a_build_that_fails_says_which_and_the_others_stand(bundle_path, tensorrt, monkeypatch):
    monkeypatch.setattr(tensorrt, "spoil", lambda g: None if onnx.load_from_string(g).graph.name == "motion" else g)
    report = build(bundle_path)
    assert "cannot build the fp32 engine" in report.stages["motion"].tried[0].refused
    assert report.stages["motion"].engine == "onnxruntime" and report.stages["text"].engine == "tensorrt"


def test_what_is_kept_is_not_built_again_but_is_proved_again(bundle_path, tensorrt):
    build(bundle_path)
    assert len(tensorrt.builds) == 9
    report = build(bundle_path)
    assert len(tensorrt.builds) == 9 and all(t.kept for r in report.stages.values() for t in r.tried)
    assert all(t.rollout for r in report.stages.values() for t in r.tried)
    build(bundle_path, rebuild=True)
    assert len(tensorrt.builds) == 18


def test_float16_that_cannot_be_built_is_tried_loosely_as_well(bundle_path, tensorrt, monkeypatch):
    monkeypatch.setattr(
        tensorrt, "spoil", lambda graph: None if onnx.load_from_string(graph).graph.name == "motion" else graph
    )
    report = build(bundle_path)
    assert len(tensorrt.builds) == 9 + 1
    assert [t.variant for t in report.stages["render"].tried] == ["fp32", "fp16", "int8"]
    assert all("cannot build" in t.refused for t in report.stages["motion"].tried)
    assert all(not t.refused and not t.kept for t in report.stages["render"].tried)


def test_opening_takes_the_plan_and_builds_nothing(bundle_path, tensorrt, monkeypatch):
    times(monkeypatch, {"fp32": 2.0, "fp16": 1.0, "int8": 3.0})
    from t2v_edge.engine.tensorrt.api import BuildSettings

    build(bundle_path, settings=BuildSettings(optimization_level=5, tactic_sources=("edge_mask_convolutions",)))
    built = len(tensorrt.builds)
    for engine in ("tensorrt", "auto"):
        with Pipeline.open(bundle_path, engine) as pipeline:
            assert pipeline.engines["render"] == "tensorrt" and pipeline.variants["render"] == "fp16"
    assert len(tensorrt.builds) == built


def test_auto_builds_nothing_by_itself(bundle_path, tensorrt):
    with Pipeline.open(bundle_path) as pipeline:
        assert "tensorrt" not in pipeline.engines.values()
    assert not tensorrt.builds


def test_spoilt_engines_are_built_again_before_a_stream_plays(bundle_path, tensorrt, cache):
    build(bundle_path)
    for path in cache.glob("*.engine"):
        if b'"kind": "engine"' in path.read_bytes():
            path.write_bytes(path.read_bytes()[:-1])
    with Pipeline.open(bundle_path, "tensorrt") as pipeline:
        assert len(list(pipeline.stream("a person is walking", seconds=0.5))) == 8
    assert len(tensorrt.builds) == 18


HALF, INT8, TYPED = ["FP16", KEPT], ["FP16", "INT8", KEPT], ([], 2)


@pytest.mark.parametrize(
    "version, found",
    [
        ("8.6.2", [([], 1), (HALF, 1), (INT8, 1)]),
        ("10.3.0", [([], 1), TYPED, (INT8, 1)]),
        ("10.16.0", [TYPED] * 3),
        ("11.4.1", [TYPED] * 3),
    ],
)
def test_precision_is_flags_in_8_6_and_types_in_10_12_and_of_float16_in_10(bundle_path, monkeypatch, version, found):
    tensorrt = install(monkeypatch, FakeCuda(), version)
    build(bundle_path)
    assert tensorrt.builds[:3] == found


def test_int8_between_float16_is_built_by_types_wherever_they_are_known(monkeypatch):
    from t2v_edge.engine.tensorrt.api import TensorRt

    for version, typed in (("8.6.2", False), ("10.0.1", True), ("10.3.0", True), ("10.16.0", True), ("11.4.1", True)):
        assert TensorRt("tensorrt", install(monkeypatch, FakeCuda(), version)).types("int8-fp16") is typed


def test_float16_is_built_by_flags_where_its_types_find_no_engine(bundle_path, monkeypatch):
    tensorrt, attempts = install(monkeypatch, FakeCuda(), "10.3.0"), count()
    tensorrt.spoil = lambda graph: None if next(attempts) == 1 else graph
    report = build(bundle_path)
    assert tensorrt.builds[1:3] == [TYPED, (HALF, 1)]
    assert not any(tried.refused for tried in report.stages["text"].tried)


def test_float16_is_built_by_flags_where_its_types_cannot_be_parsed(bundle_path, monkeypatch):
    tensorrt = install(monkeypatch, FakeCuda(), "10.3.0")
    tensorrt.parses = lambda flags: flags != TYPED[1]
    report = build(bundle_path)
    assert tensorrt.builds[:3] == [([], 1), (HALF, 1), (INT8, 1)]
    assert not any(tried.refused for tried in report.stages["text"].tried)
    tensorrt.parses = lambda flags: False
    monkeypatch.setattr(tensorrt, "builds", [])
    report = build(bundle_path, rebuild=True)
    assert not tensorrt.builds
    assert all("cannot parse the graph" in t.refused for stage in report.stages.values() for t in stage.tried)


def test_what_an_export_left_in_float32_runs_in_float32_among_float16(monkeypatch):
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    nodes = [
        onnx.helper.make_node("Exp", ["x"], ["grown"], name="/exp"),
        onnx.helper.make_node("Cast", ["grown"], ["narrow"], name="/narrow", to=half),
        onnx.helper.make_node("Mul", ["narrow", "narrow"], ["squared"], name="/mul"),
        onnx.helper.make_node("Cast", ["squared"], ["y"], name="/widen", to=full),
        onnx.helper.make_node("ArgMax", ["squared"], ["best"], name="/argmax"),
    ]
    outputs = [
        onnx.helper.make_tensor_value_info("y", full, [1, 4]),
        onnx.helper.make_tensor_value_info("best", onnx.TensorProto.INT64, [1, 4]),
    ]
    told = told_types(monkeypatch, nodes, outputs, "fp16")
    assert told == {
        "/exp": ("FLOAT", {0: "FLOAT"}),
        "/mul": ("HALF", {0: "HALF"}),
        "/narrow": (None, {}),
        "/widen": (None, {}),
        "/argmax": (None, {}),
    }


def told_types(monkeypatch, nodes, outputs, precision, weights=(), failures=0):
    """By layer the precision and the output types that TensorRT 8.6 is told; `nodes` read x, float32 (1, 4, 1, 1).
    So many attempts to build fail."""
    from t2v_edge.engine.tensorrt.api import BuildSettings, find_api

    given = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4, 1, 1])
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in weights]
    graph = onnx.helper.make_graph(nodes, "g", [given], outputs, constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    tensorrt, attempts = install(monkeypatch, FakeCuda(), "8.6.2"), count()
    tensorrt.spoil = lambda graph: None if next(attempts) < failures else graph
    find_api("tensorrt").build(model.SerializeToString(), precision, 17, BuildSettings())
    return {
        layer.name: (layer.precision and layer.precision.name, {k: v.name for k, v in layer.outputs.items()})
        for layer in tensorrt.layers
    }


def test_reshapes_are_let_go_where_nothing_can_be_built_with_them(monkeypatch):
    half, full, make = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, onnx.helper.make_node
    nodes = [
        make("Reshape", ["x", "shape"], ["flat"], name="/flat"),
        make("Exp", ["flat"], ["grown"], name="/exp"),
        make("Cast", ["grown"], ["narrow"], name="/narrow", to=half),
        make("Mul", ["narrow", "narrow"], ["squared"], name="/mul"),
        make("Reshape", ["squared", "shape"], ["shaped"], name="/shape"),
        make("Cast", ["shaped"], ["y"], name="/widen", to=full),
    ]
    outputs = [onnx.helper.make_tensor_value_info("y", full, [1, 4])]
    weights = (("shape", np.array([1, 4])),)
    exact = told_types(monkeypatch, nodes, outputs, "fp16", weights)
    assert exact == {
        "/flat": ("FLOAT", {0: "FLOAT"}),
        "/exp": ("FLOAT", {0: "FLOAT"}),
        "/narrow": (None, {}),
        "/mul": ("HALF", {0: "HALF"}),
        "/shape": ("HALF", {0: "HALF"}),
        "/widen": (None, {}),
    }
    loose = told_types(monkeypatch, nodes, outputs, "fp16", weights, failures=1)
    assert loose == {**exact, "/flat": (None, {}), "/shape": (None, {})}
    with pytest.raises(EngineError, match="cannot build the fp16 engine"):
        told_types(monkeypatch, nodes, outputs, "fp16", weights, failures=2)
    with pytest.raises(EngineError, match="cannot build the fp32 engine"):
        told_types(monkeypatch, nodes, outputs, "fp32", weights, failures=1)


def test_what_a_parser_puts_in_between_has_the_type_of_what_it_is_made_of(monkeypatch):
    from t2v_edge.engine.tensorrt.api import find_api

    tensorrt = install(monkeypatch, FakeCuda(), "8.6.2")
    kind, data = tensorrt.LayerType, tensorrt.DataType

    def layer(what, name, read, given, dtype=data.FLOAT):
        tensors = [SimpleNamespace(name=n, dtype=dtype) for n in (*read, given)]
        return SimpleNamespace(
            type=what,
            name=name,
            num_inputs=len(read),
            num_outputs=1,
            get_input=tensors.__getitem__,
            get_output=lambda at: tensors[-1],
        )

    layers = [
        layer(kind.CONSTANT, "w", [], "w_output"),
        layer(kind.CONSTANT, "f", [], "f_output"),
        layer(kind.SHUFFLE, "between", ["w_output"], "between_output"),
        layer(kind.SHUFFLE, "beside", ["f_output"], "beside_output"),
        layer(kind.ELEMENTWISE, "/add", ["x", "between_output"], "sum"),
        layer(kind.ELEMENTWISE, "/mul", ["sum"], "y"),
        layer(kind.ELEMENTWISE, "/argmax", ["sum"], "best", data.INT32),
    ]
    known = {"w": True, "f": False, "x": True, "sum": True, "y": False, "best": False}
    types = find_api("tensorrt")._types(layers, known)
    assert types == {
        "w_output": data.HALF,
        "f_output": data.FLOAT,
        "between_output": data.HALF,
        "beside_output": data.FLOAT,
        "sum": data.HALF,
        "y": data.FLOAT,
        "best": data.INT32,
    }


def test_among_int8_only_arithmetic_apart_from_what_is_quantized_keeps_float32(monkeypatch):
    make = onnx.helper.make_node
    nodes = [
        make("Mul", ["x", "x"], ["squared"], name="/limbs"),
        make("Exp", ["squared"], ["map"], name="/beside"),
        make("QuantizeLinear", ["map", "scale", "zero"], ["bytes"], name="/quantize"),
        make("DequantizeLinear", ["bytes", "scale", "zero"], ["again"], name="/dequantize"),
        make("Conv", ["again", "w"], ["made"], name="/conv"),
        make("Conv", ["made", "w"], ["y"], name="/left"),
    ]
    weights = (("scale", np.float32(0.1)), ("zero", np.int8(0)), ("w", np.ones((4, 4, 1, 1), np.float32)))
    outputs = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4, 1, 1])]
    told = told_types(monkeypatch, nodes, outputs, "int8", weights)
    assert {name for name, types in told.items() if types != (None, {})} == {"/limbs"}
    assert told["/limbs"] == ("FLOAT", {0: "FLOAT"})


def test_an_older_tensorrt_and_an_opset_beyond_its_parser_are_refused(tmp_path, monkeypatch):
    install(monkeypatch, FakeCuda(), "8.5.2")
    path = make_bundle(tmp_path / "bundle")
    with pytest.raises(EngineError, match=r"8\.5\.2 is older than 8\.6.*upgrade JetPack"):
        build(path)
    from t2v_edge.engine.tensorrt.api import BuildSettings, find_api

    tensorrt = install(monkeypatch, FakeCuda(), "8.6.2")
    with pytest.raises(EngineError, match="opset 18, tensorrt 8.6.2 reads up to 17"):
        find_api("tensorrt").build(b"", "fp32", 18, BuildSettings())
    assert not tensorrt.builds


def test_a_variant_that_is_not_there_and_one_for_other_engines(bundle_path, tensorrt):
    with pytest.raises(UsageError, match="variant 'fp8' is not in the bundle"):
        build(bundle_path, variants=("fp8",))
    report = build(bundle_path, variants=("int8-u8",))
    assert "no variant of the bundle is for tensorrt" in report.stages["render"].why


def test_the_command_builds_reports_and_says_what_is_missing(bundle_path, tensorrt, monkeypatch, capsys):
    assert main(["build", str(bundle_path), "--device", "jetson-orin-nano-8gb", "--tactics", "none", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["settings"] == {
        "batch": 1,
        "workspace_bytes": 2 << 30,
        "optimization_level": None,
        "tactic_sources": [],
    }
    assert report["stages"]["render"]["tried"][0]["rollout"]
    assert main(["build", str(bundle_path), "--tactics", "cudnn"]) == 2
    assert "tactic source 'cudnn' is unknown here; choose from cublas" in capsys.readouterr().err
    for name in ("build", "cuda", "loaded", "player", "engine"):
        monkeypatch.delitem(sys.modules, f"t2v_edge.engine.tensorrt.{name}", raising=False)
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["build", str(bundle_path)]) == 1
    assert "pip install 't2v-edge[tensorrt]'" in capsys.readouterr().err
