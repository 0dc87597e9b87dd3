"""What the OpenVINO engine rewrites in a graph before it is compiled, and what it must leave as it is."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from t2v_edge.engine.base import EngineOptions
from t2v_edge.engine.registry import open_engine
from t2v_edge.spec import StageSpec, TensorSpec

rewriting = pytest.importorskip("t2v_edge.engine.openvino", reason="pip install 't2v-edge[openvino]'")
ov = rewriting.ov


def test_openvino_transposes_bytes():
    levels = ov.opset13.parameter([1, 3, 4, 4], ov.Type.f32)
    image = ov.opset13.round(ov.opset13.transpose(levels, np.array([0, 2, 3, 1])), "half_to_even")
    frame = ov.opset13.convert(image, "u8")
    frame.output(0).set_names({"frame"})
    model = ov.Model([frame], [levels])
    rewriting._round_before_transposing(model)
    last = model.get_results()[0].input_value(0)
    assert last.get_node().get_type_name() == "Transpose" and last.get_element_type() == ov.Type.u8
    assert model.outputs[0].get_names() == {"frame"}


@pytest.mark.parametrize(
    ("dtype", "shape", "split"),
    [
        ("u8", [65, 65, 2, 48], True),
        ("u8", [129, 129, 2, 6], True),
        ("u8", [65, 65, 2, 64], False),
        ("u8", [9, 9, 2, 48], False),
        ("u8", [65, 65, 3, 48], False),
        ("f32", [65, 65, 2, 48], False),
    ],
)
def test_openvino_interleaves_whole_runs_of_bytes(dtype, shape, split):
    o = ov.opset13
    stored = o.parameter(shape, ov.Type.u8 if dtype == "u8" else ov.Type.f32)
    real = o.multiply(o.convert(stored, "f32"), np.float32(0.5)) if dtype == "u8" else o.relu(stored)
    pixels = o.reshape(o.transpose(real, np.array([0, 2, 1, 3])), [2 * shape[0], -1, 1], False)
    model = ov.Model([pixels], [stored])
    rewriting._interleave_whole_runs(model)
    assert any(node.get_type_name() == "Split" for node in model.get_ops()) == split
    values = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8 if dtype == "u8" else np.float32)
    made = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(values)[0]
    expected = values.transpose(0, 2, 1, 3).astype(np.float32) * (0.5 if dtype == "u8" else 1)
    assert np.array_equal(made.ravel(), expected.ravel())


def test_openvino_computes_in_float32_what_has_its_weights_alone_in_8_bits():
    rng = np.random.default_rng(0)
    weights, scale = rng.integers(-127, 128, (256, 256), np.int8), rng.uniform(0.001, 0.002, 256).astype(np.float32)
    nodes = [
        onnx.helper.make_node("DequantizeLinear", ["weights", "scale"], ["real"], axis=1),
        onnx.helper.make_node("MatMul", ["x", "real"], ["y"]),
    ]
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 256]) for name in "xy")
    constants = [onnx.numpy_helper.from_array(weights, "weights"), onnx.numpy_helper.from_array(scale, "scale")]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "motion", [x], [y], constants),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    spec = StageSpec("motion", (TensorSpec("x", (1, 256)),), (TensorSpec("y", (1, 256)),))
    given = rng.standard_normal((1, 256)).astype(np.float32)
    with open_engine("openvino", model.SerializeToString(), spec, EngineOptions()) as engine:
        made = engine.run({"x": given})["y"]
    np.testing.assert_allclose(made, given @ (weights * scale), rtol=0, atol=1e-4)
