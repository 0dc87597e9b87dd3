"""SmoothQuant (Xiao et al., ICML 2023): outliers of activations move into weights, which have a scale a channel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from t2v_calibration.calibration_set import Feeds

SAMPLES = 128  # that the largest activations are read from
SMALLEST, LARGEST = 1e-3, 1e3  # factors: further ones would only lose float32 digits


def smooth(
    model: onnx.ModelProto, layers: Collection[str], samples: Sequence[Feeds], strength: float
) -> onnx.ModelProto:
    """The same float32 function, easier to quantize: what a LayerNorm gives to some of `layers` is divided, for each
    channel, by largest activation ^ `strength` / largest weight ^ (1 - `strength`), and their weights multiplied by it.

    Only MatMuls that read a LayerNorm itself are touched. Where something else reads it too (a residual sum), they get
    a LayerNorm of their own. A graph without any comes back as it is; `model` is not changed.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    known = {t.name: t for t in graph.initializer}
    norms = {n.output[0]: n for n in graph.node if n.op_type == "LayerNormalization" and _is_plain(n, known)}
    read_by: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            read_by[name].append(node)
    smoothed = {}
    for name in norms:
        found = [n for n in read_by[name] if n.op_type == "MatMul" and n.name in layers and n.input[0] == name]
        if found:
            smoothed[name] = found
    if not smoothed:
        return model
    largest = _largest(model, tuple(smoothed), samples[:SAMPLES])
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        found = smoothed.get(node.output[0], [])
        if found:
            nodes.append(_own_norm(graph, node, found, known, largest[node.output[0]], strength))
    copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copied)
    outputs = {o.name for o in graph.output}
    used = outputs.union(*(n.input for n in graph.node))
    for node in [n for n in graph.node if n.op_type == "LayerNormalization" and not used & set(n.output)]:
        graph.node.remove(node)
    used = outputs.union(*(n.input for n in graph.node))
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
    return model


def _is_plain(node: onnx.NodeProto, known: Collection[str]) -> bool:
    """Whether a LayerNorm works on the last axis, with a constant weight and bias."""
    last = all(a.name != "axis" or a.i == -1 for a in node.attribute)
    return last and len(node.input) == 3 and all(name in known for name in node.input[1:])


def _largest(model: onnx.ModelProto, names: Sequence[str], samples: Sequence[Feeds]) -> dict[str, NDArray[np.float32]]:
    watched = onnx.ModelProto.FromString(model.SerializeToString())
    watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: dict[str, NDArray[np.float32]] = {}
    for feeds in samples:
        for name, value in zip(names, session.run(list(names), dict(feeds))):
            most = np.abs(value).reshape(-1, value.shape[-1]).max(0)
            found[name] = np.maximum(found[name], most) if name in found else most
    return found


def _own_norm(
    graph: onnx.GraphProto,
    norm: onnx.NodeProto,
    layers: Sequence[onnx.NodeProto],
    known: dict[str, onnx.TensorProto],
    largest: NDArray[np.float32],
    strength: float,
) -> onnx.NodeProto:
    """Scale the weights of `layers` in place and let them read a copy of `norm` that is divided by as much."""
    weights = [numpy_helper.to_array(known[node.input[1]]) for node in layers]
    heaviest = np.max([np.abs(w).max(1) for w in weights], axis=0)
    factors = np.maximum(largest, 1e-8) ** strength / np.maximum(heaviest, 1e-8) ** (1 - strength)
    factors = np.clip(factors, SMALLEST, LARGEST).astype(np.float32)
    own = onnx.NodeProto.FromString(norm.SerializeToString())
    own.name, own.output[0] = f"{norm.name}.smooth", f"{norm.output[0]}.smooth"
    for position, kind in ((1, "weight"), (2, "bias")):
        value = numpy_helper.to_array(known[norm.input[position]]) / factors
        own.input[position] = f"{own.name.lstrip('/')}.{kind}"
        graph.initializer.append(numpy_helper.from_array(value, own.input[position]))
    for node, weight in zip(layers, weights):
        node.input[0], node.input[1] = own.output[0], f"{node.name.lstrip('/')}.smooth"
        graph.initializer.append(numpy_helper.from_array(weight * factors[:, None], node.input[1]))
    return own
