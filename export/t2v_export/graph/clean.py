"""Tidying of an exported ONNX graph: constants folded and shared, layers folded, nothing left of the machine."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper
from onnx_ir.passes.common import DeduplicateInitializersPass, LiftConstantsToInitializersPass

from t2v_edge.errors import SpecError
from t2v_edge.spec import StageSpec, TensorSpec
from t2v_export.graph import view
from t2v_export.graph.fold_constants import fold_constants
from t2v_export.graph.fold_layers import fold_batch_norm, fold_pixels
from t2v_export.graph.operators import WEIGHTED


def clean(model: onnx.ModelProto, spec: StageSpec) -> onnx.ModelProto:
    """The graph without constant parts, traces of the machine and duplicate constants. `spec` names its outputs."""
    opened = view.read(model)
    _name_outputs(opened.graph, spec)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(opened)
    opened = fold_constants(opened)
    fold_batch_norm(opened.graph)
    fold_pixels(opened.graph)
    view.drop_dead(opened.graph)
    DeduplicateInitializersPass(size_limit=sys.maxsize)(opened)
    _name_constants(opened.graph)
    return _strip(view.write(opened), spec)


def _name_outputs(graph: ir.Graph, spec: StageSpec) -> None:
    """Give every output a value of its own: a state may pass through, and two outputs may be one tensor."""
    seen = {value.name for value in graph.inputs}
    for place, (output, wanted) in enumerate(zip(list(graph.outputs), spec.outputs)):
        if output.name != wanted.name or output.name in seen:
            node = view.make_node("Identity", [output], wanted.name, f"/{wanted.name}")
            graph.append(node)
            graph.outputs[place] = node.outputs[0]
        seen.add(wanted.name)


def _name_constants(graph: ir.Graph) -> None:
    """Name constants that torch numbered (`onnx::Conv_12`) after the first node that reads them."""
    numbered = {name for name in graph.initializers if name.startswith(("onnx::", "/"))}
    names: dict[str, str] = {}
    taken = {*graph.initializers, *(v.name for v in graph.inputs), *(o.name for n in graph for o in n.outputs)}
    for node in graph:
        for place, value in enumerate(node.inputs):
            if value is not None and value.name in numbered and value.name not in names:
                fresh = f"{view.bare_name(node)}.{'weight' if place == 1 else f'constant{place}'}"
                while fresh in taken:
                    fresh += "_"
                taken.add(fresh)
                names[value.name] = fresh

    def renamed(value: ir.Value) -> tuple[str, view.Array] | None:
        return (names[value.name], view.array(value)) if value.name in names else None

    for old, new in view.exchange_constants(graph, renamed):
        old.replace_all_uses_with(new)


def _strip(model: onnx.ModelProto, spec: StageSpec) -> onnx.ModelProto:
    """A fresh model around the graph: declared static inputs and outputs, no doc strings, times or traces."""
    graph = model.graph
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for tensor in graph.initializer:
        tensor.doc_string = ""
    inputs, outputs = ([_info(tensor) for tensor in tensors] for tensors in (spec.inputs, spec.outputs))
    made = helper.make_graph(list(graph.node), spec.stage, inputs, outputs, list(graph.initializer))
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    return helper.make_model(
        made, opset_imports=[helper.make_opsetid("", opset)], ir_version=view.IR_VERSION, producer_name="t2v_edge"
    )


def _info(tensor: TensorSpec) -> onnx.ValueInfoProto:
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return helper.make_tensor_value_info(tensor.name, dtype, list(tensor.shape))


def levels_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """A render graph that also gives `levels`: `frame` before rounding, float32, 0 to 255.

    Verification compares levels, because rounding hides most small differences and makes a whole level of others. The
    levels of an INT8 graph that ends on whole numbers are those.
    """
    opened = view.read(model)
    graph = opened.graph
    frame = next(output for output in graph.outputs if output.name == "frame")
    cast = view.maker(frame, "Cast")
    rounding = view.maker(view.operand(cast), "Round") if cast is not None else None
    if rounding is not None:
        node = view.make_node("Identity", [view.operand(rounding)], "levels", "/levels")
    else:
        node = view.make_node("Cast", [frame], "levels", "/levels", to=onnx.TensorProto.FLOAT)
    graph.append(node)
    levels = node.outputs[0]
    levels.type, levels.shape = ir.TensorType(ir.DataType.FLOAT), frame.shape
    graph.outputs.append(levels)
    return view.write(opened)


def finished(opened: ir.Model, spec: StageSpec) -> onnx.ModelProto:
    """The graph that a pass has edited, without unread constants. Raises `SpecError` if it is not valid."""
    view.drop_constants(opened.graph)
    made = view.write(opened)
    check_graph(made, spec)
    return made


def check_graph(model: onnx.ModelProto, spec: StageSpec) -> None:
    """Run onnx's checker and strict shape inference. Raises `SpecError` if the graph breaks the contract."""
    try:
        onnx.checker.check_model(model)  # the full check is this one and the next
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        raise SpecError(f"stage {spec.stage}: the exported graph is not valid ONNX: {error}") from error
    graph = view.read(model).graph
    domains = {node.domain for node in graph} - {""}
    if domains:
        raise SpecError(
            f"stage {spec.stage}: operators of {', '.join(sorted(domains))} are not in every engine; use plain "
            "torch operators"
        )
    for node in graph:
        if node.op_type == "BatchNormalization" and view.maker(view.operand(node), *WEIGHTED):
            raise SpecError(
                f"stage {spec.stage}: BatchNorm {node.name} was not folded; its convolution's output is used elsewhere"
            )
