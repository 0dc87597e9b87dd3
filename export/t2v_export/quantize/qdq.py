"""INT8 graphs of a float32 graph and a plan: the same graph with QuantizeLinear (Q) and DequantizeLinear (DQ).

Weights become int8 constants with a scale for each output channel. Activations get one scale a tensor. `int8` is for
TensorRT: signed, every zero-point 0, the inputs of layers quantized. `int8-u8` is for ONNX Runtime's CPU kernels and
OpenVINO: unsigned with a zero-point, outputs of convolutions quantized as well, int32 biases, int8 embeddings. Its
frames are quantized onto their own 256 levels, where float graphs round. Both come from the same observations.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from t2v_calibration.ranges import Grid, Histogram, choose_grid, quantize_weight, weight_scales
from t2v_edge.spec import StageSpec
from t2v_export.graph import view
from t2v_export.graph.clean import check_graph
from t2v_export.graph.operators import DQ, Q, along, is_weight, out_axis
from t2v_export.quantize.observe import Observations
from t2v_export.quantize.plan import QuantizePlan, laid_out, pixels_of, shared_inputs
from t2v_export.recipe import Quantize

INT8_VARIANTS = ("int8", "int8-u8")
EMBEDDING_ELEMENTS = 1 << 16  # lookup tables from this size on are stored as int8


def quantize(
    model: onnx.ModelProto, spec: StageSpec, plan: QuantizePlan, seen: Observations, options: Quantize, variant: str
) -> onnx.ModelProto:
    """The INT8 graph of `variant`, one of `INT8_VARIANTS`; `model` stays as it is. Same input, same bytes.

    Raises `CalibrationError` if a tensor was not observed or a weight is not finite, and `SpecError` if the new graph
    is not valid.
    """
    made = quantize_unchecked(model, plan, seen, options, variant)
    check_graph(made, spec)
    return made


def quantize_unchecked(
    model: onnx.ModelProto, plan: QuantizePlan, seen: Observations, options: Quantize, variant: str
) -> onnx.ModelProto:
    """The graph of `quantize` without its check, which takes as long: for a graph that is run here and not kept."""
    opened = view.read(model)
    _Quantizer(opened, plan, seen, options, variant == "int8").run()
    view.drop_constants(opened.graph)
    return view.write(opened)


class _Quantizer:
    """The work of `quantize` on one graph, in place."""

    def __init__(
        self, opened: ir.Model, plan: QuantizePlan, seen: Observations, options: Quantize, signed: bool
    ) -> None:
        self.graph, self.plan, self.seen, self.options, self.signed = opened.graph, plan, seen, options, signed
        self.nodes, self.values = list(opened.graph), view.values_of(opened)
        self.grids: dict[ir.Value, Grid] = {}
        self.behind: dict[ir.Value, list[ir.Node]] = defaultdict(list)  # new nodes by the tensor they follow
        self.chosen, self.pixels = set(plan.layers), pixels_of(opened.graph)
        sources = {self.values[t]: laid_out(self.values[t]) for group in plan.groups for t in group}
        self.laid_out = {source for t, source in sources.items() if t is not source}  # phases laid out in 8 bits

    def run(self) -> None:
        for group in self.plan.groups:
            grid = self._grid(group)
            # TensorRT gets the inputs of layers alone, and finds other places for 8 bits by itself
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
        """The grid that tensors share.

        Numbers that `added` cannot lift above zero need no levels: a ReLU makes zero of them and of the lowest level.
        """
        merged = Histogram()
        for name in names:
            if name in self.seen.histograms:
                merged = merged.merged(self.seen.histograms[name])
        if added is not None and added in self.seen.histograms:
            merged = merged.above(-max(0.0, self.seen.histograms[added].high))
        return choose_grid(names[0], merged, self.options.method, self.signed, self.options.percentile)

    def _constant(self, name: str, value: view.Array) -> ir.Value:
        return view.add_constant(self.graph, name, value)

    def _whole(self, name: str, whole: view.Array, scales: NDArray[np.float32]) -> list[ir.Value]:
        """The inputs of a DQ that gives a constant: whole numbers, scales and zero-points."""
        return [
            self._constant(f"{name}.int8", whole),
            self._constant(f"{name}.scale", scales),
            self._constant(f"{name}.zero_point", np.zeros(scales.shape, np.int8)),
        ]

    def _activation(self, value: ir.Value, grid: Grid) -> None:
        """Put Q and DQ behind a tensor. Nodes that compute in 8 bits, or only move elements, read it there."""
        name, uses = view.name_of(value), value.uses()
        parameters = [
            self._constant(f"{name}.scale", np.asarray(grid.scale, np.float32)),
            self._constant(f"{name}.zero_point", np.asarray(grid.zero_point, grid.dtype)),
        ]
        q = view.make_node(Q, [value, *parameters], f"{name}.q", f"/q{_slash(name)}")
        dq = view.make_node(DQ, [q.outputs[0], *parameters], f"{name}.dq", f"/dq{_slash(name)}")
        self.behind[value] += [q, dq]
        for node, place in uses:
            made = node.outputs[0]
            shares = value in shared_inputs(made) and made in self.grids
            every = name in self.plan.extra or value in self.laid_out or shares
            if every or (place == 0 and node.name in self.chosen):
                node.replace_input_with(place, dq.outputs[0])

    def _round_frames(self) -> None:
        """Let a last convolution in INT8 give the frame's own levels, so that only bytes move behind it."""
        layer = view.maker(self.pixels.made) if self.pixels else None
        if self.pixels is None or layer is None or layer.name not in self.chosen:
            return
        made, (clip, *moves, rounding, cast) = self.pixels.made, self.pixels.nodes
        grid = [
            self._constant("levels.scale", np.asarray(1.0, np.float32)),
            self._constant("levels.zero_point", np.asarray(0, np.uint8)),
        ]
        q = view.make_node(Q, [made, *grid], f"{made.name}.levels", "/q/levels")
        self.behind[made].append(q)
        if moves:
            moves[0].replace_input_with(0, q.outputs[0])
        view.replace(cast.outputs[0], (moves[-1] if moves else q).outputs[0])
        self.graph.remove([clip, rounding, cast], safe=True)

    def _layer(self, node: ir.Node) -> None:
        """Put a DQ with int8 weights before a layer, and correct its bias."""
        weight = view.constant(node, 1)
        axis = out_axis(node)
        bits = 8 if self.signed else self.options.weight_bits
        scales = weight_scales(weight, axis, bits)
        rounded = self.seen.rounded.get((node.name or "", bits)) if self.options.compensate else None
        rounded = quantize_weight(weight, scales, axis, bits) if rounded is None else rounded
        name = f"{view.bare_name(node)}.weight"
        dq = view.make_node(DQ, self._whole(name, rounded, scales), f"{name}.dq", f"/dq/{name}", axis=axis)
        node.prepend(dq)
        node.replace_input_with(1, dq.outputs[0])
        error = np.asarray(rounded * along(scales, axis, weight.ndim).astype(np.float64) - weight, np.float64)
        mean = _mean_error(node, error, self.seen.means[node.name or ""])
        self._bias(node, scales, mean if self.options.bias_correction else np.zeros_like(mean))

    def _bias(self, node: ir.Node, scales: NDArray[np.float32], error: NDArray[np.float64]) -> None:
        if node.op_type == "MatMul":
            self._added_bias(node, error)
            return
        given, source = view.operand(node, 2), view.operand(node)
        if source is None or (given is not None and not view.is_constant(given)):
            return
        bias = view.array(given) if given is not None else np.zeros(error.size, np.float32)
        if bias.size != error.size or (given is None and not self.options.bias_correction):
            return
        bias = (bias.reshape(-1) - error).astype(np.float32)
        name = f"{view.bare_name(node)}.bias"
        steps = (np.float32(self.grids[source].scale) * scales).astype(np.float32)
        whole = np.rint(bias.astype(np.float64) / np.resize(steps, error.size))
        if self.signed or steps.size != error.size or np.abs(whole).max(initial=0) >= 2**31 - 1:
            view.set_operand(node, 2, self._constant(f"{name}.float", bias))
            return
        inputs = [self._constant(f"{name}.int32", whole.astype(np.int32)), self._constant(f"{name}.scale", steps)]
        dq = view.make_node(DQ, inputs, f"{name}.dq", f"/dq/{name}", axis=0)
        node.prepend(dq)
        view.set_operand(node, 2, dq.outputs[0])

    def _added_bias(self, node: ir.Node, error: NDArray[np.float64]) -> None:
        """Correct the bias of a MatMul: the constant of the Add that alone reads it."""
        add = view.only_reader(node.outputs[0], "Add")
        for place, value in enumerate(add.inputs if add is not None else ()):
            if add is not None and view.is_constant(value) and view.static_shape(value) == (error.size,):
                bias = (view.array(value) - error).astype(np.float32)
                if not self.signed:
                    # with a flat bias ONNX Runtime makes a float Gemm of MatMul and Add before it looks for INT8
                    bias = bias.reshape([1] * (self.seen.ranks.get(view.name_of(node.outputs[0]), 1) - 1) + [-1])
                add.replace_input_with(place, self._constant(f"{view.bare_name(add)}.corrected", bias))
                return

    def _embedding(self, node: ir.Node) -> None:
        """Store a large lookup table as int8, with one scale a column. A DQ stands behind the lookup."""
        looked_up = node.outputs[0]
        if node.op_type != "Gather" or not is_weight(view.operand(node)) or looked_up.is_graph_output():
            return
        rows = view.constant(node)
        if rows.ndim != 2 or rows.size < EMBEDDING_ELEMENTS or node.attributes.get_int("axis", 0) != 0:
            return
        scales = weight_scales(rows, 1)
        name = f"{view.bare_name(node)}.table"
        whole, *parameters = self._whole(name, quantize_weight(rows, scales, 1), scales)
        node.replace_input_with(0, whole)
        made = view.rename_source(looked_up, f"{looked_up.name}.int8")
        dq = view.make_node(
            DQ, [looked_up, *parameters], made, f"/dq/{name}", axis=self.seen.ranks[view.name_of(view.operand(node, 1))]
        )
        self.behind[looked_up] = [dq, *self.behind[looked_up]]


def _slash(name: str) -> str:
    return name if name.startswith("/") else f"/{name}"


def _mean_error(node: ir.Node, error: NDArray[np.float64], means: NDArray[np.float64]) -> NDArray[np.float64]:
    """The shift of each output's mean by the rounded weights, from the channel means of the input.

    Bias correction follows Nagel et al., ICCV 2019. Borders are taken to have the mean of the rest.
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
