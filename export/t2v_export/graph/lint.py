"""A linter of graphs: does a graph keep the rules of its variant, and those of the engine it is for? Each fault names
its node.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from t2v_edge.errors import SpecError
from t2v_export.graph.clean import WEIGHTED, out_axis

SCALE_SHARERS = ("Concat", "Resize", "MaxPool")
Q, DQ = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class LintTarget:
    """The rules of one kind of engine. `signed`: activations are int8 with zero-point 0, else uint8.

    `float_bias`: biases must be float, else int32 of scale input x weight. `opset_cap`: newest opset it parses.
    `transposed_int8`: it builds transposed convolutions in INT8. `inner_bytes`: it takes uint8 within a graph, and not
    only as its output, and 8-bit constants that something other than DQ reads.
    """

    name: str
    signed: bool
    float_bias: bool
    opset_cap: int
    transposed_int8: bool = True
    inner_bytes: bool = True


@dataclass(frozen=True)
class LintFault:
    """A rule that a node breaks, with what was found and what is wanted."""

    node: str
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.node}: {self.rule}: {self.message}"


def target_of(variant: str, opset_cap: int) -> LintTarget:
    """The rules that a variant, one of those with INT8, is made for."""
    signed = variant != "int8-u8"
    return LintTarget(variant, signed, signed, opset_cap)


def lint(model: onnx.ModelProto, target: LintTarget, kept: Collection[str] | None = ()) -> tuple[LintFault, ...]:
    """Every fault of a graph, in the order of its nodes. `kept`: layers meant to stay in float; None: any may."""
    return tuple(_Linter(model, target, kept).run())


def check_lint(
    model: onnx.ModelProto,
    target: LintTarget,
    stage: str,
    kept: Collection[str] | None = (),
    remedy: str = "leave the layer out with keep in the recipe",
) -> None:
    """Raise `SpecError` naming the first fault."""
    faults = lint(model, target, kept)
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise SpecError(f"{target.name} {stage}: {faults[0]}{more}; {remedy}")


class _Linter:
    def __init__(self, model: onnx.ModelProto, target: LintTarget, kept: Collection[str] | None) -> None:
        self.model, self.target, self.kept = model, target, kept
        self.constants = {t.name: t for t in model.graph.initializer}
        self.made_by = {o: n for n in model.graph.node for o in n.output}
        self.outputs = {o.name for o in model.graph.output}
        self.faults: list[LintFault] = []

    def run(self) -> list[LintFault]:
        opset = next(o.version for o in self.model.opset_import if o.domain in ("", "ai.onnx"))
        if opset > self.target.opset_cap:
            self._fault(self.model.graph.name, "opset", f"{opset}, at most {self.target.opset_cap} is parsed")
        if opset < 13:
            self._fault(self.model.graph.name, "opset", f"{opset} has no scale for each channel, 13 has")
        for node in self.model.graph.node:
            if node.op_type in (Q, DQ):
                self._parameters(node)
            elif node.op_type in WEIGHTED:
                self._layer(node)
            elif node.op_type in SCALE_SHARERS:
                self._shared(node)
            if not self.target.inner_bytes:
                self._bytes(node)
        return self.faults

    def _fault(self, node: str, rule: str, message: str) -> None:
        self.faults.append(LintFault(node, rule, message))

    def _value(self, node: onnx.NodeProto, position: int) -> NDArray[Any] | None:
        tensor = self.constants.get(node.input[position]) if len(node.input) > position else None
        return None if tensor is None else numpy_helper.to_array(tensor)

    def _parameters(self, node: onnx.NodeProto) -> None:
        scale, zero = self._value(node, 1), self._value(node, 2)
        if scale is None:
            self._fault(node.name, "scale", "is not a constant")
            return
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            self._fault(node.name, "scale", f"{scale.min():.3g} is not above 0 and finite")
        data = self.constants.get(node.input[0])
        kind = data.data_type if data is not None else None
        if zero is not None and zero.shape != scale.shape:
            self._fault(node.name, "zero-point", f"has shape {zero.shape}, its scale {scale.shape}")
        signed = kind is not None or self.target.signed or (zero is not None and zero.dtype == np.int8)
        if zero is not None and signed and zero.any():
            self._fault(node.name, "zero-point", f"{zero.reshape(-1)[np.flatnonzero(zero)[0]]}, 0 is wanted")
        if node.op_type == Q and kind is None:
            if scale.size != 1:
                self._fault(node.name, "activation scale", f"{scale.size} of them, one for the tensor is wanted")
            if zero is None or zero.dtype != (np.int8 if self.target.signed else np.uint8):
                wanted = "int8" if self.target.signed else "uint8"
                self._fault(node.name, "activation type", f"{'uint8' if zero is None else zero.dtype}, not {wanted}")

    def _layer(self, node: onnx.NodeProto) -> None:
        weight = self.made_by.get(node.input[1])
        data, whole = self._weight(weight)
        if weight is None or data is None:
            if node.input[1] in self.constants and self.kept is not None and node.name not in self.kept:
                self._fault(node.name, "leftover", "computes in float and is not among the layers kept so")
            return
        if node.op_type == "ConvTranspose" and not self.target.transposed_int8:
            self._fault(node.name, "INT8 ConvTranspose", "is not built here; split it into phases, or keep it in float")
        axis = 1 if node.op_type == "ConvTranspose" else out_axis(node)
        found = next((int(a.i) for a in weight.attribute if a.name == "axis"), 1) % len(data.dims)
        scale = self._value(weight, 1)
        if not whole:
            self._fault(node.name, "weight type", "is not int8")
        if found != axis:
            self._fault(node.name, "weight axis", f"{found}, the outputs are along {axis}")
        elif scale is not None and scale.shape != (data.dims[axis],):
            self._fault(node.name, "weight scale", f"has shape {scale.shape}, one for {data.dims[axis]} outputs wanted")
        source = self.made_by.get(node.input[0])
        if source is None or source.op_type != DQ:
            self._fault(node.name, "input", "its weights are int8 and its input is not quantized")
        else:
            self._bias(node, source, scale)

    def _weight(self, made: onnx.NodeProto | None) -> tuple[onnx.TensorProto | None, bool]:
        """The constant that a weight's DQ reads, itself or behind a Q, and whether it then is int8."""
        if made is None or made.op_type != DQ:
            return None, False
        before = self.made_by.get(made.input[0])
        if before is not None and before.op_type == Q:
            zero = self._value(before, 2)
            return self.constants.get(before.input[0]), zero is not None and zero.dtype == np.int8
        data = self.constants.get(made.input[0])
        return data, data is not None and data.data_type == TensorProto.INT8

    def _bias(self, node: onnx.NodeProto, source: onnx.NodeProto, scale: NDArray[Any] | None) -> None:
        made = self.made_by.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if made is None or made.op_type != DQ:
            return
        if self.target.float_bias:
            self._fault(node.name, "bias", "is quantized; this target wants a float one")
            return
        own, of_input = self._value(made, 1), self._value(source, 1)
        if own is None or of_input is None or scale is None or not np.allclose(own, of_input * scale, rtol=1e-4):
            self._fault(node.name, "bias scale", "is not that of its input times that of its weight")

    def _bytes(self, node: onnx.NodeProto) -> None:
        for name in node.input:
            kind = self.constants[name].data_type if name in self.constants else None
            if kind in (TensorProto.INT8, TensorProto.UINT8) and node.op_type not in (Q, DQ):
                self._fault(node.name, "8-bit constant", f"{name} is read by {node.op_type}, only DQ may")
        casts = node.op_type == "Cast" and any(a.name == "to" and a.i == TensorProto.UINT8 for a in node.attribute)
        read = any(node.output[0] in n.input for n in self.model.graph.node) if casts else False
        if casts and (read or node.output[0] not in self.outputs):
            self._fault(node.name, "uint8", f"{node.output[0]} is read within the graph; cast last of all")

    def _shared(self, node: onnx.NodeProto) -> None:
        sources = [self.made_by.get(i) for i in node.input if i and i not in self.constants]
        quantized = [s for s in sources if s is not None and s.op_type == DQ]
        readers = [n for n in self.model.graph.node if n.op_type == Q and n.input[0] == node.output[0]]
        if not quantized or not readers:
            return
        wanted = (self._value(readers[0], 1), self._value(readers[0], 2))
        for source in quantized:
            found = (self._value(source, 1), self._value(source, 2))
            if not all(np.array_equal(a, b) for a, b in zip(wanted, found)):  # type: ignore[arg-type]
                self._fault(node.name, "shared scale", f"{source.name} differs from {readers[0].name}")
