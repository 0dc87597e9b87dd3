from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from t2v_export.graph.macs import graph_cost


def graph(nodes, inputs, outputs, weights) -> onnx.ModelProto:
    def values(shapes):
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    made = helper.make_graph(nodes, "g", values(inputs), values(outputs), tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    "node, inputs, outputs, weights, macs, parameters",
    [
        (
            helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1] * 4, group=2),
            {"x": [1, 4, 8, 6]},
            {"y": [1, 10, 8, 6]},
            {"w": ones(10, 2, 3, 3), "b": ones(10)},
            8 * 6 * 10 * 2 * 9,
            180 + 10,
        ),
        (
            helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], pads=[1] * 4),
            {"x": [1, 4, 8, 6]},
            {"y": [1, 5, 16, 12]},
            {"w": ones(4, 5, 4, 4)},
            8 * 6 * 4 * 5 * 16,
            320,
        ),
        (
            helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1),
            {"x": [3, 7]},
            {"y": [3, 5]},
            {"w": ones(5, 7), "b": ones(5)},
            3 * 7 * 5,
            40,
        ),
        (
            helper.make_node("Gemm", ["x", "w"], ["y"], transA=1),
            {"x": [7, 3]},
            {"y": [3, 5]},
            {"w": ones(7, 5)},
            3 * 7 * 5,
            35,
        ),
        (
            helper.make_node("MatMul", ["x", "z"], ["y"]),
            {"x": [2, 4, 6, 8], "z": [2, 4, 8, 5]},
            {"y": [2, 4, 6, 5]},
            {},
            2 * 4 * 6 * 8 * 5,
            0,
        ),
        (
            helper.make_node("GRU", ["x", "w", "r"], ["y"], hidden_size=5),
            {"x": [3, 1, 4]},
            {"y": [3, 1, 1, 5]},
            {"w": ones(1, 15, 4), "r": ones(1, 15, 5)},
            3 * 15 * 9,
            135,
        ),
        (helper.make_node("Relu", ["x"], ["y"]), {"x": [1, 9]}, {"y": [1, 9]}, {}, 0, 0),
    ],
)
def test_an_operator_costs_what_its_definition_says(node, inputs, outputs, weights, macs, parameters):
    cost = graph_cost(graph([node], inputs, outputs, weights))
    assert (cost.macs, cost.parameters, cost.uncounted) == (macs, parameters, ())


def test_quantized_weights_count_as_before_and_scales_do_not():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["qx"]),
        helper.make_node("DequantizeLinear", ["qx", "sx", "zx"], ["dx"]),
        helper.make_node("DequantizeLinear", ["qw", "sw", "zw"], ["dw"], axis=0),
        helper.make_node("DequantizeLinear", ["qb", "sb"], ["db"], axis=0),
        helper.make_node("Conv", ["dx", "dw", "db"], ["y"]),
    ]
    weights = {
        "sx": np.float32(0.1),
        "zx": np.uint8(3),
        "qw": np.ones((6, 4, 1, 1), np.int8),
        "sw": ones(6),
        "zw": np.zeros(6, np.int8),
        "qb": np.ones(6, np.int32),
        "sb": ones(6),
    }
    cost = graph_cost(
        graph(nodes, {"x": [1, 4, 5, 5]}, {"y": [1, 6, 5, 5]}, {k: np.asarray(v) for k, v in weights.items()})
    )
    assert (cost.macs, cost.parameters) == (25 * 24, 24 + 6)


def test_a_table_of_bytes_counts_and_shapes_and_single_numbers_do_not():
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "i"], ["rows"]),
        helper.make_node("DequantizeLinear", ["rows", "s"], ["floats"]),
        helper.make_node("Reshape", ["floats", "shape"], ["flat"]),
        helper.make_node("Mul", ["flat", "two"], ["y"]),
    ]
    weights = {
        "table": np.ones((10, 4), np.int8),
        "s": np.float32(0.5),
        "shape": np.array([1, 8], np.int64),
        "two": np.array([2.0], np.float32),
    }
    cost = graph_cost(graph(nodes, {"x": [2]}, {"y": [1, 8]}, {k: np.asarray(v) for k, v in weights.items()}))
    assert (cost.macs, cost.parameters) == (0, 40)


def test_weights_in_constants_count_and_what_is_not_understood_is_named():
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(ones(4, 3)))
    model = graph(
        [
            constant,
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            helper.make_node("Einsum", ["m", "m"], ["y"], name="outer", equation="ij,ik->jk"),
        ],
        {"x": [2, 4]},
        {"y": [3, 3]},
        {},
    )
    cost = graph_cost(model)
    assert (cost.macs, cost.parameters, cost.uncounted) == (24, 12, ("Einsum outer",))
