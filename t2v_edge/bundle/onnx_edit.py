"""What engines read and write in the bytes of an ONNX graph: its opset, what it holds in float16, and the batch for a
builder that looks ahead.

Setting the batch on the parsed network is too late: TensorRT's parser makes constants of shapes that it knows, as of a
DepthToSpace. Field numbers are those of onnx.proto3; the wire format is
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Union

from t2v_edge.errors import EngineError

MAX_BATCH = 127
"""A number that one byte holds, as 1 does: so no length changes."""

_OPSET_IMPORT, _VERSION = 8, 2
_GRAPH, _INPUT, _OUTPUT, _TYPE, _TENSOR, _SHAPE, _DIM, _DIM_VALUE = 7, 11, 12, 2, 1, 2, 1, 1
_NODE, _WEIGHT, _NODE_INPUT, _NODE_OUTPUT, _OPERATOR, _ATTRIBUTE = 1, 5, 1, 2, 4, 5
_WEIGHT_TYPE, _WEIGHT_NAME, _NAME, _ELEMENT_TYPE, _INTEGER, _CONSTANT = 2, 8, 1, 1, 3, 5
_FLOAT16 = 10
_NO_FLOATS = frozenset(
    (
        "Shape",
        "Size",
        "NonZero",
        "ArgMax",
        "ArgMin",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "IsInf",
        "IsNaN",
        "QuantizeLinear",
    )
)
"""Operators that give none, of whatever they take."""

Buffer = Union[bytearray, memoryview]
_VARINT, _FIXED64, _BYTES = 0, 1, 2


def with_batch(graph: bytes, batch: int) -> bytes:
    """The same graph with `batch`, 1 to 127, in place of 1 as the first size of every input and output.

    Raises `EngineError` where an input or output is not declared with a batch of 1.
    """
    if not 1 <= batch <= MAX_BATCH:
        raise EngineError(f"batch {batch} is not from 1 to {MAX_BATCH}; look ahead by fewer frames")
    data = bytearray(graph)
    try:
        for start, end in _messages(data, 0, len(data), _GRAPH):
            for field in (_INPUT, _OUTPUT):
                for place in _messages(data, start, end, field):
                    at = _first_size(data, place)
                    if data[at] != 1:
                        raise EngineError("the graph does not have a batch of 1; export the bundle again")
                    data[at] = batch
    except (IndexError, StopIteration) as error:
        raise EngineError("the graph's inputs and outputs have no static shapes; export the bundle again") from error
    return bytes(data)


def opset_of(graph: bytes) -> int:
    """The newest opset that a graph imports, 0 where it names none."""
    data, found = memoryview(graph), [0]
    try:
        for start, end in _messages(data, 0, len(data), _OPSET_IMPORT):
            fields = _fields(data, start, end)
            found += [_varint(data, at)[0] for number, kind, at, _ in fields if number == _VERSION and kind == _VARINT]
    except IndexError:
        return 0
    return max(found)


def float16_tensors(graph: bytes) -> dict[str, bool]:
    """Every tensor of a graph, weights among them, by name: whether it is float16.

    That is followed from weights, inputs and casts, for an operator's floating types are one; a graph need not state
    its types in between. Raises `EngineError` for a graph that cannot be read.
    """
    data = memoryview(graph)
    found: dict[str, bool] = {}
    try:
        for start, end in _messages(data, 0, len(data), _GRAPH):
            for place in _messages(data, start, end, _WEIGHT):
                found.update(
                    dict.fromkeys(_texts(data, place, _WEIGHT_NAME), _number(data, place, _WEIGHT_TYPE) == _FLOAT16)
                )
            for place in _messages(data, start, end, _INPUT):
                (kind,) = _messages(data, *next(_messages(data, *place, _TYPE)), _TENSOR)
                found.update(dict.fromkeys(_texts(data, place, _NAME), _number(data, kind, _ELEMENT_TYPE) == _FLOAT16))
            for place in _messages(data, start, end, _NODE):
                made = _gives_float16(data, place, found)
                found.update(dict.fromkeys(_texts(data, place, _NODE_OUTPUT), made))
    except (IndexError, StopIteration, ValueError) as error:
        raise EngineError("the graph is damaged; export the bundle again") from error
    return found


def _gives_float16(data: Buffer, node: tuple[int, int], known: Mapping[str, bool]) -> bool:
    operator = "".join(_texts(data, node, _OPERATOR))
    if operator == "Cast":
        (to,) = (
            _number(data, place, _INTEGER)
            for place in _messages(data, *node, _ATTRIBUTE)
            if "to" in _texts(data, place, _NAME)
        )
        return to == _FLOAT16
    if operator == "Constant":
        held = (tensor for place in _messages(data, *node, _ATTRIBUTE) for tensor in _messages(data, *place, _CONSTANT))
        return any(_number(data, tensor, _WEIGHT_TYPE) == _FLOAT16 for tensor in held)
    return operator not in _NO_FLOATS and any(known.get(name, False) for name in _texts(data, node, _NODE_INPUT))


def _number(data: Buffer, place: tuple[int, int], wanted: int) -> int:
    """An integer of a message, 0 where it is left out."""
    return next(
        (_varint(data, at)[0] for field, kind, at, _ in _fields(data, *place) if field == wanted and kind == _VARINT), 0
    )


def _texts(data: Buffer, place: tuple[int, int], wanted: int) -> list[str]:
    return [bytes(data[start:end]).decode("utf-8") for start, end in _messages(data, *place, wanted)]


def _first_size(data: Buffer, value: tuple[int, int]) -> int:
    """Where the first size of an input or output stands."""
    for field in (_TYPE, _TENSOR, _SHAPE, _DIM):
        value = next(_messages(data, *value, field))
    return next(at for field, kind, at, _ in _fields(data, *value) if field == _DIM_VALUE and kind == _VARINT)


def _messages(data: Buffer, start: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    return ((at, stop) for field, kind, at, stop in _fields(data, start, end) if field == wanted and kind == _BYTES)


def _fields(data: Buffer, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, kind, first byte and end of the value of every field."""
    while start < end:
        key, start = _varint(data, start)
        kind = key & 7
        if kind == _VARINT:
            stop = _varint(data, start)[1]
        elif kind == _BYTES:
            length, start = _varint(data, start)
            stop = start + length
        else:
            stop = start + (8 if kind == _FIXED64 else 4)
        yield key >> 3, kind, start, stop
        start = stop


def _varint(data: Buffer, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
