from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.macs import count_macs


def model_of(nodes, weights, inputs):
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(w), n) for n, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def ones(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(("kind", "weight", "attributes", "taken", "expected"), [
    ("Conv", (6, 4, 3, 3), {"pads": [1] * 4}, (1, 4, 8, 8), 6 * 8 * 8 * 4 * 9),
    ("Conv", (6, 4, 3, 3), {"strides": [2, 2], "pads": [1] * 4}, (1, 4, 8, 8), 6 * 4 * 4 * 4 * 9),
    ("Conv", (4, 1, 3, 3), {"group": 4, "pads": [1] * 4}, (1, 4, 8, 8), 4 * 8 * 8 * 9),
    ("ConvTranspose", (4, 6, 4, 4), {"strides": [2, 2], "pads": [1] * 4}, (1, 4, 8, 8), 4 * 8 * 8 * 6 * 16),
    ("Gemm", (5, 7), {}, (2, 5), 2 * 5 * 7),
    ("Gemm", (5, 7), {"transA": 1}, (5, 2), 2 * 5 * 7),
    ("Gemm", (7, 5), {"transB": 1}, (2, 5), 2 * 5 * 7),
    ("MatMul", (5, 7), {}, (3, 2, 5), 3 * 2 * 5 * 7),
])
def test_macs_are_those_counted_by_hand(kind, weight, attributes, taken, expected):
    node = helper.make_node(kind, ["x", "w"], ["y"], **attributes)
    assert count_macs(model_of([node], {"w": ones(*weight)}, {"x": taken})) == expected


def test_a_quantized_layer_counts_as_the_float_one():
    nodes = [
        helper.make_node("DequantizeLinear", ["w8", "s", "z"], ["w"]),
        helper.make_node("QuantizeLinear", ["x", "s", "u"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "u"], ["xf"]),
        helper.make_node("Conv", ["xf", "w"], ["y"], pads=[1] * 4),
        helper.make_node("Relu", ["y"], ["out"]),
    ]
    weights = {"w8": np.ones((6, 4, 3, 3), np.int8), "s": np.float32(1), "z": np.int8(0), "u": np.uint8(0)}
    assert count_macs(model_of(nodes, weights, {"x": (1, 4, 8, 8)})) == 6 * 8 * 8 * 4 * 9


def test_a_shape_that_is_not_known_is_named():
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="/product")
    with pytest.raises(ValueError, match="/product"):
        count_macs(model_of([node], {"w": ones(5, 7)}, {"x": ("batch", 5)}))
