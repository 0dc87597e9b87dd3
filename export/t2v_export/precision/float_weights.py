"""INT8 graphs whose weights are float32 behind Q and DQ, in place of whole numbers behind DQ: the same, but larger.

TensorRT 8.6 does not build a BERT with weights stored in INT8. NVIDIA's own exporters write float weights, Q and DQ,
and the builder makes the whole numbers itself.
"""

from __future__ import annotations

import numpy as np
import onnx

from t2v_edge.spec import StageSpec
from t2v_export.graph import view
from t2v_export.graph.clean import finished
from t2v_export.graph.operators import DQ, Q, along, quantized_axis


def float_weights(model: onnx.ModelProto, spec: StageSpec) -> onnx.ModelProto:
    """The graph with float32 constants and a Q in front of each DQ that reads an int8 one; `model` stays as it is.

    A float weight is the whole number times the scale, rounded to float32. Their quotient is within 1e-4 of the whole
    number, so Q gives it exactly. Weights take four times the bytes. Raises `SpecError` if the new graph is not valid.
    """
    opened = view.read(model)
    for node in opened.graph:
        whole = view.operand(node)
        if node.op_type != DQ or not view.is_constant(whole) or view.array(whole).dtype != np.int8:
            continue
        axis, name = quantized_axis(node), node.outputs[0].name
        weight = view.array(whole) * along(view.constant(node, 1), axis, view.array(whole).ndim)
        inputs = [view.add_constant(opened.graph, f"{name}.float", weight), *node.inputs[1:]]
        quantizer = view.make_node(Q, inputs, f"{name}.int8", f"{node.name}/q", axis=axis)
        node.prepend(quantizer)
        node.replace_input_with(0, quantizer.outputs[0])
    return finished(opened, spec)
