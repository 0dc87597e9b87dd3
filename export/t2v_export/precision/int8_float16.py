"""The INT8 variant whose other parts compute in float16 by their own types: for TensorRT that is strongly typed.

Since 10.12 TensorRT takes the precision of a layer from the graph. In an `int8` graph what is not quantized is float32
and so runs in float32. Here it is float16, as in the float16 variant, and Q and DQ have float16 scales, which ONNX
allows from opset 19 on.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from t2v_edge.spec import StageSpec
from t2v_export.graph.clean import Array, check_graph, constants
from t2v_export.graph.opset import HALF_SCALES, raise_opset
from t2v_export.precision.float16 import compute_half

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

    `keep`: names of layers not quantized that stay in float32. Weights are rounded anew where float16 cannot hold a
    scale, so that their product is nearest to what it was. `model` is left as it is. Raises `SpecError` where an
    operator is not known to be the same in opset 19.
    """
    plain, weights, grids = _without_grids(raise_opset(model, HALF_SCALES))
    half = compute_half(plain, spec, keep)
    _Restorer(half, weights, grids).run()
    check_graph(half, spec)
    return half


def half_scales(scales: NDArray[np.float32], least: float = LEAST_SCALE) -> NDArray[np.float16]:
    """The nearest scales that float16 holds, none smaller than `least`."""
    return np.asarray(np.maximum(scales, np.float32(least)).astype(np.float16))


def _without_grids(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, _Weight], dict[str, _ActivationGrid]]:
    """The graph in float32 alone: weights as what they mean, each Q and its DQ as one Identity. By the weight's and by
    that node's name, what stood there.
    """
    graph = model.graph
    known = constants(graph)
    weights: dict[str, _Weight] = {}
    grids: dict[str, _ActivationGrid] = {}
    made_by = {o: node for node in graph.node for o in node.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in known:
            _add(graph, known, node.output[0], known[node.input[0]].astype(np.float32))
        elif node.op_type == "DequantizeLinear" and node.input[0] in known:
            whole, scales = known[node.input[0]], known[node.input[1]]
            axis = next((int(a.i) for a in node.attribute if a.name == "axis"), 1)
            weights[node.output[0]] = _Weight(node.name, whole.astype(np.int8), scales.astype(np.float32), axis)
            _add(graph, known, node.output[0], (whole * _along(scales, axis, whole.ndim)).astype(np.float32))
        elif node.op_type == "DequantizeLinear":
            q = made_by[node.input[0]]
            grids[q.name] = _ActivationGrid(q.name, node.name, np.float32(known[node.input[1]]))
            nodes.append(helper.make_node("Identity", [q.input[0]], [node.output[0]], name=q.name))
        elif node.op_type != "QuantizeLinear":
            nodes.append(node)
    _replace(graph, nodes)
    return model, weights, grids


def _add(graph: onnx.GraphProto, known: dict[str, Array], name: str, value: Array) -> None:
    known[name] = value
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))


def _along(scales: Array, axis: int, rank: int) -> Array:
    return scales.reshape([-1 if i == axis % rank else 1 for i in range(rank)]) if scales.ndim else scales


def _replace(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    used = {i for node in copied for i in node.input}
    del graph.node[:]
    graph.node.extend(copied)
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)


class _Restorer:
    """Puts Q and DQ back, in place, with scales of the type that each place now computes in."""

    def __init__(self, model: onnx.ModelProto, weights: dict[str, _Weight], grids: dict[str, _ActivationGrid]) -> None:
        typed = onnx.shape_inference.infer_shapes(model)
        self.kinds = {v.name: v.type.tensor_type.elem_type for v in [*typed.graph.value_info, *typed.graph.input]}
        self.graph, self.weights, self.grids = model.graph, weights, grids
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.given = {t.name: t for t in self.graph.initializer}
        self.made: dict[str, Array] = {}

    def run(self) -> None:
        nodes = self._weight_nodes()
        recast = {
            reader.output[0]: node.output[0]
            for node in self.graph.node
            if node.name in self.grids
            for reader in self.readers.get(node.output[0], [])
            if reader.op_type == "Cast"
        }
        for node in self.graph.node:
            if node.name in self.grids:
                nodes += self._grid_nodes(node)
            elif node.output[0] not in recast:
                nodes.append(node)
        for name, value in self.made.items():
            self.graph.initializer.append(numpy_helper.from_array(value, name))
        _replace(self.graph, nodes)

    def _constant(self, name: str, value: Array) -> str:
        self.made[name] = np.asarray(value)
        return name

    def _weight_nodes(self) -> list[onnx.NodeProto]:
        nodes = []
        for name, weight in self.weights.items():
            for given, half in ((name, False), (f"{name}.half", True)):
                if given not in self.given or given not in self.readers:
                    continue
                self.graph.initializer.remove(self.given[given])
                whole, scales = weight.whole, np.asarray(weight.scales)
                if half:
                    scales = half_scales(weight.scales)
                    ratio = weight.scales.astype(np.float64) / scales.astype(np.float64)
                    rounded = np.rint(whole * _along(ratio, weight.axis, whole.ndim))
                    whole = np.clip(rounded, -127, 127).astype(np.int8)
                inputs = [
                    self._constant(f"{given}.int8", whole),
                    self._constant(f"{given}.scale", scales),
                    self._constant(f"{name}.zero_point", np.zeros(scales.shape, np.int8)),
                ]
                label = f"{weight.node}/half" if half and name in self.given else weight.node
                nodes.append(helper.make_node("DequantizeLinear", inputs, [given], name=label, axis=weight.axis))
        return nodes

    def _grid_nodes(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Q as its input is, and a DQ for each type in which it is read: what would be cast is dequantized so."""
        grid, source, target = self.grids[node.name], node.input[0], node.output[0]
        kind = self.kinds.get(source, TensorProto.FLOAT)
        readers = self.readers.get(target, [])
        wanted = [(target, kind)] if any(r.op_type != "Cast" for r in readers) else []
        wanted += [(r.output[0], int(r.attribute[0].i)) for r in readers if r.op_type == "Cast"]
        scale = grid.scale
        if TensorProto.FLOAT16 in {kind, *(k for _, k in wanted)}:
            scale = np.float32(half_scales(np.asarray(scale), 2.0**-24))
        named = {
            TensorProto.FLOAT: (f"{target}.scale", np.asarray(scale, np.float32)),
            TensorProto.FLOAT16: (f"{target}.scale.half", np.asarray(scale, np.float16)),
        }
        zero = self._constant(f"{target}.zero_point", np.asarray(0, np.int8))
        q = [source, self._constant(*named[kind]), zero]
        nodes = [helper.make_node("QuantizeLinear", q, [f"{target}.int8"], name=grid.q)]
        for number, (name, of) in enumerate(wanted):
            inputs = [f"{target}.int8", self._constant(*named[of]), zero]
            label = f"{grid.dq}/{number}" if number else grid.dq
            nodes.append(helper.make_node("DequantizeLinear", inputs, [name], name=label))
        return nodes
