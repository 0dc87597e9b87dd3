"""Nearest-neighbour doubling and the 3x3 convolution behind it, as one transposed convolution: the same function.

Of the nine taps of a 3x3 convolution over an image doubled by repetition, those that fall on the same small pixel can
be added up beforehand. What is left is a transposed convolution of kernel 4, stride 2 and padding 1: four taps an
output pixel instead of nine, and no large image in between. Which form is the faster is the engine's affair, so this
pass is for those that measured it so; see docs/decisions.md.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from t2v_edge.spec import StageSpec
from t2v_export.graph.clean import Array, check_graph, static_shapes
from t2v_export.graph.phases import split_phases

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
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    shapes = static_shapes(model)
    weights = {t.name: t for t in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {o.name for o in graph.output}
    for resize in [n for n in graph.node if n.op_type == "Resize"]:
        behind = readers.get(resize.output[0], [])
        if len(behind) != 1 or resize.output[0] in outputs or not _doubles(resize, shapes):
            continue
        conv = behind[0]
        weight = weights.get(conv.input[1]) if conv.op_type == "Conv" else None
        if weight is None or not _plain(conv, weight) or any(i not in weights for i in conv.input[2:] if i):
            continue
        name = f"{weight.name}.transposed"
        graph.initializer.append(numpy_helper.from_array(transposed_weight(numpy_helper.to_array(weight)), name))
        made = helper.make_node(
            "ConvTranspose",
            [resize.input[0], name, *conv.input[2:]],
            list(conv.output),
            name=conv.name,
            kernel_shape=[4, 4],
            strides=[2, 2],
            pads=[1, 1, 1, 1],
        )
        graph.node.insert(list(graph.node).index(conv), made)
        graph.node.remove(conv)
        graph.node.remove(resize)
    used = {i for n in graph.node for i in n.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
    check_graph(model, spec)
    return model


def _doubles(resize: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the node repeats every pixel twice along height and width."""
    has = {a.name: helper.get_attribute_value(a) for a in resize.attribute}
    way = tuple(
        has.get(key, default).decode()
        for key, default in (("coordinate_transformation_mode", b"half_pixel"), ("nearest_mode", b"round_prefer_floor"))
    )
    before, after = shapes.get(resize.input[0], ()), shapes.get(resize.output[0], ())
    return (
        has.get("mode", b"nearest") == b"nearest"
        and way in REPEATING
        and len(before) == 4
        and min(before) > 0
        and after == (*before[:2], 2 * before[2], 2 * before[3])
    )


def _plain(conv: onnx.NodeProto, weight: onnx.TensorProto) -> bool:
    has = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
    return (
        list(weight.dims[2:]) == [3, 3]
        and has.get("group", 1) == 1
        and list(has.get("pads", [])) == [1] * 4
        and set(has.get("strides", [1])) == {1}
        and set(has.get("dilations", [1])) == {1}
        and has.get("auto_pad", b"NOTSET") == b"NOTSET"
    )
