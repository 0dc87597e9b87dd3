"""What a graph costs on paper: multiply-accumulates and parameters, read from its ONNX."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper, numpy_helper

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
# Operators that multiply matrices and whose cost is not known here: a figure that leaves them out says so.
UNKNOWN = (
    "Einsum",
    "Attention",
    "MultiHeadAttention",
    "QLinearConv",
    "QLinearMatMul",
    "QGemm",
    "ConvInteger",
    "MatMulInteger",
    "Loop",
    "Scan",
    "If",
)
_BYTES = (TensorProto.INT8, TensorProto.UINT8)
_SCALES = (1, 2)  # inputs of QuantizeLinear and DequantizeLinear that say how to read the others

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class GraphCost:
    """Of one run: `macs`, multiply-accumulates of Conv, ConvTranspose, Gemm, MatMul and recurrent operators.

    `parameters`: elements of the weights, quantized or not; scales, zero-points, shapes and single numbers do not
    count. `uncounted`: nodes that multiply too, and whose shapes or kind are not understood, by operator.
    """

    macs: int
    parameters: int
    uncounted: tuple[str, ...] = ()


def graph_cost(model: onnx.ModelProto) -> GraphCost:
    """Count a graph of static shapes."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes = _shapes(inferred.graph)
    macs, uncounted = 0, []
    for node in inferred.graph.node:
        try:
            macs += node_macs(node, shapes)
        except KeyError:
            uncounted.append(f"{node.op_type} {node.name}".strip())
        if node.op_type in UNKNOWN:
            uncounted.append(f"{node.op_type} {node.name}".strip())
    return GraphCost(macs, count_parameters(model.graph), tuple(uncounted))


def node_macs(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Multiply-accumulates of one node, 0 for those that multiply no matrices; `KeyError` where a shape is missing."""
    if node.op_type == "Conv":
        weight = shapes[node.input[1]]  # (out, in / groups, *kernel)
        return math.prod(shapes[node.output[0]]) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        weight = shapes[node.input[1]]  # (in, out / groups, *kernel)
        return math.prod(shapes[node.input[0]]) * math.prod(weight[1:])
    if node.op_type == "MatMul":
        return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else 1]
    if node.op_type in GATES:
        steps, batch, _ = shapes[node.input[0]]
        return steps * batch * sum(math.prod(shapes[name]) for name in node.input[1:3])
    return 0


def count_parameters(graph: onnx.GraphProto) -> int:
    """Elements of all weights of a graph, as initializers or constants, each once."""
    tensors = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            tensors[node.output[0]] = node.attribute[0].t
    found = set()
    for node in graph.node:
        quantizing = node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for place, name in enumerate(node.input):
            tensor = tensors.get(name)
            if tensor is None or (quantizing and place in _SCALES) or math.prod(tensor.dims) < 2:
                continue
            if tensor.data_type in (*FLOATS, *_BYTES) or quantizing:
                found.add(name)
    return sum(math.prod(tensors[name].dims) for name in found)


def _shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    shapes = {t.name: tuple(t.dims) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            value = helper.get_attribute_value(node.attribute[0])
            if isinstance(value, TensorProto):
                shapes[node.output[0]] = tuple(numpy_helper.to_array(value).shape)
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            shapes[value.name] = tuple(d.dim_value for d in tensor.shape.dim)
    return shapes
