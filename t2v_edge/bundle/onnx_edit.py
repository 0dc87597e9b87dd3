"""What engines read and change in the bytes of an ONNX graph: its opset, its float16 tensors and its batch.

The batch is set here for a builder that looks ahead. Setting it on the parsed network would be too late: TensorRT's
parser turns the shapes that it knows into constants. Field numbers are those of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Mapping

from t2v_edge.bundle.wire import Fields, Value, WireError, WireReader, integer, one, text, texts
from t2v_edge.errors import EngineError

MAX_BATCH = 127
"""The largest number that a varint holds in one byte, as it holds 1. So no length changes."""

_OPSET_IMPORT, _VERSION = 8, 2
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
        for body in _submessages(reader, memoryview(data), _GRAPH):
            for number in (_INPUT, _OUTPUT):
                for value in _submessages(reader, body, number):
                    first = _first_size(reader, value)
                    if first[0] != 1:
                        raise EngineError("the graph does not have a batch of 1; export the bundle again")
                    first[0] = batch
    except WireError as error:
        raise EngineError("the graph's inputs and outputs have no static shapes; export the bundle again") from error
    return bytes(data)


def opset_of(graph: bytes) -> int:
    """The newest opset that a graph imports. 0 if it names none or is damaged."""
    reader = WireReader()
    try:
        imports = [reader.message(entry) for entry in _submessages(reader, memoryview(graph), _OPSET_IMPORT)]
        return max((integer(entry, _VERSION) for entry in imports), default=0)
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
        for body in _submessages(reader, memoryview(graph), _GRAPH):
            fields = reader.message(body)
            for weight in map(reader.message, fields.get(_WEIGHT, [])):
                found[text(weight, _WEIGHT_NAME)] = integer(weight, _WEIGHT_TYPE) == _FLOAT16
            for value in map(reader.message, fields.get(_INPUT, [])):
                tensor = reader.message(_required(reader.message(_required(value, _TYPE)), _TENSOR))
                found[text(value, _NAME)] = integer(tensor, _ELEMENT_TYPE) == _FLOAT16
            for node in map(reader.message, fields.get(_NODE, [])):
                found.update(dict.fromkeys(texts(node, _NODE_OUTPUT), _gives_float16(reader, node, found)))
    except WireError as error:
        raise EngineError("the graph is damaged; export the bundle again") from error
    return found


def _gives_float16(reader: WireReader, node: Fields, known: Mapping[str, bool]) -> bool:
    operator = text(node, _OPERATOR)
    if operator in ("Cast", "Constant"):
        attributes = {text(fields, _NAME): fields for fields in map(reader.message, node.get(_ATTRIBUTE, []))}
        if operator == "Constant":
            held = (tensor for fields in attributes.values() for tensor in fields.get(_CONSTANT, []))
            return any(integer(reader.message(tensor), _WEIGHT_TYPE) == _FLOAT16 for tensor in held)
        if "to" not in attributes:
            raise WireError("a Cast does not name its type")
        return integer(attributes["to"], _INTEGER) == _FLOAT16
    return operator not in _NO_FLOATS and any(known.get(name, False) for name in texts(node, _NODE_INPUT))


def _required(fields: Fields, number: int) -> Value:
    value = one(fields, number)
    if value is None:
        raise WireError(f"field {number} is missing")
    return value


def _submessages(reader: WireReader, message: Value, number: int) -> list[Value]:
    return reader.message(message).get(number, [])


def _first_size(reader: WireReader, value: Value) -> memoryview:
    """The bytes from the first size of an input or output on."""
    for number in (_TYPE, _TENSOR, _SHAPE):
        value = _required(reader.message(value), number)
    for dimension in _submessages(reader, value, _DIM)[:1]:
        for field in reader.fields(dimension):
            if field.number == _DIM_VALUE and isinstance(field.value, int) and isinstance(dimension, memoryview):
                return dimension[field.at :]
    raise WireError("the first size is not a number")
