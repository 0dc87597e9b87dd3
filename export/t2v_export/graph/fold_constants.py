"""Folding of constants: what depends on constants alone, shapes included, is computed once and stored."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from t2v_export.graph.view import (
    IR_VERSION,
    Array,
    add_constant,
    array,
    drop_dead,
    is_constant,
    name_of,
    open_session,
    operand,
    read,
    run,
    static_shape,
    write,
)

MAX_FOLDED_ELEMENTS = 1 << 16
UNFOLDABLE = {
    *("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Loop", "If", "Scan"),
    *("QuantizeLinear", "DequantizeLinear"),
}


def fold_constants(model: ir.Model) -> ir.Model:
    """A view of the same graph, in which each value that depends on constants alone is a constant.

    Shapes are static, so a Shape node is such a value. A result that is both large and larger than its inputs is left
    to the engine: files do not grow.
    """
    while True:
        model = read(onnx.shape_inference.infer_shapes(write(model)))
        graph = model.graph
        _fix_shapes(graph)
        nodes = _known_nodes(graph)
        values = _evaluate(model, nodes)
        folded = [node for node in nodes if _is_small(node, values)]
        if not folded:
            return model
        for node in folded:
            for output in node.outputs:
                output.replace_all_uses_with(add_constant(graph, name_of(output), values[name_of(output)]))
            graph.remove(node, safe=True)
        drop_dead(graph)


def _fix_shapes(graph: ir.Graph) -> None:
    """Turn Shape nodes of values with a static shape into constants."""
    for node in graph:
        shape = static_shape(operand(node)) if node.op_type == "Shape" and not node.attributes else None
        made = node.outputs[0]
        if shape is not None and not made.is_graph_output():
            made.replace_all_uses_with(add_constant(graph, name_of(made), np.asarray(shape, dtype=np.int64)))
            graph.remove(node, safe=True)


def _known_nodes(graph: ir.Graph) -> list[ir.Node]:
    """The nodes that depend on constants alone, in order; those that give an output of the graph are not among them."""
    nodes: dict[ir.Node, None] = {}
    for node in graph:
        known = all(i is None or is_constant(i) or i.producer() in nodes for i in node.inputs)
        if known and node.op_type not in UNFOLDABLE and not any(o.is_graph_output() for o in node.outputs):
            nodes[node] = None
    return list(nodes)


def _is_small(node: ir.Node, values: dict[str, Array]) -> bool:
    inputs = [values[i.name] if i.name in values else array(i) for i in node.inputs if i is not None]
    allowed = max([MAX_FOLDED_ELEMENTS, *(value.size for value in inputs)])
    return max(values[name_of(output)].size for output in node.outputs) <= allowed


def _evaluate(model: ir.Model, nodes: list[ir.Node]) -> dict[str, Array]:
    """All outputs of nodes that depend on constants alone, by name."""
    if not nodes:
        return {}
    inputs = {name_of(i): i for node in nodes for i in node.inputs if i is not None and is_constant(i)}
    names = [name_of(output) for node in nodes for output in node.outputs if output.name]
    part = helper.make_graph(
        [ir.to_proto(node) for node in nodes],
        "constants",
        [ir.to_proto(value) for value in inputs.values()],
        [onnx.ValueInfoProto(name=name) for name in names],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    session = open_session(helper.make_model(part, opset_imports=opsets, ir_version=IR_VERSION), False, threads=1)
    return run(session, names, {name: array(value) for name, value in inputs.items()})
