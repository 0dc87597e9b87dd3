"""Weights of an INT8 graph as float32 behind Q and DQ, in place of whole numbers behind DQ: the same graph, larger.

TensorRT 8.6 was measured not to build a BERT whose weights are stored in INT8; NVIDIA's own exporters write Q and DQ
behind float weights, and the builder makes the whole numbers itself.
"""

from __future__ import annotations

import numpy as np
import onnx

from t2v_edge.spec import StageSpec
from t2v_export.graph.clean import check_graph
from t2v_export.graph.operators import DQ, Q, along, quantized_axis
from t2v_export.graph.view import add_constant, array, drop_dead, is_constant, make_node, operand, read, write


def float_weights(model: onnx.ModelProto, spec: StageSpec) -> onnx.ModelProto:
    """The graph with each int8 constant behind a DQ as float32 behind a Q and that DQ; `model` is left as it is.

    A float weight is its whole number times its scale, rounded to float32: the quotient of the two is within 1e-4 of
    the whole number, so that Q gives it again, exactly. Weights take four times as many bytes. Raises `SpecError` where
    the graph made is not valid.
    """
    view = read(model)
    for node in view.graph:
        whole = operand(node)
        if node.op_type != DQ or not is_constant(whole) or array(whole).dtype != np.int8:
            continue
        axis, name = quantized_axis(node), node.outputs[0].name
        weight = array(whole) * along(array(operand(node, 1)), axis, array(whole).ndim)
        inputs = [add_constant(view.graph, f"{name}.float", weight), *node.inputs[1:]]
        quantizer = make_node(Q, inputs, f"{name}.int8", f"{node.name}/q", axis=axis)
        node.prepend(quantizer)
        node.replace_input_with(0, quantizer.outputs[0])
    drop_dead(view.graph)
    made = write(view)
    check_graph(made, spec)
    return made
