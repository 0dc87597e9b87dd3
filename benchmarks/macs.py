"""Multiply-accumulates of an ONNX graph, counted from its shapes."""

from __future__ import annotations

import math

import onnx

COUNTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
Shape = tuple[int, ...]


def count_macs(model: onnx.ModelProto) -> int:
    """Multiply-accumulates of one run: convolutions, transposed ones, and matrix products, sums of bias left out.

    A Q/DQ graph counts as the float graph it stands for. Raises ValueError where a shape is not static.
    """
    shapes = _shapes(model)
    return sum(_node_macs(node, shapes) for node in model.graph.node if node.op_type in COUNTED)


def _shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in [*graph.value_info, *graph.input, *graph.output]:
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes


def _node_macs(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    try:
        first, second, made = shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
    except KeyError as error:
        raise ValueError(f"{node.name or node.op_type}: {error} has no static shape; export with fixed sizes") from None
    if node.op_type == "Conv":  # each output element: all taps of its group's inputs
        return math.prod(made) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":  # each input element meets all taps of its group's outputs
        return math.prod(first) * math.prod(second[1:])
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return math.prod(made) * first[0 if transposed else 1]
    return math.prod(made) * first[-1]
