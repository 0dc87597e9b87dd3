"""The INT8 variant whose other parts compute in float16 by their own types: for TensorRT that is strongly typed.

Since 10.12 TensorRT takes the precision of a layer from the graph. In an `int8` graph what is not quantized is float32
and so runs in float32. Here it is float16, as in the float16 variant, and Q and DQ have float16 scales, which ONNX
allows from opset 19 on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from t2v_edge.spec import StageSpec
from t2v_export.graph.clean import check_graph
from t2v_export.graph.operators import DQ, Q, along, quantized_axis
from t2v_export.graph.opset import HALF_SCALES, raise_opset
from t2v_export.graph.view import (
    Array,
    add_constant,
    array,
    drop_dead,
    is_constant,
    make_node,
    maker,
    name_of,
    operand,
    read,
    readers,
    replace,
    write,
)
from t2v_export.precision.float16 import compute_half

FLOAT, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16
LEAST_SCALE = 2.0**-17
"""Of weights: the least for which float16, whose steps there are 2^-24, is within a half of a level of 127."""


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
    """An `int8` graph with float16 where it computes in float32; what stays float32 in the float16 variant stays so.

    `keep`: names of layers not quantized that stay in float32. Weights are rounded again where float16 cannot hold a
    scale, so that their product is nearest to what it was. `model` is left as it is. Raises `SpecError` where an
    operator is not known to be the same in opset 19.
    """
    view = read(raise_opset(model, HALF_SCALES))
    weights, grids = _take_grids(view.graph)
    view = read(compute_half(write(view), spec, keep), typed=True)
    _restore_weights(view.graph, weights)
    _restore_grids(view.graph, grids)
    drop_dead(view.graph)
    made = write(view)
    check_graph(made, spec)
    return made


def half_scales(scales: NDArray[np.float32], least: float = LEAST_SCALE) -> NDArray[np.float16]:
    """The nearest scales that float16 holds, none smaller than `least`."""
    return np.asarray(np.maximum(scales, np.float32(least)).astype(np.float16))


def _take_grids(graph: ir.Graph) -> tuple[dict[str, _Weight], dict[str, _ActivationGrid]]:
    """Leave the graph in float32 alone: weights as what they mean, each Q and its DQ as one Identity.

    Returns what stood there, by the weight's name and by that node's name.
    """
    weights: dict[str, _Weight] = {}
    grids: dict[str, _ActivationGrid] = {}
    for node in graph:
        given, made = operand(node), node.outputs[0]
        if node.op_type == "Cast" and is_constant(given):
            _hold(graph, node, array(given).astype(np.float32))
        elif node.op_type == DQ and is_constant(given):
            whole, scales, axis = array(given), array(operand(node, 1)), quantized_axis(node)
            weight = _Weight(node.name or "", whole.astype(np.int8), scales.astype(np.float32), axis)
            weights[name_of(made)] = weight
            _hold(graph, node, (whole * along(scales, axis, whole.ndim)).astype(np.float32))
        elif (q := maker(given, Q)) is not None and node.op_type == DQ:
            label = q.name or ""
            grids[label] = _ActivationGrid(label, node.name or "", np.float32(array(operand(node, 1))))
            _swap(graph, node, make_node("Identity", [operand(q)], name_of(made), label))
    drop_dead(graph)
    return weights, grids


def _hold(graph: ir.Graph, node: ir.Node, value: Array) -> None:
    """A constant in place of a node."""
    made = node.outputs[0]
    made.replace_all_uses_with(add_constant(graph, name_of(made), value))
    graph.remove(node, safe=True)


def _swap(graph: ir.Graph, node: ir.Node, new: ir.Node) -> None:
    """A node in place of another."""
    node.prepend(new)
    replace(node.outputs[0], new.outputs[0])
    graph.remove(node, safe=True)


def _restore_weights(graph: ir.Graph, weights: Mapping[str, _Weight]) -> None:
    """Put whole numbers and DQ back, with scales of the type that each place now computes in."""
    nodes = []
    given = dict(graph.initializers)
    for name, weight in weights.items():
        for held, half in ((name, False), (f"{name}.half", True)):
            if held not in given or not given[held].uses():
                continue
            del graph.initializers[held]
            whole, scales = _half_weight(weight) if half else (weight.whole, weight.scales)
            inputs = [
                add_constant(graph, f"{held}.int8", whole),
                add_constant(graph, f"{held}.scale", scales),
                add_constant(graph, f"{name}.zero_point", np.zeros(scales.shape, np.int8)),
            ]
            label = f"{weight.node}/half" if half and name in given else weight.node
            nodes.append(make_node(DQ, inputs, held, label, axis=weight.axis))
            given[held].replace_all_uses_with(nodes[-1].outputs[0])
    graph.insert_before(graph[0], nodes)


def _half_weight(weight: _Weight) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """The whole numbers and float16 scales whose products are nearest to a weight."""
    scales = half_scales(weight.scales)
    ratio = weight.scales.astype(np.float64) / scales.astype(np.float64)
    rounded = np.rint(weight.whole * along(ratio, weight.axis, weight.whole.ndim))
    return np.clip(rounded, -127, 127).astype(np.int8), scales


def _restore_grids(graph: ir.Graph, grids: Mapping[str, _ActivationGrid]) -> None:
    """Put Q and DQ back: Q of the type of its input, and a DQ for each type in which it is read, in place of a cast."""
    for node in list(graph):
        grid, source, target = grids.get(node.name or ""), operand(node), node.outputs[0]
        if grid is None:
            continue
        kind = FLOAT if source is None or source.dtype is None else source.dtype
        casts = [reader for reader in readers(target) if reader.op_type == "Cast"]
        wanted = [(target, kind)] if len(casts) < len(readers(target)) else []
        wanted += [(cast.outputs[0], ir.DataType(cast.attributes["to"].as_int())) for cast in casts]
        scale = grid.scale
        if FLOAT16 in {kind, *(k for _, k in wanted)}:
            scale = np.float32(half_scales(np.asarray(scale), 2.0**-24))
        zero = add_constant(graph, f"{target.name}.zero_point", np.asarray(0, np.int8))
        q = make_node(Q, [source, _scale(graph, name_of(target), scale, kind), zero], f"{target.name}.int8", grid.q)
        node.prepend(q)
        for number, (value, of) in enumerate(wanted):
            label = f"{grid.dq}/{number}" if number else grid.dq
            dq = make_node(DQ, [q.outputs[0], _scale(graph, name_of(target), scale, of), zero], "", label)
            node.prepend(dq)
            replace(value, dq.outputs[0])
        graph.remove([node, *casts], safe=True)


def _scale(graph: ir.Graph, name: str, scale: np.float32, kind: ir.DataType) -> ir.Value:
    suffix = ".half" if kind == FLOAT16 else ""
    return add_constant(graph, f"{name}.scale{suffix}", np.asarray(scale, kind.numpy()))
