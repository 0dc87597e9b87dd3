"""What engines read and change in the bytes of an ONNX graph: its opset, its float16 tensors and its batch.

The batch is set here for a builder that looks ahead. Setting it on the parsed network would be too late: TensorRT's
parser turns the shapes that it knows into constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Optional

from t2v_edge.bundle import onnx_schema
from t2v_edge.bundle.wire import Fields, WireError, WireReader, one
from t2v_edge.errors import EngineError

MAX_BATCH = 127
"""The largest number that a varint holds in one byte, as it holds 1. So no length changes."""

_GRAPH, _INPUT, _OUTPUT, _TYPE, _TENSOR, _SHAPE, _DIM, _DIM_VALUE = 7, 11, 12, 2, 1, 2, 1, 1
_NODE, _WEIGHT, _NODE_INPUT, _NODE_OUTPUT, _OPERATOR, _ATTRIBUTE = 1, 5, 1, 2, 4, 5
_WEIGHT_TYPE, _WEIGHT_NAME, _NAME, _ELEMENT_TYPE, _INTEGER, _CONSTANT = 2, 8, 1, 1, 3, 5
_FLOAT16 = 10
_NO_FLOATS = frozenset(
    "Shape Size NonZero ArgMax ArgMin Equal Greater GreaterOrEqual Less LessOrEqual IsInf IsNaN QuantizeLinear".split()
)
"""Operators whose results are never floats."""


def with_batch(graph: bytes, batch: int) -> bytes:
    """The same graph with `batch`, 1 to 127, in place of 1 as the first size of every input and output.

    Raises `EngineError` if an input or output has another first size than 1.
    """
    if not 1 <= batch <= MAX_BATCH:
        raise EngineError(f"batch {batch} is not from 1 to {MAX_BATCH}; look ahead by fewer frames")
    data = bytearray(graph)
    reader = WireReader()
    try:
        body = reader.message(_graph(reader, memoryview(data)), onnx_schema.GRAPH)
        for value in body.get(_INPUT, []) + body.get(_OUTPUT, []):
            first = _first_size(reader, value)
            if first[0] != 1:
                raise EngineError("the graph does not have a batch of 1; export the bundle again")
            first[0] = batch
    except WireError as error:
        raise EngineError("the graph's inputs and outputs have no static shapes; export the bundle again") from error
    return bytes(data)


def opset_of(graph: bytes) -> int:
    """The opset of a graph's default domain. 0 if it names none or is damaged."""
    reader = WireReader()
    try:
        return onnx_schema.opset_version(reader, reader.message(memoryview(graph), onnx_schema.MODEL))
    except WireError:
        return 0


def float16_tensors(graph: bytes) -> dict[str, bool]:
    """Whether each tensor of a graph is float16, by name, weights included.

    A graph need not state the types between its nodes. They follow from weights, inputs and casts, because all floats
    of an operator have one type. Raises `EngineError` for a damaged graph.
    """
    reader = WireReader()
    found: dict[str, bool] = {}
    try:
        fields = reader.message(_graph(reader, memoryview(graph)), onnx_schema.GRAPH)
        for entry in fields.get(_WEIGHT, []):
            weight = reader.message(entry, onnx_schema.TENSOR)
            found[one(weight, _WEIGHT_NAME, "")] = one(weight, _WEIGHT_TYPE) == _FLOAT16
        for entry in fields.get(_INPUT, []):
            value = reader.message(entry, onnx_schema.VALUE)
            tensor = reader.message(
                _required(reader.message(_required(value, _TYPE), onnx_schema.TYPE), _TENSOR), onnx_schema.TENSOR_TYPE
            )
            found[one(value, _NAME, "")] = one(tensor, _ELEMENT_TYPE) == _FLOAT16
        for entry in fields.get(_NODE, []):
            node = reader.message(entry, onnx_schema.NODE)
            found.update(dict.fromkeys(node.get(_NODE_OUTPUT, []), _gives_float16(reader, node, found)))
    except WireError as error:
        raise EngineError("the graph is damaged; export the bundle again") from error
    return found


def _gives_float16(reader: WireReader, node: Fields, known: Mapping[str, bool]) -> bool:
    operator = one(node, _OPERATOR, "")
    if operator in ("Cast", "Constant"):
        held = [reader.message(entry, onnx_schema.ATTRIBUTE) for entry in node.get(_ATTRIBUTE, [])]
        attributes = {one(fields, _NAME, ""): fields for fields in held}
        if operator == "Constant":
            tensors = (
                reader.message(tensor, onnx_schema.TENSOR) for fields in held for tensor in fields.get(_CONSTANT, [])
            )
            return any(one(tensor, _WEIGHT_TYPE) == _FLOAT16 for tensor in tensors)
        if "to" not in attributes:
            raise WireError("a Cast does not name its type")
        return bool(one(attributes["to"], _INTEGER) == _FLOAT16)
    return operator not in _NO_FLOATS and any(known.get(name, False) for name in node.get(_NODE_INPUT, []))


def _required(fields: Fields, number: int) -> memoryview:
    value: Optional[memoryview] = one(fields, number)
    if value is None:
        raise WireError(f"field {number} is missing")
    return value


def _graph(reader: WireReader, model: memoryview) -> memoryview:
    return _required(reader.message(model, onnx_schema.MODEL), _GRAPH)


def _first_size(reader: WireReader, value: memoryview) -> memoryview:
    """The bytes from the first size of an input or output on."""
    for number, schema in ((_TYPE, onnx_schema.VALUE), (_TENSOR, onnx_schema.TYPE), (_SHAPE, onnx_schema.TENSOR_TYPE)):
        value = _required(reader.message(value, schema), number)
    for dimension in reader.message(value, onnx_schema.SHAPE).get(_DIM, [])[:1]:
        if _DIM_VALUE in reader.message(dimension, onnx_schema.DIMENSION) and dimension[0] == _DIM_VALUE << 3:
            return memoryview(dimension[1:])
    raise WireError("the first size is not a number")
