"""A bounded reader of protobuf's wire format (https://protobuf.dev/programming-guides/encoding/). It copies only texts.

Parsers differ in what they skip, cut off or merge. So only what all of them read alike is accepted: numbers of no
needless bytes, known fields of their wire type, and singular fields once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

MAX_FIELDS = 500_000
"""Fields and packed numbers of a file. The largest graph that we made has 5,816."""
MAX_BYTES = (1 << 31) - 1
"""Bytes of a message. Protobuf reads no larger one."""
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_SIZES = {FIXED64: 8, FIXED32: 4}
_WIRES = {"int32": VARINT, "int64": VARINT, "double": FIXED64, "float": FIXED32}

Fields = dict[int, list[Any]]
"""The values of a message by field number, in order: numbers, texts, and views of the bytes of any other kind."""


class WireError(ValueError):
    """Bytes that are not a sound message. The text names the problem and the remedy."""

    def __init__(self, problem: str, remedy: str = "export the bundle again") -> None:
        super().__init__(f"{problem}; {remedy}")


class Field(NamedTuple):
    """One field of a message. at: where its value starts in the message's bytes."""

    number: int
    value: Any
    at: int


class Kind(NamedTuple):
    """What a field holds. slot: a singular field's number; fields that exclude each other share one."""

    type: str
    wire: int
    repeated: bool
    slot: int


class Schema:
    """The fields of a message by type, such as ``Schema("NodeProto", text="1* 2* 3")``. A star marks a repeated field.

    The types are int32, int64, float, double, text, bytes, message, and pair for a message of two texts. Fields of
    `oneof` exclude each other.
    """

    def __init__(self, name: str, oneof: tuple[int, ...] = (), **types: str) -> None:
        self.name = name
        self.kinds: dict[int, Kind] = {}
        for kind, items in types.items():
            for item in items.split():
                number = int(item.rstrip("*"))
                slot = 0 if number in oneof else number
                self.kinds[number] = Kind(kind, _WIRES.get(kind, BYTES), item.endswith("*"), slot)


_PAIR = Schema("StringStringEntryProto", text="1 2")


class WireReader:
    """A reader of messages, of at most `MAX_FIELDS` fields in its life."""

    def __init__(self) -> None:
        self._read = 0

    def fields(self, message: memoryview, schema: Schema) -> Iterator[Field]:
        """The fields of a message in order. A varint's value is a number, any other a view. Raises `WireError`."""
        at, seen = 0, set()
        if len(message) > MAX_BYTES:
            raise WireError(f"the ONNX file has more than {MAX_BYTES} bytes", "simplify the graph")
        while at < len(message):
            self._count()
            tag, at = varint(message, at)
            number, wire = tag >> 3, tag & 7
            kind = schema.kinds.get(number)
            if kind is None:
                raise WireError(f"the ONNX file has the unsupported field {number} in a {schema.name}")
            if wire != kind.wire and not (kind.repeated and wire == BYTES):
                raise WireError(f"the ONNX file is damaged (wire type {wire} of field {number} in a {schema.name})")
            if not kind.repeated and kind.slot in seen:
                alike = "" if kind.slot else " or beside another"
                raise WireError(f"the ONNX file is damaged (field {number} stands 2 times{alike} in a {schema.name})")
            seen.add(kind.slot)
            value: Any = None
            if wire == VARINT:
                start = at
                value, at = varint(message, at)
            else:
                size, start = varint(message, at) if wire == BYTES else (_SIZES[wire], at)
                at = start + size
                if at > len(message):
                    raise WireError("the ONNX file is truncated or damaged")
                value = message[start:at]
            yield Field(number, value, start)

    def message(self, message: memoryview, schema: Schema) -> Fields:
        """The values of a message by field number. Pairs are checked and left empty. Raises `WireError`."""
        found: Fields = {}
        for number, value, _ in self.fields(message, schema):
            kind, values = schema.kinds[number], found.setdefault(number, [])
            if kind.type == "text":
                values.append(_text(value))
            elif kind.type == "pair":
                self.message(value, _PAIR)
            elif kind.wire == VARINT:
                values.extend(self._packed(value, kind) if isinstance(value, memoryview) else [_signed(value, kind)])
            elif len(value) % _SIZES.get(kind.wire, 1):
                raise WireError("the ONNX file is damaged (ragged floats)")
            else:
                values.append(value)
        return found

    def _packed(self, values: memoryview, kind: Kind) -> Iterator[int]:
        at = 0
        while at < len(values):
            self._count()
            value, at = varint(values, at)
            yield _signed(value, kind)

    def _count(self) -> None:
        self._read += 1
        if self._read > MAX_FIELDS:
            raise WireError(f"the ONNX file has more than {MAX_FIELDS} fields", "simplify the graph")


def varint(view: memoryview, at: int) -> tuple[int, int]:
    """The number of at most 64 bits that starts at `at`, and where it ends. Raises `WireError`.

    Numbers of needless bytes are refused, as no exporter writes them and parsers cut them off at different places.
    """
    value = shift = 0
    while at < len(view) and shift < 70:
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64 or (shift and not byte):
                raise WireError("the ONNX file is damaged (a number of too many bytes)")
            return value, at
        shift += 7
    raise WireError("the ONNX file is truncated or damaged")


def one(fields: Fields, number: int, default: Any = None) -> Any:
    """The value of a singular field, `default` if it is absent."""
    return fields[number][0] if number in fields else default


def joined(views: list[memoryview]) -> memoryview:
    """The bytes of a repeated field of floats, packed or not."""
    return views[0] if len(views) == 1 else memoryview(b"".join(views))


def _signed(value: int, kind: Kind) -> int:
    value -= value >> 63 << 64
    if kind.type == "int32" and not -(1 << 31) <= value < 1 << 31:
        raise WireError("the ONNX file is damaged (a number over 32 bits)")
    return value


def _text(value: memoryview) -> str:
    try:
        text = str(value, "utf-8")
    except UnicodeDecodeError as error:
        raise WireError("the ONNX file is damaged (a text that is not UTF-8)") from error
    if "\0" in text:
        raise WireError("the ONNX file is damaged (a text with a NUL)")
    return text
