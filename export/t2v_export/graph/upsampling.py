"""One transposed convolution in place of a nearest-neighbour doubling and the 3x3 convolution behind it.

Of the nine taps over a doubled image, those that fall on the same small pixel can be added up beforehand. The sum is a
transposed convolution of kernel 4, stride 2 and padding 1. It has four taps an output pixel instead of nine, and needs
no large image in between. The faster form depends on the engine; see docs/decisions.md.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from t2v_edge.spec import StageSpec
from t2v_export.graph import view
from t2v_export.graph.clean import finished
from t2v_export.graph.operators import is_plain_convolution
from t2v_export.graph.phases import split_phases

# Row k: the taps of the 3x3 kernel that tap k of the transposed one sums, along one axis.
TAPS = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], np.float64)

# Coordinate and rounding modes of Resize that repeat each pixel twice.
REPEATING = {
    ("asymmetric", "floor"),
    ("asymmetric", "round_prefer_floor"),
    ("half_pixel", "round_prefer_floor"),
    ("half_pixel", "round_prefer_ceil"),
    ("pytorch_half_pixel", "round_prefer_floor"),
    ("pytorch_half_pixel", "round_prefer_ceil"),
}


BUILT = "built"


def doubling_forms(model: onnx.ModelProto, spec: StageSpec) -> dict[str, onnx.ModelProto]:
    """The forms of a render graph's doublings, by name: as `built`, as `transposed` convolutions, and in `phases`.

    All are the same function. A form equal to the one before it is left out.
    """
    forms = {BUILT: model}
    last = model
    for name, rewrite in (("transposed", transpose_upsampling), ("phases", split_phases)):
        made = rewrite(last, spec)
        if len(made.graph.node) != len(last.graph.node):
            forms[name] = last = made
    return forms


def int8_form(model: onnx.ModelProto, spec: StageSpec, for_cpu: bool) -> onnx.ModelProto:
    """The form to quantize: transposed convolutions in phases, because few engines have them in INT8.

    `for_cpu`: a doubling by resize becomes one too, because four taps a pixel are faster than nine.
    """
    return split_phases(transpose_upsampling(model, spec) if for_cpu else model, spec)


def transposed_weight(weight: view.Array) -> view.Array:
    """A 3x3 convolution's weight (out, in, 3, 3) -> the transposed convolution's (in, out, 4, 4), same dtype."""
    summed = np.einsum("kr,lc,oirc->iokl", TAPS, TAPS, weight.astype(np.float64))
    return np.ascontiguousarray(summed.astype(weight.dtype))


def transpose_upsampling(model: onnx.ModelProto, spec: StageSpec) -> onnx.ModelProto:
    """A float graph with each doubling and its 3x3 convolution as one ConvTranspose; `model` stays as it is.

    A doubling is a Resize that repeats each pixel twice along height and width. Its one reader must be a convolution of
    kernel 3, stride 1 and padding 1, ungrouped, with constant weights. The result is equal but for rounding. Nodes keep
    the convolution's name. Raises `SpecError` if the new graph is not valid.
    """
    opened = view.read(model, typed=True)
    graph = opened.graph
    for resize in graph:
        conv = view.only_reader(resize.outputs[0], "Conv")
        if conv is None or not _doubles(resize) or not is_plain_convolution(conv, 3, 1):
            continue
        weight = view.operand(conv, 1)
        wanted = view.add_constant(graph, f"{view.name_of(weight)}.transposed", transposed_weight(view.array(weight)))
        form: dict[str, list[int]] = {"kernel_shape": [4, 4], "strides": [2, 2], "pads": [1, 1, 1, 1]}
        inputs = [view.operand(resize), wanted, *conv.inputs[2:]]
        made = view.make_node("ConvTranspose", inputs, "", conv.name or "", **form)
        ir.convenience.replace_nodes_and_values(graph, conv, [resize, conv], [made], conv.outputs, made.outputs)
    return finished(opened, spec)


def _doubles(resize: ir.Node) -> bool:
    """Whether the node repeats every pixel twice along height and width."""
    if resize.op_type != "Resize":
        return False
    has = resize.attributes
    way = (
        has.get_string("coordinate_transformation_mode", "half_pixel"),
        has.get_string("nearest_mode", "round_prefer_floor"),
    )
    before, after = view.static_shape(view.operand(resize)) or (), view.static_shape(resize.outputs[0])
    nearest = has.get_string("mode", "nearest") == "nearest" and way in REPEATING
    return nearest and len(before) == 4 and after == (*before[:2], 2 * before[2], 2 * before[3])
