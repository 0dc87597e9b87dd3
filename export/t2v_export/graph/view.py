"""The one view of an ONNX graph: read into `onnx_ir`, walked and edited there, written back.

A pass calls `read`, edits `model.graph` and returns `write(model)`. The graph that it was given stays as it is.
A value knows its maker and its readers at every moment, also while the graph is edited. See
https://onnx.ai/ir-py for the classes `Model`, `Graph`, `Node` and `Value`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

Array = NDArray[Any]

IR_VERSION = 8
"""The newest version of ONNX's file format that goes with opset 17; every ONNX Runtime since 1.12 reads it."""


def read(model: onnx.ModelProto, typed: bool = False) -> ir.Model:
    """The view of a graph. `typed`: values have the types and shapes that ONNX infers.

    Constants share their bytes with `model`. Replace a constant, do not rename it.
    """
    return ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True) if typed else model)


def write(model: ir.Model) -> onnx.ModelProto:
    """The graph of a view, as ONNX's own message. Types of values inside it are left out. Same view, same bytes."""
    made = ir.to_proto(model)
    del made.graph.value_info[:]
    for message, node in zip(made.graph.node, model.graph):
        if node.doc_string == "":  # a field that is present and empty: `onnx_ir` leaves it out
            message.doc_string = ""
    return made


def with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy of a graph that gives the values `names` as well, after its own outputs."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    given = {output.name for output in made.graph.output}
    made.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    return made


def is_constant(value: ir.Value | None) -> bool:
    """Whether the graph itself holds the value, as an initializer."""
    return value is not None and value.const_value is not None


def array(value: ir.Value | None) -> Array:
    """The numbers of a constant. Raises `ValueError` for another value."""
    if value is None or value.const_value is None:
        raise ValueError(f"{value} is not a constant")
    return value.const_value.numpy()


def operand(node: ir.Node, place: int = 0) -> ir.Value | None:
    """An input of a node; None where it is left out."""
    return node.inputs[place] if place < len(node.inputs) else None


def constant(node: ir.Node, place: int = 0) -> Array:
    """The numbers of an input that is a constant. Raises `ValueError` for another input."""
    return array(operand(node, place))


def maker(value: ir.Value | None, *operators: str) -> ir.Node | None:
    """The node that gives a value, if it is one of `operators`. None for inputs and constants."""
    node = None if value is None else value.producer()
    return node if node is not None and (not operators or node.op_type in operators) else None


def readers(value: ir.Value) -> tuple[ir.Node, ...]:
    """The nodes that read a value, a node twice if it reads it twice."""
    return tuple(use.node for use in value.uses())


def only_reader(value: ir.Value | None, *operators: str) -> ir.Node | None:
    """The node that alone reads a value, once, if it is one of `operators`. None for outputs of the graph."""
    if value is None or value.is_graph_output() or len(value.uses()) != 1:
        return None
    (node,) = readers(value)
    return node if not operators or node.op_type in operators else None


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of a value; None if a size is not known."""
    if value is None or value.shape is None:
        return None
    sizes = tuple(size for size in value.shape if isinstance(size, int))
    return sizes if len(sizes) == len(value.shape) else None


def known_shape(value: ir.Value | None) -> tuple[int, ...]:
    """The shape of a value. Raises `KeyError` if a size is not known."""
    shape = static_shape(value)
    if shape is None:
        raise KeyError(name_of(value))
    return shape


def elements(value: ir.Value | None) -> int:
    """The count of a value's numbers. Raises `KeyError` if its shape is not known."""
    return math.prod(known_shape(value))


def name_of(value: ir.Value | None) -> str:
    """The name of a value, empty for an input that is left out."""
    return (value.name or "") if value is not None else ""


def bare_name(node: ir.Node) -> str:
    """The name of a node without the slash that torch puts first."""
    return (node.name or "").lstrip("/")


def values_of(model: ir.Model) -> dict[str, ir.Value]:
    """The values of a graph by name."""
    return ir.convenience.create_value_mapping(model.graph)


def make_node(
    operator: str, inputs: Sequence[ir.Value | None], made: str | ir.Value, name: str, **attributes: int | list[int]
) -> ir.Node:
    """A new node that gives `made`, a name or a value that no node gives. It is in no graph yet."""
    outputs = [ir.Value(name=made) if isinstance(made, str) else made]
    return ir.node(operator, inputs, dict(sorted(attributes.items())), outputs=outputs, name=name)


def add_constant(graph: ir.Graph, name: str, value: Array) -> ir.Value:
    """The constant `name`, new or as it is. Raises `ValueError` if the graph has other numbers of that name."""
    made = graph.initializers.get(name)
    if made is None:
        tensor = ir.Tensor(np.asarray(value), name=name)
        made = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
        graph.register_initializer(made)
    elif array(made).dtype != value.dtype or array(made).tobytes() != value.tobytes():
        raise ValueError(f"{graph.name}: constant {name} is there already, with other numbers")
    return made


def exchange_constants(
    graph: ir.Graph, change: Callable[[ir.Value], tuple[str, Array] | None]
) -> list[tuple[ir.Value, ir.Value]]:
    """Exchange the constants for which `change` gives a name and numbers. Constants keep their order.

    Returns pairs of an old value, which still has its readers, and the new one.
    """
    pairs = []
    for name, value in list(graph.initializers.items()):  # all are put back, so that their order stays
        del graph.initializers[name]
        changed = change(value)
        if changed is None:
            graph.register_initializer(value)
        else:
            pairs.append((value, add_constant(graph, *changed)))
    return pairs


def hold(graph: ir.Graph, node: ir.Node, values: Sequence[Array]) -> None:
    """Put constants in the place of a node that gives these values."""
    for output, value in zip(node.outputs, values):
        output.replace_all_uses_with(add_constant(graph, name_of(output), value))
    graph.remove(node, safe=True)


def set_operand(node: ir.Node, place: int, value: ir.Value) -> None:
    """Let a node read `value` as its input `place`, which it may not have had."""
    if place >= len(node.inputs):
        node.resize_inputs(place + 1)
    node.replace_input_with(place, value)


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let `new` stand for `old`. It takes the name, the type, the readers and the place among the outputs."""
    new.name, new.type, new.shape = old.name, old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def rename_source(value: ir.Value, name: str) -> ir.Value:
    """Call a node's result `name`. The value returned has the old name, the readers, and no maker yet."""
    made = ir.Value()
    replace(value, made)
    value.name = name
    return made


def drop_dead(graph: ir.Graph) -> None:
    """Remove the nodes and constants that no output depends on."""
    for node in reversed(graph):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    drop_constants(graph)


def drop_constants(graph: ir.Graph) -> None:
    """Remove the constants that no node reads."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def open_session(model: onnx.ModelProto, optimized: bool = True, threads: int = 0) -> onnxruntime.InferenceSession:
    """A session of ONNX Runtime on the CPU. `optimized`: nodes may be fused. `threads`: 0 for one a core."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, names: Collection[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The values `names` of one run, as arrays."""
    return dict(zip(names, session.run(list(names), dict(feeds)))) if names else {}
