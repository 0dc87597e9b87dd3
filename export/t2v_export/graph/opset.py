"""Raising of a graph's opset: operators of another form are rewritten, operators that may differ are refused."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from t2v_edge.errors import SpecError
from t2v_export.graph import view

HALF_SCALES = 19
"""The first opset whose QuantizeLinear and DequantizeLinear take float16."""

IR_VERSIONS = {18: 8, 19: 9, 20: 9}  # onnx's own table, onnx.helper.VERSION_TABLE; older opsets have view.IR_VERSION
MAX_OPSET = max(IR_VERSIONS)
WIDENED = {
    *("Add", "AveragePool", "BatchNormalization", "Cast", "CumSum", "DequantizeLinear", "Div", "Equal", "GRU"),
    *("GreaterOrEqual", "Identity", "LSTM", "LeakyRelu", "LessOrEqual", "Mul", "PRelu", "Pad", "Pow", "QuantizeLinear"),
    *("Relu", "Reshape", "Resize", "ScatterND", "Shape", "Sub", "Where"),
}
"""Operators that gained types, attributes or inputs between opsets 13 and 20, with defaults that change nothing."""


def raise_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The same function in `opset`, 18 to `MAX_OPSET`. `model`, of opset 13 to 17, stays as it is.

    In opset 18 the axes of a reduction became an input, and the number of a Split's parts an attribute. Raises
    `SpecError`, which names a node whose operator is not known to mean the same.
    """
    opened = view.read(model)
    graph, before = opened.graph, opened.opset_imports[""]
    for node in graph:
        was, now = (onnx.defs.get_schema(node.op_type, version, "").since_version for version in (before, opset))
        if was == now or node.op_type in WIDENED:
            continue
        if node.op_type.startswith("Reduce"):
            _axes_to_input(graph, node)
        elif node.op_type == "Split":
            if view.operand(node, 1) is None:
                node.attributes.add(ir.AttrInt64("num_outputs", len(node.outputs)))
        else:
            raise SpecError(
                f"{graph.name}: node {node.name} is of {node.op_type}, which opset {opset} may have changed; "
                f"keep to opset {before}"
            )
    opened.opset_imports[""] = opset
    opened.ir_version = IR_VERSIONS.get(opset, view.IR_VERSION)
    return view.write(opened)


def _axes_to_input(graph: ir.Graph, node: ir.Node) -> None:
    axes = node.attributes.pop("axes", None)
    if axes is not None:
        name = "axes." + "_".join(str(axis) for axis in axes.as_ints())
        view.set_operand(node, 1, view.add_constant(graph, name, np.array(axes.as_ints(), np.int64)))
