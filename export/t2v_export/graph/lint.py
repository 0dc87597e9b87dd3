"""A linter of graphs: it checks the rules of a variant and of an engine. Each fault names its node."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from t2v_edge.errors import SpecError
from t2v_export.graph import view
from t2v_export.graph.operators import DQ, WEIGHTED, Q, out_axis, quantized_axis

SCALE_SHARERS = ("Concat", "Resize", "MaxPool")


@dataclass(frozen=True)
class LintTarget:
    """The rules of one kind of engine.

    `signed`: activations are int8 with zero-point 0, else uint8. `float_bias`: biases must be float, else int32 with
    the scale of the input times that of the weight. `opset_cap`: the newest opset that it parses. `transposed_int8`: it
    builds transposed convolutions in INT8. `inner_bytes`: it takes uint8 inside a graph, and 8-bit constants that other
    operators than DQ read.
    """

    name: str
    signed: bool
    float_bias: bool
    opset_cap: int
    transposed_int8: bool = True
    inner_bytes: bool = True


@dataclass(frozen=True)
class LintFault:
    """A broken rule of one node, and a message that says what was found and what is wanted."""

    node: str
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.node}: {self.rule}: {self.message}"


def target_of(variant: str, opset_cap: int) -> LintTarget:
    """The rules that an INT8 variant is made for."""
    signed = variant != "int8-u8"
    return LintTarget(variant, signed, signed, opset_cap)


def lint(model: onnx.ModelProto, target: LintTarget, kept: Collection[str] | None = ()) -> tuple[LintFault, ...]:
    """The faults of a graph, in the order of its nodes. `kept`: layers that stay in float; None allows any."""
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
        self.model, self.target, self.kept = view.read(model), target, kept
        self.faults: list[LintFault] = []

    def run(self) -> list[LintFault]:
        graph, opset = self.model.graph, self.model.opset_imports[""]
        if opset > self.target.opset_cap:
            self._fault(graph.name, "opset", f"{opset}, at most {self.target.opset_cap} is parsed")
        if opset < 13:
            self._fault(graph.name, "opset", f"{opset} has no scale for each channel, 13 has")
        for node in graph:
            if node.op_type in (Q, DQ):
                self._parameters(node)
            elif node.op_type in WEIGHTED:
                self._layer(node)
            elif node.op_type in SCALE_SHARERS:
                self._shared(node)
            if not self.target.inner_bytes:
                self._bytes(node)
        return self.faults

    def _fault(self, node: str | None, rule: str, message: str) -> None:
        self.faults.append(LintFault(node or "", rule, message))

    def _parameters(self, node: ir.Node) -> None:
        scale, zero = _constant(node, 1), _constant(node, 2)
        if scale is None:
            self._fault(node.name, "scale", "is not a constant")
            return
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            self._fault(node.name, "scale", f"{scale.min():.3g} is not above 0 and finite")
        activation = not view.is_constant(view.operand(node))
        if zero is not None and zero.shape != scale.shape:
            self._fault(node.name, "zero-point", f"has shape {zero.shape}, its scale {scale.shape}")
        signed = not activation or self.target.signed or (zero is not None and zero.dtype == np.int8)
        if zero is not None and signed and zero.any():
            self._fault(node.name, "zero-point", f"{zero.reshape(-1)[np.flatnonzero(zero)[0]]}, 0 is wanted")
        if node.op_type == Q and activation:
            if scale.size != 1:
                self._fault(node.name, "activation scale", f"{scale.size} of them, one for the tensor is wanted")
            if zero is None or zero.dtype != (np.int8 if self.target.signed else np.uint8):
                wanted = "int8" if self.target.signed else "uint8"
                self._fault(node.name, "activation type", f"{'uint8' if zero is None else zero.dtype}, not {wanted}")

    def _layer(self, node: ir.Node) -> None:
        given = view.operand(node, 1)
        weight = view.maker(given, DQ)
        data, whole = _weight(weight)
        if weight is None or data is None:
            if view.is_constant(given) and self.kept is not None and node.name not in self.kept:
                self._fault(node.name, "leftover", "computes in float and is not among the layers kept so")
            return
        if node.op_type == "ConvTranspose" and not self.target.transposed_int8:
            self._fault(node.name, "INT8 ConvTranspose", "is not built here; split it into phases, or keep it in float")
        axis, found = out_axis(node), quantized_axis(weight) % data.ndim
        scale = _constant(weight, 1)
        if not whole:
            self._fault(node.name, "weight type", "is not int8")
        if found != axis:
            self._fault(node.name, "weight axis", f"{found}, the outputs are along {axis}")
        elif scale is not None and scale.shape != (data.shape[axis],):
            self._fault(
                node.name, "weight scale", f"has shape {scale.shape}, one for {data.shape[axis]} outputs wanted"
            )
        source = view.maker(view.operand(node), DQ)
        if source is None:
            self._fault(node.name, "input", "its weights are int8 and its input is not quantized")
        else:
            self._bias(node, source, scale)

    def _bias(self, node: ir.Node, source: ir.Node, scale: view.Array | None) -> None:
        made = view.maker(view.operand(node, 2), DQ)
        if made is None:
            return
        if self.target.float_bias:
            self._fault(node.name, "bias", "is quantized; this target wants a float one")
            return
        own, of_input = _constant(made, 1), _constant(source, 1)
        if own is None or of_input is None or scale is None or not np.allclose(own, of_input * scale, rtol=1e-4):
            self._fault(node.name, "bias scale", "is not that of its input times that of its weight")

    def _bytes(self, node: ir.Node) -> None:
        for value in node.inputs:
            if (
                view.is_constant(value)
                and view.array(value).dtype in (np.int8, np.uint8)
                and node.op_type not in (Q, DQ)
            ):
                self._fault(
                    node.name, "8-bit constant", f"{view.name_of(value)} is read by {node.op_type}, only DQ may"
                )
        made = node.outputs[0]
        casts = node.op_type == "Cast" and node.attributes.get_int("to", 0) == ir.DataType.UINT8
        if casts and (made.uses() or not made.is_graph_output()):
            self._fault(node.name, "uint8", f"{made.name} is read within the graph; cast last of all")

    def _shared(self, node: ir.Node) -> None:
        quantized = [source for source in (view.maker(value, DQ) for value in node.inputs) if source is not None]
        quantizer = next((reader for reader in view.readers(node.outputs[0]) if reader.op_type == Q), None)
        if quantizer is None:
            return
        wanted = _constant(quantizer, 1), _constant(quantizer, 2)
        for source in quantized:
            found = _constant(source, 1), _constant(source, 2)
            if not all(_equal(a, b) for a, b in zip(wanted, found)):
                self._fault(node.name, "shared scale", f"{source.name} differs from {quantizer.name}")


def _constant(node: ir.Node, place: int) -> view.Array | None:
    value = view.operand(node, place)
    return view.array(value) if view.is_constant(value) else None


def _weight(made: ir.Node | None) -> tuple[view.Array | None, bool]:
    """The constant that a weight's DQ reads, itself or behind a Q, and whether it then is int8."""
    if made is None:
        return None, False
    before = view.maker(view.operand(made), Q)
    if before is not None:
        zero = _constant(before, 2)
        return _constant(before, 0), zero is not None and zero.dtype == np.int8
    data = _constant(made, 0)
    return data, data is not None and data.dtype == np.int8


def _equal(one: view.Array | None, other: view.Array | None) -> bool:
    return one is other if one is None or other is None else np.array_equal(one, other)
