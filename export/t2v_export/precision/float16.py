"""Float16 variants of a float32 graph. Inputs and outputs keep their types; casts are inside."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from t2v_edge.spec import StageSpec
from t2v_export.graph.clean import WEIGHTED, check_graph

HALF_MAX = 65504.0
# Stands for minus infinity in masks; added to a score it still fits.
MASK_FLOOR = -6e4
# Sums over many numbers, or wide ranges: kept in float32 even between float16 neighbours.
FULL_OPS = {
    "LayerNormalization",
    "ReduceMean",
    "ReduceSum",
    "ReduceL2",
    "Pow",
    "Sqrt",
    "Exp",
    "Log",
    "Reciprocal",
    "ReduceSumSquare",
    "InstanceNormalization",
    "CumSum",
}
PIXEL_OPS = {"Cast", "Transpose", "Round", "Clip", "Add", "Mul", "Tanh", "Sigmoid", "Identity"}
# Inputs that the operator wants in float32 or as integers whatever it computes in.
FIXED_INPUTS = {"Resize": (1, 2, 3)}
SMALL = 4096


def layers(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of a float32 graph's layers, the nodes with weights, in order."""
    weights = _float_weights(model.graph)
    return tuple(node.name for node in model.graph.node if _is_layer(node, weights))


def store_half(model: onnx.ModelProto, spec: StageSpec, keep: Collection[str] = (), least: int = 2) -> onnx.ModelProto:
    """Weights stored in float16 and computed in float32, for recurrent stages whose state would gather rounding.

    A small constant that float16 cannot hold exactly stays as it is, and so do the weights of the layers `keep` and the
    scales of Q/DQ nodes, which engines want as they are. So does a constant of fewer than `least` numbers.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    nodes = list(graph.node)
    exact = {i for index in _layer_nodes(nodes, keep, _float_weights(graph)) for i in nodes[index].input}
    exact |= {i for node in nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear") for i in node.input[1:]}
    casts = []
    for tensor in graph.initializer:
        full = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or tensor.name in exact or full.size < least:
            continue
        half = _shrunk(full, exact=full.size <= SMALL)
        if half is None:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], name=f"/half/{name}", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    check_graph(model, spec)
    return model


def compute_half(model: onnx.ModelProto, spec: StageSpec, keep: Collection[str] = ()) -> onnx.ModelProto:
    """Float16 arithmetic from the first weights on.

    Kept in float32: what comes before the first layer with weights (coordinates and masks lose most and cost
    least), the pixels' conversion at the end, normalisations and long sums, layers with weights beyond float16's
    range, and the layers `keep` with what feeds them alone or follows from them alone. Weights of those layers that
    are float16 numbers, as of a float16 checkpoint with nothing folded into them, are stored so all the same; others
    would lose what is kept.
    """
    typed = onnx.shape_inference.infer_shapes(model, data_prop=True)
    kinds = {
        v.name: v.type.tensor_type.elem_type for v in [*typed.graph.value_info, *typed.graph.input, *typed.graph.output]
    }
    kinds.update({t.name: t.data_type for t in typed.graph.initializer})
    model = onnx.ModelProto.FromString(model.SerializeToString())
    _Float16Conversion(model.graph, kinds, spec, keep).run()
    check_graph(model, spec)
    return model


def rounding_twin(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 graph that rounds to float16 wherever a float16 graph does.

    ONNX Runtime's CPU engine computes float16 operators that it has no kernels for in float32 and drops the
    roundings between them, so it shows less difference than a GPU will have. It keeps explicit casts. What the twin
    leaves out is rounding inside an operator: sums are taken to gather in float32, as tensor cores do.
    """
    typed = onnx.shape_inference.infer_shapes(model, data_prop=True)
    halves = {v.name for v in typed.graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    twin = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in twin.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    nodes = []
    for node in twin.graph.node:
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT16:
            node.attribute[0].i = TensorProto.FLOAT
        nodes.append(node)
        for position, name in enumerate(node.output):
            if name in halves:
                node.output[position] = f"{name}.exact"
                nodes.append(helper.make_node("Cast", [f"{name}.exact"], [f"{name}.rounded"], to=TensorProto.FLOAT16))
                nodes.append(helper.make_node("Cast", [f"{name}.rounded"], [name], to=TensorProto.FLOAT))
    copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del twin.graph.node[:]
    twin.graph.node.extend(copied)
    return twin


def computes_half(model: onnx.ModelProto) -> bool:
    """Whether a graph computes in float16, rather than only stores weights in it."""
    typed = onnx.shape_inference.infer_shapes(model, data_prop=True)
    halves = {v.name for v in typed.graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    return any(node.op_type != "Cast" and not halves.isdisjoint(node.output) for node in model.graph.node)


def _float_weights(graph: onnx.GraphProto) -> dict[str, NDArray[np.float32]]:
    return {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.data_type == TensorProto.FLOAT}


def _is_layer(node: onnx.NodeProto, weights: Container[str]) -> bool:
    if node.op_type == "Gather":
        return node.input[0] in weights
    return node.op_type in WEIGHTED and any(i in weights for i in node.input)


def _layer_nodes(nodes: list[onnx.NodeProto], names: Collection[str], weights: Container[str]) -> set[int]:
    """Indices of the layers `names`, each with the addition of its bias where that is a node of its own."""
    found: set[int] = set()
    products: set[str] = set()
    for index, node in enumerate(nodes):
        if node.name in names:
            found.add(index)
            products.update(node.output if node.op_type == "MatMul" else ())
        elif node.op_type == "Add" and products & set(node.input) and any(i in weights for i in node.input):
            found.add(index)
    return found


def _with_feeders(nodes: list[onnx.NodeProto], kept: set[int], layered: set[int]) -> set[int]:
    """The nodes `kept` and every node that is of no layer and whose results only they read, directly or not."""
    readers: dict[str, list[int]] = {}
    for index, node in enumerate(nodes):
        for name in node.input:
            readers.setdefault(name, []).append(index)
    found = set(kept)
    for index in reversed(range(len(nodes))):
        read_by = [r for o in nodes[index].output for r in readers.get(o, ())]
        if read_by and found.issuperset(read_by) and index not in layered:
            found.add(index)
    return found


def _shrunk(full: NDArray[np.float32], exact: bool) -> NDArray[np.float16] | None:
    """A weight for storage in float16; None where that is no gain, out of range, or not `exact` though it must be."""
    if full.size < 2 or float(np.abs(full).max()) > HALF_MAX:
        return None
    half = full.astype(np.float16)
    return None if exact and not np.array_equal(half.astype(np.float32), full) else half


class _Float16Conversion:
    """One conversion of one graph, in place: decides each node's arithmetic, then puts casts at the borders."""

    def __init__(self, graph: onnx.GraphProto, kinds: dict[str, int], spec: StageSpec, keep: Collection[str]) -> None:
        self.graph, self.kinds, self.spec = graph, kinds, spec
        self.weights = _float_weights(graph)
        nodes = list(graph.node)
        layered = _layer_nodes(nodes, [n.name for n in nodes if _is_layer(n, self.weights)], self.weights)
        self.kept_layers = _layer_nodes(nodes, keep, self.weights)
        self.kept = _with_feeders(nodes, self.kept_layers, layered)
        self.half_values: set[str] = set()
        self.casts: dict[tuple[str, int], str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.added: dict[str, onnx.TensorProto] = {}

    def run(self) -> None:
        outputs = {o.name for o in self.graph.output}
        half_nodes = self._choose()
        for index, node in enumerate(list(self.graph.node)):
            half = index in half_nodes
            for position, name in self._float_inputs(node):
                kept = index in self.kept_layers and name in self.weights
                node.input[position] = self._stored(name) if kept else self._as(name, half)
            if half and node.op_type == "Cast" and self._to(node) == TensorProto.FLOAT:
                node.attribute[0].i = TensorProto.FLOAT16
            self.nodes.append(node)
            for position, name in enumerate(node.output):
                if half and self.kinds.get(name) == TensorProto.FLOAT:
                    if name in outputs:
                        node.output[position] = f"{name}.half"
                        self.nodes.append(self._cast(f"{name}.half", name, TensorProto.FLOAT))
                        self.casts[name, TensorProto.FLOAT16] = f"{name}.half"
                    else:
                        self.half_values.add(name)
        self._replace()

    def _choose(self) -> set[int]:
        """Indices of the nodes that compute in float16."""
        nodes = list(self.graph.node)
        tail = self._pixel_tail(nodes)
        after: set[str] = set()
        chosen = set()
        for index, node in enumerate(nodes):
            if index in self.kept or not (after.intersection(node.input) or _is_layer(node, self.weights)):
                continue
            after.update(o for o in node.output if self.kinds.get(o) == TensorProto.FLOAT)
            used = [self.weights[i] for i in node.input if i in self.weights]
            fits = all(w.size == 0 or float(w.max()) <= HALF_MAX for w in used) and (
                node.op_type not in WEIGHTED or all(w.size == 0 or float(w.min()) >= -HALF_MAX for w in used)
            )
            if node.op_type not in FULL_OPS and index not in tail and fits:
                chosen.add(index)
        return chosen

    def _pixel_tail(self, nodes: list[onnx.NodeProto]) -> set[int]:
        if self.spec.stage != "render":
            return set()
        made_by = {o: i for i, node in enumerate(nodes) for o in node.output}
        tail: set[int] = set()
        index = made_by.get(self.spec.outputs[0].name)
        while index is not None and nodes[index].op_type in PIXEL_OPS:
            tail.add(index)
            index = next((made_by[i] for i in nodes[index].input if i in made_by), None)
        return tail

    def _float_inputs(self, node: onnx.NodeProto) -> Iterator[tuple[int, str]]:
        fixed = FIXED_INPUTS.get(node.op_type, ())
        for position, name in enumerate(node.input):
            if name and position not in fixed and self.kinds.get(name) == TensorProto.FLOAT:
                yield position, name

    def _as(self, name: str, half: bool) -> str:
        """The name under which a float value is had in float16 or float32, with a cast where it needs one."""
        if name in self.weights:
            if not half:
                return name
            rounded = np.maximum(self.weights[name], np.float32(MASK_FLOOR)).astype(np.float16)
            self.added.setdefault(f"{name}.half", numpy_helper.from_array(rounded, f"{name}.half"))
            return f"{name}.half"
        if half == (name in self.half_values):
            return name
        kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        if (name, kind) not in self.casts:
            cast = f"{name}.{'half' if half else 'full'}"
            source = name
            if half and self.kinds.get(name) == TensorProto.FLOAT and self._may_overflow(name):
                source = self._clamped(name)
            self.nodes.append(self._cast(source, cast, kind))
            self.casts[name, kind] = cast
        return self.casts[name, kind]

    def _stored(self, name: str) -> str:
        """The name of a weight in float32, by way of float16 where that loses nothing."""
        stored = f"{name}.stored"
        if stored not in self.added:
            half = _shrunk(self.weights[name], exact=True)
            if half is None:
                return name
            self.added[stored] = numpy_helper.from_array(half, stored)
            self.nodes.append(self._cast(stored, f"{name}.full", TensorProto.FLOAT))
        return f"{name}.full"

    def _may_overflow(self, name: str) -> bool:
        """Whether a mask made before the weights holds float32's lowest number (a Where with such a constant)."""
        maker = next((n for n in self.nodes if name in n.output), None)
        return maker is not None and any(
            i in self.weights and self.weights[i].size and float(self.weights[i].min()) < -HALF_MAX for i in maker.input
        )

    def _clamped(self, name: str) -> str:
        floor = "mask.floor"
        self.added.setdefault(floor, numpy_helper.from_array(np.asarray(MASK_FLOOR, dtype=np.float32), floor))
        self.nodes.append(helper.make_node("Max", [name, floor], [f"{name}.clamped"], name=f"/clamp/{name}"))
        return f"{name}.clamped"

    @staticmethod
    def _to(node: onnx.NodeProto) -> int:
        return next(int(a.i) for a in node.attribute if a.name == "to")

    @staticmethod
    def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
        return helper.make_node("Cast", [source], [target], name=f"/cast/{target}", to=kind)

    def _replace(self) -> None:
        used = {i for node in self.nodes for i in node.input}
        kept = [t for t in [*self.graph.initializer, *self.added.values()] if t.name in used]
        for repeated, values in ((self.graph.node, self.nodes), (self.graph.initializer, kept)):
            copied = [type(v).FromString(v.SerializeToString()) for v in values]
            del repeated[:]
            repeated.extend(copied)
