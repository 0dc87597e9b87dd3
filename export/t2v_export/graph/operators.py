"""Rules of ONNX operators that several passes need: which have weights, along which axis, and of what form."""

from __future__ import annotations

import onnx_ir as ir

from t2v_export.graph import view

Q, DQ = "QuantizeLinear", "DequantizeLinear"
CONVOLUTIONS = ("Conv", "ConvTranspose")
WEIGHTED = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
"""Layers, and the axis of their weights that runs along the outputs; see `out_axis`."""

RECURRENT = ("LSTM", "GRU", "RNN")


def is_weight(value: ir.Value | None) -> bool:
    """Whether a value is a float32 constant."""
    return value is not None and view.is_constant(value) and value.dtype == ir.DataType.FLOAT


def out_axis(node: ir.Node) -> int:
    """The axis of a layer's weights that runs along its outputs."""
    return 0 if node.op_type == "Gemm" and node.attributes.get_int("transB") else WEIGHTED[node.op_type]


def quantized_axis(node: ir.Node) -> int:
    """The axis of the scales of a Q or DQ; by default the second."""
    return node.attributes.get_int("axis", 1)


def along(values: view.Array, axis: int, rank: int) -> view.Array:
    """One value for each place of `axis`, in a form that multiplies an array of `rank` axes; one value as it is."""
    return values.reshape([-1 if i == axis % rank else 1 for i in range(rank)]) if values.ndim else values


def is_plain_convolution(node: ir.Node, kernel: int, stride: int) -> bool:
    """Whether a convolution has constant weights, a square kernel, this stride, padding 1 and nothing unusual."""
    has, weight = node.attributes, view.operand(node, 1)
    return (
        view.is_constant(weight)
        and all(i is None or view.is_constant(i) for i in node.inputs[2:])
        and (view.static_shape(weight) or ())[2:] == (kernel, kernel)
        and set(has.get_ints("strides", [1])) == {stride}
        and list(has.get_ints("pads", [])) == [1] * 4
        and has.get_int("group", 1) == 1
        and set(has.get_ints("dilations", [1])) == {1}
        and has.get_string("auto_pad", "NOTSET") == "NOTSET"
        and not any(has.get_ints("output_padding", [0]))
        and "output_shape" not in has
    )
