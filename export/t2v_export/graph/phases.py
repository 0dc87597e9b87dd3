"""Transposed convolutions that double an image, as plain ones: the same function, in operators that have an INT8 form.

Of the four taps along an axis of a transposed convolution of kernel 4 and stride 2, each output row meets two, and
which two depends on whether it is even or odd. So all four kinds of pixel, the phases, are channels of one 2x2
convolution over the small image, which are then laid out as pixels (Shi et al., 2016, do so behind a 3x3 convolution).
ONNX Runtime has INT8 kernels for convolutions and none for transposed ones, and TensorRT 8.6 does not build those;
see docs/decisions.md for what it brings. What follows pixel by pixel is done before they are laid out, on which only
bytes move then.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from t2v_edge.spec import StageSpec
from t2v_export.graph.clean import Array, check_graph, static_shapes

LAYOUT = "/layout."
"""Part of the names of nodes that lay phases out as pixels."""

POINTWISE = ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "HardSigmoid", "HardSwish", "Exp", "Clip")
NHWC = [0, 2, 3, 1]
# Row of the layout: the tap of the 2x2 kernel that meets each tap of the transposed one, along one axis.
TAPS = ({0: 2, 1: 0}, {0: 3, 1: 1})


def is_layout(node: onnx.NodeProto) -> bool:
    """Whether the node only lays out phases as pixels."""
    return LAYOUT in node.name


def phase_weight(weight: Array) -> Array:
    """A transposed convolution's weight (in, out, 4, 4) -> the convolution's (4 out, in, 2, 2), same dtype.

    Its outputs are ordered by row, column, channel of the four pixels.
    """
    inputs, outputs = weight.shape[:2]
    made = np.zeros((2, 2, outputs, inputs, 2, 2), weight.dtype)
    for row, taps_y in enumerate(TAPS):
        for column, taps_x in enumerate(TAPS):
            for y, from_y in taps_y.items():
                for x, from_x in taps_x.items():
                    made[row, column, :, :, y, x] = weight[:, :, from_y, from_x].T
    return made.reshape(4 * outputs, inputs, 2, 2)


def split_phases(model: onnx.ModelProto, spec: StageSpec) -> onnx.ModelProto:
    """A float graph with each transposed convolution that doubles as a convolution of four times the channels, laid
    out as pixels; `model` is left as it is.

    Taken are ConvTranspose nodes of kernel 4, stride 2 and padding 1, ungrouped, with constant weights. The others
    stay. The result is equal but for rounding. Nodes keep their names. Raises `SpecError` where the graph made is not
    valid.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    _Splitter(model).run()
    check_graph(model, spec)
    return model


class _Splitter:
    """The work of `split_phases` on one copied graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.shapes = static_shapes(model)
        self.constants = {t.name: t for t in self.graph.initializer}
        self.outputs = {o.name for o in self.graph.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.moved: set[str] = set()  # outputs of nodes that went before a layout
        self.behind: dict[str, list[onnx.NodeProto]] = {}  # new nodes by the old output that the last of them gives

    def run(self) -> None:
        for node in self.graph.node:
            if node.op_type == "ConvTranspose" and self._doubles(node):
                self._split(node)
        nodes: list[onnx.NodeProto] = []
        for node in self.graph.node:
            made = node.output[0]
            if made not in self.moved:
                nodes.append(node)
            nodes += self.behind.get(made, [])
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        used = {i for n in nodes for i in n.input}
        for tensor in [t for t in self.graph.initializer if t.name not in used]:
            self.graph.initializer.remove(tensor)

    def _doubles(self, node: onnx.NodeProto) -> bool:
        weight = self.constants.get(node.input[1])
        has = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        return (
            weight is not None
            and list(weight.dims[2:]) == [4, 4]
            and list(has.get("strides", [])) == [2, 2]
            and list(has.get("pads", [])) == [1] * 4
            and has.get("group", 1) == 1
            and not any(has.get("output_padding", [0]))
            and set(has.get("dilations", [1])) == {1}
            and has.get("auto_pad", b"NOTSET") == b"NOTSET"
            and "output_shape" not in has
            and all(i in self.constants for i in node.input[2:] if i)
            and len(self.shapes.get(node.input[0], ())) == 4
            and min(self.shapes[node.input[0]]) > 0
        )

    def _constant(self, name: str, value: Array) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(value, name)
            self.graph.initializer.append(self.constants[name])
        return name

    def _split(self, node: onnx.NodeProto) -> None:
        weight = numpy_helper.to_array(self.constants[node.input[1]])
        name = node.name.lstrip("/")
        inputs = [node.input[0], self._constant(f"{name}.phases", phase_weight(weight))]
        if len(node.input) > 2 and node.input[2]:
            bias = numpy_helper.to_array(self.constants[node.input[2]])
            inputs.append(self._constant(f"{name}.phases.bias", np.tile(bias, 4)))
        end, made = node.output[0], f"{node.output[0]}/phases"
        nodes = [helper.make_node("Conv", inputs, [made], name=node.name, kernel_shape=[2, 2], pads=[1, 1, 1, 1])]
        self.moved.add(end)
        channels_last = False
        while end not in self.outputs and len(self.readers.get(end, [])) == 1:
            reader = self.readers[end][0]
            if reader.op_type == "Transpose" and list(reader.attribute[0].ints) == NHWC:
                self.moved.add(reader.output[0])
                end, channels_last = reader.output[0], True
                break
            earlier = self._earlier(reader, end, made, weight.shape[1])
            if not earlier:
                break
            nodes += earlier
            self.moved.add(reader.output[0])
            end, made = reader.output[0], earlier[-1].output[0]
        nodes += self._layout(node, made, end, weight.shape[1], channels_last)
        self.behind[end] = nodes

    def _earlier(self, reader: onnx.NodeProto, end: str, made: str, channels: int) -> list[onnx.NodeProto]:
        """What reads pixels `end`, on phases `made` instead; nothing where it does more than a pixel's own number."""
        inputs = list(reader.input)
        if reader.op_type in POINTWISE:
            if any(i and i not in self.constants for i in inputs[1:]):
                return []
        elif reader.op_type not in ("Add", "Mul") or inputs.count(end) != 1:
            return []
        result: list[onnx.NodeProto] = []
        if reader.op_type in ("Add", "Mul"):
            place = 1 - inputs.index(end)
            other = inputs[place]
            dims = tuple(self.constants[other].dims) if other in self.constants else self.shapes.get(other)
            if dims == (1, channels, 1, 1):
                repeats = self._constant("layout.repeats", np.array([1, 4, 1, 1], np.int64))
                inputs[place] = f"{other}/phases"
                result.append(helper.make_node("Tile", [other, repeats], [inputs[place]], name=f"{reader.name}/Tile"))
            elif dims is None or int(np.prod(dims)) != 1 or len(dims) > 4:
                return []
        inputs[inputs.index(end)] = made
        moved = helper.make_node(reader.op_type, inputs, [f"{reader.output[0]}/phases"], name=reader.name)
        moved.attribute.extend(reader.attribute)
        return [*result, moved]

    def _layout(
        self, node: onnx.NodeProto, made: str, end: str, channels: int, channels_last: bool
    ) -> list[onnx.NodeProto]:
        """Phases (1, 4 channels, h + 1, w + 1) -> pixels (1, channels, 2h, 2w), or (1, 2h, 2w, channels).

        With channels last each move is of whole runs of bytes, which took a third of DepthToSpace's time in ONNX
        Runtime.
        """
        height, width = (size + 1 for size in self.shapes[node.input[0]][2:])
        prefix = node.name.lstrip("/")
        sizes = [-1, width, 2, 2 * channels], [-1, 2 * height, 2 * width, channels]  # whatever the batch
        apart, together = (
            self._constant(f"{prefix}.layout{k}", np.array(size, np.int64)) for k, size in enumerate(sizes)
        )
        crop = [
            self._constant(f"layout.{key}", np.array(value, np.int64))
            for key, value in (("from", [1, 1]), ("to", [-1, -1]), ("axes", [1, 2]))
        ]
        steps: list[tuple[str, list[str], dict[str, list[int]]]] = [
            ("Transpose", [], {"perm": NHWC}),
            ("Reshape", [apart], {}),
            ("Transpose", [], {"perm": [0, 2, 1, 3]}),
            ("Reshape", [together], {}),
            ("Slice", crop, {}),
        ]
        if not channels_last:
            steps.append(("Transpose", [], {"perm": [0, 3, 1, 2]}))
        nodes = []
        for k, (operator, more, attributes) in enumerate(steps):
            given = end if k == len(steps) - 1 else f"{node.output[0]}/layout.{k}"
            name = f"{node.name}{LAYOUT}{k}"
            nodes.append(helper.make_node(operator, [made, *more], [given], name=name, **attributes))
            made = given
        return nodes
