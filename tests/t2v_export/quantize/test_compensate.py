"""Rounding that makes good its own errors, in every kind of layer that it is for."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from t2v_calibration.ranges import quantize_weight, weight_scales
from t2v_export.graph.operators import out_axis
from t2v_export.graph.view import make_node
from t2v_export.quantize.compensate import Moments, compensated
from t2v_export.quantize.sensitivity import Sensitivity, spared_layers

BITS = 7


def smooth_images(count: int, seed: int) -> np.ndarray:
    """Images (count, 6, 12, 12) that are flat but for a little noise, in correlated channels."""
    random = np.random.default_rng(seed)
    flat = random.standard_normal((count, 3)) @ np.random.default_rng(9).standard_normal((3, 6))
    return (flat[:, :, None, None] + 0.05 * random.standard_normal((count, 6, 12, 12))).astype(np.float32)


def smooth_rows(count: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    rows = random.standard_normal((count, 4, 3)) @ np.random.default_rng(9).standard_normal((3, 24))
    return (rows + 0.05 * random.standard_normal((count, 4, 24))).astype(np.float32)


LAYERS = {
    "conv": ("Conv", (8, 6, 3, 3), {"kernel_shape": [3, 3], "pads": [1] * 4}, smooth_images),
    "strided conv": ("Conv", (8, 6, 3, 3), {"kernel_shape": [3, 3], "strides": [2, 2]}, smooth_images),
    "transposed 4x4": ("ConvTranspose", (6, 8, 4, 4), {"strides": [2, 2], "pads": [1] * 4}, smooth_images),
    "transposed 3x3": ("ConvTranspose", (6, 8, 3, 3), {"strides": [2, 2], "pads": [1] * 4}, smooth_images),
    "matmul": ("MatMul", (24, 8), {}, smooth_rows),
    "gemm": ("Gemm", (8, 24), {"transB": 1}, lambda count, seed: smooth_rows(count, seed)[:, :1]),
}


def run(node: onnx.NodeProto, weight: np.ndarray, value: np.ndarray) -> np.ndarray:
    value_info = helper.make_tensor_value_info("x", TensorProto.FLOAT, value.shape)
    made = helper.make_empty_tensor_value_info("y")
    graph = helper.make_graph([node], "g", [value_info], [made], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": value})[0]


@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_are_nearer_than_with_plain_rounding(kind):
    operator, shape, attributes, inputs = LAYERS[kind]
    node = helper.make_node(operator, ["x", "w"], ["y"], **attributes)
    layer = make_node(operator, [None, None], "y", "/layer", **attributes)
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    moments = Moments.of(layer, weight)
    for value in inputs(60, 1):
        moments.add(value if operator == "Gemm" else value[None])
    axis = out_axis(layer)
    scales = weight_scales(weight, axis, BITS)
    spread = scales.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    held = inputs(20, 2)
    held = held[:, 0] if operator == "Gemm" else held
    wanted = run(node, weight, held)
    errors = []
    for rounded in (quantize_weight(weight, scales, axis, BITS), moments.round([BITS])[BITS]):
        assert rounded.dtype == np.int8 and rounded.shape == weight.shape and np.abs(rounded).max() <= 64
        off = run(node, (rounded * spread).astype(np.float32), held) - wanted
        errors.append(float(np.sqrt(np.mean(np.square(off)))))
    assert errors[1] < 0.6 * errors[0], errors


def test_inputs_that_have_nothing_to_do_with_each_other_change_nothing():
    weight = np.random.default_rng(0).standard_normal((4, 10))
    scales = np.abs(weight).max(1) / 64
    assert (compensated(weight, np.eye(10), scales, 64) == np.rint(weight / scales[:, None])).all()


def test_layers_it_is_not_made_for_are_rounded_plainly():
    weight = np.ones((6, 1, 3, 3), np.float32)
    assert Moments.of(make_node("Conv", [], "y", "", group=6), weight) is None
    assert Moments.of(make_node("Conv", [], "y", "", dilations=[2, 2]), weight) is None
    huge = np.broadcast_to(np.float32(1), (5000, 2))
    assert Moments.of(make_node("MatMul", [], "y", ""), huge) is None
    unseen = Moments.of(make_node("MatMul", [], "y", ""), np.eye(5, dtype=np.float32))
    assert (unseen.round([8])[8] == 127 * np.eye(5)).all()


def test_sensitive_layers_are_spared_while_they_cost_next_to_nothing():
    macs = {"a": 4, "b": 5, "c": 900, "d": 1}
    found = [Sensitivity(name, 30.0 + i, count) for i, (name, count) in enumerate(macs.items())]
    assert spared_layers(found, 0.01) == ("a", "b") and spared_layers(found, 0.005) == ("a",)
    assert spared_layers(found, 0.0) == () and spared_layers(found[:1], 1.0) == () and spared_layers([], 0.01) == ()
