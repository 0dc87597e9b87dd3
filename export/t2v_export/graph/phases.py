"""Transposed convolutions that double an image, as plain ones: the same function, in operators that have an INT8 form.

Of the four taps along an axis of a transposed convolution of kernel 4 and stride 2, each output row meets two, and
which two depends on whether it is even or odd. So all four kinds of pixel, the phases, are channels of one 2x2
convolution over the small image, which are then laid out as pixels (Shi et al., 2016, do so behind a 3x3 convolution).
ONNX Runtime has INT8 kernels for convolutions and none for transposed ones, and TensorRT 8.6 does not build those;
see docs/decisions.md for what it brings. What follows pixel by pixel is done before they are laid out, on which only
bytes move then.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir

from t2v_edge.spec import StageSpec
from t2v_export.graph.clean import check_graph
from t2v_export.graph.operators import is_plain_convolution
from t2v_export.graph.view import (
    Array,
    add_constant,
    array,
    drop_dead,
    is_constant,
    make_node,
    name_of,
    only_reader,
    operand,
    read,
    replace,
    static_shape,
    write,
)

LAYOUT = "/layout."
"""Part of the names of nodes that lay phases out as pixels."""

POINTWISE = ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "HardSigmoid", "HardSwish", "Exp", "Clip")
NHWC = [0, 2, 3, 1]
# Row of the layout: the tap of the 2x2 kernel that meets each tap of the transposed one, along one axis.
TAPS = ({0: 2, 1: 0}, {0: 3, 1: 1})


def is_layout(node: ir.Node) -> bool:
    """Whether the node only lays out phases as pixels."""
    return LAYOUT in (node.name or "")


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
    view = read(model, typed=True)
    for node in view.graph:
        shape = static_shape(operand(node)) if node.op_type == "ConvTranspose" else None
        if shape is not None and len(shape) == 4 and is_plain_convolution(node, 4, 2):
            _split(view.graph, node)
    drop_dead(view.graph)
    made = write(view)
    check_graph(made, spec)
    return made


def _split(graph: ir.Graph, node: ir.Node) -> None:
    """Replace one transposed convolution; what follows it pixel by pixel goes before the layout."""
    weight, prefix, end = array(operand(node, 1)), _prefix(node), node.outputs[0]
    inputs = [operand(node), add_constant(graph, f"{prefix}.phases", phase_weight(weight))]
    if operand(node, 2) is not None:
        inputs.append(add_constant(graph, f"{prefix}.phases.bias", np.tile(array(operand(node, 2)), 4)))
    form: dict[str, list[int]] = {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1]}
    nodes = [make_node("Conv", inputs, f"{end.name}/phases", node.name or "", **form)]
    moved = [node]
    channels_last = False
    while not channels_last and (reader := only_reader(end)) is not None:
        channels_last = reader.op_type == "Transpose" and list(reader.attributes.get_ints("perm", [])) == NHWC
        earlier = [] if channels_last else _earlier(graph, reader, end, nodes[-1].outputs[0], weight.shape[1])
        if not channels_last and not earlier:
            break
        nodes += earlier
        moved.append(reader)
        end = reader.outputs[0]
    nodes += _layout(graph, node, nodes[-1].outputs[0], name_of(end), weight.shape[1], channels_last)
    moved[-1].append(nodes)
    replace(end, nodes[-1].outputs[0])
    graph.remove(moved, safe=True)


def _prefix(node: ir.Node) -> str:
    return (node.name or "").lstrip("/")


def _earlier(graph: ir.Graph, reader: ir.Node, end: ir.Value, made: ir.Value, channels: int) -> list[ir.Node]:
    """What reads pixels `end`, on phases `made` instead; nothing where it does more than a pixel's own number."""
    inputs = list(reader.inputs)
    result: list[ir.Node] = []
    if reader.op_type in POINTWISE:
        if any(i is not None and not is_constant(i) for i in inputs[1:]):
            return []
    elif reader.op_type in ("Add", "Mul"):
        place = 1 - inputs.index(end)
        other, shape = inputs[place], static_shape(inputs[place])
        if shape == (1, channels, 1, 1):
            repeats = add_constant(graph, "layout.repeats", np.array([1, 4, 1, 1], np.int64))
            result.append(make_node("Tile", [other, repeats], f"{name_of(other)}/phases", f"{reader.name}/Tile"))
            inputs[place] = result[0].outputs[0]
        elif shape is None or math.prod(shape) != 1 or len(shape) > 4:
            return []
    else:
        return []
    inputs[inputs.index(end)] = made
    outputs = [ir.Value(name=f"{reader.outputs[0].name}/phases")]
    return [*result, ir.node(reader.op_type, inputs, reader.attributes, outputs=outputs, name=reader.name)]


def _layout(
    graph: ir.Graph, node: ir.Node, made: ir.Value, end: str, channels: int, channels_last: bool
) -> list[ir.Node]:
    """Phases (1, 4 channels, h + 1, w + 1) -> pixels (1, channels, 2h, 2w), or (1, 2h, 2w, channels), named `end`.

    With channels last each move is of whole runs of bytes. That is faster than DepthToSpace in ONNX Runtime.
    """
    height, width = (size + 1 for size in (static_shape(operand(node)) or ())[2:])
    sizes = [-1, width, 2, 2 * channels], [-1, 2 * height, 2 * width, channels]  # whatever the batch
    apart, together = (
        add_constant(graph, f"{_prefix(node)}.layout{k}", np.array(size, np.int64)) for k, size in enumerate(sizes)
    )
    crop = [
        add_constant(graph, f"layout.{key}", np.array(value, np.int64))
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
        given = end if k == len(steps) - 1 else f"{node.outputs[0].name}/layout.{k}"
        nodes.append(make_node(operator, [made, *more], given, f"{node.name}{LAYOUT}{k}", **attributes))
        made = nodes[-1].outputs[0]
    return nodes
