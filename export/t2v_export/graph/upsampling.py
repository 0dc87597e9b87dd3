"""Nearest-neighbour doubling and the 3x3 convolution behind it, as one transposed convolution: the same function.

Of the nine taps of a 3x3 convolution over an image doubled by repetition, those that fall on the same small pixel can
be added up beforehand. What is left is a transposed convolution of kernel 4, stride 2 and padding 1: four taps an
output pixel instead of nine, and no large image in between. Which form is the faster is the engine's affair, so this
pass is for those that measured it so; see docs/decisions.md.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from t2v_edge.spec import StageSpec
from t2v_export.graph.clean import check_graph
from t2v_export.graph.operators import is_plain_convolution
from t2v_export.graph.phases import split_phases
from t2v_export.graph.view import (
    Array,
    add_constant,
    array,
    drop_dead,
    make_node,
    name_of,
    only_reader,
    operand,
    read,
    replace,
    static_shape,
    write,
)

# Row k: the taps of the small kernel that the tap k of the transposed one stands for, along one axis.
TAPS = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], np.float64)

# Those of ONNX's ways to find the nearest pixel that repeat each pixel twice.
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
    """The forms that a render graph's doublings can have, all the same function: as they are `built`, as `transposed`
    convolutions, and in `phases`. A form that is no other than the one before it is left out.
    """
    forms = {BUILT: model}
    last = model
    for name, rewrite in (("transposed", transpose_upsampling), ("phases", split_phases)):
        made = rewrite(last, spec)
        if len(made.graph.node) != len(last.graph.node):
            forms[name] = last = made
    return forms


def int8_form(model: onnx.ModelProto, spec: StageSpec, for_cpu: bool) -> onnx.ModelProto:
    """The form to quantize: transposed convolutions in phases, for they have no INT8 of their own in most engines.

    A doubling by resize becomes one of them `for_cpu`, where four taps a pixel beat nine.
    """
    return split_phases(transpose_upsampling(model, spec) if for_cpu else model, spec)


def transposed_weight(weight: Array) -> Array:
    """A 3x3 convolution's weight (out, in, 3, 3) -> the transposed convolution's (in, out, 4, 4), same dtype."""
    summed = np.einsum("kr,lc,oirc->iokl", TAPS, TAPS, weight.astype(np.float64))
    return np.ascontiguousarray(summed.astype(weight.dtype))


def transpose_upsampling(model: onnx.ModelProto, spec: StageSpec) -> onnx.ModelProto:
    """A float graph with each doubling and its 3x3 convolution as one ConvTranspose; `model` is left as it is.

    Taken are Resize nodes that repeat each pixel twice along height and width, whose one reader is a convolution of
    kernel 3, stride 1 and padding 1, ungrouped, with constant weights. The others stay. The result is equal but for
    rounding. Nodes keep the convolution's name. Raises `SpecError` where the graph made is not valid.
    """
    view = read(model, typed=True)
    graph = view.graph
    for resize in graph:
        conv = only_reader(resize.outputs[0], "Conv")
        if conv is None or not _doubles(resize) or not is_plain_convolution(conv, 3, 1):
            continue
        weight = operand(conv, 1)
        wanted = add_constant(graph, f"{name_of(weight)}.transposed", transposed_weight(array(weight)))
        form: dict[str, list[int]] = {"kernel_shape": [4, 4], "strides": [2, 2], "pads": [1, 1, 1, 1]}
        inputs = [operand(resize), wanted, *conv.inputs[2:]]
        made = make_node("ConvTranspose", inputs, name_of(conv.outputs[0]), conv.name or "", **form)
        conv.prepend(made)
        replace(conv.outputs[0], made.outputs[0])
        graph.remove([conv, resize], safe=True)
    drop_dead(graph)
    done = write(view)
    check_graph(done, spec)
    return done


def _doubles(resize: ir.Node) -> bool:
    """Whether the node repeats every pixel twice along height and width."""
    if resize.op_type != "Resize":
        return False
    has = resize.attributes
    way = (
        has.get_string("coordinate_transformation_mode", "half_pixel"),
        has.get_string("nearest_mode", "round_prefer_floor"),
    )
    before, after = static_shape(operand(resize)) or (), static_shape(resize.outputs[0])
    nearest = has.get_string("mode", "nearest") == "nearest" and way in REPEATING
    return nearest and len(before) == 4 and after == (*before[:2], 2 * before[2], 2 * before[3])
