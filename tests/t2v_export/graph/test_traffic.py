from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from t2v_export.graph.traffic import Traffic, graph_traffic


def node(operator, inputs, outputs, **attributes):
    return helper.make_node(operator, inputs.split(), outputs.split(), **attributes)


def graph(nodes, inputs, outputs, weights=None) -> onnx.ModelProto:
    def values(shapes):
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()]
    made = helper.make_graph(nodes, "g", values(inputs), values(outputs), tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def test_what_follows_a_convolution_pixel_by_pixel_is_part_of_its_kernel():
    nodes = [node("Conv", "x w", "c", pads=[1] * 4), node("Relu", "c", "r"), node("Add", "r x", "y")]
    model = graph(nodes, {"x": [1, 2, 4, 4]}, {"y": [1, 2, 4, 4]}, {"w": ones(2, 2, 3, 3)})
    assert graph_traffic(model) == Traffic(weight_bytes=4 * 36, activation_bytes=4 * (32 + 32), launches=1)


def test_a_tensor_between_two_kernels_is_written_once_and_read_by_each():
    nodes = [node("Gemm", "x v", "h"), node("Gemm", "h w", "a"), node("Gemm", "h u", "b"), node("Mul", "a b", "y")]
    weights = {"v": ones(3, 5), "w": ones(5, 7), "u": ones(5, 7)}
    moved = 3 + (1 + 2) * 5 + 2 * 2 * 7 + 7  # x; h by two products; a and b into the product's kernel; y
    assert graph_traffic(graph(nodes, {"x": [1, 3]}, {"y": [1, 7]}, weights)) == Traffic(4 * 85, 4 * moved, 4)


def test_reshapes_move_nothing_and_products_of_constants_are_made_beforehand():
    nodes = [node("Mul", "w two", "v"), node("Reshape", "x shape", "f"), node("Gemm", "f v", "y")]
    weights = {"w": ones(4, 3), "two": np.float32(2), "shape": np.array([1, 4], np.int64)}
    assert graph_traffic(graph(nodes, {"x": [1, 2, 2]}, {"y": [1, 3]}, weights)) == Traffic(48, 4 * (4 + 3), 1)


def test_each_reduction_is_a_kernel_and_elements_of_the_same_tensors_share_one():
    beside = [
        node("ReduceMax", "x", "a", axes=[1]),
        node("ReduceMin", "x", "b", axes=[1]),
        node("Add", "a b", "c"),
        node("Sub", "c a", "y"),
    ]
    assert graph_traffic(graph(beside, {"x": [1, 6]}, {"y": [1, 1]})) == Traffic(0, 4 * (2 * 6 + 2 + 2 + 1), 3)
    behind = [node("Softmax", "x", "a"), node("Softmax", "a", "y")]
    assert graph_traffic(graph(behind, {"x": [1, 6]}, {"y": [1, 6]})) == Traffic(0, 4 * (6 + 2 * 6 + 6), 2)


def test_elements_of_unlike_tensors_are_kernels_of_their_own_and_joining_is_another():
    nodes = [node("Exp", "x", "a"), node("Sin", "z", "b"), node("Concat", "a b", "y", axis=1)]
    model = graph(nodes, {"x": [1, 2], "z": [1, 3]}, {"y": [1, 5]})
    assert graph_traffic(model) == Traffic(0, 4 * (2 + 2 * 2 + 3 + 2 * 3 + 5), 3)


def test_a_quantized_tensor_passes_in_bytes_and_quantized_weights_are_read_in_bytes():
    nodes = [
        node("Conv", "x w", "c"),
        node("QuantizeLinear", "c s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("DequantizeLinear", "qw s z", "dw"),
        node("Conv", "d dw", "y"),
    ]
    weights = {"w": ones(2, 2, 1, 1), "s": np.float32(0.5), "z": np.int8(0), "qw": np.ones((3, 2, 1, 1), np.int8)}
    moved = 4 * 8 + (1 + 1) * 8 + 4 * 12
    model = graph(nodes, {"x": [1, 2, 2, 2]}, {"y": [1, 3, 2, 2]}, weights)
    assert graph_traffic(model) == Traffic(4 * 4 + 6, moved, 2)


def test_half_precision_halves_the_bytes_and_stored_halves_are_read_as_they_are_computed():
    nodes = [
        node("Cast", "x", "h", to=TensorProto.FLOAT16),
        node("Gemm", "h w", "g"),
        node("Cast", "g", "f", to=TensorProto.FLOAT),
        node("Cast", "v", "vf", to=TensorProto.FLOAT),
        node("Gemm", "f vf", "y"),
    ]
    weights = {"w": np.ones((4, 5), np.float16), "v": np.ones((5, 2), np.float16)}
    # x read, h passes in halves, f in floats (its cast is part of the product), y
    moved = 4 * 4 + 2 * 2 * 4 + 2 * 4 * 5 + 4 * 2
    assert graph_traffic(graph(nodes, {"x": [1, 4]}, {"y": [1, 2]}, weights)) == Traffic(2 * 20 + 4 * 10, moved, 3)


def test_of_a_table_only_the_rows_taken_count():
    nodes = [node("Cast", "x", "i", to=TensorProto.INT64), node("Gather", "table i", "y")]
    model = graph(nodes, {"x": [3]}, {"y": [3, 8]}, {"table": ones(1000, 8)})
    assert graph_traffic(model) == Traffic(4 * 3 * 8, 4 * 3 + 2 * 8 * 3 + 4 * 24, 2)


@pytest.mark.parametrize("operator, shape", [("Relu", ["n", 4]), ("NonZero", [2, "n"])])
def test_a_graph_whose_shapes_are_not_known_has_no_figure(operator, shape):
    taken = ["n", 4] if operator == "Relu" else [1, 4]
    made = helper.make_graph(
        [node(operator, "x", "a"), node("Identity", "a", "b"), node("Cast", "b", "y", to=TensorProto.FLOAT)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, taken)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    assert graph_traffic(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)) is None


def test_a_graph_with_a_subgraph_has_no_figure():
    body = helper.make_graph(
        [node("Identity", "x", "z")], "b", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])]
    )
    nodes = [
        node("ReduceSum", "x", "s", keepdims=0),
        node("Cast", "s", "c", to=TensorProto.BOOL),
        node("If", "c", "y", then_branch=body, else_branch=body),
    ]
    assert graph_traffic(graph(nodes, {"x": [2]}, {"y": [2]})) is None
