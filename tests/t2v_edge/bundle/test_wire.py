"""The reader of protobuf's wire format: what was written is read back, and hostile bytes give a typed error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2v_edge.bundle import wire
from t2v_edge.bundle.wire import Schema, WireError, WireReader, one, varint
from tests.t2v_edge.wire_samples import encode, encode_varint

whole = st.integers(-(1 << 63), (1 << 63) - 1)
SCHEMA = Schema(
    "Sample",
    oneof=(8, 9),
    int64="1 2*",
    int32="3",
    text="4 5*",
    bytes="6*",
    float="7*",
    message="8 9",
    pair="10*",
    double="11*",
)


def message(data: bytes) -> wire.Fields:
    return WireReader().message(memoryview(data), SCHEMA)


@given(st.lists(st.tuples(st.just(2), whole) | st.tuples(st.just(6), st.binary(max_size=300))))
def test_fields_are_read_as_they_were_written(written):
    data = b"".join(encode(number, value) for number, value in written)
    found = message(data)
    for number in (2, 6):
        assert found.get(number, []) == [value for n, value in written if n == number]


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_read_or_a_typed_error(data):
    try:
        message(data)
    except WireError as error:
        assert "; " in str(error)


@pytest.mark.parametrize("number, kind, size", [(11, wire.FIXED64, 8), (7, wire.FIXED32, 4)])
def test_floats_are_views_of_their_bytes_packed_or_not(number, kind, size):
    values = [bytes(range(size)), bytes(range(size, 2 * size))]
    apart = message(b"".join(encode(number, value, kind) for value in values))
    assert apart == {number: values}
    assert message(encode(number, b"".join(values))) == {number: [b"".join(values)]}


@pytest.mark.parametrize(
    "data, problem",
    [
        (encode(6, b"cut")[:-1], "truncated"),
        (encode(11, b"1234567", wire.FIXED64), "truncated"),
        (encode_varint(1 << 3), "truncated"),
        (b"\x08" + b"\xff" * 11, "truncated"),
        (encode_varint(6 << 3 | 2) + encode_varint(1 << 31) + b"short", "truncated"),
        (encode(0, b"zero"), "unsupported field 0 of .* in a Sample"),
        (encode(1, b"", 3), "unsupported field 1 of wire type 3 in a Sample"),
        (encode(1, b"", 7), "unsupported field 1 of wire type 7 in a Sample"),
        (encode(12, 1), "unsupported field 12 of .* in a Sample"),
        (encode(1 | 1 << 29, 1), "unsupported field 536870913 of .* in a Sample"),
        (encode(1 | 1 << 58, 1), "unsupported field .* of .* in a Sample"),
        (b"\x88\x00\x01", "too many bytes"),
        (b"\x08\x81\x00", "too many bytes"),
        (b"\x32\x82\x00ab", "too many bytes"),
        (b"\x08" + b"\xff" * 9 + b"\x02", "too many bytes"),
        (encode(1, b"number"), "unsupported field 1 of wire type 2 in a"),
        (encode(4, 1), "unsupported field 4 of wire type 0 in a"),
        (encode(7, b"12345678", wire.FIXED64), "unsupported field 7 of wire type 1 in a"),
        (encode(1, 1) * 2, "field 1 stands 2 times in a Sample"),
        (encode(8, b"") + encode(9, b""), "a Sample has two values"),
        (encode(3, 1 << 31), "over 32 bits"),
        (encode(3, 1 << 32), "over 32 bits"),
        (encode(2, b"\x01\xff"), "truncated"),
        (encode(2, b"\x81\x00"), "too many bytes"),
        (encode(4, b"\xff"), "not UTF-8"),
        (encode(5, b"\xed\xa0\x80"), "not UTF-8"),
        (encode(4, b"a\0b"), "a NUL"),
        (encode(10, encode(1, b"k") * 2), "field 1 stands 2 times in a StringString"),
    ],
    ids=str,
)
def test_a_damaged_message_is_refused_with_a_remedy(data, problem):
    with pytest.raises(WireError, match=f"{problem}.*; export the bundle again"):
        message(data)


@pytest.mark.parametrize("data", [encode(2, 1) * 3, encode(2, b"\1\1"), encode(10, encode(1, b"k") + encode(2, b"v"))])
def test_more_fields_than_the_limit_are_refused_over_all_messages_of_a_reader(monkeypatch, data):
    monkeypatch.setattr(wire, "MAX_FIELDS", 5)
    reader, view = WireReader(), memoryview(data)
    reader.message(view, SCHEMA)
    with pytest.raises(WireError, match="more than 5 fields; simplify the graph"):
        reader.message(view, SCHEMA)


def test_a_message_over_the_size_that_protobuf_reads_is_refused(monkeypatch):
    monkeypatch.setattr(wire, "MAX_BYTES", 5)
    assert message(encode(6, b"123")) == {6: [b"123"]}
    with pytest.raises(WireError, match="more than 5 bytes; simplify the graph"):
        message(encode(6, b"1234"))


def test_varints_end_where_the_next_value_starts():
    data = memoryview(encode_varint(300) + encode_varint(5))
    assert varint(data, 0) == (300, 2) and varint(data, 2) == (5, 3)
    assert varint(memoryview(encode_varint((1 << 64) - 1)), 0) == ((1 << 64) - 1, 10)


def test_values_are_read_by_their_kind():
    fields = message(
        encode(1, -1) + encode(3, -(1 << 31)) + encode(4, "né".encode()) + encode(5, b"a") + encode(5, b"")
    )
    assert fields == {1: [-1], 3: [-(1 << 31)], 4: ["né"], 5: ["a", ""]}
    assert one(fields, 1) == -1 and one(fields, 9) is None and one(fields, 9, 4) == 4


@given(st.lists(whole), st.booleans())
def test_repeated_integers_are_read_packed_or_not(values, packed):
    encoded = b"".join(encode_varint(value % (1 << 64)) for value in values)
    data = encode(2, encoded) if packed else b"".join(encode(2, value) for value in values)
    assert message(data).get(2, []) == values
