"""The reader of protobuf's wire format: what was written is read back, and hostile bytes give a typed error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2v_edge.bundle import wire
from t2v_edge.bundle.wire import WireError, WireReader, integer, integers, one, text, texts, varint, view_of

numbers = st.integers(1, (1 << 29) - 1)
whole = st.integers(0, (1 << 64) - 1)


def encode_varint(value: int) -> bytes:
    groups = []
    while True:
        value, low = value >> 7, value & 0x7F
        groups.append(low | (0x80 if value else 0))
        if not value:
            return bytes(groups)


def encode(number: int, value: int | bytes, kind: int | None = None) -> bytes:
    if isinstance(value, int):
        return encode_varint(number << 3) + encode_varint(value)
    if kind is not None:
        return encode_varint(number << 3 | kind) + value
    return encode_varint(number << 3 | wire.BYTES) + encode_varint(len(value)) + value


def message(data: bytes) -> wire.Fields:
    return WireReader().message(memoryview(data))


@given(st.lists(st.tuples(numbers, whole | st.binary(max_size=300))))
def test_fields_are_read_as_they_were_written(written):
    data = b"".join(encode(number, value) for number, value in written)
    fields = list(WireReader().fields(memoryview(data)))
    assert [(f.number, f.value if isinstance(f.value, int) else bytes(f.value)) for f in fields] == written


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_read_or_a_typed_error(data):
    try:
        message(data)
    except WireError as error:
        assert "; " in str(error)


@pytest.mark.parametrize("kind, size", [(wire.FIXED64, 8), (wire.FIXED32, 4)])
def test_fixed_sizes_are_views_of_their_bytes(kind, size):
    assert message(encode(3, bytes(range(size)), kind) + encode(4, 1)) == {3: [bytes(range(size))], 4: [1]}


def test_a_value_is_changed_in_place_through_its_offset():
    data = bytearray(encode(1, b"before") + encode(2, 1) + encode(3, b"after"))
    view = memoryview(data)
    (at,) = (field.at for field in WireReader().fields(view) if field.number == 2)
    view[at] = 7
    assert message(bytes(data)) == {1: [b"before"], 2: [7], 3: [b"after"]}


@pytest.mark.parametrize(
    "data, problem",
    [
        (encode(1, b"cut")[:-1], "truncated"),
        (encode(1, b"1234567", wire.FIXED64), "truncated"),
        (encode_varint(1 << 3), "truncated"),
        (b"\x08" + b"\xff" * 11, "truncated"),
        (encode(0, b"zero"), "damaged"),
        (encode(1, b"", 3), "unknown wire type"),
        (encode(1, b"", 7), "unknown wire type"),
    ],
    ids=["bytes", "fixed64", "no value", "endless varint", "field 0", "a group", "wire type 7"],
)
def test_a_damaged_message_is_refused_with_a_remedy(data, problem):
    with pytest.raises(WireError, match=f"{problem}.*; export the bundle again"):
        message(data)


def test_more_fields_than_the_limit_are_refused_over_all_messages_of_a_reader(monkeypatch):
    monkeypatch.setattr(wire, "MAX_FIELDS", 5)
    reader, data = WireReader(), memoryview(encode(1, 1) * 3)
    reader.message(data)
    with pytest.raises(WireError, match="more than 5 fields; simplify the graph"):
        reader.message(data)


def test_varints_end_where_the_next_value_starts():
    data = memoryview(encode_varint(300) + encode_varint(5))
    assert varint(data, 0) == (300, 2) and varint(data, 2) == (5, 3)


def test_values_are_read_by_their_kind():
    minus_one = (1 << 64) - 1
    fields = message(encode(1, minus_one) + encode(2, "né".encode()) + encode(3, b"a") + encode(3, b"\xff"))
    assert integer(fields, 1) == -1 and integer(fields, 9) == 0 and integer(fields, 9, 4) == 4
    assert text(fields, 2) == "né" and text(fields, 9) == ""
    assert texts(fields, 3) == ["a", "\ufffd"] and texts(fields, 9) == []
    assert one(fields, 9) is None and one(fields, 1) == minus_one


@given(st.lists(whole), st.booleans())
def test_repeated_integers_are_read_packed_or_not(values, packed):
    encoded = b"".join(map(encode_varint, values))
    assert integers(message(encode(5, encoded) if packed else b"".join(encode(5, v) for v in values)), 5) == values


def test_a_repeated_singular_field_is_refused():
    with pytest.raises(WireError, match=r"field 7 stands 2 times"):
        one(message(encode(7, 1) + encode(7, 2)), 7)


def test_values_of_the_wrong_kind_are_refused():
    fields = message(encode(1, b"bytes") + encode(2, 2))
    with pytest.raises(WireError, match="bytes where a number should be"):
        integer(fields, 1)
    for read in (lambda: text(fields, 2), lambda: texts(fields, 2), lambda: view_of(2)):
        with pytest.raises(WireError, match="a number where bytes should be"):
            read()
    with pytest.raises(WireError, match="truncated"):
        integers(message(encode(1, b"\xff")), 1)
