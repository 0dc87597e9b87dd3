"""What a device's TensorRT would refuse or misread is refused at export; the real parser is asked where it can be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from t2v_edge.device.profile import Software, load_profile
from t2v_edge.engine.tensorrt.api import BuildSettings, TensorRt, find_api, installed
from t2v_edge.errors import EngineError, SpecError
from t2v_export.checkpoint.config import StageConfig
from t2v_export.exporter.export import ExportOptions, export_checkpoint
from t2v_export.exporter.passes import float32
from t2v_export.exporter.targets import check_engines, takes_half_int8, target_of_line
from t2v_export.graph.lint import lint
from t2v_export.precision.int8_float16 import compute_half_int8
from tests.t2v_export.quantize.test_qdq import tiny_options
from tests.t2v_export.quantize_samples import SPEC, model_of, nodes_of, quantized, upsampler, weights

JETSON = load_profile("jetson-orin-nano-8gb")
OLD, NEW = (Software("old", "tensorrt", "8.6.2", 17), Software("new", "tensorrt", "10.16", 20))
RTX = Software("desktop", "tensorrt-rtx", "1.7", 25)

needs_rtx = pytest.mark.skipif(installed("tensorrt-rtx") is None, reason="TensorRT-RTX is not installed")


@cache
def rtx() -> TensorRt:
    return find_api("tensorrt-rtx")


def build(model: onnx.ModelProto) -> bytes:
    opset = model.opset_import[0].version
    return rtx().build(model.SerializeToString(), "int8", opset, BuildSettings()).engine


def signed() -> onnx.ModelProto:
    return quantized(upsampler(), "int8")


def change(model: onnx.ModelProto, name: str, value: np.ndarray) -> onnx.ModelProto:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value, name))
    return model


def unsigned_input() -> onnx.ModelProto:
    return change(signed(), "x.zero_point", np.asarray(0, np.uint8))


def whole_bias() -> onnx.ModelProto:
    model = signed()
    nodes_of(model)["/conv1"].input[2] = "b1.dq"
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["b1.int32", "b1.scale"], ["b1.dq"], name="/b1"))
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.arange(5, dtype=np.int32), "b1.int32"),
            numpy_helper.from_array(np.asarray(1e-3, np.float32), "b1.scale"),
        ]
    )
    return model


def cast_weights() -> onnx.ModelProto:
    """A weight as bytes that are cast and scaled: how grid.py stores those on a grid."""
    nodes = [
        helper.make_node("Cast", ["w8"], ["w"], name="/cast", to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "w"], ["y"], name="/conv", pads=[1] * 4),
    ]
    constants = {"w8": np.sign(weights(3, 4, 3, 3)).astype(np.int8)}
    return model_of(nodes, constants, {"x": [1, 4, 6, 6]}, {"y": [1, 3, 6, 6]})


def byte_table() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], name="/index", to=TensorProto.INT64),
        helper.make_node("Gather", ["t8", "i"], ["r"], name="/look"),
        helper.make_node("DequantizeLinear", ["r", "s"], ["y"], name="/dq"),
    ]
    constants = {"t8": np.ones((9, 4), np.int8), "s": np.asarray(0.1, np.float32)}
    return model_of(nodes, constants, {"x": [1, 3]}, {"y": [1, 3, 4]})


def bytes_within() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["x"], ["b"], name="/bytes", to=TensorProto.UINT8),
        helper.make_node("Transpose", ["b"], ["y"], name="/move", perm=[0, 2, 3, 1]),
    ]
    model = model_of(nodes, {}, {"x": [1, 3, 6, 6]}, {"y": [1, 6, 6, 3]})
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8
    return model


def transposed() -> onnx.ModelProto:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="/up", strides=[2, 2])
    model = model_of([node], {"w": weights(4, 3, 2, 2)}, {"x": [1, 4, 6, 6]}, {"y": [1, 3, 12, 12]})
    return quantized(model, "int8")


def newer() -> onnx.ModelProto:
    model = signed()
    model.opset_import[0].version = 26
    return model


@dataclass(frozen=True)
class Planted:
    """A graph that a target cannot take: what the linter says, and whether TensorRT-RTX itself refuses it."""

    make: Callable[[], onnx.ModelProto]
    line: Software
    wanted: str
    refused: str | None  # what TensorRT-RTX names; None: it reads it without complaint, or builds it rightly


PLANTED = {
    "zero-point of an activation": Planted(
        lambda: change(signed(), "x.zero_point", np.asarray(3, np.int8)), NEW, "/q/x: zero-point: 3", "/q/x"
    ),
    "zero-point of a weight": Planted(
        lambda: change(signed(), "conv1.weight.zero_point", np.ones(5, np.int8)),
        NEW,
        "/dq/conv1.weight: zero-point: 1",
        "/dq/conv1.weight",
    ),
    "unsigned activation": Planted(unsigned_input, NEW, "/q/x: activation type: uint8", None),
    "int32 bias": Planted(whole_bias, NEW, "/conv1: bias: is quantized", "/b1"),
    "bytes that are cast": Planted(cast_weights, RTX, "/cast: 8-bit constant: w8 is read by Cast", "w8"),
    "bytes that are looked up": Planted(byte_table, RTX, "/look: 8-bit constant: t8 is read by Gather", "t8"),
    "uint8 within the graph": Planted(bytes_within, RTX, "/bytes: uint8: b is read within", "/bytes"),
    "INT8 ConvTranspose in 8.6": Planted(transposed, OLD, "/up: INT8 ConvTranspose: is not built", None),
    "opset of a later release": Planted(newer, RTX, "render: opset: 26, at most 25", "opset 26"),
    "opset 17 in a parser of 13": Planted(signed, replace(OLD, opset_cap=13), "render: opset: 17, at most 13", None),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_fault_is_refused_with_the_nodes_name(fault):
    planted = PLANTED[fault]
    found = [str(f) for f in lint(planted.make(), target_of_line(planted.line), None)]
    assert any(text.startswith(planted.wanted) for text in found), found


@needs_rtx
@pytest.mark.parametrize("fault", [name for name, planted in PLANTED.items() if planted.refused])
def test_tensorrt_refuses_it_too(fault):
    planted = PLANTED[fault]
    assert planted.refused is not None
    with pytest.raises(EngineError) as caught:
        build(planted.make())
    assert planted.refused in str(caught.value)


@needs_rtx
def test_unsigned_activations_are_read_as_signed_without_complaint_so_only_the_linter_helps():
    assert build(unsigned_input())


@needs_rtx
def test_graphs_that_lint_clean_are_built():
    model = signed()
    for made in (model, compute_half_int8(model, SPEC)):
        assert lint(made, target_of_line(RTX), None) == () and build(made)


@needs_rtx
def test_variant_for_cpus_is_refused_by_linter_and_parser():
    unsigned = quantized(upsampler(), "int8-u8")
    assert {"activation type", "bias"} <= {f.rule for f in lint(unsigned, target_of_line(RTX), None)}
    with pytest.raises(EngineError, match="cannot parse the graph at"):
        build(unsigned)


def test_float_graphs_are_checked_as_well_and_layers_of_theirs_are_no_fault():
    assert lint(upsampler(), target_of_line(OLD), None) == ()
    with pytest.raises(SpecError, match="old .tensorrt 8.6.2. fp32 render: render: opset: 17, at most 16"):
        check_engines({"fp32": {"render": upsampler()}}, replace(JETSON, software=(replace(OLD, opset_cap=16),)))


def test_float16_scales_are_for_lines_that_read_opset_19_alone():
    half = {"int8-fp16": {"render": compute_half_int8(signed(), SPEC)}}
    check_engines(half, replace(JETSON, software=(OLD, NEW)))
    assert takes_half_int8(JETSON) and not takes_half_int8(replace(JETSON, software=(OLD,)))
    assert not takes_half_int8(replace(JETSON, precisions=("fp32", "fp16")))
    assert not takes_half_int8(load_profile("cpu"))
    check_engines({"int8-u8": {"render": quantized(upsampler(), "int8-u8")}}, JETSON)  # for its CPU


def test_export_stops_at_a_graph_that_an_engine_of_the_device_cannot_take(make_checkpoint, tmp_path, monkeypatch):
    real = float32.stage_to_onnx

    def planted(module, spec, opset):
        model = real(module, spec, opset)
        if spec.stage == "text":
            for node in model.graph.node:
                node.input[:] = ["mask" if name == "attention_mask" else name for name in node.input]
            through = (("attention_mask", "mask.bytes", TensorProto.UINT8), ("mask.bytes", "mask", TensorProto.INT64))
            for place, (source, target, kind) in enumerate(through):
                model.graph.node.insert(place, helper.make_node("Cast", [source], [target], name=f"/{target}", to=kind))
        return model

    monkeypatch.setattr(float32, "stage_to_onnx", planted)
    options = ExportOptions(measure=False, variants=("fp32",))
    with pytest.raises(SpecError, match="JetPack 6.0 .* fp32 text: /mask.bytes: uint8: mask.bytes is read within"):
        export_checkpoint(make_checkpoint(), tmp_path / "bundle", JETSON, options)
    assert not (tmp_path / "bundle").exists()
    export_checkpoint(make_checkpoint(), tmp_path / "bundle", load_profile("cpu"), options)


def test_int8_for_tensorrt_has_no_transposed_convolution_and_no_stored_motion(make_checkpoint, tmp_path):
    draw = StageConfig("upsample", {"channels": [12, 8], "upsample": "transpose"})
    exported = export_checkpoint(make_checkpoint(render=draw), tmp_path / "bundle", JETSON, tiny_options())
    assert "motion" not in exported.report["bytes"]["int8-u8"]
    made = onnx.load(tmp_path / "bundle" / "int8" / "render.onnx")
    assert not any(n.op_type == "ConvTranspose" for n in made.graph.node)
    assert sum(n.op_type == "Conv" for n in made.graph.node) == 3
