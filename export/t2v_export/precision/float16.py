"""Float16 variants of a float32 graph. Inputs and outputs keep their types; casts are inside."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto

from t2v_edge.spec import StageSpec
from t2v_export.graph import view
from t2v_export.graph.clean import finished
from t2v_export.graph.operators import DQ, WEIGHTED, Q, is_weight

HALF_MAX = 65504.0
# Minus infinity in masks; it fits in float16 also when it is added to a score.
MASK_FLOOR = -6e4
# Operators that sum many numbers or have wide ranges: they stay in float32 even between float16 neighbours.
FULL_OPS = {
    *("LayerNormalization", "InstanceNormalization", "ReduceMean", "ReduceSum", "ReduceL2", "ReduceSumSquare"),
    *("CumSum", "Pow", "Sqrt", "Exp", "Log", "Reciprocal"),
}
PIXEL_OPS = {"Cast", "Transpose", "Round", "Clip", "Add", "Mul", "Tanh", "Sigmoid", "Identity"}
# Inputs that keep their type, by operator.
FIXED_INPUTS = {"Resize": (1, 2, 3)}
SMALL = 4096


def layers(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of a float32 graph's layers, the nodes with weights, in order."""
    return tuple(node.name or "" for node in view.read(model).graph if _is_layer(node))


def store_half(model: onnx.ModelProto, spec: StageSpec, keep: Collection[str] = (), least: int = 2) -> onnx.ModelProto:
    """The graph with weights stored in float16 and computed in float32, for stages whose state would gather rounding.

    These constants stay as they are: small ones that float16 cannot hold exactly, weights of the layers `keep`, scales
    of Q/DQ nodes, and those of fewer than `least` numbers.
    """
    opened = view.read(model)
    graph = opened.graph
    exact = {value for node in _layer_nodes(graph, keep) for value in node.inputs}
    exact |= {value for node in graph if node.op_type in (Q, DQ) for value in node.inputs[1:]}

    def halved(value: ir.Value) -> tuple[str, view.Array] | None:
        full = view.array(value) if is_weight(value) and value not in exact else None
        half = None if full is None or full.size < least else _shrunk(full, exact=full.size <= SMALL)
        return None if half is None else (f"{value.name}.half", half)

    casts = []
    for old, new in view.exchange_constants(graph, halved):
        casts.append(_cast(new, view.name_of(old), TensorProto.FLOAT, f"/half/{old.name}"))
        old.replace_all_uses_with(casts[-1].outputs[0])
    graph.insert_before(graph[0], casts)
    return finished(opened, spec)


def compute_half(model: onnx.ModelProto, spec: StageSpec, keep: Collection[str] = ()) -> onnx.ModelProto:
    """The graph with float16 arithmetic from the first weights on.

    In float32 stay: nodes before the first layer with weights (coordinates and masks lose most and cost least), the
    pixels' conversion at the end, normalisations and long sums, and layers with weights beyond float16's range. So do
    the layers `keep`, and nodes that feed them alone. Weights of those layers are stored in float16 if that is exact.
    """
    opened = view.read(model, typed=True)
    _Float16Conversion(opened.graph, spec, keep).run()
    return finished(opened, spec)


def rounding_twin(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 graph that rounds to float16 wherever a float16 graph does.

    ONNX Runtime's CPU engine computes some float16 operators in float32 and drops the roundings between them. So it
    shows less difference than a GPU has. It keeps explicit casts. The twin does not round inside an operator: sums
    gather in float32, as in tensor cores.
    """
    opened = view.read(model, typed=True)
    for value in opened.graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT16:
            value.const_value = ir.Tensor(view.array(value).astype(np.float32), name=value.name)
    for node in list(opened.graph):
        if _casts_to(node, TensorProto.FLOAT16):
            node.attributes.add(ir.AttrInt64("to", TensorProto.FLOAT))
        casts = []
        for output in _half_results(node):
            name = view.name_of(output)
            made = view.rename_source(output, f"{name}.exact")
            casts.append(_cast(output, f"{name}.rounded", TensorProto.FLOAT16, ""))
            casts.append(_cast(casts[-1].outputs[0], made, TensorProto.FLOAT, ""))
        node.append(casts)
    return view.write(opened)


def computes_half(model: onnx.ModelProto) -> bool:
    """Whether a graph computes in float16, rather than only stores weights in it."""
    return any(node.op_type != "Cast" and _half_results(node) for node in view.read(model, typed=True).graph)


def _half_results(node: ir.Node) -> list[ir.Value]:
    return [o for o in node.outputs if o.dtype == ir.DataType.FLOAT16 and not o.is_graph_output()]


def _is_layer(node: ir.Node) -> bool:
    if node.op_type == "Gather":
        return is_weight(view.operand(node))
    return node.op_type in WEIGHTED and any(is_weight(value) for value in node.inputs)


def _layer_nodes(graph: ir.Graph, names: Collection[str]) -> set[ir.Node]:
    """The layers `names`, each with the Add of its bias if there is one."""
    found: set[ir.Node] = set()
    products: set[ir.Value] = set()
    for node in graph:
        if node.name in names:
            found.add(node)
            products.update(node.outputs if node.op_type == "MatMul" else ())
        elif node.op_type == "Add" and products.intersection(node.inputs) and any(map(is_weight, node.inputs)):
            found.add(node)
    return found


def _with_feeders(graph: ir.Graph, kept: set[ir.Node], layered: set[ir.Node]) -> set[ir.Node]:
    """The nodes `kept`, and every node outside layers whose results only they read, directly or not."""
    found = set(kept)
    for node in reversed(graph):
        read_by = [reader for output in node.outputs for reader in view.readers(output)]
        if read_by and found.issuperset(read_by) and node not in layered:
            found.add(node)
    return found


def _shrunk(full: view.Array, exact: bool) -> NDArray[np.float16] | None:
    """A weight for storage in float16. None if it is a single number, out of range, or not `exact` as wanted."""
    if full.size < 2 or float(np.abs(full).max()) > HALF_MAX:
        return None
    half = full.astype(np.float16)
    return None if exact and not np.array_equal(half.astype(np.float32), full) else half


def _cast(source: ir.Value, made: str | ir.Value, kind: int, name: str | None = None) -> ir.Node:
    """A Cast of `source` to `kind` that gives `made`."""
    target = made if isinstance(made, str) else view.name_of(made)
    return view.make_node("Cast", [source], made, f"/cast/{target}" if name is None else name, to=kind)


def _casts_to(node: ir.Node, kind: int) -> bool:
    return node.op_type == "Cast" and node.attributes.get_int("to", 0) == kind


class _Float16Conversion:
    """The conversion of one graph, in place: it chooses each node's arithmetic, then puts casts at the borders."""

    def __init__(self, graph: ir.Graph, spec: StageSpec, keep: Collection[str]) -> None:
        self.graph, self.spec = graph, spec
        layered = _layer_nodes(graph, [node.name or "" for node in graph if _is_layer(node)])
        self.kept_layers = _layer_nodes(graph, keep)
        self.kept = _with_feeders(graph, self.kept_layers, layered)
        self.half_values: set[ir.Value] = set()
        self.casts: dict[tuple[ir.Value, int], ir.Value] = {}
        self.stored: dict[ir.Value, ir.Value] = {}

    def run(self) -> None:
        half_nodes = self._choose()
        for node in list(self.graph):
            half = node in half_nodes
            for place, value in list(_float_inputs(node)):
                kept = node in self.kept_layers and is_weight(value)
                node.replace_input_with(place, self._as_stored(node, value) if kept else self._as(node, value, half))
            if not half:
                continue
            if _casts_to(node, TensorProto.FLOAT):
                node.attributes.add(ir.AttrInt64("to", TensorProto.FLOAT16))
            floats = [output for output in node.outputs if output.dtype == ir.DataType.FLOAT]
            self.half_values.update(output for output in floats if not output.is_graph_output())
            casts = []
            for output in [output for output in floats if output.is_graph_output()]:
                made = view.rename_source(output, f"{output.name}.half")
                casts.append(_cast(output, made, TensorProto.FLOAT))
                self.casts[made, TensorProto.FLOAT16] = output
            node.append(casts)

    def _choose(self) -> set[ir.Node]:
        """The nodes that compute in float16."""
        tail = self._pixel_tail()
        after: set[ir.Value] = set()
        chosen = set()
        for node in self.graph:
            if node in self.kept or not (after.intersection(node.inputs) or _is_layer(node)):
                continue
            after.update(output for output in node.outputs if output.dtype == ir.DataType.FLOAT)
            used = [view.array(value) for value in node.inputs if is_weight(value)]
            fits = all(w.size == 0 or float(w.max()) <= HALF_MAX for w in used) and (
                node.op_type not in WEIGHTED or all(w.size == 0 or float(w.min()) >= -HALF_MAX for w in used)
            )
            if node.op_type not in FULL_OPS and node not in tail and fits:
                chosen.add(node)
        return chosen

    def _pixel_tail(self) -> set[ir.Node]:
        """The nodes that only turn a renderer's image into pixels."""
        tail: set[ir.Node] = set()
        pixels = self.spec.outputs[0].name if self.spec.stage == "render" else None
        node = next((view.maker(output) for output in self.graph.outputs if output.name == pixels), None)
        while node is not None and node.op_type in PIXEL_OPS:
            tail.add(node)
            node = next((made for made in map(view.maker, node.inputs) if made is not None), None)
        return tail

    def _as(self, node: ir.Node, value: ir.Value, half: bool) -> ir.Value:
        """A float value in float16 or float32, for `node` to read. A cast stands before the node if it needs one."""
        name = view.name_of(value)
        if is_weight(value):
            if not half:
                return value
            rounded = np.maximum(view.array(value), np.float32(MASK_FLOOR)).astype(np.float16)
            return view.add_constant(self.graph, f"{name}.half", rounded)
        if half == (value in self.half_values):
            return value
        kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        if (value, kind) not in self.casts:
            source = self._clamped(node, value) if half and _may_overflow(value) else value
            cast = _cast(source, f"{name}.{'half' if half else 'full'}", kind)
            node.prepend(cast)
            self.casts[value, kind] = cast.outputs[0]
        return self.casts[value, kind]

    def _as_stored(self, node: ir.Node, value: ir.Value) -> ir.Value:
        """A weight in float32, for `node` to read. It is stored in float16 if that loses nothing."""
        half = _shrunk(view.array(value), exact=True)
        if half is None or value in self.stored:
            return self.stored.get(value, value)
        stored = view.add_constant(self.graph, f"{value.name}.stored", half)
        cast = _cast(stored, f"{value.name}.full", TensorProto.FLOAT)
        node.prepend(cast)
        return self.stored.setdefault(value, cast.outputs[0])

    def _clamped(self, node: ir.Node, value: ir.Value) -> ir.Value:
        floor = view.add_constant(self.graph, "mask.floor", np.asarray(MASK_FLOOR, dtype=np.float32))
        clamp = view.make_node("Max", [value, floor], f"{value.name}.clamped", f"/clamp/{value.name}")
        node.prepend(clamp)
        return clamp.outputs[0]


def _float_inputs(node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
    fixed = FIXED_INPUTS.get(node.op_type, ())
    for place, value in enumerate(node.inputs):
        if value is not None and place not in fixed and value.dtype == ir.DataType.FLOAT:
            yield place, value


def _may_overflow(value: ir.Value) -> bool:
    """Whether a mask made before the weights holds float32's lowest number (a Where with such a constant)."""
    made = view.maker(value)
    weights = [view.array(given) for given in made.inputs if is_weight(given)] if made is not None else []
    return any(weight.size and float(weight.min()) < -HALF_MAX for weight in weights)
