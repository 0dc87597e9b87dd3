"""A writer of protobuf's wire format that writes what no serializer would."""

from __future__ import annotations

from t2v_edge.bundle import wire


def encode_varint(value: int) -> bytes:
    groups = []
    while True:
        value, low = value >> 7, value & 0x7F
        groups.append(low | (0x80 if value else 0))
        if not value:
            return bytes(groups)


def encode(number: int, value: int | bytes, kind: int | None = None) -> bytes:
    if isinstance(value, int):
        return encode_varint(number << 3) + encode_varint(value % (1 << 64))
    if kind is not None:
        return encode_varint(number << 3 | kind) + value
    return encode_varint(number << 3 | wire.BYTES) + encode_varint(len(value)) + value
