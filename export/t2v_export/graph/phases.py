"""Plain convolutions in place of transposed ones that double an image: the same function, which has an INT8 form.

A transposed convolution of kernel 4 and stride 2 has four taps along an axis. Each output row meets two of them: one
pair if it is even, the other if it is odd. So the four kinds of pixel, the phases, are channels of one 2x2 convolution
over the small image. A layout then makes pixels of them (Shi et al., 2016, do so behind a 3x3 convolution). ONNX
Runtime has no INT8 kernels for transposed convolutions, and TensorRT 8.6 does not build them in INT8. Operators that
work pixel by pixel run before the layout, so that the layout moves bytes alone. See docs/decisions.md for the gain.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir

from t2v_edge.spec import StageSpec
from t2v_export.graph import view
from t2v_export.graph.clean import finished
from t2v_export.graph.operators import is_plain_convolution

LAYOUT = "/layout."
"""Part of the names of nodes that lay phases out as pixels."""

POINTWISE = ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "HardSigmoid", "HardSwish", "Exp", "Clip")
MOVES = ("Transpose", "Reshape", "Slice")
NHWC = [0, 2, 3, 1]
# By phase along one axis: tap of the 2x2 kernel -> tap of the transposed convolution.
TAPS = ({0: 2, 1: 0}, {0: 3, 1: 1})


def is_layout(node: ir.Node) -> bool:
    """Whether the node only lays out phases as pixels. A model may have a module named `layout` too."""
    return LAYOUT in (node.name or "") and node.op_type in MOVES


def phase_weight(weight: view.Array) -> view.Array:
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
    """A float graph with plain convolutions and layouts in place of doubling transposed ones; `model` stays as it is.

    Such are ConvTranspose nodes of kernel 4, stride 2 and padding 1, ungrouped, with constant weights. The result is
    equal but for rounding. Nodes keep their names. Raises `SpecError` if the new graph is not valid.
    """
    opened = view.read(model, typed=True)
    for node in opened.graph:
        shape = view.static_shape(view.operand(node)) if node.op_type == "ConvTranspose" else None
        if shape is not None and len(shape) == 4 and is_plain_convolution(node, 4, 2):
            _split(opened.graph, node)
    return finished(opened, spec)


def _split(graph: ir.Graph, node: ir.Node) -> None:
    """Replace one transposed convolution. Nodes behind it that work pixel by pixel go before the layout."""
    weight, prefix, end = view.constant(node, 1), view.bare_name(node), node.outputs[0]
    inputs = [view.operand(node), view.add_constant(graph, f"{prefix}.phases", phase_weight(weight))]
    if view.operand(node, 2) is not None:
        inputs.append(view.add_constant(graph, f"{prefix}.phases.bias", np.tile(view.constant(node, 2), 4)))
    form: dict[str, list[int]] = {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1]}
    nodes = [view.make_node("Conv", inputs, f"{end.name}/phases", node.name or "", **form)]
    moved = [node]
    channels_last = False
    while not channels_last and (reader := view.only_reader(end)) is not None:
        channels_last = reader.op_type == "Transpose" and list(reader.attributes.get_ints("perm", [])) == NHWC
        earlier = [] if channels_last else _earlier(graph, reader, end, nodes[-1].outputs[0], weight.shape[1])
        if not channels_last and not earlier:
            break
        nodes += earlier
        moved.append(reader)
        end = reader.outputs[0]
    nodes += _layout(graph, node, nodes[-1].outputs[0], weight.shape[1], channels_last)
    ir.convenience.replace_nodes_and_values(graph, moved[-1], moved, nodes, [end], nodes[-1].outputs)


def _earlier(graph: ir.Graph, reader: ir.Node, end: ir.Value, made: ir.Value, channels: int) -> list[ir.Node]:
    """The node that reads pixels `end`, on phases `made`. Empty if it reads more than each pixel's own number."""
    inputs = list(reader.inputs)
    result: list[ir.Node] = []
    if reader.op_type in POINTWISE:
        if any(i is not None and not view.is_constant(i) for i in inputs[1:]):
            return []
    elif reader.op_type in ("Add", "Mul"):
        place = 1 - inputs.index(end)
        other, shape = inputs[place], view.static_shape(inputs[place])
        if shape == (1, channels, 1, 1):
            repeats = view.add_constant(graph, "layout.repeats", np.array([1, 4, 1, 1], np.int64))
            tile = view.make_node("Tile", [other, repeats], f"{view.name_of(other)}/phases", f"{reader.name}/Tile")
            result.append(tile)
            inputs[place] = tile.outputs[0]
        elif shape is None or math.prod(shape) != 1 or len(shape) > 4:
            return []
    else:
        return []
    inputs[inputs.index(end)] = made
    outputs = [ir.Value(name=f"{reader.outputs[0].name}/phases")]
    return [*result, ir.node(reader.op_type, inputs, reader.attributes, outputs=outputs, name=reader.name)]


def _layout(graph: ir.Graph, node: ir.Node, made: ir.Value, channels: int, channels_last: bool) -> list[ir.Node]:
    """The moves from phases (1, 4 channels, h + 1, w + 1) to pixels (1, channels, 2h, 2w), or (1, 2h, 2w, channels).

    With channels last each move is of whole runs of bytes. That is faster than DepthToSpace in ONNX Runtime.
    """
    height, width = (size + 1 for size in (view.static_shape(view.operand(node)) or ())[2:])
    sizes = [-1, width, 2, 2 * channels], [-1, 2 * height, 2 * width, channels]  # for any batch
    apart, together = (
        view.add_constant(graph, f"{view.bare_name(node)}.layout{k}", np.array(size, np.int64))
        for k, size in enumerate(sizes)
    )
    crop = [
        view.add_constant(graph, f"layout.{key}", np.array(value, np.int64))
        for key, value in (("from", [1, 1]), ("to", [-1, -1]), ("axes", [1, 2]))
    ]
    steps: list[tuple[str, list[ir.Value], dict[str, list[int]]]] = [
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
        given, name = f"{node.outputs[0].name}/layout.{k}", f"{node.name}{LAYOUT}{k}"
        nodes.append(view.make_node(operator, [made, *more], given, name, **attributes))
        made = nodes[-1].outputs[0]
    return nodes
