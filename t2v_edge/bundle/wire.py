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
"""The values of a message by field number, in order: integers, texts, and views of the bytes of floats and all else."""


class WireError(ValueError):
    """Bytes that are not a sound message. The text names the problem and the remedy."""

    def __init__(self, problem: str, remedy: str = "export the bundle again") -> None:
        super().__init__(f"{problem}; {remedy}")


class Kind(NamedTuple):
    """What a field holds, and how it stands in the bytes."""

    number: int
    type: str
    wire: int
    repeated: bool


class Schema:
    """The fields of a message by type, such as ``Schema("NodeProto", text="1* 2* 3")``. A star marks a repeated field.

    The types are int32, int64, float, double, text, bytes, message, and pair for a message of two texts. At most one of
    the fields `oneof` may be present.
    """

    def __init__(self, name: str, oneof: tuple[int, ...] = (), **types: str) -> None:
        self.name, self.oneof = name, frozenset(oneof)
        self.kinds: dict[int, Kind] = {}
        for kind, items in types.items():
            for item in items.split():
                number, repeated, wire = int(item.rstrip("*")), item.endswith("*"), _WIRES.get(kind, BYTES)
                for form in {wire, BYTES} if repeated else {wire}:
                    self.kinds[number << 3 | form] = Kind(number, kind, form, repeated)


_PAIR = Schema("StringStringEntryProto", text="1 2")


class WireReader:
    """A reader of messages, of at most `MAX_FIELDS` fields in its life."""

    def __init__(self) -> None:
        self._read = 0

    def message(self, message: memoryview, schema: Schema) -> Fields:
        """The values of a message by field number. Pairs are checked and left empty. Raises `WireError`."""
        found: Fields = {}
        at, end, kinds = 0, len(message), schema.kinds
        if end > MAX_BYTES:
            raise WireError(f"the ONNX file has more than {MAX_BYTES} bytes", "simplify the graph")
        while at < end:
            self._count()
            tag, at = varint(message, at)
            kind = kinds.get(tag)
            if kind is None:
                raise WireError(f"unsupported field {tag >> 3} of wire type {tag & 7} in a {schema.name}")
            number, form, wire, repeated = kind
            values = found.setdefault(number, [])
            if values and not repeated:
                raise WireError(f"the ONNX file is damaged (field {number} stands 2 times in a {schema.name})")
            if wire == VARINT:
                value, at = varint(message, at)
                values.append(_signed(value, form))
                continue
            size, start = varint(message, at) if wire == BYTES else (_SIZES[wire], at)
            at = start + size
            if at > end:
                raise WireError("the ONNX file is truncated or damaged")
            view = message[start:at]
            if form == "text":
                values.append(_text(view))
            elif form == "pair":
                self.message(view, _PAIR)
            elif _WIRES.get(form) == VARINT:
                values.extend(self._packed(view, form))
            else:
                values.append(view)
        if schema.oneof and len(schema.oneof & found.keys()) > 1:
            raise WireError(f"the ONNX file is damaged (a {schema.name} has two values)")
        return found

    def _packed(self, values: memoryview, form: str) -> Iterator[int]:
        at = 0
        while at < len(values):
            self._count()
            value, at = varint(values, at)
            yield _signed(value, form)

    def _count(self) -> None:
        self._read += 1
        if self._read > MAX_FIELDS:
            raise WireError(f"the ONNX file has more than {MAX_FIELDS} fields", "simplify the graph")


def varint(view: memoryview, at: int) -> tuple[int, int]:
    """The number of at most 64 bits that starts at `at`, and where it ends. Raises `WireError`.

    Numbers of needless bytes are refused, as no exporter writes them and parsers cut them off at different places.
    """
    if at < len(view) and view[at] < 0x80:
        return view[at], at + 1
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


def _signed(value: int, form: str) -> int:
    value -= value >> 63 << 64
    if form == "int32" and not -(1 << 31) <= value < 1 << 31:
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
