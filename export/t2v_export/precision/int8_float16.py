"""The INT8 variant whose other parts compute in float16 by their own types, for a strongly typed TensorRT.

Since 10.12 TensorRT takes the precision of a layer from the graph. In an `int8` graph the parts that are not quantized
are float32. Here they are float16, as in the float16 variant. Q and DQ have float16 scales, which opset 19 allows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from t2v_edge.spec import StageSpec
from t2v_export.graph import view
from t2v_export.graph.clean import finished
from t2v_export.graph.operators import DQ, Q, along, quantized_axis
from t2v_export.graph.opset import HALF_SCALES, raise_opset
from t2v_export.precision.float16 import compute_half

FLOAT, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16
LEAST_SCALE = 2.0**-17
"""The least scale of weights. Float16's steps there are 2^-24: 127 times the error is within half a level."""


@dataclass(frozen=True)
class _Weight:
    """The DQ of a constant: whole numbers, scales and their axis, and the node's name."""

    node: str
    whole: NDArray[np.int8]
    scales: NDArray[np.float32]
    axis: int


@dataclass(frozen=True)
class _ActivationGrid:
    """The Q and DQ behind an activation, and their names."""

    q: str
    dq: str
    scale: np.float32


def compute_half_int8(model: onnx.ModelProto, spec: StageSpec, keep: Collection[str] = ()) -> onnx.ModelProto:
    """An `int8` graph with float16 in place of float32, except where the float16 variant has float32 too.

    `keep`: names of layers not quantized that stay in float32. If float16 cannot hold a scale, weights are rounded
    again so that the product is nearest. `model` stays as it is. Raises `SpecError` if an operator is not known to be
    the same in opset 19.
    """
    opened = view.read(raise_opset(model, HALF_SCALES))
    weights, grids = _take_grids(opened.graph)
    opened = view.read(compute_half(view.write(opened), spec, keep), typed=True)
    _restore_weights(opened.graph, weights)
    _restore_grids(opened.graph, grids)
    return finished(opened, spec)


def half_scales(scales: NDArray[np.float32], least: float = LEAST_SCALE) -> NDArray[np.float16]:
    """The nearest scales in float16, none smaller than `least`."""
    return np.asarray(np.maximum(scales, np.float32(least)).astype(np.float16))


def _take_grids(graph: ir.Graph) -> tuple[dict[str, _Weight], dict[str, _ActivationGrid]]:
    """Make the graph float32: weights become their values, each Q with its DQ becomes an Identity of the Q's name.

    Returns the former weights by their names, and the former Q and DQ by the names of the Q.
    """
    weights: dict[str, _Weight] = {}
    grids: dict[str, _ActivationGrid] = {}
    for node in graph:
        given, made = view.operand(node), node.outputs[0]
        if node.op_type == "Cast" and view.is_constant(given):
            view.hold(graph, node, [view.array(given).astype(np.float32)])
        elif node.op_type == DQ and view.is_constant(given):
            whole, scales, axis = view.array(given), view.constant(node, 1), quantized_axis(node)
            weight = _Weight(node.name or "", whole.astype(np.int8), scales.astype(np.float32), axis)
            weights[view.name_of(made)] = weight
            view.hold(graph, node, [(whole * along(scales, axis, whole.ndim)).astype(np.float32)])
        elif (q := view.maker(given, Q)) is not None and node.op_type == DQ:
            label = q.name or ""
            grids[label] = _ActivationGrid(label, node.name or "", np.float32(view.constant(node, 1)))
            new = view.make_node("Identity", [view.operand(q)], "", label)
            ir.convenience.replace_nodes_and_values(graph, node, [node], [new], [made], new.outputs)
    view.drop_dead(graph)
    return weights, grids


def _restore_weights(graph: ir.Graph, weights: Mapping[str, _Weight]) -> None:
    """Put whole numbers and DQ back, with scales of the type in which each weight is read."""
    nodes = []
    given = dict(graph.initializers)
    for name, weight in weights.items():
        for held, half in ((name, False), (f"{name}.half", True)):
            if held not in given or not given[held].uses():
                continue
            del graph.initializers[held]
            whole, scales = _half_weight(weight) if half else (weight.whole, weight.scales)
            inputs = [
                view.add_constant(graph, f"{held}.int8", whole),
                view.add_constant(graph, f"{held}.scale", scales),
                view.add_constant(graph, f"{name}.zero_point", np.zeros(scales.shape, np.int8)),
            ]
            label = f"{weight.node}/half" if half and name in given else weight.node
            nodes.append(view.make_node(DQ, inputs, held, label, axis=weight.axis))
            given[held].replace_all_uses_with(nodes[-1].outputs[0])
    graph.insert_before(graph[0], nodes)


def _half_weight(weight: _Weight) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """The whole numbers and float16 scales whose products are nearest to a weight."""
    scales = half_scales(weight.scales)
    ratio = weight.scales.astype(np.float64) / scales.astype(np.float64)
    rounded = np.rint(weight.whole * along(ratio, weight.axis, weight.whole.ndim))
    return np.clip(rounded, -127, 127).astype(np.int8), scales


def _restore_grids(graph: ir.Graph, grids: Mapping[str, _ActivationGrid]) -> None:
    """Put Q and DQ back: Q of its input's type, and in place of casts a DQ for each type in which it is read."""
    for node in list(graph):
        grid, source, target = grids.get(node.name or ""), view.operand(node), node.outputs[0]
        if grid is None:
            continue
        kind = FLOAT if source is None or source.dtype is None else source.dtype
        casts = [reader for reader in view.readers(target) if reader.op_type == "Cast"]
        wanted = [(target, kind)] if len(casts) < len(view.readers(target)) else []
        wanted += [(cast.outputs[0], ir.DataType(cast.attributes["to"].as_int())) for cast in casts]
        scale = grid.scale
        if FLOAT16 in {kind, *(k for _, k in wanted)}:
            scale = np.float32(half_scales(np.asarray(scale), 2.0**-24))
        zero = view.add_constant(graph, f"{target.name}.zero_point", np.asarray(0, np.int8))
        q = view.make_node(
            Q, [source, _scale(graph, view.name_of(target), scale, kind), zero], f"{target.name}.int8", grid.q
        )
        node.prepend(q)
        for number, (value, of) in enumerate(wanted):
            label = f"{grid.dq}/{number}" if number else grid.dq
            dq = view.make_node(DQ, [q.outputs[0], _scale(graph, view.name_of(target), scale, of), zero], "", label)
            node.prepend(dq)
            view.replace(value, dq.outputs[0])
        graph.remove([node, *casts], safe=True)


def _scale(graph: ir.Graph, name: str, scale: np.float32, kind: ir.DataType) -> ir.Value:
    suffix = ".half" if kind == FLOAT16 else ""
    return view.add_constant(graph, f"{name}.scale{suffix}", np.asarray(scale, kind.numpy()))
