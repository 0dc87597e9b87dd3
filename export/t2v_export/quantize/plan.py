"""The plan of a graph's quantization: its layers, the tensors that share a grid, and the layers left in float32."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from t2v_edge.spec import StageSpec
from t2v_export.graph import view
from t2v_export.graph.operators import CONVOLUTIONS, WEIGHTED, is_weight
from t2v_export.graph.phases import MOVES, is_layout
from t2v_export.recipe import Quantize


@dataclass(frozen=True)
class QuantizePlan:
    """The layers and tensors of a graph that are quantized, by name.

    `layers`: nodes in INT8. `kept`: layers left in float32. `groups`: activation tensors that share one grid. `extra`:
    tensors that `int8-u8` quantizes besides. `added`: pairs of an extra tensor and the one added to it before a ReLU.
    """

    layers: tuple[str, ...]
    kept: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    extra: tuple[str, ...]
    added: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, eq=False)
class Pixels:
    """The end of a renderer: the tensor `made` of unrounded levels, and the nodes behind it from Clip to Cast."""

    made: ir.Value
    nodes: tuple[ir.Node, ...]


def layers_of(graph: ir.Graph) -> list[ir.Node]:
    """The nodes of a float32 graph that can be quantized."""
    return [node for node in graph if node.op_type in WEIGHTED and _has_weight(node)]


def _has_weight(node: ir.Node) -> bool:
    if not is_weight(view.operand(node, 1)) or view.is_constant(view.operand(node)):
        return False
    has, weight = node.attributes, view.constant(node, 1)
    plain = not has.get_int("transA", 0) and has.get_float("alpha", 1.0) == has.get_float("beta", 1.0) == 1.0
    return plain and (node.op_type != "MatMul" or weight.ndim == 2)


def shared_inputs(value: ir.Value) -> list[ir.Value]:
    """The tensors whose elements `value` only moves, so that they can share its grid."""
    node = view.maker(value)
    if node is None:
        return []
    if node.op_type == "Concat":
        return [given for given in node.inputs if given is not None and not view.is_constant(given)]
    if is_layout(node):
        return [laid_out(value)]
    nearest = node.op_type == "Resize" and node.attributes.get_string("mode", "nearest") == "nearest"
    source = view.operand(node)
    return [source] if source is not None and (nearest or node.op_type == "MaxPool") else []


def laid_out(value: ir.Value) -> ir.Value:
    """The phases that a layout turns into the pixels `value`; else `value` itself."""
    node = view.maker(value)
    source = view.operand(node) if node is not None and is_layout(node) else None
    return value if source is None else laid_out(source)


def pixels_of(graph: ir.Graph) -> Pixels | None:
    """The end of a graph whose one output is frames: clipped to 0 to 255, perhaps moved, rounded, cast to uint8."""
    cast = view.maker(graph.outputs[0], "Cast") if len(graph.outputs) == 1 else None
    if cast is None or cast.attributes["to"].as_int() != ir.DataType.UINT8:
        return None
    rounding = _sole_maker(cast, "Round")
    if rounding is None:
        return None
    moves: list[ir.Node] = []
    while (move := _sole_maker(moves[0] if moves else rounding, *MOVES)) is not None:
        moves.insert(0, move)
    clip = _sole_maker(moves[0] if moves else rounding, "Clip")
    if clip is None or [float(view.array(b)) if view.is_constant(b) else None for b in clip.inputs[1:]] != [0.0, 255.0]:
        return None
    made = view.operand(clip)
    return None if made is None else Pixels(made, (clip, *moves, rounding, cast))


def _sole_maker(node: ir.Node, *operators: str) -> ir.Node | None:
    """The node before another, if nothing else reads its result."""
    return view.maker(view.operand(node), *operators) if view.only_reader(view.operand(node)) else None


def make_plan(model: onnx.ModelProto, spec: StageSpec, options: Quantize) -> QuantizePlan:
    """The plan of a stage's float32 graph, from its structure alone."""
    graph = view.read(model).graph
    layers = layers_of(graph)
    names = {_name(node) for node in layers}
    kept = names & set(options.keep)
    if options.keep_first:
        kept |= _first_dense(graph, names, spec)
    pixels = pixels_of(graph)
    if options.keep_last:
        # but not a convolution that gives levels: they are rounded to whole numbers anyway
        kept |= _last(graph, names) - {_name(n) for n in layers if pixels and n.outputs[0] is pixels.made}
    chosen = [node for node in layers if _name(node) not in kept]
    groups = _groups([view.operand(node) for node in chosen])
    grouped = {value for group in groups for value in group}
    extra: dict[ir.Value, None] = {}
    added: list[tuple[str, str]] = []
    for node in chosen:
        if node.op_type in CONVOLUTIONS and (pixels is None or node.outputs[0] is not pixels.made):
            extra.update(dict.fromkeys(_after(node.outputs[0], grouped)))
            added += _added(node.outputs[0], extra)
    return QuantizePlan(
        tuple(_name(node) for node in chosen),
        tuple(_name(node) for node in layers if _name(node) in kept),
        tuple(tuple(view.name_of(value) for value in group) for group in groups),
        tuple(view.name_of(value) for value in extra),
        tuple(added),
    )


def _name(node: ir.Node) -> str:
    return node.name or ""


def _first_dense(graph: ir.Graph, layers: Collection[str], spec: StageSpec) -> set[str]:
    """Dense layers that a float input reaches through no other layer. Coordinates lose most there, and cost least."""
    floats = {tensor.name for tensor in spec.inputs if tensor.dtype == "float32"}
    reached = {value for value in graph.inputs if value.name in floats}
    first = set()
    for node in graph:
        if reached.intersection(node.inputs):
            if node.name not in layers:
                reached.update(node.outputs)
            elif node.op_type in ("Gemm", "MatMul"):
                first.add(_name(node))
    return first


def _last(graph: ir.Graph, layers: Collection[str]) -> set[str]:
    """Layers whose result reaches an output of the graph through no other layer."""
    wanted, last = set(graph.outputs), set()
    for node in reversed(graph):
        if wanted.intersection(node.outputs):
            if node.name in layers:
                last.add(_name(node))
            else:
                wanted.update(value for value in node.inputs if value is not None)
    return last


def _groups(wanted: list[ir.Value | None]) -> tuple[tuple[ir.Value, ...], ...]:
    group_of: dict[ir.Value, list[ir.Value]] = {}

    def join(value: ir.Value, group: list[ir.Value]) -> None:
        if value in group_of:
            other = group_of[value]
            if other is not group:
                group += [member for member in other if member not in group]
                group_of.update(dict.fromkeys(other, group))
            return
        group.append(value)
        group_of[value] = group
        for source in shared_inputs(value):
            join(source, group_of[value])

    for value in wanted:
        if value is not None and value not in group_of:
            join(value, [])
    return tuple(dict.fromkeys(tuple(group) for group in group_of.values()))


def _after(made: ir.Value, grouped: Collection[ir.Value]) -> list[ir.Value]:
    """The tensors to quantize behind a convolution, so that it gives 8 bits.

    That is the output of a ReLU that alone reads it, else its own output. The other side of a sum that ends in a
    quantized tensor is added.
    """
    relu, add = view.only_reader(made, "Relu"), view.only_reader(made, "Add")
    made = relu.outputs[0] if relu is not None else made
    if made in grouped:
        return []
    found = [made]
    if add is not None:
        behind = view.only_reader(add.outputs[0], "Relu")
        sums = {add.outputs[0], *(behind.outputs if behind is not None else ())}
        others = [
            value for value in add.inputs if value is not None and value is not made and not view.is_constant(value)
        ]
        found += others if sums.intersection(grouped) else []
    return [value for value in found if value not in grouped]


def _added(made: ir.Value, extra: Collection[ir.Value]) -> list[tuple[str, str]]:
    """A convolution's output and the tensor added to it, if both are quantized and only a ReLU reads their sum."""
    add = view.only_reader(made, "Add")
    if add is None or view.only_reader(add.outputs[0], "Relu") is None or made not in extra:
        return []
    return [(view.name_of(made), view.name_of(other)) for other in add.inputs if other is not made and other in extra]


def observed_tensors(model: onnx.ModelProto, plan: QuantizePlan) -> tuple[tuple[str, ...], dict[str, tuple[str, int]]]:
    """The tensors whose histograms `quantize` needs, and by layer its input tensor and channel axis."""
    opened = view.read(model)
    values, nodes = view.values_of(opened), {node.name: node for node in opened.graph}
    tensors = {name: None for group in plan.groups for name in group if not shared_inputs(values[name])}
    tensors.update(dict.fromkeys(plan.extra))
    inputs = {
        name: (view.name_of(view.operand(nodes[name])), 1 if nodes[name].op_type in CONVOLUTIONS else -1)
        for name in plan.layers
    }
    return tuple(tensors), inputs
