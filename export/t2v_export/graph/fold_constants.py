"""Folding of constants: what depends on constants alone, shapes included, is computed once and stored."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from t2v_export.graph import view

MAX_FOLDED_ELEMENTS = 1 << 16
UNFOLDABLE = {
    *("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Loop", "If", "Scan"),
    *("QuantizeLinear", "DequantizeLinear"),
}


def fold_constants(model: ir.Model) -> ir.Model:
    """A view of the same graph, in which a value that depends on constants alone is a constant.

    Shapes are static, so the result of a Shape node is such a value. A result that is large and larger than its inputs
    is left to the engine, so that files do not grow.
    """
    while True:
        model = view.read(onnx.shape_inference.infer_shapes(view.write(model)))
        graph = model.graph
        _fix_shapes(graph)
        nodes = _known_nodes(graph)
        values = _evaluate(model, nodes)
        folded = [node for node in nodes if _is_small(node, values)]
        if not folded:
            return model
        for node in folded:
            view.hold(graph, node, [values[view.name_of(output)] for output in node.outputs])
        view.drop_dead(graph)


def _fix_shapes(graph: ir.Graph) -> None:
    """Turn Shape nodes of values with a static shape into constants."""
    for node in graph:
        shape = view.static_shape(view.operand(node)) if node.op_type == "Shape" and not node.attributes else None
        if shape is not None and not node.outputs[0].is_graph_output():
            view.hold(graph, node, [np.asarray(shape, dtype=np.int64)])


def _known_nodes(graph: ir.Graph) -> list[ir.Node]:
    """The nodes that depend on constants alone and give no output of the graph, in order."""
    nodes: dict[ir.Node, None] = {}
    for node in graph:
        known = all(i is None or view.is_constant(i) or i.producer() in nodes for i in node.inputs)
        if known and node.op_type not in UNFOLDABLE and not any(o.is_graph_output() for o in node.outputs):
            nodes[node] = None
    return list(nodes)


def _is_small(node: ir.Node, values: dict[str, view.Array]) -> bool:
    inputs = [values[i.name] if i.name in values else view.array(i) for i in node.inputs if i is not None]
    allowed = max([MAX_FOLDED_ELEMENTS, *(value.size for value in inputs)])
    return max(values[view.name_of(output)].size for output in node.outputs) <= allowed


def _evaluate(model: ir.Model, nodes: list[ir.Node]) -> dict[str, view.Array]:
    """All outputs of nodes that depend on constants alone, by name."""
    if not nodes:
        return {}
    inputs = {view.name_of(i): i for node in nodes for i in node.inputs if i is not None and view.is_constant(i)}
    names = [view.name_of(output) for node in nodes for output in node.outputs if output.name]
    part = helper.make_graph(
        [ir.to_proto(node) for node in nodes],
        "constants",
        [ir.to_proto(value) for value in inputs.values()],
        [onnx.ValueInfoProto(name=name) for name in names],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    whole = helper.make_model(part, opset_imports=opsets, ir_version=view.IR_VERSION)
    session = view.open_session(whole, optimized=False, threads=1)
    return view.run(session, names, {name: view.array(value) for name, value in inputs.items()})
