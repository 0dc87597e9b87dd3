"""A bounded reader of protobuf's wire format (https://protobuf.dev/programming-guides/encoding/). It copies no data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Optional, Union

MAX_FIELDS = 2_000_000
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_SIZES = {FIXED64: 8, FIXED32: 4}

Value = Union[int, memoryview]
"""A varint's number, or a view of any other value's bytes."""
Fields = dict[int, list[Value]]
"""The values of a message by field number, in order."""


class WireError(ValueError):
    """Bytes that are not a sound message. The text names the problem and the remedy."""

    def __init__(self, problem: str, remedy: str = "export the bundle again") -> None:
        super().__init__(f"{problem}; {remedy}")


class Field(NamedTuple):
    """One field of a message. at: where its value starts in the message's bytes."""

    number: int
    value: Value
    at: int


class WireReader:
    """A reader of messages, of at most `MAX_FIELDS` fields in its life."""

    def __init__(self) -> None:
        self._read = 0

    def fields(self, message: Value) -> Iterator[Field]:
        """The fields of a message in order. Raises `WireError`."""
        view, at = view_of(message), 0
        while at < len(view):
            self._read += 1
            if self._read > MAX_FIELDS:
                raise WireError(f"the ONNX file has more than {MAX_FIELDS} fields", "simplify the graph")
            key, at = varint(view, at)
            number, wire = key >> 3, key & 7
            if wire == VARINT:
                value, end = varint(view, at)
                yield Field(number, value, at)
                at = end
                continue
            if wire == BYTES:
                size, at = varint(view, at)
            elif wire in _SIZES:
                size = _SIZES[wire]
            else:
                raise WireError("the ONNX file is damaged (unknown wire type)")
            if size > len(view) - at or number == 0:
                raise WireError("the ONNX file is truncated or damaged")
            yield Field(number, view[at : at + size], at)
            at += size

    def message(self, message: Value) -> Fields:
        """The values of a message by field number. Raises `WireError`."""
        found: Fields = {}
        for number, value, _ in self.fields(message):
            found.setdefault(number, []).append(value)
        return found


def varint(view: memoryview, at: int) -> tuple[int, int]:
    """The number that starts at `at`, of at most 64 bits and a few, and where it ends. Raises `WireError`."""
    value = shift = 0
    while True:
        if at >= len(view) or shift > 63:
            raise WireError("the ONNX file is truncated or damaged")
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def view_of(value: Value) -> memoryview:
    """The bytes of a value. Raises `WireError` for a number."""
    if isinstance(value, int):
        raise WireError("the ONNX file is damaged (a number where bytes should be)")
    return value


def one(fields: Fields, number: int) -> Optional[Value]:
    """The value of a singular field, None if it is absent. Raises `WireError` for a repeated one.

    Protobuf merges repeated singular messages. They are refused, so that every reader sees the same graph.
    """
    found = fields.get(number, [])
    if len(found) > 1:
        raise WireError(f"the ONNX file is damaged (field {number} stands {len(found)} times)")
    return found[0] if found else None


def integer(fields: Fields, number: int, default: int = 0) -> int:
    """A signed 64-bit field. Raises `WireError`."""
    value = one(fields, number)
    if value is None:
        return default
    if not isinstance(value, int):
        raise WireError("the ONNX file is damaged (bytes where a number should be)")
    return value - (1 << 64) if value >> 63 else value


def integers(fields: Fields, number: int) -> list[int]:
    """A repeated unsigned field, packed or not. Raises `WireError`."""
    result: list[int] = []
    for value in fields.get(number, []):
        if isinstance(value, int):
            result.append(value)
            continue
        at = 0
        while at < len(value):
            item, at = varint(value, at)
            result.append(item)
    return result


def text(fields: Fields, number: int) -> str:
    """A text field, empty if it is absent. Raises `WireError`."""
    value = one(fields, number)
    return "" if value is None else _text(value)


def texts(fields: Fields, number: int) -> list[str]:
    """A repeated text field. Raises `WireError`."""
    return [_text(value) for value in fields.get(number, [])]


def _text(value: Value) -> str:
    return bytes(view_of(value)).decode("utf-8", "replace")
