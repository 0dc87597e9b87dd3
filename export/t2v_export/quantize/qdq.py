"""INT8 Q/DQ graphs of a float32 graph and a plan: the graph with QuantizeLinear and DequantizeLinear in it.

Weights become int8 constants with a scale for each output channel; activations get one scale a tensor.
`int8` is what TensorRT takes: signed, every zero-point 0, the inputs of layers quantized and their sums left to fuse.
`int8-u8` is what ONNX Runtime's CPU kernels and OpenVINO like: unsigned with a zero-point, convolutions' outputs
quantized as well, int32 biases, embeddings stored as int8; its frames are quantized onto their own 256 levels where
float graphs round. Both come from the same observations.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from t2v_calibration.ranges import Grid, Histogram, choose_grid, quantize_weight, weight_scales
from t2v_edge.spec import StageSpec
from t2v_export.graph.clean import check_graph, out_axis
from t2v_export.quantize.observe import Observations
from t2v_export.quantize.plan import QuantizePlan, View
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
    made = onnx.ModelProto.FromString(model.SerializeToString())
    _Quantizer(made, plan, seen, options, variant == "int8").run()
    return made


class _Quantizer:
    """The work of `quantize` on one copied graph."""

    def __init__(
        self, model: onnx.ModelProto, plan: QuantizePlan, seen: Observations, options: Quantize, signed: bool
    ) -> None:
        self.graph, self.plan, self.seen, self.options, self.signed = model.graph, plan, seen, options, signed
        self.view = View(model)
        self.grids: dict[str, Grid] = {}
        self.before: dict[str, list[onnx.NodeProto]] = defaultdict(list)  # new nodes by the name of the one they feed
        self.behind: dict[str, list[onnx.NodeProto]] = defaultdict(list)  # and by the tensor they follow
        self.dropped: set[str] = set()  # names of nodes whose work a Q does
        self.pixels = self.view.pixels()
        sources = {t: self.view.laid_out(t) for group in plan.groups for t in group}
        self.laid_out = {source for t, source in sources.items() if t != source}  # phases that are laid out in 8 bits

    def run(self) -> None:
        for group in self.plan.groups:
            grid = self._grid(group)
            # TensorRT is given the inputs of layers alone, and finds by itself where else 8 bits do
            self.grids.update({t: grid for t in group if not (self.signed and t in self.laid_out)})
        if not self.signed:
            added = dict(self.plan.added)
            self.grids.update({name: self._grid((name,), added.get(name)) for name in self.plan.extra})
        layers = {n.name: n for n in self.view.nodes if n.name in set(self.plan.layers)}
        for name in self.plan.layers:
            self._layer(layers[name])
        for name, grid in self.grids.items():
            self._activation(name, grid)
        if not self.signed:
            for node in self.view.nodes:
                self._embedding(node)
            self._round_frames()
        nodes: list[onnx.NodeProto] = []
        for graph_input in self.graph.input:
            nodes += self.behind.get(graph_input.name, [])
        for node in self.view.nodes:
            if node.name in self.dropped:
                continue
            nodes += [*self.before[node.name], node]
            for output in node.output:
                nodes += self.behind.get(output, [])
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        used = {i for n in nodes for i in n.input}
        for tensor in [t for t in self.graph.initializer if t.name not in used]:
            self.graph.initializer.remove(tensor)

    def _grid(self, names: tuple[str, ...], added: str | None = None) -> Grid:
        """The grid that tensors share. What is so far below zero that nothing `added` lifts it there needs no levels:
        a ReLU makes zero of it, and of the lowest level alike.
        """
        merged = Histogram()
        for name in names:
            if name in self.seen.histograms:
                merged = merged.merged(self.seen.histograms[name])
        if added in self.seen.histograms:
            merged = merged.above(-max(0.0, self.seen.histograms[added].high))
        return choose_grid(names[0], merged, self.options.method, self.signed, self.options.percentile)

    def _constant(self, name: str, value: NDArray[np.generic]) -> str:
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def _activation(self, name: str, grid: Grid) -> None:
        """Put Q and DQ behind a tensor and let those who compute in 8 bits, or only move it about, read it there."""
        parameters = [
            self._constant(f"{name}.scale", np.asarray(grid.scale, np.float32)),
            self._constant(f"{name}.zero_point", np.asarray(grid.zero_point, grid.dtype)),
        ]
        q = helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}.q"], name=f"/q{_slash(name)}")
        dq = helper.make_node("DequantizeLinear", [f"{name}.q", *parameters], [f"{name}.dq"], name=f"/dq{_slash(name)}")
        self.behind[name] += [q, dq]
        chosen = set(self.plan.layers)
        for node in self.view.read_by[name]:
            shares = name in self.view.shared_inputs(node.output[0]) and node.output[0] in self.grids
            every = name in self.plan.extra or name in self.laid_out or shares
            for position, read in enumerate(node.input):
                if read == name and (every or (position == 0 and node.name in chosen)):
                    node.input[position] = dq.output[0]

    def _round_frames(self) -> None:
        """Let a last convolution in INT8 give the frame's own levels, so that nothing but bytes moves behind it."""
        maker = self.view.made_by.get(self.pixels.made) if self.pixels else None
        if self.pixels is None or maker is None or maker.name not in self.plan.layers:
            return
        made, (clip, *moves, rounding, cast) = self.pixels.made, self.pixels.nodes
        grid = [self._constant("levels.scale", np.float32(1.0)), self._constant("levels.zero_point", np.uint8(0))]
        q = helper.make_node("QuantizeLinear", [made, *grid], [f"{made}.levels"], name="/q/levels")
        self.behind[made].append(q)
        if moves:
            moves[0].input[0] = q.output[0]
        (moves[-1] if moves else q).output[0] = cast.output[0]
        self.dropped |= {clip.name, rounding.name, cast.name}

    def _layer(self, node: onnx.NodeProto) -> None:
        """Int8 weights behind DQ, and a corrected bias."""
        weight = numpy_helper.to_array(self.view.constants[node.input[1]])
        axis = out_axis(node)
        bits = 8 if self.signed else self.options.weight_bits
        scales = weight_scales(weight, axis, bits)
        rounded = self.seen.rounded.get((node.name, bits)) if self.options.compensate else None
        rounded = quantize_weight(weight, scales, axis, bits) if rounded is None else rounded
        name = node.name.lstrip("/") + ".weight"
        inputs = [
            self._constant(f"{name}.int8", rounded),
            self._constant(f"{name}.scale", scales),
            self._constant(f"{name}.zero_point", np.zeros(scales.shape, np.int8)),
        ]
        self.before[node.name].append(
            helper.make_node("DequantizeLinear", inputs, [f"{name}.dq"], name=f"/dq/{name}", axis=axis)
        )
        node.input[1] = f"{name}.dq"
        shape = [1] * weight.ndim
        shape[axis] = -1
        error = rounded * scales.reshape(shape).astype(np.float64) - weight
        mean = _mean_error(node, error, self.seen.means[node.name])
        self._bias(node, scales, mean if self.options.bias_correction else np.zeros_like(mean))

    def _bias(self, node: onnx.NodeProto, scales: NDArray[np.float32], error: NDArray[np.float64]) -> None:
        if node.op_type == "MatMul":
            self._added_bias(node, error)
            return
        has = len(node.input) > 2 and node.input[2] != ""
        if has and node.input[2] not in self.view.constants:
            return
        size = error.size
        bias = numpy_helper.to_array(self.view.constants[node.input[2]]) if has else np.zeros(size, np.float32)
        if bias.size != size or not (has or self.options.bias_correction):
            return
        bias = (bias.reshape(-1) - error).astype(np.float32)
        name = node.name.lstrip("/") + ".bias"
        del node.input[2:]
        grid = self.grids[node.input[0]]
        steps = (np.float32(grid.scale) * scales).astype(np.float32)
        whole = np.rint(bias.reshape(-1).astype(np.float64) / np.resize(steps, size))
        if self.signed or steps.size != size or np.abs(whole).max(initial=0) >= 2**31 - 1:
            node.input.append(self._constant(f"{name}.float", bias.reshape(-1).astype(np.float32)))
            return
        inputs = [self._constant(f"{name}.int32", whole.astype(np.int32)), self._constant(f"{name}.scale", steps)]
        self.before[node.name].append(
            helper.make_node("DequantizeLinear", inputs, [f"{name}.dq"], name=f"/dq/{name}", axis=0)
        )
        node.input.append(f"{name}.dq")

    def _added_bias(self, node: onnx.NodeProto, error: NDArray[np.float64]) -> None:
        """A MatMul's bias is the constant of the Add that alone reads it."""
        add = self.view.only_reader(node.output[0])
        if add is None or add.op_type != "Add":
            return
        for position, read in enumerate(add.input):
            if read in self.view.constants and list(self.view.constants[read].dims) == [error.size]:
                bias = (numpy_helper.to_array(self.view.constants[read]) - error).astype(np.float32)
                if not self.signed:
                    # ONNX Runtime makes a float Gemm of a MatMul and an Add of a flat bias before it looks for INT8
                    bias = bias.reshape([1] * (self.seen.ranks.get(node.output[0], 1) - 1) + [-1])
                add.input[position] = self._constant(f"{add.name.lstrip('/')}.corrected", bias)
                return

    def _embedding(self, node: onnx.NodeProto) -> None:
        """Store a large lookup table as int8, one scale a column; what is looked up is dequantized after it."""
        table = self.view.constants.get(node.input[0]) if node.op_type == "Gather" else None
        if (
            table is None
            or table.data_type != TensorProto.FLOAT
            or len(table.dims) != 2
            or self.view.outputs & {*node.output}
        ):
            return
        if any(a.name == "axis" and a.i != 0 for a in node.attribute) or np.prod(table.dims) < EMBEDDING_ELEMENTS:
            return
        rows = numpy_helper.to_array(table)
        scales = weight_scales(rows, 1)
        name, made = node.name.lstrip("/") + ".table", node.output[0]
        node.input[0] = self._constant(f"{name}.int8", quantize_weight(rows, scales, 1))
        node.output[0] = f"{made}.int8"
        inputs = [
            node.output[0],
            self._constant(f"{name}.scale", scales),
            self._constant(f"{name}.zero_point", np.zeros(scales.shape, np.int8)),
        ]
        dq = helper.make_node(
            "DequantizeLinear", inputs, [made], name=f"/dq/{name}", axis=self.seen.ranks[node.input[1]]
        )
        self.behind[node.output[0]] += [dq, *self.behind.pop(made, [])]


def _slash(name: str) -> str:
    return name if name.startswith("/") else f"/{name}"


def _mean_error(node: onnx.NodeProto, error: NDArray[np.float64], means: NDArray[np.float64]) -> NDArray[np.float64]:
    """By how much the rounded weights shift the mean of each output, from the inputs' channel means (bias correction
    after Nagel et al., ICCV 2019; borders are taken to have the mean of the rest).
    """
    groups = next((int(a.i) for a in node.attribute if a.name == "group"), 1)
    if node.op_type == "Conv":  # (out, in / groups, kernel)
        summed = error.reshape(*error.shape[:2], -1).sum(2)
        of_group = means.reshape(groups, -1).repeat(summed.shape[0] // groups, axis=0)
        return np.asarray((summed * of_group).sum(1))
    if node.op_type == "ConvTranspose":  # (in, out / groups, kernel): each kernel place meets 1 of `strides` outputs
        strides = next((list(a.ints) for a in node.attribute if a.name == "strides"), [1] * (error.ndim - 2))
        summed = error.reshape(*error.shape[:2], -1).sum(2) / np.prod(strides)
        return np.asarray((summed * means[:, None]).reshape(groups, -1, summed.shape[1]).sum(1).reshape(-1))
    return np.asarray(means @ error if out_axis(node) == 1 else error @ means)
