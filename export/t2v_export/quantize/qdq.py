"""INT8 Q/DQ graphs of a float32 graph and a plan: the graph with QuantizeLinear and DequantizeLinear in it.

Weights become int8 constants with a scale for each output channel; activations get one scale a tensor.
`int8` is what TensorRT takes: signed, every zero-point 0, the inputs of layers quantized and their sums left to fuse.
`int8-u8` is what ONNX Runtime's CPU kernels and OpenVINO like: unsigned with a zero-point, convolutions' outputs
quantized as well, int32 biases, embeddings stored as int8; its frames are quantized onto their own 256 levels where
float graphs round. Both come from the same observations.
"""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from t2v_calibration.ranges import Grid, Histogram, choose_grid, quantize_weight, weight_scales
from t2v_edge.spec import StageSpec
from t2v_export.graph.clean import check_graph
from t2v_export.graph.operators import DQ, Q, along, out_axis
from t2v_export.graph.view import (
    Array,
    add_constant,
    array,
    drop_constants,
    is_constant,
    known_shape,
    make_node,
    maker,
    name_of,
    only_reader,
    operand,
    read,
    rename_source,
    replace,
    set_operand,
    static_shape,
    values_of,
    write,
)
from t2v_export.quantize.observe import Observations
from t2v_export.quantize.plan import QuantizePlan, laid_out, pixels_of, shared_inputs
from t2v_export.recipe import Quantize

INT8_VARIANTS = ("int8", "int8-u8")
EMBEDDING_ELEMENTS = 1 << 16  # lookup tables from this size on are stored as int8


def quantize(
    model: onnx.ModelProto, spec: StageSpec, plan: QuantizePlan, seen: Observations, options: Quantize, variant: str
) -> onnx.ModelProto:
    """The Q/DQ graph of `variant`, one of `INT8_VARIANTS`; `model` is left as it is. Same input, same bytes.

    Raises `CalibrationError` where a tensor was not observed or a weight is not finite, `SpecError` where the graph
    made is not valid.
    """
    made = quantize_unchecked(model, plan, seen, options, variant)
    check_graph(made, spec)
    return made


def quantize_unchecked(
    model: onnx.ModelProto, plan: QuantizePlan, seen: Observations, options: Quantize, variant: str
) -> onnx.ModelProto:
    """`quantize` for a graph that an engine here is about to run and nobody keeps: checking takes as long as making."""
    view = read(model)
    _Quantizer(view, plan, seen, options, variant == "int8").run()
    drop_constants(view.graph)
    return write(view)


class _Quantizer:
    """The work of `quantize` on one graph, in place."""

    def __init__(self, view: ir.Model, plan: QuantizePlan, seen: Observations, options: Quantize, signed: bool) -> None:
        self.graph, self.plan, self.seen, self.options, self.signed = view.graph, plan, seen, options, signed
        self.nodes, self.values = list(view.graph), values_of(view)
        self.grids: dict[ir.Value, Grid] = {}
        self.behind: dict[ir.Value, list[ir.Node]] = defaultdict(list)  # new nodes by the tensor they follow
        self.chosen, self.pixels = set(plan.layers), pixels_of(view.graph)
        sources = {self.values[t]: laid_out(self.values[t]) for group in plan.groups for t in group}
        self.laid_out = {source for t, source in sources.items() if t is not source}  # phases laid out in 8 bits

    def run(self) -> None:
        for group in self.plan.groups:
            grid = self._grid(group)
            # TensorRT is given the inputs of layers alone, and finds by itself where else 8 bits do
            grouped = [self.values[name] for name in group]
            self.grids.update({t: grid for t in grouped if not (self.signed and t in self.laid_out)})
        if not self.signed:
            added = dict(self.plan.added)
            self.grids.update({self.values[name]: self._grid((name,), added.get(name)) for name in self.plan.extra})
        layers = {node.name: node for node in self.nodes}
        for name in self.plan.layers:
            self._layer(layers[name])
        for value, grid in self.grids.items():
            self._activation(value, grid)
        if not self.signed:
            for node in self.nodes:
                self._embedding(node)
            self._round_frames()
        self.graph.insert_before(self.graph[0], [node for value in self.graph.inputs for node in self.behind[value]])
        for node in self.nodes:
            if node.graph is not None:
                node.append([new for output in node.outputs for new in self.behind[output]])

    def _grid(self, names: tuple[str, ...], added: str | None = None) -> Grid:
        """The grid that tensors share. What is so far below zero that nothing `added` lifts it there needs no levels:
        a ReLU makes zero of it, and of the lowest level alike.
        """
        merged = Histogram()
        for name in names:
            if name in self.seen.histograms:
                merged = merged.merged(self.seen.histograms[name])
        if added is not None and added in self.seen.histograms:
            merged = merged.above(-max(0.0, self.seen.histograms[added].high))
        return choose_grid(names[0], merged, self.options.method, self.signed, self.options.percentile)

    def _constant(self, name: str, value: Array) -> ir.Value:
        return add_constant(self.graph, name, value)

    def _whole(self, name: str, whole: Array, scales: NDArray[np.float32]) -> list[ir.Value]:
        """The inputs of a DQ that gives a constant: whole numbers, scales and zero-points."""
        return [
            self._constant(f"{name}.int8", whole),
            self._constant(f"{name}.scale", scales),
            self._constant(f"{name}.zero_point", np.zeros(scales.shape, np.int8)),
        ]

    def _activation(self, value: ir.Value, grid: Grid) -> None:
        """Put Q and DQ behind a tensor and let those who compute in 8 bits, or only move it about, read it there."""
        name, uses = name_of(value), value.uses()
        parameters = [
            self._constant(f"{name}.scale", np.asarray(grid.scale, np.float32)),
            self._constant(f"{name}.zero_point", np.asarray(grid.zero_point, grid.dtype)),
        ]
        q = make_node(Q, [value, *parameters], f"{name}.q", f"/q{_slash(name)}")
        dq = make_node(DQ, [q.outputs[0], *parameters], f"{name}.dq", f"/dq{_slash(name)}")
        self.behind[value] += [q, dq]
        for node, place in uses:
            made = node.outputs[0]
            shares = value in shared_inputs(made) and made in self.grids
            every = name in self.plan.extra or value in self.laid_out or shares
            if every or (place == 0 and node.name in self.chosen):
                node.replace_input_with(place, dq.outputs[0])

    def _round_frames(self) -> None:
        """Let a last convolution in INT8 give the frame's own levels, so that nothing but bytes moves behind it."""
        layer = maker(self.pixels.made) if self.pixels else None
        if self.pixels is None or layer is None or layer.name not in self.chosen:
            return
        made, (clip, *moves, rounding, cast) = self.pixels.made, self.pixels.nodes
        grid = [
            self._constant("levels.scale", np.asarray(1.0, np.float32)),
            self._constant("levels.zero_point", np.asarray(0, np.uint8)),
        ]
        q = make_node(Q, [made, *grid], f"{made.name}.levels", "/q/levels")
        self.behind[made].append(q)
        if moves:
            moves[0].replace_input_with(0, q.outputs[0])
        replace(cast.outputs[0], (moves[-1] if moves else q).outputs[0])
        self.graph.remove([clip, rounding, cast], safe=True)

    def _layer(self, node: ir.Node) -> None:
        """Int8 weights behind DQ, and a corrected bias."""
        weight = array(operand(node, 1))
        axis = out_axis(node)
        bits = 8 if self.signed else self.options.weight_bits
        scales = weight_scales(weight, axis, bits)
        rounded = self.seen.rounded.get((node.name or "", bits)) if self.options.compensate else None
        rounded = quantize_weight(weight, scales, axis, bits) if rounded is None else rounded
        name = f"{_bare(node)}.weight"
        dq = make_node(DQ, self._whole(name, rounded, scales), f"{name}.dq", f"/dq/{name}", axis=axis)
        node.prepend(dq)
        node.replace_input_with(1, dq.outputs[0])
        error = np.asarray(rounded * along(scales, axis, weight.ndim).astype(np.float64) - weight, np.float64)
        mean = _mean_error(node, error, self.seen.means[node.name or ""])
        self._bias(node, scales, mean if self.options.bias_correction else np.zeros_like(mean))

    def _bias(self, node: ir.Node, scales: NDArray[np.float32], error: NDArray[np.float64]) -> None:
        if node.op_type == "MatMul":
            self._added_bias(node, error)
            return
        given, source = operand(node, 2), operand(node)
        if source is None or (given is not None and not is_constant(given)):
            return
        bias = array(given) if given is not None else np.zeros(error.size, np.float32)
        if bias.size != error.size or (given is None and not self.options.bias_correction):
            return
        bias = (bias.reshape(-1) - error).astype(np.float32)
        name = f"{_bare(node)}.bias"
        steps = (np.float32(self.grids[source].scale) * scales).astype(np.float32)
        whole = np.rint(bias.astype(np.float64) / np.resize(steps, error.size))
        if self.signed or steps.size != error.size or np.abs(whole).max(initial=0) >= 2**31 - 1:
            set_operand(node, 2, self._constant(f"{name}.float", bias))
            return
        inputs = [self._constant(f"{name}.int32", whole.astype(np.int32)), self._constant(f"{name}.scale", steps)]
        dq = make_node(DQ, inputs, f"{name}.dq", f"/dq/{name}", axis=0)
        node.prepend(dq)
        set_operand(node, 2, dq.outputs[0])

    def _added_bias(self, node: ir.Node, error: NDArray[np.float64]) -> None:
        """A MatMul's bias is the constant of the Add that alone reads it."""
        add = only_reader(node.outputs[0], "Add")
        for place, value in enumerate(add.inputs if add is not None else ()):
            if add is not None and is_constant(value) and static_shape(value) == (error.size,):
                bias = (array(value) - error).astype(np.float32)
                if not self.signed:
                    # ONNX Runtime makes a float Gemm of a MatMul and an Add of a flat bias before it looks for INT8
                    bias = bias.reshape([1] * (self.seen.ranks.get(name_of(node.outputs[0]), 1) - 1) + [-1])
                add.replace_input_with(place, self._constant(f"{_bare(add)}.corrected", bias))
                return

    def _embedding(self, node: ir.Node) -> None:
        """Store a large lookup table as int8, one scale a column; what is looked up is dequantized after it."""
        table, looked_up = operand(node), node.outputs[0]
        if node.op_type != "Gather" or table is None or not is_constant(table) or looked_up.is_graph_output():
            return
        shape = known_shape(table)
        if table.dtype != ir.DataType.FLOAT or len(shape) != 2 or math.prod(shape) < EMBEDDING_ELEMENTS:
            return
        if node.attributes.get_int("axis", 0) != 0:
            return
        rows = array(table)
        scales = weight_scales(rows, 1)
        name = f"{_bare(node)}.table"
        whole, *parameters = self._whole(name, quantize_weight(rows, scales, 1), scales)
        node.replace_input_with(0, whole)
        made = rename_source(looked_up, f"{looked_up.name}.int8")
        dq = make_node(
            DQ, [looked_up, *parameters], made, f"/dq/{name}", axis=self.seen.ranks[name_of(operand(node, 1))]
        )
        self.behind[looked_up] = [dq, *self.behind[looked_up]]


def _slash(name: str) -> str:
    return name if name.startswith("/") else f"/{name}"


def _bare(node: ir.Node) -> str:
    return (node.name or "").lstrip("/")


def _mean_error(node: ir.Node, error: NDArray[np.float64], means: NDArray[np.float64]) -> NDArray[np.float64]:
    """By how much the rounded weights shift the mean of each output, from the inputs' channel means (bias correction
    after Nagel et al., ICCV 2019; borders are taken to have the mean of the rest).
    """
    groups = node.attributes.get_int("group", 1)
    if node.op_type == "Conv":  # (out, in / groups, kernel)
        summed = error.reshape(*error.shape[:2], -1).sum(2)
        of_group = means.reshape(groups, -1).repeat(summed.shape[0] // groups, axis=0)
        return np.asarray((summed * of_group).sum(1))
    if node.op_type == "ConvTranspose":  # (in, out / groups, kernel): each kernel place meets 1 of `strides` outputs
        strides = node.attributes.get_ints("strides", [1] * (error.ndim - 2))
        summed = error.reshape(*error.shape[:2], -1).sum(2) / np.prod(strides)
        return np.asarray((summed * means[:, None]).reshape(groups, -1, summed.shape[1]).sum(1).reshape(-1))
    return np.asarray(means @ error if out_axis(node) == 1 else error @ means)
