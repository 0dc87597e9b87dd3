"""Folding into layers: nodes that scale and shift a layer's outputs become part of its weights and its bias.

Layers are convolutions and products of matrices with constant weights. The functions edit the graph in place.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from t2v_export.graph import view
from t2v_export.graph.operators import CONVOLUTIONS, WEIGHTED, along, out_axis


def fold_batch_norm(graph: ir.Graph) -> None:
    """Fold each BatchNorm, as it is in evaluation, into the convolution or linear layer before it.

    y = gamma (Wx + b - mean) / sqrt(var + eps) + beta. A reshape may stand between a linear layer and a norm over
    channels, and a pixel shuffle between a convolution and its norm. A norm behind anything else stays.
    """
    for norm in graph:
        if norm.op_type != "BatchNormalization":
            continue
        last = before = view.maker(view.operand(norm))
        if last is not None and last.op_type in ("Reshape", "DepthToSpace") and view.only_reader(last.outputs[0]):
            before = view.maker(view.operand(last))
        if last is None or before is None or not _is_foldable(before):
            continue
        gamma, beta, mean, variance = (view.array(value).astype(np.float64) for value in norm.inputs[1:5])
        scale = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
        shift = beta - mean * scale
        if last is not before:
            repeats = _channel_repeats(before, last, scale.size)
            if not repeats:
                continue
            scale, shift = np.repeat(scale, repeats), np.repeat(shift, repeats)
        prefix = norm.name or ""
        _scale_layer(graph, before, scale, shift, prefix)
        made = last.outputs[0]
        if before.op_type == "MatMul":
            added = view.add_constant(graph, f"{prefix}/shift", shift.astype(np.float32))
            made.name = f"{made.name}/scaled"
            last = view.make_node("Add", [made, added], view.name_of(norm.outputs[0]), f"{prefix}/Add")
            before.append(last)
        view.replace(norm.outputs[0], last.outputs[0])
        graph.remove(norm, safe=True)


def _is_foldable(layer: ir.Node) -> bool:
    weighted = layer.op_type in WEIGHTED and all(view.is_constant(value) for value in layer.inputs[1:])
    return weighted and view.only_reader(layer.outputs[0]) is not None


def _channel_repeats(layer: ir.Node, between: ir.Node, channels: int) -> int:
    """How many outputs of a layer, in a row, become one channel by a reshape or pixel shuffle; 0 if they do not."""
    features = view.constant(layer, 1).shape[out_axis(layer)]
    if between.op_type == "DepthToSpace":
        shuffled = between.attributes.get_string("mode", "DCR") == "CRD"
        return features // channels if shuffled and layer.op_type == "Conv" else 0
    if layer.op_type != "Gemm" or not view.is_constant(view.operand(between, 1)):
        return 0
    shape = view.constant(between, 1)
    if shape.size < 3 or features != int(np.prod(shape[1:])):
        return 0
    return features // channels if shape[1] == channels else 0


def fold_pixels(graph: ir.Graph) -> None:
    """Let a last convolution whose pixels are clipped give levels itself.

    Behind a layer, scales, offsets and clips become the last clip alone, if no other clip cuts off more. The layer's
    weights are scaled instead. Any other squashing, such as a sigmoid, stays.
    """
    for layer in graph:
        if layer.op_type not in (*CONVOLUTIONS, "Gemm") or not all(
            view.is_constant(value) for value in layer.inputs[1:]
        ):
            continue
        chain = _clip_chain(layer.outputs[0])
        if len(chain) < 2:
            continue
        scale, shift, low, high = _combined(chain[:-1])
        last, (least, most) = chain[-1]
        if scale <= 0 or low > least or high < most:
            continue
        groups = layer.attributes.get_int("group", 1) if layer.op_type == "ConvTranspose" else 1
        size = view.constant(layer, 1).shape[out_axis(layer)] * groups
        _scale_layer(graph, layer, np.full(size, scale), np.full(size, shift), f"{layer.name}/levels")
        last.replace_input_with(0, layer.outputs[0])
        graph.remove([node for node, _ in chain[:-1]], safe=True)


def _clip_chain(made: ir.Value) -> list[tuple[ir.Node, list[float]]]:
    """The products, sums and clips by single numbers behind a value, up to the last clip; with their numbers."""
    chain: list[tuple[ir.Node, list[float]]] = []
    while (node := view.only_reader(made, "Mul", "Add", "Clip")) is not None:
        numbers = [view.array(value) for value in node.inputs if view.is_constant(value)]
        if any(n.size != 1 for n in numbers) or len(numbers) != (2 if node.op_type == "Clip" else 1):
            break
        chain.append((node, [float(n.reshape(())) for n in numbers]))
        made = node.outputs[0]
    while chain and chain[-1][0].op_type != "Clip":
        chain.pop()
    return chain


def _combined(chain: list[tuple[ir.Node, list[float]]]) -> tuple[float, float, float, float]:
    """What a chain does as one: the scale, the offset, and the bounds of its clips in its last units."""
    scale, shift, low, high = 1.0, 0.0, -np.inf, np.inf
    for node, numbers in chain:
        if node.op_type == "Clip":
            low, high = max(low, numbers[0]), min(high, numbers[1])
            continue
        factor, term = (numbers[0], 0.0) if node.op_type == "Mul" else (1.0, numbers[0])
        scale *= factor
        shift, low, high = (x * factor + term for x in (shift, low, high))
    return scale, shift, low, high


def _scale_layer(graph: ir.Graph, node: ir.Node, scale: view.Array, shift: view.Array, name: str) -> None:
    """Give a layer the weights W * scale and, but for MatMul, the bias b * scale + shift."""
    weight = view.constant(node, 1).astype(np.float64)
    if node.op_type == "ConvTranspose":  # (in, out / groups, ...): group g makes outputs g * out / groups and on
        groups = node.attributes.get_int("group", 1)
        per_input = np.repeat(scale.reshape(groups, -1), weight.shape[0] // groups, axis=0)
        weight = weight * per_input.reshape(*per_input.shape, *[1] * (weight.ndim - 2))
    else:
        weight = weight * along(scale, out_axis(node), weight.ndim)
    node.replace_input_with(1, view.add_constant(graph, f"{name}/weight", weight.astype(np.float32)))
    if node.op_type == "MatMul":
        return
    bias = view.constant(node, 2).astype(np.float64) * scale + shift if view.operand(node, 2) is not None else shift
    view.set_operand(node, 2, view.add_constant(graph, f"{name}/bias", bias.astype(np.float32)))
