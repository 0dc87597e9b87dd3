"""Weights of an INT8 graph as float32 behind Q and DQ, in place of whole numbers behind DQ: the same graph, larger.

TensorRT 8.6 was measured not to build a BERT whose weights are stored in INT8; NVIDIA's own exporters write Q and DQ
behind float weights, and the builder makes the whole numbers itself.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from t2v_edge.spec import StageSpec
from t2v_export.graph.clean import check_graph, constants


def float_weights(model: onnx.ModelProto, spec: StageSpec) -> onnx.ModelProto:
    """The graph with each int8 constant behind a DQ as float32 behind a Q and that DQ; `model` is left as it is.

    A float weight is its whole number times its scale, rounded to float32: the quotient of the two is within 1e-4 of
    the whole number, so that Q gives it again, exactly. Weights take four times as many bytes. Raises `SpecError` where
    the graph made is not valid.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    known = constants(graph)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        whole = known.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if whole is not None and whole.dtype == np.int8:
            axis = next((int(a.i) for a in node.attribute if a.name == "axis"), 1)
            scales = known[node.input[1]]
            shape = [-1 if i == axis % whole.ndim else 1 for i in range(whole.ndim)] if scales.ndim else []
            name = f"{node.output[0]}.float"
            graph.initializer.append(numpy_helper.from_array(whole * scales.reshape(shape), name))
            inputs, made = [name, *node.input[1:]], [f"{node.output[0]}.int8"]
            nodes.append(helper.make_node("QuantizeLinear", inputs, made, name=f"{node.name}/q", axis=axis))
            node.input[0] = made[0]
        nodes.append(node)
    copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copied)
    used = {i for node in copied for i in node.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
    check_graph(model, spec)
    return model
