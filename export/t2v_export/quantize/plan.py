"""What of a float32 graph is quantized: its layers, the tensors that share a grid, and what stays in float32."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

import onnx
from onnx import TensorProto, numpy_helper

from t2v_edge.spec import StageSpec
from t2v_export.graph.clean import WEIGHTED
from t2v_export.graph.phases import is_layout
from t2v_export.recipe import Quantize

CONVOLUTIONS = ("Conv", "ConvTranspose")
MOVES = ("Transpose", "Reshape", "Slice")


@dataclass(frozen=True)
class QuantizePlan:
    """What of a graph is quantized.

    `layers`: names of its nodes. `groups`: activation tensors that share one grid, each group ending in the tensors
    that layers read. `extra`: tensors that `int8-u8` quantizes besides. `kept`: layers left in float32. `added`:
    of `extra`, those that are summed with another tensor in front of a ReLU, and that tensor.
    """

    layers: tuple[str, ...]
    kept: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    extra: tuple[str, ...]
    added: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, eq=False)
class Pixels:
    """The end of a renderer: the tensor `made` of unrounded levels, and the nodes behind it, from Clip to Cast."""

    made: str
    nodes: tuple[onnx.NodeProto, ...]


class View:
    """A float32 graph looked at from all sides; it is not changed."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.constants = {t.name: t for t in model.graph.initializer}
        self.made_by = {o: n for n in self.nodes for o in n.output}
        self.read_by: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.read_by[name].append(node)
        self.outputs = {o.name for o in model.graph.output}

    def layers(self) -> list[onnx.NodeProto]:
        """The nodes with float32 weights that can be quantized."""
        return [n for n in self.nodes if n.op_type in WEIGHTED and self._has_weight(n)]

    def _has_weight(self, node: onnx.NodeProto) -> bool:
        weight = self.constants.get(node.input[1])
        if weight is None or weight.data_type != TensorProto.FLOAT or node.input[0] in self.constants:
            return False
        plain = all(a.name != "transA" or a.i == 0 for a in node.attribute) and all(
            a.name not in ("alpha", "beta") or a.f == 1.0 for a in node.attribute
        )
        return plain and (node.op_type != "MatMul" or len(weight.dims) == 2)

    def shared_inputs(self, name: str) -> list[str]:
        """The tensors that `name` only moves about, so that one grid does for it and them."""
        node = self.made_by.get(name)
        if node is None:
            return []
        if node.op_type == "Concat":
            return [i for i in node.input if i not in self.constants]
        if is_layout(node):
            return [self.laid_out(name)]
        nearest = node.op_type == "Resize" and any(a.name == "mode" and a.s == b"nearest" for a in node.attribute)
        return [node.input[0]] if nearest or node.op_type == "MaxPool" else []

    def laid_out(self, name: str) -> str:
        """The phases that become the pixels `name`; `name` itself where it is something else."""
        while name in self.made_by and is_layout(self.made_by[name]):
            name = self.made_by[name].input[0]
        return name

    def pixels(self) -> Pixels | None:
        """Where the graph's one output is frames: clipped to 0 to 255, perhaps moved about, rounded, cast to uint8."""
        cast = self.made_by[next(iter(self.outputs))] if len(self.outputs) == 1 else None
        if cast is None or cast.op_type != "Cast" or cast.attribute[0].i != TensorProto.UINT8:
            return None
        rounding = self.made_by.get(cast.input[0])
        if rounding is None or rounding.op_type != "Round" or self.only_reader(rounding.output[0]) is None:
            return None
        moves: list[onnx.NodeProto] = []
        name = rounding.input[0]
        while self.only_reader(name) is not None and name in self.made_by and self.made_by[name].op_type in MOVES:
            moves.insert(0, self.made_by[name])
            name = moves[0].input[0]
        clip = self.made_by.get(name)
        if clip is None or clip.op_type != "Clip" or self.only_reader(name) is None:
            return None
        bounds = [self.constants.get(i) for i in clip.input[1:]]
        if [None if b is None else float(numpy_helper.to_array(b)) for b in bounds] != [0.0, 255.0]:
            return None
        return Pixels(clip.input[0], (clip, *moves, rounding, cast))

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        readers = self.read_by.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None


def make_plan(model: onnx.ModelProto, spec: StageSpec, options: Quantize) -> QuantizePlan:
    """Choose the layers and tensors of a stage's float32 graph; nothing is measured for it."""
    view = View(model)
    layers = view.layers()
    names = {n.name for n in layers}
    kept = names & set(options.keep)
    if options.keep_first:
        kept |= _first_dense(view, names, spec)
    pixels = view.pixels()
    if options.keep_last:
        # but not a convolution that gives levels themselves: they are rounded to whole ones anyway
        kept |= _last(view, names) - {n.name for n in layers if pixels and n.output[0] == pixels.made}
    chosen = [n for n in layers if n.name not in kept]
    groups = _groups(view, [n.input[0] for n in chosen])
    grouped = {t for group in groups for t in group}
    extra: dict[str, None] = {}
    added = []
    for node in chosen:
        if node.op_type in CONVOLUTIONS and (pixels is None or node.output[0] != pixels.made):
            extra.update(dict.fromkeys(_after(view, node.output[0], grouped)))
            added += _added(view, node.output[0], extra)
    order = tuple(n.name for n in layers)
    named = tuple(n.name for n in chosen), tuple(n for n in order if n in kept)
    return QuantizePlan(*named, groups, tuple(extra), tuple(added))


def _first_dense(view: View, layers: Collection[str], spec: StageSpec) -> set[str]:
    """Dense layers that a float input reaches through no other layer: coordinates and codes lose most, cost least."""
    reached = {t.name for t in spec.inputs if t.dtype == "float32"}
    first = set()
    for node in view.nodes:
        if reached.intersection(node.input):
            if node.name not in layers:
                reached.update(node.output)
            elif node.op_type in ("Gemm", "MatMul"):
                first.add(node.name)
    return first


def _last(view: View, layers: Collection[str]) -> set[str]:
    """Layers whose result reaches an output of the graph through no other layer."""
    wanted, last = set(view.outputs), set()
    for node in reversed(view.nodes):
        if wanted.intersection(node.output):
            if node.name in layers:
                last.add(node.name)
            else:
                wanted.update(i for i in node.input if i)
    return last


def _groups(view: View, wanted: list[str]) -> tuple[tuple[str, ...], ...]:
    group_of: dict[str, list[str]] = {}

    def join(name: str, group: list[str]) -> None:
        if name in group_of:
            other = group_of[name]
            if other is not group:
                group += [member for member in other if member not in group]
                group_of.update(dict.fromkeys(other, group))
            return
        group.append(name)
        group_of[name] = group
        for source in view.shared_inputs(name):
            join(source, group_of[name])

    for name in wanted:
        if name not in group_of:
            join(name, [])
    return tuple(dict.fromkeys(tuple(group) for group in group_of.values()))


def _after(view: View, made: str, grouped: Collection[str]) -> list[str]:
    """What to quantize behind a convolution, so that it gives 8 bits: the ReLU's output where only that reads it, else
    its own, and the other side of a sum that ends in a quantized tensor.
    """
    reader = view.only_reader(made)
    if reader is not None and reader.op_type == "Relu":
        made = reader.output[0]
        reader = None
    if made in grouped:
        return []
    found = [made]
    if reader is not None and reader.op_type == "Add":
        behind = view.only_reader(reader.output[0])
        sums = {reader.output[0], *(behind.output if behind is not None and behind.op_type == "Relu" else ())}
        others = [i for i in reader.input if i != made and i not in view.constants]
        found += others if sums.intersection(grouped) else []
    return [name for name in found if name not in grouped]


def _added(view: View, made: str, extra: Collection[str]) -> list[tuple[str, str]]:
    """A convolution's output and what is added to it, both quantized, where nothing but a ReLU reads their sum."""
    add = view.only_reader(made)
    relu = view.only_reader(add.output[0]) if add is not None and add.op_type == "Add" else None
    if add is None or relu is None or relu.op_type != "Relu" or made not in extra:
        return []
    return [(made, other) for other in add.input if other != made and other in extra]


def observed_tensors(model: onnx.ModelProto, plan: QuantizePlan) -> tuple[tuple[str, ...], dict[str, tuple[str, int]]]:
    """What `quantize` must know: tensors whose histograms it needs, and for each layer its input and channel axis."""
    view = View(model)
    sources = {g: [t for t in g if not view.shared_inputs(t)] for g in plan.groups}
    tensors = dict.fromkeys(t for found in sources.values() for t in found)
    tensors.update(dict.fromkeys(plan.extra))
    nodes = {n.name: n for n in view.nodes}
    inputs = {}
    for name in plan.layers:
        node = nodes[name]
        inputs[name] = (node.input[0], 1 if node.op_type in CONVOLUTIONS else -1)
    return tuple(tensors), inputs
