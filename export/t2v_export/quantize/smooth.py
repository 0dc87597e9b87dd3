"""SmoothQuant (Xiao et al., ICML 2023): outliers of activations move into weights, which have a scale a channel."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from t2v_calibration.calibration_set import Feeds
from t2v_export.graph import view

SAMPLES = 128  # for the largest activations
SMALLEST, LARGEST = 1e-3, 1e3  # bounds of the factors, beyond which float32 only loses digits


def smooth(
    model: onnx.ModelProto, layers: Collection[str], samples: Sequence[Feeds], strength: float
) -> onnx.ModelProto:
    """The same float32 function, easier to quantize; `model` stays as it is.

    The MatMuls of `layers` that read a LayerNorm get a copy of it, divided by a factor for each channel. Their weights
    are multiplied by the factor: largest activation ^ `strength` / largest weight ^ (1 - `strength`). Other readers,
    such as a residual sum, keep the LayerNorm. A graph without such layers comes back as it is.
    """
    opened = view.read(model)
    graph = opened.graph
    smoothed = {}
    for node in graph:
        if node.op_type == "LayerNormalization" and _is_plain(node):
            uses = [use.node for use in node.outputs[0].uses() if use.idx == 0]
            found = [reader for reader in uses if reader.op_type == "MatMul" and reader.name in layers]
            if found:
                smoothed[node] = found
    if smoothed:
        largest = _largest(model, [view.name_of(norm.outputs[0]) for norm in smoothed], samples[:SAMPLES])
        for norm, found in smoothed.items():
            _add_norm(graph, norm, found, largest[view.name_of(norm.outputs[0])], strength)
        view.drop_dead(graph)
    return view.write(opened)


def _is_plain(node: ir.Node) -> bool:
    """Whether a LayerNorm works on the last axis, with a constant weight and bias."""
    last = node.attributes.get_int("axis", -1) == -1
    return last and len(node.inputs) == 3 and all(view.is_constant(value) for value in node.inputs[1:])


def _largest(model: onnx.ModelProto, names: Sequence[str], samples: Sequence[Feeds]) -> dict[str, NDArray[np.float32]]:
    """The largest absolute value of each channel of the tensors `names`."""
    session = view.open_session(view.with_outputs(model, names))
    found: dict[str, NDArray[np.float32]] = {}
    for feeds in samples:
        for name, value in view.run(session, names, feeds).items():
            most = np.abs(value).reshape(-1, value.shape[-1]).max(0)
            found[name] = np.maximum(found[name], most) if name in found else most
    return found


def _add_norm(
    graph: ir.Graph, norm: ir.Node, layers: Sequence[ir.Node], largest: NDArray[np.float32], strength: float
) -> None:
    """Scale the weights of `layers` and let them read a copy of `norm` that is divided by as much."""
    weights = [view.constant(node, 1) for node in layers]
    heaviest = np.max([np.abs(w).max(1) for w in weights], axis=0)
    factors = np.maximum(largest, 1e-8) ** strength / np.maximum(heaviest, 1e-8) ** (1 - strength)
    factors = np.clip(factors, SMALLEST, LARGEST).astype(np.float32)
    name = f"{norm.name}.smooth"
    inputs = [view.operand(norm)]
    for place, kind in ((1, "weight"), (2, "bias")):
        inputs.append(view.add_constant(graph, f"{name.lstrip('/')}.{kind}", view.constant(norm, place) / factors))
    outputs = [ir.Value(name=f"{norm.outputs[0].name}.smooth")]
    own = ir.node(norm.op_type, inputs, norm.attributes, outputs=outputs, name=name, doc_string=norm.doc_string)
    norm.append(own)
    for node, weight in zip(layers, weights):
        scaled = view.add_constant(graph, f"{view.bare_name(node)}.smooth", weight * factors[:, None])
        node.replace_input_with(0, outputs[0])
        node.replace_input_with(1, scaled)
