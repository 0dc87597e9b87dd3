"""What a graph costs on paper: multiply-accumulates and parameters, read from its ONNX."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from t2v_export.graph import view
from t2v_export.graph.operators import CONVOLUTIONS, DQ, RECURRENT, Q

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
UNKNOWN = (
    *("Einsum", "Attention", "MultiHeadAttention", "QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger"),
    *("MatMulInteger", "Loop", "Scan", "If"),
)
"""Operators that multiply matrices and whose cost is not known here. A figure that leaves them out names them."""

_BYTES = (ir.DataType.INT8, ir.DataType.UINT8)
_SCALES = (1, 2)  # inputs of QuantizeLinear and DequantizeLinear that say how to read the others


@dataclass(frozen=True)
class GraphCost:
    """The cost of one run.

    `macs`: multiply-accumulates of Conv, ConvTranspose, Gemm, MatMul and recurrent operators. `parameters`: elements of
    the weights, quantized or not; scales, zero-points, shapes and single numbers do not count. `uncounted`: other nodes
    that multiply, and nodes whose shapes are not known.
    """

    macs: int
    parameters: int
    uncounted: tuple[str, ...] = ()


def graph_cost(model: onnx.ModelProto) -> GraphCost:
    """The cost of a graph of static shapes."""
    opened = view.read(model, typed=True)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(opened)
    macs, uncounted = 0, []
    for node in opened.graph:
        try:
            macs += node_macs(node)
        except KeyError:
            uncounted.append(f"{node.op_type} {node.name}".strip())
        if node.op_type in UNKNOWN:
            uncounted.append(f"{node.op_type} {node.name}".strip())
    return GraphCost(macs, _count_parameters(opened.graph), tuple(uncounted))


def node_macs(node: ir.Node) -> int:
    """Multiply-accumulates of one node; 0 if it multiplies no matrices. Raises `KeyError` if a shape is not known."""
    if node.op_type in CONVOLUTIONS:  # weights: (out, in / groups, *kernel), transposed (in, out / groups, *kernel)
        spread = view.operand(node) if node.op_type == "ConvTranspose" else node.outputs[0]
        return view.elements(spread) * math.prod(view.known_shape(view.operand(node, 1))[1:])
    if node.op_type in ("MatMul", "Gemm"):
        axis = 0 if node.attributes.get_int("transA", 0) else -1
        return view.elements(node.outputs[0]) * view.known_shape(view.operand(node))[axis]
    if node.op_type in RECURRENT:
        steps, batch, _ = view.known_shape(view.operand(node))
        return steps * batch * sum(view.elements(value) for value in node.inputs[1:3])
    return 0


def _count_parameters(graph: ir.Graph) -> int:
    """The elements of all weights of a graph, each constant once."""
    found: dict[str, int] = {}
    for node in graph:
        for place, value in enumerate(node.inputs):
            if value is None or not view.is_constant(value) or (node.op_type in (Q, DQ) and place in _SCALES):
                continue
            if view.elements(value) > 1 and (value.dtype in (*FLOATS, *_BYTES) or node.op_type in (Q, DQ)):
                found[view.name_of(value)] = view.elements(value)
    return sum(found.values())
